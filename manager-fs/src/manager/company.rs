//! Who is together with whom: what runs on the hosts, and what its generation says of itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use proto::{GenerationRecord, HostName, Product, TreeId};

use super::control::{ControlError, State};
use super::metadata::{self, MetadataError};
use super::skew::{self, Member, Role, Skew, Standing};
use super::store::Store;
use super::worker::{BrokenOff, command};
use crate::sync::lock;

/// Trees whose standing is remembered; what a tree says never changes.
const REMEMBERED_MAX: usize = 4096;

/// Why a generation does not come among those that are there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompanyError {
    /// They would not understand each other.
    #[error(transparent)]
    Skew(#[from] Skew),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why nobody knows what a tree says.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// What is known of all agents.
pub(crate) struct Company {
    state: Arc<State>,
    store: Arc<Store>,
    known: Mutex<HashMap<TreeId, Option<Standing>>>,
}

impl Company {
    pub(crate) fn new(state: &Arc<State>, store: &Arc<Store>) -> Self {
        Self { state: Arc::clone(state), store: Arc::clone(store), known: Mutex::default() }
    }

    /// Holds an order against what runs. A generation that says nothing of its standing is not judged, and nobody is
    /// held against it: whether it understands a job shows when one is ordered.
    ///
    /// # Errors
    /// See [`CompanyError`].
    pub(crate) async fn check(
        &self,
        record: &GenerationRecord,
        hosts: &BTreeSet<HostName>,
    ) -> Result<(), CompanyError> {
        let Some(ordered) = self.standing(record.tree).await else { return Ok(()) };
        let serving = self.serving().await?;
        let is_used = |host: &HostName| serving.contains(&(host.clone(), record.product.clone()));
        // Nobody says anything to a media agent that serves nothing.
        let alone = ordered.role == Role::Media && !hosts.iter().any(is_used);
        let there = if alone { Vec::new() } else { self.members(&serving).await? };
        Ok(skew::check(&record.name(), ordered, &there)?)
    }

    /// Whose media agents serve repositories.
    async fn serving(&self) -> Result<BTreeSet<(HostName, Product)>, ControlError> {
        let all = self.state.repositories().await?;
        Ok(all.into_iter().map(|(_, repository)| (repository.host, repository.product)).collect())
    }

    /// Every agent that says what it is, of data agents all, of media agents those that serve.
    async fn members(&self, serving: &BTreeSet<(HostName, Product)>) -> Result<Vec<Member>, ControlError> {
        let mut members = Vec::new();
        for (host, status) in self.state.observations().statuses().await? {
            if self.state.host(&host).is_none_or(|known| known.revoked.is_some()) {
                continue;
            }
            for agent in &status.agents {
                let Some(standing) = self.standing(agent.tree).await else { continue };
                if standing.role == Role::Data || serving.contains(&(host.clone(), agent.product.clone())) {
                    let name = format!("{}@{}", agent.product, agent.version);
                    members.push(Member { host: host.clone(), name, standing });
                }
            }
        }
        Ok(members)
    }

    /// What the generation of a tree says of itself. One that the store does not have any more, or cannot read, says
    /// nothing.
    async fn standing(&self, tree: TreeId) -> Option<Standing> {
        if let Some(known) = lock(&self.known).get(&tree) {
            return *known;
        }
        let store = Arc::clone(&self.store);
        let said = match command(move || Ok::<_, Unread>(metadata::standing(&store, &tree)?)).await {
            Ok(said) => said,
            Err(error) => {
                tracing::info!(%tree, %error, "what this version says of its standing is not known");
                return None;
            }
        };
        let mut known = lock(&self.known);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(tree, said);
        said
    }
}
