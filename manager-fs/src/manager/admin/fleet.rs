//! Commands on hosts, groups and tokens, and what runs where.

use std::collections::BTreeSet;

use proto::agent::StepEvent;
use proto::name::Target;
use proto::{GroupName, HostName, RepositoryName};

use super::filter::{HOSTS_PAGE, HostFilter, HostState};
use super::message::ChangedView;
use super::refusal::CatalogError;
use super::view::{AgentView, HostView, RepositoryTokenView, RepositoryView};
use crate::manager::control::HostStatus;
use crate::manager::control::hosts::HostRecord;
use crate::manager::control::repositories::{GrantRecord, RepositoryRecord};
use crate::manager::control::tokens::{TOKEN_TTL_MS_MAX, TokenRecord};
use crate::manager::error::ManagerError;
use crate::manager::labels::{LabelChange, Selector, all_match};
use crate::manager::repositories::RepositoriesError;
use crate::manager::whole::Manager;
use crate::manager::{identity, now};

/// The hosts.
pub(super) struct Fleet<'a>(pub(super) &'a Manager);

impl Fleet<'_> {
    /// Every host.
    pub(super) async fn hosts(&self) -> Result<Vec<HostView>, ManagerError> {
        let mut statuses = self.0.state.observations().statuses().await?;
        let hosts = self.0.state.hosts().into_iter().map(|(name, record)| {
            let status = statuses.remove(&name).unwrap_or_default();
            self.view(name, &record, &status)
        });
        Ok(hosts.collect())
    }

    /// Every group, with the hosts that are in it.
    pub(super) fn groups(&self) -> Vec<(GroupName, Vec<HostName>)> {
        let groups = self.0.state.groups().into_iter();
        groups.map(|(group, hosts)| (group, hosts.into_iter().collect())).collect()
    }

    /// The first hosts that are meant, [`HOSTS_PAGE`] at most. What each last said is read for these alone.
    pub(super) async fn page(&self, filter: &HostFilter) -> Result<Vec<HostView>, ManagerError> {
        let state = &self.0.state;
        let mut named = BTreeSet::new();
        for target in &filter.to {
            if let Target::Host(host) = target {
                state.known_host(host)?;
            }
            named.extend(state.hosts_of(target)?);
        }
        let mut page = Vec::new();
        for (name, record) in state.hosts() {
            let past = filter.after.as_ref().is_none_or(|after| name > *after);
            let is_named = filter.to.is_empty() || named.contains(&name);
            let is_labelled = filter.labels.is_empty() || all_match(&filter.labels, &state.labels_of(&name));
            if !(past && is_named && is_labelled && self.is_in(filter.state, &name, &record)) {
                continue;
            }
            let status = state.observations().status(&name).await?;
            page.push(self.view(name, &record, &status));
            if page.len() == HOSTS_PAGE {
                break;
            }
        }
        Ok(page)
    }

    fn is_in(&self, wanted: Option<HostState>, host: &HostName, record: &HostRecord) -> bool {
        let Some(wanted) = wanted else { return true };
        let state = match (record.revoked, self.0.connections.connected_since(host)) {
            (Some(_), _) => HostState::Revoked,
            (None, Some(_)) => HostState::Connected,
            (None, None) => HostState::Away,
        };
        state == wanted
    }

    fn view(&self, name: HostName, record: &HostRecord, status: &HostStatus) -> HostView {
        let connected_since = self.0.connections.connected_since(&name);
        HostView {
            connected_since,
            last_seen: if connected_since.is_some() { now() } else { status.last_seen },
            enrolled: record.enrolled,
            certificate_expires: record.newest_certificate_ends(),
            revoked: record.revoked,
            groups: self.0.state.groups_of(&name).into_iter().collect(),
            labels: self.0.state.labels_of(&name),
            software: status.software.clone(),
            machine: self.0.connections.machine(&name),
            attached: status.attached.clone(),
            wrong_hashes: status.wrong_hashes.clone(),
            name,
        }
    }

    /// Changes labels; who comes to a group by that sees what it may see, and gets what it runs.
    pub(super) async fn label(&self, of: &[Target], changes: &[LabelChange]) -> Result<(), ManagerError> {
        let mut hosts = BTreeSet::new();
        for target in of {
            hosts.extend(self.0.state.hosts_of(target)?);
        }
        for host in hosts {
            let before = self.0.state.groups_of(&host);
            self.0.state.change_labels(&host, changes).await?;
            let after = self.0.state.groups_of(&host);
            self.moved(&host, &before, &after).await?;
        }
        Ok(())
    }

    /// Gives a group a rule.
    pub(super) async fn set_rule(&self, group: &GroupName, rule: &[Selector]) -> Result<(), ManagerError> {
        let target = Target::Group(group.clone());
        let before = self.0.state.hosts_of(&target).unwrap_or_default();
        self.0.state.set_rule(group, rule).await?;
        let after = self.0.state.hosts_of(&target)?;
        self.0.connections.exports_changed(before.symmetric_difference(&after).cloned());
        let new: Vec<HostName> = after.difference(&before).cloned().collect();
        self.0.targets.joined(group, &new).await?;
        tracing::info!(%group, hosts = after.len(), "the group has another rule");
        Ok(())
    }

    async fn moved(
        &self,
        host: &HostName,
        before: &BTreeSet<GroupName>,
        after: &BTreeSet<GroupName>,
    ) -> Result<(), ManagerError> {
        if before == after {
            return Ok(());
        }
        self.0.connections.exports_changed([host.clone()]);
        for group in after.difference(before) {
            self.0.targets.joined(group, std::slice::from_ref(host)).await?;
        }
        Ok(())
    }

    /// Every repository that is served.
    pub(super) async fn repositories(&self) -> Result<Vec<RepositoryView>, ManagerError> {
        let all = self.0.state.repositories().await?.into_iter();
        let view = |(name, record): (_, RepositoryRecord)| {
            let RepositoryRecord { host, product, path, address, created, certificate, .. } = record;
            RepositoryView { name, host, product, path, address, created, certificate }
        };
        Ok(all.map(view).collect())
    }

    /// Every token of a repository that has not ended, or ended lately.
    pub(super) async fn tokens_of(&self, name: &RepositoryName) -> Result<Vec<RepositoryTokenView>, ManagerError> {
        self.0.state.repository(name).await.map_err(RepositoriesError::from)?;
        let view = |(id, GrantRecord { access, created, until, revoked })| RepositoryTokenView {
            id,
            access,
            created,
            until,
            revoked,
        };
        Ok(self.0.state.grants(name).await?.into_iter().map(view).collect())
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
        if ttl_ms > TOKEN_TTL_MS_MAX {
            return Err(CatalogError::TokenTooLong.into());
        }
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
