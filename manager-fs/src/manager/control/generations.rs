//! Published generations, and to whom they are exported.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use ed25519_dalek::VerifyingKey;
use proto::message::Unix;
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, HostName, Product, SignedRecord, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::{Change, ControlError, Expect, State, encode};

/// Why no one generation is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// None is meant.
    #[error("generation '{wanted}'{} is not published; `manager-fs generations` lists what is", of(.product))]
    Unknown {
        /// What was asked for.
        wanted: GenerationRef,
        /// Among the generations of this product.
        product: Option<Product>,
    },
    /// Several are.
    #[error("'{wanted}' could be any of{}\nname it as product@version", lines(.found))]
    Ambiguous {
        /// What was asked for.
        wanted: GenerationRef,
        /// Their names and trees.
        found: Vec<(String, TreeId)>,
    },
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn of(product: &Option<Product>) -> String {
    product.as_ref().map(|product| format!(" of {product}")).unwrap_or_default()
}

fn lines(found: &[(String, TreeId)]) -> String {
    found.iter().map(|(name, tree)| format!("\n  {name}  {tree}")).collect()
}

/// One published generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The record file's bytes, as sent to hosts.
    pub signed: Vec<u8>,
    /// What is in it.
    pub record: GenerationRecord,
}

/// One export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Of which product.
    pub product: Product,
    /// Of which version.
    pub version: Version,
    /// To whom.
    pub target: Target,
    /// Since when.
    pub since: Unix,
}

/// Decoded records by key and version, because each is verified once and asked for often.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<String, (u64, Arc<Generation>)>>);

