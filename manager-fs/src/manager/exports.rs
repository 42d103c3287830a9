//! Who may see and fetch what: the one place that decides it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::message::ManagerReply;
use proto::name::Target;
use proto::record::runs_on;
use proto::{GenerationRecord, GenerationRef, HostName, Product, TreeId, Version};

use super::connections::Connections;
use super::control::generations::{Generation, GenerationError};
use super::control::hosts::HostError;
use super::control::{ControlError, State};
use super::lists::Lists;
use super::now;

/// Why something is not exported, or cannot be taken back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The host may not see it. The same whether it exists or not.
    #[error("{0}")]
    NotExported(String),
    /// The start of an id that several of the host's trees have.
    #[error("{0} is the start of several trees")]
    SeveralTrees(GenerationRef),
    /// A host still has it.
    #[error("{generation} is attached on {host}; release it there, or use --force")]
    Attached {
        /// Which, by name.
        generation: String,
        /// The host on which it is attached.
        host: HostName,
    },
    /// No one generation is meant.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// There is no such group.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What an export, or taking one back, has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The targets for which something changed.
    pub(crate) targets: Vec<Target>,
    /// Hosts among all targets that are not enrolled: they see it as soon as they are.
    pub(crate) not_enrolled: Vec<HostName>,
}

/// Decides who may see what. Whatever is asked with every request is answered from memory.
pub(crate) struct Exports {
    state: Arc<State>,
    connections: Arc<Connections>,
    lists: Lists,
}

impl Exports {
    /// Over the control state; hosts hear of changes over their connections.
    /// The lists that hosts are told are numbered from `first`.
    pub(crate) fn new(state: Arc<State>, connections: Arc<Connections>, first: u64) -> Self {
        Self { state, connections, lists: Lists::after(first) }
    }

    /// The signed records of everything that is exported to a host; of a version for several architectures that of its own.
    pub(crate) fn records_of(&self, host: &HostName) -> Vec<Vec<u8>> {
        self.own_of(host).iter().map(|generation| generation.signed.clone()).collect()
    }

    /// What a host knows of a version, exported to it or not: of several architectures its own, or else the first.
    pub(crate) fn generation_for(
        &self,
        host: &HostName,
        product: &Product,
        version: &Version,
    ) -> Option<Arc<Generation>> {
        own(&self.state.generations_of(product, version), self.connections.machine(host).as_deref())
    }

    /// Why a host cannot run a generation, as far as both have said what they are.
    pub(crate) fn foreign(&self, host: &HostName, generation: &Generation) -> Option<String> {
        let (record, machine) = (&generation.record, self.connections.machine(host)?);
        let architecture = record.metadata.architecture.as_ref().filter(|own| !runs_on(own, &machine))?;
        let all = self.state.generations_of(&record.product, &record.version);
        let mut all: Vec<_> = all.iter().filter_map(|found| found.record.metadata.architecture.as_deref()).collect();
        if all.is_empty() {
            all.push(architecture);
        }
        Some(format!("{} is published for {}, and {host} is {machine}", record.name(), all.join(" and ")))
    }

    /// Of each version that is exported to a host the one generation that it is told of.
    fn own_of(&self, host: &HostName) -> Vec<Arc<Generation>> {
        let machine = self.connections.machine(host);
        let exported = self.state.exported_to(host);
        let mut of_versions: BTreeMap<(Product, Version), Vec<Arc<Generation>>> = BTreeMap::new();
        for generation in exported {
            let record = &generation.record;
            of_versions.entry((record.product.clone(), record.version.clone())).or_default().push(generation);
        }
        let mut own: Vec<_> = of_versions.values().filter_map(|all| own(all, machine.as_deref())).collect();
        own.sort_by(|a, b| (&a.record.product, a.record.sequence).cmp(&(&b.record.product, b.record.sequence)));
        own
    }

    /// What a host is told of its exports that has these records already.
    pub(crate) fn list_for(&self, host: &HostName, have: &[[u8; 32]]) -> ManagerReply {
        self.lists.answer(host, self.records_of(host), have)
    }

    /// Whether a generation, by its name, is exported to a host.
    pub(crate) fn is_exported(&self, host: &HostName, record: &GenerationRecord) -> bool {
        let exported = self.state.exported_to(host);
        exported.iter().any(|exported| exported.record.name() == record.name())
    }

    /// Whether a tree is exported to a host.
    pub(crate) fn permits(&self, host: &HostName, tree: &TreeId) -> bool {
        self.state.permits(host, tree)
    }

    /// Lets a host have a tree, or not; a refusal is logged.
    ///
    /// # Errors
    /// [`ExportError::NotExported`].
    pub(crate) fn check(&self, host: &HostName, tree: &TreeId) -> Result<(), ExportError> {
        if self.permits(host, tree) {
            return Ok(());
        }
        tracing::warn!(%host, %tree, "a host asked for a tree that is not exported to it");
        Err(ExportError::NotExported(format!("tree {tree}")))
    }

    /// The one tree exported to the host that a reference means.
    ///
    /// # Errors
    /// [`ExportError::NotExported`], [`ExportError::SeveralTrees`].
    pub(crate) fn one_exported(&self, host: &HostName, wanted: &GenerationRef) -> Result<TreeId, ExportError> {
        let exported = self.own_of(host);
        let records = exported.iter().map(|generation| &generation.record);
        let matching = records.filter(|record| wanted.matches(&record.product, &record.version, &record.tree));
        let trees: BTreeSet<TreeId> = matching.map(|record| record.tree).collect();
        match (trees.len(), trees.first()) {
            (1, Some(tree)) => Ok(*tree),
            (0, _) => {
                tracing::warn!(%host, generation = %wanted, "a host asked for a generation that is not exported to it");
                Err(ExportError::NotExported(format!("generation {wanted}")))
            }
            _ => Err(ExportError::SeveralTrees(wanted.clone())),
        }
    }

