//! Commands on generations and their exports, and on the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::limits::RECORD_BYTES_MAX;
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, HostName, Product, SignedRecord, TreeId, Version};

use super::architecture::Architecture;
use super::diff::{ArchitectureDiff, compare};
use super::message::{ChangedView, GenerationView, PublishOrder, PublishReport};
use super::progress::Reporter;
use super::refusal::CatalogError;
use crate::manager::control::ControlError;
use crate::manager::control::exports::Export;
use crate::manager::control::generations::{Generation, is_architecture};
use crate::manager::error::ManagerError;
use crate::manager::exports::Changed;
use crate::manager::ingest;
use crate::manager::now;
use crate::manager::publish::{self, PublishError, PublishOptions, Published};
use crate::manager::store::GcReport;
use crate::manager::whole::Manager;
use crate::manager::worker::{blocking, waiting};

/// What is published.
pub(super) struct Catalog<'a>(pub(super) &'a Manager);

impl From<Changed> for ChangedView {
    fn from(changed: Changed) -> Self {
        Self { targets: changed.targets, not_enrolled: changed.not_enrolled }
    }
}

impl Catalog<'_> {
    /// Takes files in and makes them a generation.
    pub(super) fn publish(
        &self,
        order: &PublishOrder,
        monitor: &Reporter,
        cancelled: &AtomicBool,
    ) -> Result<PublishReport, ManagerError> {
        let source = order.source_path();
        if !ingest::is_absolute(&source) {
            return Err(CatalogError::RelativeSource(source).into());
        }
        let onto = order.onto.as_ref().map(|base| self.0.state.resolve_tree(base)).transpose()?;
        let mut options = PublishOptions {
            onto,
            entry_point: order.entry_point.clone(),
            chunk_bytes: order.chunk_bytes,
            strict: order.strict,
            architecture: None,
        };
        let publish = |options: &PublishOptions| {
            publish::publish(&self.0.store, &source, options, monitor, cancelled).map_err(ManagerError::from)
        };
        let mut all = vec![publish(&options)?];
        // Of an image for several architectures every one, before any is visible.
        for architecture in all[0].architectures.clone().into_iter().skip(1) {
            options.architecture = Some(architecture);
            all.push(publish(&options)?);
        }
        all.iter().try_for_each(has_its_architecture)?;
        // Whoever asked is gone: nothing becomes visible any more.
        if cancelled.load(Ordering::Relaxed) {
            return Err(CatalogError::Cancelled.into());
        }
        let mut report = PublishReport { already: true, ..PublishReport::default() };
        for published in &all {
            let (record, already) = self.commit_record(&order.product, &order.version, published)?;
            tracing::info!(generation = record.name(), tree = %record.tree, already, "published");
            report.records.push(record);
            report.already &= already;
            report.read_bytes += published.stats.read_bytes;
            report.new_chunks += published.stats.new_chunks;
            report.stored_bytes += published.stats.stored_bytes;
        }
        Ok(report)
    }

    /// Signs and commits the record; whether it was published before.
    pub(super) fn commit_record(
        &self,
        product: &Product,
        version: &Version,
        published: &Published,
    ) -> Result<(GenerationRecord, bool), ManagerError> {
        let sign = |sequence| self.sign(product, version, published, sequence);
        loop {
            let also = match place_of(&self.0.state.generations_of(product, version), published)? {
                Place::Taken(record) => return Ok((*record, true)),
                Place::First => None,
                Place::Also(architecture) => Some(architecture),
            };
            match waiting(self.0.state.add_generation(product, version, also.as_deref(), sign)) {
                Ok(generation) => {
                    // It is published; that its copy is missing is made good at the next start.
                    if let Err(error) = self.0.records.put(&generation) {
                        let name = generation.full_name();
                        tracing::error!(generation = name, %error, "its record is not written as a file");
                    }
                    if generation.is_also {
                        self.0.exports.grown(&generation.record);
                    }
                    return Ok((generation.record.clone(), false));
                }
                // Somebody else has published or taken back something of this version a moment ago.
                Err(ManagerError::Control(ControlError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn sign(
        &self,
        product: &Product,
        version: &Version,
        published: &Published,
        sequence: u64,
    ) -> Result<Vec<u8>, ManagerError> {
        let record = GenerationRecord {
            product: product.clone(),
            version: version.clone(),
            sequence,
            tree: published.tree,
            manifest_bytes: published.manifest_bytes,
            published_unix_ms: now(),
            metadata: published.metadata.clone(),
        };
        let signed = SignedRecord::sign(&record, self.0.identity.publisher()).and_then(|signed| signed.to_bytes());
        let signed = signed.map_err(PublishError::Record)?;
        if signed.len() > RECORD_BYTES_MAX {
            return Err(CatalogError::RecordTooLarge(signed.len()).into());
        }
        Ok(signed)
    }

    /// Takes a generation back that nobody may see any more and nobody has.
    pub(super) async fn unpublish(&self, wanted: &GenerationRef) -> Result<(), ManagerError> {
        let view = self.generation(wanted).await?;
        let name = view.record.name();
        let of_version = self.0.state.generations_of(&view.record.product, &view.record.version);
        if let Some(export) = view.exports.first() {
            return Err(CatalogError::Exported { name, target: export.target.clone() }.into());
        }
        // A tree that stands under another name as well stays.
        let stays = |tree: &TreeId| {
            let mut others = self.0.state.generations().into_iter();
            others.any(|other| other.record.tree == *tree && other.record.name() != name)
        };
        let attached = self.0.exports.attached().await?;
        let leaving = of_version.iter().map(|generation| generation.record.tree).filter(|tree| !stays(tree));
        if let Some(host) = leaving.filter_map(|tree| attached.get(&tree)?.first().cloned()).next() {
            return Err(CatalogError::Attached { name, host }.into());
        }
        self.0.state.remove_generation(&view.record.product, &view.record.version).await?;
        let records = Arc::clone(&self.0.records);
        let removed = blocking(move || {
            for generation in of_version {
                if let Err(error) = records.remove(&generation) {
                    tracing::error!(generation = generation.full_name(), %error, "its record still lies as a file");
                }
            }
            Ok::<_, ManagerError>(())
        });
        removed.await?;
        tracing::info!(generation = name, "unpublished");
        Ok(())
    }

    /// Every generation, or those of a product.
    pub(super) async fn generations(&self, product: Option<&Product>) -> Result<Vec<GenerationView>, ManagerError> {
        let generations = self.0.state.generations().into_iter().filter(|generation| !generation.is_also);
        let wanted = generations.filter(|g| product.is_none_or(|product| *product == g.record.product));
        let (exports, attached) = (self.0.state.exports(), self.0.exports.attached().await?);
        Ok(wanted.map(|generation| self.view(&generation, &exports, &attached)).collect())
    }

    /// One generation.
    pub(super) async fn generation(&self, wanted: &GenerationRef) -> Result<GenerationView, ManagerError> {
        let generation = self.0.state.resolve(wanted)?;
        Ok(self.view(&generation, &self.0.state.exports(), &self.0.exports.attached().await?))
    }

    fn view(
        &self,
        generation: &Arc<Generation>,
        exports: &[Export],
        attached: &BTreeMap<TreeId, BTreeSet<HostName>>,
    ) -> GenerationView {
        let record = generation.record.clone();
        let (adapter, health_check) = (record.metadata.adapter.clone(), record.metadata.health.check.clone());
        let publisher =
            SignedRecord::from_bytes(&generation.signed).map(|signed| signed.publisher).unwrap_or_default();
        let of_this = exports.iter().filter(|e| e.product == record.product && e.version == record.version);
        let of_version = self.0.state.generations_of(&record.product, &record.version);
        let on = of_version.iter().filter_map(|generation| attached.get(&generation.record.tree)).flatten();
        let on: BTreeSet<&HostName> = on.collect();
        let others = of_version.iter().map(|other| &other.record).filter(|other| other.tree != record.tree);
        GenerationView {
            exports: of_this.cloned().collect(),
            attached: on.into_iter().cloned().collect(),
            publisher: blake3::Hash::from_bytes(publisher).to_hex().to_string(),
            others: others.map(Architecture::of).collect(),
            record,
            adapter,
            health_check,
        }
    }

    /// What differs between two generations, for each architecture that both have, or else between their first trees.
    pub(super) fn diff(
        &self,
        old: &GenerationRef,
        new: &GenerationRef,
    ) -> Result<Vec<ArchitectureDiff>, ManagerError> {
        let (old, new) = (self.trees_of(old)?, self.trees_of(new)?);
        let same = |(architecture, _): &&(Option<String>, TreeId)| old.iter().any(|(of, _)| of == architecture);
        let mut pairs: Vec<_> = new
            .iter()
            .filter(same)
            .filter_map(|(architecture, new)| {
                let (_, old) = old.iter().find(|(of, _)| of == architecture)?;
                Some((architecture.clone(), *old, *new))
            })
            .collect();
        if let (true, Some((_, old)), Some((architecture, new))) = (pairs.is_empty(), old.first(), new.first()) {
            pairs.push((architecture.clone(), *old, *new));
        }
        let compared = pairs.into_iter().map(|(architecture, old, new)| {
            let report = compare(&self.0.store.tree(&old)?, &self.0.store.tree(&new)?);
            Ok(ArchitectureDiff { architecture, report })
        });
        compared.collect()
    }

    /// The trees that are meant, with their architectures: of a version all of them.
    fn trees_of(&self, wanted: &GenerationRef) -> Result<Vec<(Option<String>, TreeId)>, ManagerError> {
        let generations = match wanted {
            GenerationRef::Named(..) => {
                let record = &self.0.state.resolve(wanted)?.record;
                self.0.state.generations_of(&record.product, &record.version)
            }
            GenerationRef::TreePrefix(_) => {
                let tree = self.0.state.resolve_tree(wanted)?;
                let mut all = self.0.state.generations();
                all.retain(|generation| generation.record.tree == tree);
                all.truncate(1);
                all
            }
        };
        let of = |record: &GenerationRecord| (record.metadata.architecture.clone(), record.tree);
        Ok(generations.iter().map(|generation| of(&generation.record)).collect())
    }

    /// Lets hosts see a generation.
    pub(super) async fn export(
        &self,
        wanted: &GenerationRef,
        targets: &[Target],
    ) -> Result<ChangedView, ManagerError> {
        let generation = self.0.state.resolve(wanted)?;
        Ok(self.0.exports.export(&generation, targets).await?.into())
    }

    /// Takes that back.
    pub(super) async fn unexport(
        &self,
        wanted: &GenerationRef,
        targets: &[Target],
        force: bool,
    ) -> Result<ChangedView, ManagerError> {
        Ok(self.0.exports.unexport(wanted, targets, force).await?.into())
    }

    /// Forgets what was recorded of a generation's starts.
    pub(super) fn reset_profile(&self, wanted: &GenerationRef) -> Result<(), ManagerError> {
        for (_, tree) in self.trees_of(wanted)? {
            let bundles = self.0.bundles.reset(&tree)?;
            tracing::info!(%tree, bundles, "recorded starts forgotten");
        }
        Ok(())
    }

    /// Removes what nothing needs.
    pub(super) fn gc(&self, dry_run: bool, monitor: &Reporter) -> Result<GcReport, ManagerError> {
        let names_trees =
            |key: &String| ["generation/", "part/", "set-aside/generation/"].iter().any(|kind| key.starts_with(kind));
        if let Some(key) = self.0.state.damaged().into_keys().find(names_trees) {
            return Err(CatalogError::NeedsUnknown(key).into());
        }
        let pass = self.0.store.begin_gc();
        // After the pass has begun: a publication that ends meanwhile is kept by its guard.
        let mut keep: BTreeSet<TreeId> = waiting(self.0.exports.attached())?.into_keys().collect();
        keep.extend(self.0.state.generations().iter().map(|generation| generation.record.tree));
        Ok(pass.run(&keep, dry_run, monitor)?)
    }
}

/// Where what was published belongs.
pub(super) enum Place {
    /// It is published already.
    Taken(Box<GenerationRecord>),
    /// There is nothing of its version yet.
    First,
    /// Its version is there, and not for this architecture.
    Also(String),
}

/// Publishing the same thing twice is no error, and neither is the same version for another architecture; something else
/// under the same name is.
pub(super) fn place_of(of_version: &[Arc<Generation>], published: &Published) -> Result<Place, CatalogError> {
    let Some(first) = of_version.first() else { return Ok(Place::First) };
    let architecture = &published.metadata.architecture;
    let same = of_version.iter().find(|generation| generation.record.metadata.architecture == *architecture);
    let named = |generation: &Arc<Generation>| generation.record.metadata.architecture.is_some();
    let existing = match (architecture, same) {
        (Some(architecture), None) if of_version.iter().all(named) => {
            if is_architecture(architecture) {
                return Ok(Place::Also(architecture.clone()));
            }
            return Err(CatalogError::UnknownMachine(architecture.clone()));
        }
        (_, same) => &same.unwrap_or(first).record,
    };
    let name = existing.name();
    if existing.tree != published.tree {
        return Err(CatalogError::OtherTree { name, existing: existing.tree, source_tree: published.tree });
    }
    if existing.metadata != published.metadata {
        return Err(CatalogError::OtherMetadata(name));
    }
    Ok(Place::Taken(Box::new(existing.clone())))
}

/// What an image says of its platforms is believed only as far as its programs say the same: hosts choose by it.
fn has_its_architecture(published: &Published) -> Result<(), CatalogError> {
    let found = &published.metadata.architecture;
    match published.architectures.first() {
        Some(said) if published.architectures.len() > 1 && found.as_ref() != Some(said) => {
            let found = found.clone().unwrap_or_else(|| String::from("no particular machine"));
            Err(CatalogError::OtherMachine { said: said.clone(), found })
        }
        _ => Ok(()),
    }
}
