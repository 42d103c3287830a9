//! Who may see and fetch what: the one place that decides it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, HostName, TreeId};

use super::connections::Connections;
use super::control::generations::{Export, Generation, GenerationError};
use super::control::hosts::HostError;
use super::control::{ControlError, State};
use super::now;
use super::worker::{BrokenOff, blocking};

/// Keys of the control state that decide who may see what.
const DECIDING: [&str; 3] = ["generation/", "export/", "group/"];

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
        /// Where.
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
    /// It was not looked up.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// What an export, or taking one back, has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The targets for which something changed.
    pub(crate) targets: Vec<Target>,
    /// Hosts among all targets that are not enrolled: they see it as soon as they are.
    pub(crate) not_enrolled: Vec<HostName>,
}

/// Decides who may see what.
pub(crate) struct Exports {
    state: Arc<State>,
    connections: Arc<Connections>,
    permissions: Mutex<Permissions>,
}

/// Who may fetch what, as of one state of the keys that decide it.
#[derive(Default)]
struct Permissions {
    /// Revision of the control state up to which `trees` is known to be right.
    revision: u64,
    trees: BTreeMap<HostName, Arc<BTreeSet<TreeId>>>,
}

impl Exports {
    /// Over the control state; hosts hear of changes over their connections.
    pub(crate) fn new(state: Arc<State>, connections: Arc<Connections>) -> Self {
        Self { state, connections, permissions: Mutex::default() }
    }

