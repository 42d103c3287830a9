//! Commands on generations, exports, hosts and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use anyhow::{bail, ensure};
use proto::limits::RECORD_BYTES_MAX;
use proto::message::Fault;
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, GroupName, HostName, Product, SignedRecord, TreeId};

use super::progress::Reporter;
use super::{AdminReply, GcView, GenerationView, HostView, PublishOrder, PublishReport, VerifyView};
use crate::manager::control::generations::{self, Export, Generation};
use crate::manager::control::hosts::TokenRecord;
use crate::manager::publish::{self, PublishOptions, Published};
use crate::manager::server::Manager;
use crate::manager::{identity, now};

impl Manager {
    /// Takes files in and makes them a generation.
    pub(super) fn publish(
        &self,
        order: &PublishOrder,
        monitor: &Reporter,
        cancelled: &AtomicBool,
    ) -> anyhow::Result<PublishReport> {
        let source = order.source_path();
        ensure!(source.is_absolute(), Fault::BadRequest(format!("{} is not absolute", source.display())));
        let onto = order.onto.as_ref().map(|base| self.state.resolve_tree(base)).transpose()?;
        let options = PublishOptions { onto, entry_point: order.entry_point.clone(), chunk_bytes: order.chunk_bytes };
        let published = publish::publish(&self.store, &source, &options, monitor, cancelled)?;
        // Whoever asked is gone: nothing becomes visible any more.
        ensure!(!cancelled.load(Ordering::Relaxed), "cancelled; nothing was published");
        // From the choice of the number to the commit: numbers are in the order of publication.
        let _alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, already) = match self.state.generation(&order.product, &order.version)? {
            Some(existing) => (same_or_refused(&existing.record, &published)?, true),
            None => (self.commit_record(order, &published)?, false),
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

    fn commit_record(&self, order: &PublishOrder, published: &Published) -> anyhow::Result<GenerationRecord> {
        let record = GenerationRecord {
            product: order.product.clone(),
            version: order.version.clone(),
            sequence: self.state.next_number("generation")?,
            tree: published.tree,
            manifest_bytes: published.manifest_bytes,
            published_unix_ms: now(),
            metadata: published.metadata.clone(),
        };
        let signed = SignedRecord::sign(&record, self.identity.publisher())?.to_bytes()?;
        ensure!(signed.len() <= RECORD_BYTES_MAX, "the record has {} bytes; too many executables", signed.len());
        self.state.add_generation(&record, &signed)?;
        Ok(record)
    }

    pub(super) fn unpublish(&self, wanted: &GenerationRef) -> anyhow::Result<AdminReply> {
        let view = self.generation_view(wanted)?;
        let name = view.record.name();
        if let Some(export) = view.exports.first() {
            bail!(Fault::BadRequest(format!(
                "{name} is exported to {0}: `manager-fs unexport {name} --from {0}` first",
                export.target
            )));
        }
        let others = self.state.generations()?;
        let others = others.iter().filter(|other| other.record.tree == view.record.tree).count();
        if let Some(host) = view.attached.first().filter(|_| others == 1) {
            bail!(Fault::BadRequest(format!("{name} is attached on {host}")));
        }
        self.state.remove_generation(&view.record.product, &view.record.version)?;
        tracing::info!(generation = name, "unpublished");
        Ok(AdminReply::Done)
    }

    pub(super) fn generation_views(&self, product: Option<&Product>) -> anyhow::Result<Vec<GenerationView>> {
        let generations = self.state.generations()?.into_iter();
        let wanted = generations.filter(|g| product.is_none_or(|product| *product == g.record.product));
        let (exports, attached) = (self.state.exports()?, self.attached()?);
        Ok(wanted.map(|generation| view(&generation, &exports, &attached)).collect())
    }

    pub(super) fn generation_view(&self, wanted: &GenerationRef) -> anyhow::Result<GenerationView> {
        let generation = self.state.resolve(wanted)?;
        Ok(view(&generation, &self.state.exports()?, &self.attached()?))
    }

    /// Which hosts have which trees attached.
    fn attached(&self) -> anyhow::Result<BTreeMap<TreeId, BTreeSet<HostName>>> {
        let mut attached: BTreeMap<TreeId, BTreeSet<HostName>> = BTreeMap::new();
        for (host, record) in self.state.hosts()? {
            // A revoked host has lost its say.
            if record.revoked.is_none() {
                let status = self.state.status(&host)?;
                let running = status.agents.iter().map(|agent| agent.tree);
                for tree in status.attached.iter().copied().chain(running) {
                    attached.entry(tree).or_default().insert(host.clone());
                }
            }
        }
        Ok(attached)
    }

    pub(super) fn unexport(
        &self,
        wanted: &GenerationRef,
        targets: &[Target],
        force: bool,
    ) -> anyhow::Result<Vec<Target>> {
        let generation = self.state.resolve(wanted)?;
        let record = &generation.record;
        let mut affected = BTreeSet::new();
        for target in targets {
            affected.extend(self.state.hosts_of(target)?);
        }
        let holding = self.attached()?.remove(&record.tree).unwrap_or_default();
        let exports = self.state.exports()?;
        let remains = |host: &HostName| -> anyhow::Result<bool> {
            let groups = self.state.groups_of(host)?;
            Ok(exports.iter().any(|export| {
                let same = export.product == record.product && export.version == record.version;
                let reaches = match &export.target {
                    Target::Host(name) => name == host,
                    Target::Group(group) => groups.contains(group),
                };
                same && reaches && !targets.contains(&export.target)
            }))
        };
        for host in affected.intersection(&holding).filter(|_| !force) {
            if !remains(host)? {
                let text = format!("{} is attached on {host}; release it there, or use --force", record.name());
                bail!(Fault::BadRequest(text));
            }
        }
        let mut changed = Vec::new();
        for target in targets {
            let (product, version) = (record.product.clone(), record.version.clone());
            let export = Export { product, version, target: target.clone(), since: 0 };
            if self.state.remove_export(&export)? {
                tracing::info!(generation = record.name(), %target, "no longer exported");
                changed.push(target.clone());
            }
        }
        self.exports_changed(affected);
        Ok(changed)
    }

    pub(super) fn verify(&self, monitor: &Reporter) -> anyhow::Result<AdminReply> {
        let report = self.store.verify(monitor)?;
        let generations = self.state.generations()?;
        let names = |trees: &BTreeSet<TreeId>| -> Vec<String> {
            let touched = generations.iter().filter(|generation| trees.contains(&generation.record.tree));
            touched.map(|generation| generation.record.name()).collect()
        };
        let mut problems: Vec<_> =
            report.problems.into_iter().map(|found| (found.what, found.fault, names(&found.trees))).collect();
        let known: BTreeSet<TreeId> = self.store.trees()?.into_iter().collect();
        for generation in &generations {
            let name = generation.record.name();
            if let Err(fault) = generations::verify(&generation.signed) {
                problems.push((format!("record of {name}"), fault.to_string(), vec![name.clone()]));
            }
            if !known.contains(&generation.record.tree) {
                let what = format!("manifest {}", generation.record.tree);
                problems.push((what, String::from("it is missing"), vec![name]));
            }
        }
        Ok(AdminReply::Verified(VerifyView {
            packs: report.packs,
            bytes: report.bytes,
            chunks: report.chunks,
            manifests: report.manifests,
            objects: report.objects,
            records: generations.len() as u64,
            problems,
        }))
    }

    pub(super) fn gc(&self, dry_run: bool, monitor: &Reporter) -> anyhow::Result<AdminReply> {
        let pass = self.store.begin_gc();
        // After the pass has begun: a publication that ends meanwhile is kept by its guard.
        let mut keep: BTreeSet<TreeId> = self.attached()?.into_keys().collect();
        keep.extend(self.state.generations()?.iter().map(|generation| generation.record.tree));
        let report = pass.run(&keep, dry_run, monitor)?;
        Ok(AdminReply::Collected(GcView {
            dry_run,
            manifests_removed: report.manifests_removed,
            packs_removed: report.packs_removed,
            packs_rewritten: report.packs_rewritten,
            bytes_freed: report.bytes_freed,
            bytes_kept: report.bytes_kept,
        }))
    }

    pub(super) fn host_views(&self) -> anyhow::Result<Vec<HostView>> {
        let hosts = self.state.hosts()?.into_iter().map(|(name, record)| {
            let status = self.state.status(&name)?;
            let connected_since = self.connected_since(&name);
            Ok(HostView {
                connected_since,
                last_seen: if connected_since.is_some() { now() } else { status.last_seen },
                enrolled: record.enrolled,
                certificate_expires: record.newest_certificate_ends(),
                revoked: record.revoked,
                groups: self.state.groups_of(&name)?.into_iter().collect(),
                software: status.software,
                attached: status.attached,
                wrong_hashes: status.wrong_hashes,
                name,
            })
        });
        hosts.collect()
    }

    pub(super) fn change_group(
        &self,
        group: &GroupName,
        hosts: &[HostName],
        add: bool,
    ) -> anyhow::Result<AdminReply> {
        if add {
            hosts.iter().try_for_each(|host| self.state.known_host(host).map(drop))?;
        } else {
            self.state.hosts_of(&Target::Group(group.clone()))?;
        }
        self.state.change_group(group, |members| {
            for host in hosts {
                if add {
                    members.insert(host.clone());
                } else {
                    members.remove(host);
                }
            }
        })?;
        self.exports_changed(hosts.iter().cloned());
        Ok(AdminReply::Done)
    }

    pub(super) fn delete_group(&self, group: &GroupName) -> anyhow::Result<AdminReply> {
        let members = self.state.hosts_of(&Target::Group(group.clone()))?;
        self.state.delete_group(group)?;
        self.exports_changed(members);
        Ok(AdminReply::Done)
    }

    pub(super) fn print_token(&self, host: &HostName, ttl_ms: u64) -> anyhow::Result<String> {
        let token = self.identity.token()?;
        let record = TokenRecord { host: host.clone(), expires: now().saturating_add(ttl_ms), used: None };
        self.state.add_token(&identity::secret_hash(&token.secret), &record, now())?;
        tracing::info!(%host, "token printed");
        Ok(token.to_string())
    }
}

/// Publishing the same thing twice is no error; something else under the same name is.
fn same_or_refused(existing: &GenerationRecord, published: &Published) -> anyhow::Result<GenerationRecord> {
    let name = existing.name();
    if existing.tree != published.tree {
        bail!(Fault::BadRequest(format!(
            "{name} is published already, as tree {}; this source is tree {}. A version never changes: choose another",
            existing.tree, published.tree
        )));
    }
    if existing.metadata != published.metadata {
        bail!(Fault::BadRequest(format!(
            "{name} is published already with the same tree but other metadata (entry point?). A version never \
             changes: choose another"
        )));
    }
    Ok(existing.clone())
}

fn view(
    generation: &Arc<Generation>,
    exports: &[Export],
    attached: &BTreeMap<TreeId, BTreeSet<HostName>>,
) -> GenerationView {
    let record = generation.record.clone();
    let publisher = SignedRecord::from_bytes(&generation.signed).map(|signed| signed.publisher).unwrap_or_default();
    let of_this = exports.iter().filter(|e| e.product == record.product && e.version == record.version);
    GenerationView {
        exports: of_this.cloned().collect(),
        attached: attached.get(&record.tree).into_iter().flatten().cloned().collect(),
        publisher: blake3::Hash::from_bytes(publisher).to_hex().to_string(),
        record,
    }
}