    /// Exports a generation and tells the hosts. A host that is not enrolled yet sees it as soon as it is.
    ///
    /// # Errors
    /// There is no such group, the generation was taken back meanwhile, or the control state failed.
    pub(crate) async fn export(&self, generation: &Generation, targets: &[Target]) -> Result<Changed, ExportError> {
        let hosts = self.hosts_of(targets)?;
        let exported = self.state.add_exports(generation, targets, now()).await;
        let targets = exported.map_err(|error| match error {
            ControlError::Conflict { .. } => ExportError::Generation(taken_back(generation)),
            other => ExportError::Control(other),
        })?;
        for target in &targets {
            tracing::info!(generation = generation.record.name(), %target, "exported");
        }
        let changed = Changed { targets, not_enrolled: self.not_enrolled(&hosts) };
        self.connections.exports_changed(hosts);
        Ok(changed)
    }

    /// A version has come to one more architecture: hosts that see it hear of it.
    pub(crate) fn grown(&self, record: &GenerationRecord) {
        let exports = self.state.exports().into_iter();
        let of_it = exports.filter(|export| export.product == record.product && export.version == record.version);
        let hosts = of_it.flat_map(|export| self.state.hosts_of(&export.target).unwrap_or_default());
        self.connections.exports_changed(hosts.collect::<BTreeSet<HostName>>());
    }

    /// Takes exports back, unless a host that would lose the generation has it attached; with `force` there too.
    ///
    /// # Errors
    /// [`ExportError::Attached`], there is no such generation or group, or the control state failed.
    pub(crate) async fn unexport(
        &self,
        wanted: &GenerationRef,
        targets: &[Target],
        force: bool,
    ) -> Result<Changed, ExportError> {
        let generation = self.state.resolve(wanted)?;
        let record = &generation.record;
        let affected = self.hosts_of(targets)?;
        if !force {
            self.check_not_attached(record, targets, &affected).await?;
        }
        let targets = self.state.remove_exports(&record.product, &record.version, targets).await?;
        for target in &targets {
            tracing::info!(generation = record.name(), %target, "no longer exported");
        }
        let changed = Changed { targets, not_enrolled: self.not_enrolled(&affected) };
        self.connections.exports_changed(affected);
        Ok(changed)
    }

    /// Which hosts have which trees attached.
    ///
    /// # Errors
    /// The observations cannot be read.
    pub(crate) async fn attached(&self) -> Result<BTreeMap<TreeId, BTreeSet<HostName>>, ControlError> {
        let mut attached: BTreeMap<TreeId, BTreeSet<HostName>> = BTreeMap::new();
        for (host, status) in self.state.observations().statuses().await? {
            // A revoked host has lost its say.
            if self.state.host(&host).is_some_and(|record| record.revoked.is_none()) {
                let running = status.agents.iter().map(|agent| agent.tree);
                for tree in status.attached.iter().copied().chain(running) {
                    attached.entry(tree).or_default().insert(host.clone());
                }
            }
        }
        Ok(attached)
    }

    /// The hosts of these that are not enrolled.
    pub(crate) fn not_enrolled<'a>(&self, hosts: impl IntoIterator<Item = &'a HostName>) -> Vec<HostName> {
        hosts.into_iter().filter(|host| self.state.host(host).is_none()).cloned().collect()
    }

    fn hosts_of(&self, targets: &[Target]) -> Result<BTreeSet<HostName>, HostError> {
        let mut hosts = BTreeSet::new();
        for target in targets {
            hosts.extend(self.state.hosts_of(target)?);
        }
        Ok(hosts)
    }

    async fn check_not_attached(
        &self,
        record: &GenerationRecord,
        targets: &[Target],
        affected: &BTreeSet<HostName>,
    ) -> Result<(), ExportError> {
        let mut attached = self.attached().await?;
        let of_version = self.state.generations_of(&record.product, &record.version);
        let trees = of_version.iter().filter_map(|generation| attached.remove(&generation.record.tree));
        let holding: BTreeSet<HostName> = trees.flatten().collect();
        let exports = self.state.exports();
        for host in affected.intersection(&holding) {
            let groups = self.state.groups_of(host);
            let remains = exports.iter().any(|export| {
                let same = export.product == record.product && export.version == record.version;
                let reaches = match &export.target {
                    Target::Host(name) => name == host,
                    Target::Group(group) => groups.contains(group),
                };
                same && reaches && !targets.contains(&export.target)
            });
            if !remains {
                return Err(ExportError::Attached { generation: record.name(), host: host.clone() });
            }
        }
        Ok(())
    }
}

/// Of the generations of a version the one for a machine: that of its very name, one that runs on it, or else the first of
/// all, which can be looked at.
fn own(of_version: &[Arc<Generation>], machine: Option<&str>) -> Option<Arc<Generation>> {
    let by = |is: &dyn Fn(&str, &str) -> bool| {
        let machine = machine?;
        let fits = |found: &&Arc<Generation>| {
            found.record.metadata.architecture.as_deref().is_some_and(|architecture| is(architecture, machine))
        };
        of_version.iter().find(fits)
    };
    let first = || of_version.iter().find(|generation| !generation.is_also).or(of_version.first());
    by(&|architecture, machine| architecture == machine).or_else(|| by(&runs_on)).or_else(first).cloned()
}

fn taken_back(generation: &Generation) -> GenerationError {
    let record = &generation.record;
    let wanted = GenerationRef::Named(record.product.clone(), record.version.clone());
    GenerationError::Unknown { wanted, product: None }
}

#[cfg(test)]
#[path = "exports_tests.rs"]
mod tests;
