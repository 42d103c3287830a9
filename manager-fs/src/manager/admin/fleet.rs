//! Commands on hosts, groups and tokens, and what runs where.

use proto::agent::StepEvent;
use proto::name::Target;
use proto::{GroupName, HostName};

use super::message::{AgentView, ChangedView, HostView};
use super::refusal::CatalogError;
use crate::manager::control::HostStatus;
use crate::manager::control::tokens::TokenRecord;
use crate::manager::error::ManagerError;
use crate::manager::whole::Manager;
use crate::manager::{identity, now};

/// The hosts.
pub(super) struct Fleet<'a>(pub(super) &'a Manager);

impl Fleet<'_> {
    /// Every host.
    pub(super) async fn hosts(&self) -> Result<Vec<HostView>, ManagerError> {
        let mut statuses = self.0.state.observations().statuses().await?;
        let hosts = self.0.state.hosts().into_iter().map(|(name, record)| {
            let status = statuses.remove(&name).map_or_else(HostStatus::default, |status| HostStatus::clone(&status));
            let connected_since = self.0.connections.connected_since(&name);
            HostView {
                connected_since,
                last_seen: if connected_since.is_some() { now() } else { status.last_seen },
                enrolled: record.enrolled,
                certificate_expires: record.newest_certificate_ends(),
                revoked: record.revoked,
                groups: self.0.state.groups_of(&name).into_iter().collect(),
                software: status.software,
                attached: status.attached,
                wrong_hashes: status.wrong_hashes,
                name,
            }
        });
        Ok(hosts.collect())
    }

    /// Every agent that hosts have reported.
    pub(super) async fn agents(&self) -> Result<Vec<AgentView>, ManagerError> {
        let mut agents = Vec::new();
        let observations = self.0.state.observations();
        for (host, _) in self.0.state.hosts() {
            let status = observations.status(&host).await?;
            let connected = self.0.connections.connected_since(&host).is_some();
            for agent in status.agents.clone() {
                let steps = observations.steps(&host, &agent.product).await?;
                agents.push(AgentView {
                    host: host.clone(),
                    connected,
                    last_seen: if connected { now() } else { status.last_seen },
                    last_change: last_change(steps),
                    status: agent,
                });
            }
        }
        Ok(agents)
    }

    /// Adds hosts to a group, making it if need be.
    pub(super) async fn add_to_group(
        &self,
        group: &GroupName,
        hosts: &[HostName],
    ) -> Result<ChangedView, ManagerError> {
        let before = self.0.state.hosts_of(&Target::Group(group.clone())).unwrap_or_default();
        self.0.state.add_members(group, hosts).await?;
        self.0.connections.exports_changed(hosts.iter().cloned());
        let new: Vec<HostName> = hosts.iter().filter(|host| !before.contains(*host)).cloned().collect();
        self.0.targets.joined(group, &new).await?;
        let targets = vec![Target::Group(group.clone())];
        Ok(ChangedView { targets, not_enrolled: self.0.exports.not_enrolled(hosts) })
    }

    /// Removes hosts from a group, which must exist.
    pub(super) async fn remove_from_group(
        &self,
        group: &GroupName,
        hosts: &[HostName],
    ) -> Result<ChangedView, ManagerError> {
        self.0.state.hosts_of(&Target::Group(group.clone()))?;
        self.0.state.remove_members(group, hosts).await?;
        self.0.connections.exports_changed(hosts.iter().cloned());
        Ok(ChangedView { targets: vec![Target::Group(group.clone())], not_enrolled: Vec::new() })
    }

    /// Deletes a group and the exports to it.
    pub(super) async fn delete_group(&self, group: &GroupName) -> Result<(), ManagerError> {
        let members = self.0.state.hosts_of(&Target::Group(group.clone()))?;
        self.0.state.delete_group(group).await?;
        self.0.connections.exports_changed(members);
        Ok(())
    }

    /// A one-time enrolment token.
    pub(super) async fn remove_damaged(&self, key: &str) -> Result<(), ManagerError> {
        if !self.0.state.remove_damaged(key).await? {
            return Err(CatalogError::NotDamaged(key.to_owned()).into());
        }
        tracing::warn!(key, "a record that could not be read was removed");
        Ok(())
    }

    pub(super) async fn token(&self, host: &HostName, ttl_ms: u64) -> Result<String, ManagerError> {
        let token = self.0.identity.token()?;
        let record = TokenRecord { host: host.clone(), expires: now().saturating_add(ttl_ms), used: None };
        self.0.state.add_token(&identity::secret_hash(&token.secret), &record, now()).await?;
        tracing::info!(%host, "token printed");
        Ok(token.to_string())
    }
}

/// The steps of the last change-over or start: those since the last change of number.
fn last_change(mut steps: Vec<StepEvent>) -> Vec<StepEvent> {
    let Some(last) = steps.last().map(|event| event.change) else { return steps };
    let since = steps.iter().rposition(|event| event.change != last).map_or(0, |at| at + 1);
    steps.split_off(since)
}
