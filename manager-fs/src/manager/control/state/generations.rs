//! Published generations: their signed records.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::PublisherKey;
use proto::record::RecordFault;
use proto::{GenerationRecord, GenerationRef, Product, SignedRecord, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, ControlStore, Expect, Revision, VALUE_BYTES_MAX};
pub use super::keys::is_architecture;
use super::{Key, State, decode, encode};

/// Bytes of a signed record that one value holds; a longer one lies in parts.
pub(in crate::manager::control) const PART_BYTES: usize = VALUE_BYTES_MAX - (64 << 10);

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
    /// It names several, so that the operator must say more.
    #[error("'{wanted}' could be any of{}\nname it as product@version", lines(.found))]
    Ambiguous {
        /// What was asked for.
        wanted: GenerationRef,
        /// Their names and trees.
        found: Vec<(String, TreeId)>,
    },
    /// It is published for several architectures, and one tree is asked for.
    #[error("'{wanted}' has a tree for each of several architectures: name one of{}", lines(.found))]
    SeveralTrees {
        /// What was asked for.
        wanted: GenerationRef,
        /// Their architectures and trees.
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

/// A published generation: its record as it was signed, and as it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The record file's bytes, as sent to hosts.
    pub signed: Vec<u8>,
    /// What is in it.
    pub record: GenerationRecord,
    /// Whether its version was published for another architecture before.
    pub is_also: bool,
    /// When it was written into the control state.
    pub changed: Revision,
}

/// What stands under the key of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::manager::control) enum GenerationHead {
    /// The signed record.
    Whole(Vec<u8>),
    /// The signed record in parts.
    Parts {
        /// Its BLAKE3, hex: the parts' keys.
        hash: String,
        /// How many there are.
        count: u16,
    },
}

impl Generation {
    /// Reads and verifies a record, wherever it lies.
    pub(super) async fn read(
        store: &dyn ControlStore,
        key: &Key,
        head: GenerationHead,
        changed: Revision,
    ) -> Result<Self, ControlError> {
        let damaged = |reason: String| ControlError::Damaged { key: key.to_string(), reason };
        let signed = match head {
            GenerationHead::Whole(signed) => signed,
            GenerationHead::Parts { hash, count } => {
                let mut signed = Vec::new();
                for number in 0..count {
                    let part = store.get(&Key::Part(hash.clone(), number).to_string()).await?;
                    let part = part.ok_or_else(|| damaged(format!("part {number} of {count} is missing")))?;
                    signed.extend(decode::<Vec<u8>>(&part)?);
                }
                signed
            }
        };
        let record = verify(&signed).map_err(|fault| damaged(fault.to_string()))?;
        let is_also = matches!(key, Key::Also(..));
        let found = Self { signed, record, is_also, changed };
        if *key != found.key() {
            return Err(damaged(format!("it is the record of {}", found.record.name())));
        }
        Ok(found)
    }

    /// What it is called beside others: of an architecture that came later with that.
    pub fn full_name(&self) -> String {
        match &self.record.metadata.architecture {
            Some(architecture) if self.is_also => format!("{}@{architecture}", self.record.name()),
            _ => self.record.name(),
        }
    }

    fn key(&self) -> Key {
        key_of(&self.record, self.is_also)
    }

    /// Its key, and those of the parts that its signed record lies in.
    fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.signed.len() > PART_BYTES {
            let hash = blake3::hash(&self.signed).to_hex().to_string();
            let parts = (0..).zip(self.signed.chunks(PART_BYTES));
            keys.extend(parts.map(|(number, _)| Key::Part(hash.clone(), number).to_string()));
        }
        keys.push(self.key().to_string());
        keys
    }
}

impl State {
    /// Every generation, ordered by product, then by the order of publication. A version that is published for several
    /// architectures is several.
    pub fn generations(&self) -> Vec<Arc<Generation>> {
        let mut generations: Vec<_> = self.view.read().each_generation().cloned().collect();
        generations
            .sort_by(|a, b| (&a.record.product, a.record.sequence).cmp(&(&b.record.product, b.record.sequence)));
        generations
    }

    /// The generations of one version, that which was published first in front.
    pub fn generations_of(&self, product: &Product, version: &Version) -> Vec<Arc<Generation>> {
        self.view.read().of_version(&(product.clone(), version.clone())).cloned().collect()
    }

    /// The generation with this name: of several architectures the first.
    pub fn generation(&self, product: &Product, version: &Version) -> Option<Arc<Generation>> {
        self.view.read().generations.get(&(product.clone(), version.clone())).cloned()
    }

    /// The generation with this name and tree, or else the first with this name.
    pub fn generation_of(&self, product: &Product, version: &Version, tree: &TreeId) -> Option<Arc<Generation>> {
        let found = self.generations_of(product, version);
        found.iter().find(|generation| generation.record.tree == *tree).or(found.first()).cloned()
    }

