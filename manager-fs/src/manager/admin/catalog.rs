//! Commands on generations and their exports, and on the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::limits::RECORD_BYTES_MAX;
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, HostName, Product, SignedRecord, TreeId};

use super::diff::{DiffReport, compare};
use super::message::{ChangedView, GenerationView, PublishOrder, PublishReport};
use super::progress::Reporter;
use super::refusal::CatalogError;
use crate::manager::control::ControlError;
use crate::manager::control::exports::Export;
use crate::manager::control::generations::Generation;
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
        let options = PublishOptions {
            onto,
            entry_point: order.entry_point.clone(),
            chunk_bytes: order.chunk_bytes,
            strict: order.strict,
        };
        let published = publish::publish(&self.0.store, &source, &options, monitor, cancelled)?;
        // Whoever asked is gone: nothing becomes visible any more.
        if cancelled.load(Ordering::Relaxed) {
            return Err(CatalogError::Cancelled.into());
        }
        let (record, already) = match self.0.state.generation(&order.product, &order.version) {
            Some(existing) => (same_or_refused(&existing.record, &published)?, true),
            None => self.commit_record(order, &published)?,
        };
        tracing::info!(generation = record.name(), tree = %record.tree, already, "published");
        Ok(PublishReport {
            record,
            already,
            read_bytes: published.stats.read_bytes,
            new_chunks: published.stats.new_chunks,
            stored_bytes: published.stats.stored_bytes,
        })
    }

    /// Signs and commits the record; whether somebody else has published the same a moment ago.
    fn commit_record(
        &self,
        order: &PublishOrder,
        published: &Published,
    ) -> Result<(GenerationRecord, bool), ManagerError> {
        let (product, version) = (&order.product, &order.version);
        let sign = |sequence| self.sign(order, published, sequence);
        match waiting(self.0.state.add_generation(product, version, sign)) {
            Ok(generation) => {
                // It is published; that its copy is missing is made good at the next start.
                if let Err(error) = self.0.records.put(&generation) {
                    tracing::error!(generation = generation.record.name(), %error, "its record is not written as a file");
                }
                Ok((generation.record.clone(), false))
            }
            Err(ManagerError::Control(ControlError::Conflict { key })) => {
                let existing = self.0.state.generation(product, version);
                let existing = existing.ok_or(ControlError::Conflict { key })?;
                Ok((same_or_refused(&existing.record, published)?, true))
            }
            Err(error) => Err(error),
        }
    }

    fn sign(&self, order: &PublishOrder, published: &Published, sequence: u64) -> Result<Vec<u8>, ManagerError> {
        let record = GenerationRecord {
            product: order.product.clone(),
            version: order.version.clone(),
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
        if let Some(export) = view.exports.first() {
            return Err(CatalogError::Exported { name, target: export.target.clone() }.into());
        }
        let others = self.0.state.generations();
        let others = others.iter().filter(|other| other.record.tree == view.record.tree).count();
        if let Some(host) = view.attached.first().filter(|_| others == 1) {
            return Err(CatalogError::Attached { name, host: host.clone() }.into());
        }
        self.0.state.remove_generation(&view.record.product, &view.record.version).await?;
        let (records, record) = (Arc::clone(&self.0.records), view.record);
        let removed = blocking(move || {
            if let Err(error) = records.remove(&record) {
                tracing::error!(generation = record.name(), %error, "its record still lies as a file");
            }
            Ok::<_, ManagerError>(())
        });
        removed.await?;
        tracing::info!(generation = name, "unpublished");
        Ok(())
    }

    /// Every generation, or those of a product.
    pub(super) async fn generations(&self, product: Option<&Product>) -> Result<Vec<GenerationView>, ManagerError> {
        let generations = self.0.state.generations().into_iter();
        let wanted = generations.filter(|g| product.is_none_or(|product| *product == g.record.product));
        let (exports, attached) = (self.0.state.exports(), self.0.exports.attached().await?);
        Ok(wanted.map(|generation| view(&generation, &exports, &attached)).collect())
    }

    /// One generation.
    pub(super) async fn generation(&self, wanted: &GenerationRef) -> Result<GenerationView, ManagerError> {
        let generation = self.0.state.resolve(wanted)?;
        Ok(view(&generation, &self.0.state.exports(), &self.0.exports.attached().await?))
    }

    /// What differs between two trees.
    pub(super) fn diff(&self, old: &GenerationRef, new: &GenerationRef) -> Result<DiffReport, ManagerError> {
        let old = self.0.store.tree(&self.0.state.resolve_tree(old)?)?;
        let new = self.0.store.tree(&self.0.state.resolve_tree(new)?)?;
        Ok(compare(&old, &new))
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
        let tree = self.0.state.resolve_tree(wanted)?;
        let bundles = self.0.bundles.reset(&tree)?;
        tracing::info!(%tree, bundles, "recorded starts forgotten");
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

/// Publishing the same thing twice is no error; something else under the same name is.
fn same_or_refused(existing: &GenerationRecord, published: &Published) -> Result<GenerationRecord, CatalogError> {
    let name = existing.name();
    if existing.tree != published.tree {
        return Err(CatalogError::OtherTree { name, existing: existing.tree, source_tree: published.tree });
    }
    if existing.metadata != published.metadata {
        return Err(CatalogError::OtherMetadata(name));
    }
    Ok(existing.clone())
}

fn view(
    generation: &Arc<Generation>,
    exports: &[Export],
    attached: &BTreeMap<TreeId, BTreeSet<HostName>>,
) -> GenerationView {
    let record = generation.record.clone();
    let (adapter, health_check) = (record.metadata.adapter.clone(), record.metadata.health.check.clone());
    let publisher = SignedRecord::from_bytes(&generation.signed).map(|signed| signed.publisher).unwrap_or_default();
    let of_this = exports.iter().filter(|e| e.product == record.product && e.version == record.version);
    GenerationView {
        exports: of_this.cloned().collect(),
        attached: attached.get(&record.tree).into_iter().flatten().cloned().collect(),
        publisher: blake3::Hash::from_bytes(publisher).to_hex().to_string(),
        record,
        adapter,
        health_check,
    }
}
