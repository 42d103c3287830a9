//! `save` and `load`: generations that go to another manager, or come from one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::PublisherKey;

use super::catalog::{Catalog, place_of};
use super::message::{LoadOrder, Loaded, LoadedView, path_of};
use super::progress::Reporter;
use super::refusal::CatalogError;
use crate::manager::control::generations::Generation;
use crate::manager::crossing::{self, Order, Saved};
use crate::manager::error::ManagerError;
use crate::manager::publish::{PublishStats, Published};
use crate::manager::whole::Manager;

/// Copies generations into a file.
pub(super) fn save(
    manager: &Manager,
    order: &Order,
    monitor: &Reporter,
    cancelled: &AtomicBool,
) -> Result<Saved, ManagerError> {
    let mut generations: Vec<Arc<Generation>> = Vec::new();
    for wanted in &order.generations {
        let record = &manager.state.resolve(wanted)?.record;
        generations.extend(manager.state.generations_of(&record.product, &record.version));
    }
    let (file, have) = (path_of(&order.file), order.have.as_deref().map(path_of));
    let saved = crossing::save(&manager.store, &generations, (&file, have.as_deref()), monitor, cancelled)?;
    tracing::info!(file = %file.display(), bytes = saved.bytes, chunks = saved.chunks, "saved");
    Ok(saved)
}

/// Takes generations in. Their trees are what their publisher signed; the records are this manager's own from here on, so
/// that its hosts believe them.
pub(super) fn load(
    manager: &Manager,
    order: &LoadOrder,
    monitor: &Reporter,
    cancelled: &AtomicBool,
) -> Result<Loaded, ManagerError> {
    let catalog = Catalog(manager);
    let mut trusted = vec![PublisherKey::from(manager.identity.publisher().verifying_key())];
    trusted.extend(order.publishers.iter().filter_map(PublisherKey::from_bytes));
    let received = crossing::receive(&manager.store, &path_of(&order.file), &trusted, monitor, cancelled)?;
    let published = received.records.iter().map(|record| Published {
        tree: record.tree,
        manifest_bytes: record.manifest_bytes,
        metadata: record.metadata.clone(),
        architectures: Vec::new(),
        stats: PublishStats::default(),
        guard: manager.store.guard(),
    });
    let published: Vec<Published> = published.collect();
    let all = || received.records.iter().zip(&published);
    // All of them can be what they are called here, before any is visible.
    for (record, published) in all() {
        place_of(&manager.state.generations_of(&record.product, &record.version), published)?;
    }
    if cancelled.load(Ordering::Relaxed) {
        return Err(CatalogError::Cancelled.into());
    }
    let mut loaded =
        Loaded { generations: Vec::new(), new_chunks: received.new_chunks, stored_bytes: received.stored_bytes };
    for (record, published) in all() {
        let (record, already) = catalog.commit_record(&record.product, &record.version, published)?;
        tracing::info!(generation = record.name(), tree = %record.tree, already, "loaded");
        loaded.generations.push(LoadedView { record, already });
    }
    // Until now `gc` had to leave what was received.
    drop(received.guard);
    Ok(loaded)
}

/// The trees that are whole here.
pub(super) fn have(manager: &Manager) -> Result<String, ManagerError> {
    Ok(crossing::list(&manager.store, &manager.state.generations())?.text())
}