impl State {
    /// Every generation, ordered by product, then by the order of publication.
    ///
    /// # Errors
    /// The control state failed or a record in it is damaged.
    pub fn generations(&self) -> Result<Vec<Arc<Generation>>, ControlError> {
        let found = self.store().list("generation/")?;
        let mut generations = Vec::with_capacity(found.len());
        let mut cache = self.generations.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, found) in found {
            match cache.get(&key) {
                Some((version, generation)) if *version == found.version => generations.push(Arc::clone(generation)),
                _ => {
                    let generation = Arc::new(decode(&key, &found.value)?);
                    cache.insert(key, (found.version, Arc::clone(&generation)));
                    generations.push(generation);
                }
            }
        }
        generations
            .sort_by(|a, b| (&a.record.product, a.record.sequence).cmp(&(&b.record.product, b.record.sequence)));
        Ok(generations)
    }

    /// The generation with this name.
    ///
    /// # Errors
    /// The control state failed or the record is damaged.
    pub fn generation(&self, product: &Product, version: &Version) -> Result<Option<Arc<Generation>>, ControlError> {
        let key = key(product, version);
        let found = self.store().get(&key)?;
        found.map(|found| decode(&key, &found.value).map(Arc::new)).transpose()
    }

    /// Makes a generation visible.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] when the name is taken.
    pub fn add_generation(&self, record: &GenerationRecord, signed: &[u8]) -> Result<(), ControlError> {
        let key = key(&record.product, &record.version);
        self.store().commit(&[Change::put(key, Expect::Absent, encode(&signed)?)]).map(drop)
    }

    /// Removes a generation and its exports.
    ///
    /// # Errors
    /// The control state failed.
    pub fn remove_generation(&self, product: &Product, version: &Version) -> Result<(), ControlError> {
        let exports = self.store().list(&format!("export/{product}/{version}/"))?;
        let mut changes = vec![Change::delete(key(product, version), Expect::Any)];
        changes.extend(exports.into_iter().map(|(key, _)| Change::delete(key, Expect::Any)));
        self.store().commit(&changes).map(drop)
    }

    /// The one generation that is meant, with its record. A tree under several names is not one.
    ///
    /// # Errors
    /// [`GenerationError`]: none is meant, or several.
    pub fn resolve(&self, wanted: &GenerationRef) -> Result<Arc<Generation>, GenerationError> {
        self.resolve_among(wanted, None)
    }

    /// As [`State::resolve`], among the generations of one product.
    ///
    /// # Errors
    /// As [`State::resolve`].
    pub fn resolve_of(&self, product: &Product, wanted: &GenerationRef) -> Result<Arc<Generation>, GenerationError> {
        self.resolve_among(wanted, Some(product))
    }

    /// The one tree that is meant, under whatever names.
    ///
    /// # Errors
    /// As [`State::resolve`].
    pub fn resolve_tree(&self, wanted: &GenerationRef) -> Result<TreeId, GenerationError> {
        let found = self.matching(wanted, None)?;
        let trees: BTreeSet<TreeId> = found.iter().map(|generation| generation.record.tree).collect();
        match (trees.len(), trees.first()) {
            (1, Some(tree)) => Ok(*tree),
            _ => Err(ambiguous(wanted, &found)),
        }
    }

    /// Every export.
    ///
    /// # Errors
    /// The control state failed.
    pub fn exports(&self) -> Result<Vec<Export>, ControlError> {
        Ok(self.read_all("export/")?.into_iter().map(|(_, export)| export).collect())
    }

    /// Exports a generation; `false` when it was exported so already.
    ///
    /// # Errors
    /// The control state failed.
    pub fn add_export(&self, export: &Export) -> Result<bool, ControlError> {
        self.update(&export_key(export), |old: Option<Export>| {
            Ok(if old.is_some() { (None, false) } else { (Some(export.clone()), true) })
        })
    }

    /// Takes an export back; `false` when there was none.
    ///
    /// # Errors
    /// The control state failed.
    pub fn remove_export(&self, export: &Export) -> Result<bool, ControlError> {
        let key = export_key(export);
        let there = self.store().get(&key)?.is_some();
        if there {
            self.store().commit(&[Change::delete(key, Expect::Any)])?;
        }
        Ok(there)
    }

    /// What is exported to a host, by itself or by its groups.
    ///
    /// # Errors
    /// The control state failed.
    pub fn exported_to(&self, host: &HostName) -> Result<Vec<Arc<Generation>>, ControlError> {
        let groups = self.groups_of(host)?;
        let names: BTreeSet<(Product, Version)> = self
            .exports()?
            .into_iter()
            .filter(|export| match &export.target {
                Target::Host(name) => name == host,
                Target::Group(group) => groups.contains(group),
            })
            .map(|export| (export.product, export.version))
            .collect();
        let mut generations = self.generations()?;
        generations.retain(|generation| {
            names.contains(&(generation.record.product.clone(), generation.record.version.clone()))
        });
        Ok(generations)
    }

    fn resolve_among(
        &self,
        wanted: &GenerationRef,
        product: Option<&Product>,
    ) -> Result<Arc<Generation>, GenerationError> {
        let mut found = self.matching(wanted, product)?;
        match (found.len(), found.pop()) {
            (1, Some(generation)) => Ok(generation),
            (_, last) => {
                found.extend(last);
                Err(ambiguous(wanted, &found))
            }
        }
    }

    fn matching(
        &self,
        wanted: &GenerationRef,
        product: Option<&Product>,
    ) -> Result<Vec<Arc<Generation>>, GenerationError> {
        let mut found = self.generations()?;
        found.retain(|generation| {
            let record = &generation.record;
            wanted.matches(&record.product, &record.version, &record.tree)
                && product.is_none_or(|product| *product == record.product)
        });
        if found.is_empty() {
            return Err(GenerationError::Unknown { wanted: wanted.clone(), product: product.cloned() });
        }
        Ok(found)
    }
}

/// Reads a record that this manager signed.
///
/// # Errors
/// It is damaged or was changed after it was signed.
pub fn verify(signed: &[u8]) -> Result<GenerationRecord, proto::record::RecordFault> {
    let parsed = SignedRecord::from_bytes(signed)?;
    // The manager's own database: whoever can change a record there can sign one too. The check finds damage.
    let key = VerifyingKey::from_bytes(&parsed.publisher).map_err(|_| proto::record::RecordFault::BadSignature)?;
    parsed.verify(&[key])
}

fn decode(key: &str, value: &[u8]) -> Result<Generation, ControlError> {
    let signed: Vec<u8> = super::decode(key, value)?;
    let record =
        verify(&signed).map_err(|fault| ControlError::Damaged { key: key.to_owned(), reason: fault.to_string() })?;
    Ok(Generation { signed, record })
}

fn ambiguous(wanted: &GenerationRef, found: &[Arc<Generation>]) -> GenerationError {
    let found = found.iter().map(|generation| (generation.record.name(), generation.record.tree)).collect();
    GenerationError::Ambiguous { wanted: wanted.clone(), found }
}

fn key(product: &Product, version: &Version) -> String {
    format!("generation/{product}/{version}")
}

fn export_key(export: &Export) -> String {
    format!("export/{}/{}/{}", export.product, export.version, export.target)
}