    /// Makes a generation visible: as a new version, or `also` for an architecture that its version was not published for.
    /// `sign` gets the number of the record and returns it signed; it is called again when
    /// another was signed meanwhile. Numbers are in the order of publication, and none is used twice.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] on the generation's key: the name is taken. Those of `sign`. The control state failed.
    pub async fn add_generation<E: From<ControlError>>(
        &self,
        product: &Product,
        version: &Version,
        also: Option<&str>,
        sign: impl Fn(u64) -> Result<Vec<u8>, E> + Send,
    ) -> Result<Arc<Generation>, E> {
        let first = Key::Generation(product.clone(), version.clone()).to_string();
        let key = match also {
            Some(architecture) => Key::Also(product.clone(), version.clone(), architecture.to_owned()).to_string(),
            None => first.clone(),
        };
        let sequence_key = Key::Sequence.to_string();
        loop {
            let last = self.read::<u64>(&Key::Sequence).await?;
            let expect = last.as_ref().map_or(Expect::Absent, |(_, changed)| Expect::At(*changed));
            let sequence = self.newest_sequence().max(last.map_or(0, |(last, _)| last)) + 1;
            let head = self.put_parts(sign(sequence)?).await?;
            let mut changes = vec![
                Change::put(&key, Expect::Absent, encode(&key, &head).map_err(E::from)?),
                Change::put(&sequence_key, expect, encode(&sequence_key, &sequence).map_err(E::from)?),
            ];
            if also.is_some() {
                // It may have been taken back meanwhile, and this with it.
                let there = self.generation(product, version).map(|first| Expect::At(first.changed));
                changes.push(Change::check(&first, there.ok_or(ControlError::Conflict { key: first.clone() })?));
            }
            match self.commit(changes).await {
                Ok(_) => break,
                Err(ControlError::Conflict { key }) if key == sequence_key => {}
                Err(error) => return Err(error.into()),
            }
        }
        let damaged = || ControlError::Damaged { key: key.clone(), reason: String::from("it cannot be read back") };
        let added = self.generations_of(product, version).into_iter().find(|found| found.key().to_string() == key);
        added.ok_or_else(|| damaged().into())
    }

    /// A record may be restored, or its counter lost: no number is below one that is known.
    fn newest_sequence(&self) -> u64 {
        self.view.read().each_generation().map(|generation| generation.record.sequence).max().unwrap_or(0)
    }

    async fn put_parts(&self, signed: Vec<u8>) -> Result<GenerationHead, ControlError> {
        if signed.len() <= PART_BYTES {
            return Ok(GenerationHead::Whole(signed));
        }
        let hash = blake3::hash(&signed).to_hex().to_string();
        let mut count = 0;
        for part in signed.chunks(PART_BYTES) {
            let key = Key::Part(hash.clone(), count).to_string();
            self.commit(vec![Change::put(&key, Expect::Any, encode(&key, &part.to_vec())?)]).await?;
            count += 1;
        }
        Ok(GenerationHead::Parts { hash, count })
    }

    /// Removes a version, for all architectures, with its exports.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn remove_generation(&self, product: &Product, version: &Version) -> Result<(), ControlError> {
        let of_this = self.exports().into_iter().filter(|e| e.product == *product && e.version == *version);
        let mut keys: Vec<String> =
            of_this.map(|export| Key::Export(export.product, export.version, export.target).to_string()).collect();
        // The first one last: what is left if this is broken off can be taken back again.
        keys.extend(self.generations_of(product, version).iter().rev().flat_map(|generation| generation.keys()));
        self.delete_all(keys).await
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
            _ if matches!(wanted, GenerationRef::Named(..)) => {
                let architecture =
                    |record: &GenerationRecord| record.metadata.architecture.clone().unwrap_or_default();
                let found = found.iter().map(|found| (architecture(&found.record), found.record.tree)).collect();
                Err(GenerationError::SeveralTrees { wanted: wanted.clone(), found })
            }
            _ => Err(ambiguous(wanted, &found)),
        }
    }

    fn resolve_among(
        &self,
        wanted: &GenerationRef,
        product: Option<&Product>,
    ) -> Result<Arc<Generation>, GenerationError> {
        let mut found = self.matching(wanted, product)?;
        if matches!(wanted, GenerationRef::Named(..)) {
            // A version is one thing, whatever architectures it is for.
            found.retain(|generation| !generation.is_also);
        }
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
        let mut found = self.generations();
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

/// Where the record of a version lies that is the first of it, or `also` there.
pub(in crate::manager::control) fn key_of(record: &GenerationRecord, also: bool) -> Key {
    let (product, version) = (record.product.clone(), record.version.clone());
    match &record.metadata.architecture {
        Some(architecture) if also => Key::Also(product, version, architecture.clone()),
        _ => Key::Generation(product, version),
    }
}

/// Reads a record that this manager signed.
///
/// # Errors
/// It is damaged or was changed after it was signed.
pub fn verify(signed: &[u8]) -> Result<GenerationRecord, RecordFault> {
    let parsed = SignedRecord::from_bytes(signed)?;
    // The manager's own database: whoever can change a record there can sign one too. The check finds damage.
    let key = PublisherKey::from_bytes(&parsed.publisher).ok_or(RecordFault::BadSignature)?;
    parsed.verify(&[key])
}

fn ambiguous(wanted: &GenerationRef, found: &[Arc<Generation>]) -> GenerationError {
    let found = found.iter().map(|generation| (generation.record.name(), generation.record.tree)).collect();
    GenerationError::Ambiguous { wanted: wanted.clone(), found }
}