    /// The signed records of everything that is exported to a host.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn records_of(&self, host: &HostName) -> Result<Vec<Vec<u8>>, ControlError> {
        Ok(self.state.exported_to(host)?.iter().map(|generation| generation.signed.clone()).collect())
    }

    /// Whether a generation, by its name, is exported to a host.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn is_exported(&self, host: &HostName, record: &GenerationRecord) -> Result<bool, ControlError> {
        let exported = self.state.exported_to(host)?;
        Ok(exported.iter().any(|exported| exported.record.name() == record.name()))
    }

    /// Whether a tree is exported to a host.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn permits(&self, host: &HostName, tree: &TreeId) -> Result<bool, ControlError> {
        match self.known(host) {
            Some(trees) => Ok(trees.contains(tree)),
            None => Ok(self.look_up(host)?.contains(tree)),
        }
    }

    /// Lets a host have a tree, or not; a refusal is logged.
    ///
    /// # Errors
    /// [`ExportError::NotExported`], or the control state failed.
    pub(crate) async fn check(self: &Arc<Self>, host: &HostName, tree: &TreeId) -> Result<(), ExportError> {
        let permits = match self.known(host) {
            Some(trees) => trees.contains(tree),
            None => {
                let (exports, host, tree) = (Arc::clone(self), host.clone(), *tree);
                blocking(move || exports.permits(&host, &tree).map_err(ExportError::from)).await?
            }
        };
        if permits {
            return Ok(());
        }
        tracing::warn!(%host, %tree, "a host asked for a tree that is not exported to it");
        Err(ExportError::NotExported(format!("tree {tree}")))
    }

    /// The one tree exported to the host that a reference means.
    ///
    /// # Errors
    /// [`ExportError::NotExported`], [`ExportError::SeveralTrees`], or the control state failed.
    pub(crate) fn one_exported(&self, host: &HostName, wanted: &GenerationRef) -> Result<TreeId, ExportError> {
        let exported = self.state.exported_to(host)?;
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
    /// There is no such group, or the control state failed.
    pub(crate) fn export(&self, generation: &Generation, targets: &[Target]) -> Result<Changed, ExportError> {
        let hosts = self.hosts_of(targets)?;
        let mut changed = Changed { not_enrolled: self.not_enrolled(&hosts)?, ..Changed::default() };
        for target in targets {
            if self.state.add_export(&export(&generation.record, target, now()))? {
                tracing::info!(generation = generation.record.name(), %target, "exported");
                changed.targets.push(target.clone());
            }
        }
        self.connections.exports_changed(hosts);
        Ok(changed)
    }

    /// Takes exports back, unless a host that would lose the generation has it attached; with `force` there too.
    ///
    /// # Errors
    /// [`ExportError::Attached`], there is no such generation or group, or the control state failed.
    pub(crate) fn unexport(
        &self,
        wanted: &GenerationRef,
        targets: &[Target],
        force: bool,
    ) -> Result<Changed, ExportError> {
        let generation = self.state.resolve(wanted)?;
        let record = &generation.record;
        let affected = self.hosts_of(targets)?;
        if !force {
            self.check_not_attached(record, targets, &affected)?;
        }
        let mut changed = Changed { not_enrolled: self.not_enrolled(&affected)?, ..Changed::default() };
        for target in targets {
            if self.state.remove_export(&export(record, target, 0))? {
                tracing::info!(generation = record.name(), %target, "no longer exported");
                changed.targets.push(target.clone());
            }
        }
        self.connections.exports_changed(affected);
        Ok(changed)
    }

    /// Which hosts have which trees attached.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn attached(&self) -> Result<BTreeMap<TreeId, BTreeSet<HostName>>, ControlError> {
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

    /// The hosts of these that are not enrolled.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn not_enrolled<'a>(
        &self,
        hosts: impl IntoIterator<Item = &'a HostName>,
    ) -> Result<Vec<HostName>, ControlError> {
        let mut absent = Vec::new();
        for host in hosts {
            if self.state.host(host)?.is_none() {
                absent.push(host.clone());
            }
        }
        Ok(absent)
    }

    fn hosts_of(&self, targets: &[Target]) -> Result<BTreeSet<HostName>, HostError> {
        let mut hosts = BTreeSet::new();
        for target in targets {
            hosts.extend(self.state.hosts_of(target)?);
        }
        Ok(hosts)
    }

    fn check_not_attached(
        &self,
        record: &GenerationRecord,
        targets: &[Target],
        affected: &BTreeSet<HostName>,
    ) -> Result<(), ExportError> {
        let holding = self.attached()?.remove(&record.tree).unwrap_or_default();
        let exports = self.state.exports()?;
        for host in affected.intersection(&holding) {
            let groups = self.state.groups_of(host)?;
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

    /// A host's trees, if they were looked up since the last change of what decides.
    fn known(&self, host: &HostName) -> Option<Arc<BTreeSet<TreeId>>> {
        let permissions = self.permissions();
        if permissions.revision != *self.state.store().revision().borrow() {
            return None;
        }
        permissions.trees.get(host).cloned()
    }

    /// Looks a host's trees up, in the control state if something that decides has changed. Readers of it do not wait for
    /// each other.
    fn look_up(&self, host: &HostName) -> Result<Arc<BTreeSet<TreeId>>, ControlError> {
        let revision = *self.state.store().revision().borrow();
        let known_at = self.permissions().revision;
        if known_at != revision {
            let history = self.state.store().history("", known_at);
            let decides = |key: &str| DECIDING.iter().any(|prefix| key.starts_with(prefix));
            let unchanged = history.is_ok_and(|events| !events.iter().any(|event| decides(&event.key)));
            let mut permissions = self.permissions();
            if permissions.revision < revision {
                if !unchanged || permissions.revision != known_at {
                    permissions.trees.clear();
                }
                permissions.revision = revision;
            }
            if let Some(trees) = permissions.trees.get(host).filter(|_| permissions.revision == revision) {
                return Ok(Arc::clone(trees));
            }
        }
        let exported = self.state.exported_to(host)?;
        let trees = Arc::new(exported.iter().map(|generation| generation.record.tree).collect::<BTreeSet<_>>());
        let mut permissions = self.permissions();
        // Read at `revision` or later: right for as long as nothing after `revision` has been taken into account.
        if permissions.revision == revision {
            permissions.trees.insert(host.clone(), Arc::clone(&trees));
        }
        Ok(trees)
    }

    fn permissions(&self) -> MutexGuard<'_, Permissions> {
        self.permissions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn export(record: &GenerationRecord, target: &Target, since: u64) -> Export {
    Export { product: record.product.clone(), version: record.version.clone(), target: target.clone(), since }
}
