//! Groups of hosts: a key for the group, one for each host that was added to it, and one for its rule; and the labels
//! that rules are about, a key for each host.

use std::collections::{BTreeMap, BTreeSet};

use proto::name::Target;
use proto::{GroupName, HostName};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::refusal::HostError;
use super::{Key, State, encode};
use crate::manager::labels::{LABELS_MAX, LabelChange, Labels, SELECTORS_MAX, Selector};

impl State {
    /// Every group with its hosts.
    pub fn groups(&self) -> Vec<(GroupName, BTreeSet<HostName>)> {
        let tables = self.view.read();
        tables.groups.iter().map(|group| (group.clone(), tables.members_of(group))).collect()
    }

    /// The groups that a host is in.
    pub fn groups_of(&self, host: &HostName) -> BTreeSet<GroupName> {
        self.view.read().groups_of(host)
    }

    /// The groups that have a rule, with it.
    pub fn rules(&self) -> BTreeMap<GroupName, Vec<Selector>> {
        self.view.read().rules.clone()
    }

    /// What an operator says of a host.
    pub fn labels_of(&self, host: &HostName) -> Labels {
        self.view.read().labels_of(host).clone()
    }

    /// Changes the labels of a host, which need not be enrolled yet.
    ///
    /// # Errors
    /// [`HostError::TooManyLabels`]. The control state failed.
    pub async fn change_labels(&self, host: &HostName, changes: &[LabelChange]) -> Result<(), HostError> {
        self.update(&Key::Labels(host.clone()), |labels: Option<Labels>| {
            let mut labels = labels.unwrap_or_default();
            changes.iter().for_each(|change| change.apply(&mut labels));
            if labels.len() > LABELS_MAX {
                return Err(HostError::TooManyLabels(host.clone()));
            }
            Ok((Some(labels), ()))
        })
        .await
    }

    /// Gives a group a rule, making it if need be; an empty one takes the rule away.
    ///
    /// # Errors
    /// [`HostError::TooManySelectors`]. The control state failed.
    pub async fn set_rule(&self, group: &GroupName, rule: &[Selector]) -> Result<(), HostError> {
        if rule.len() > SELECTORS_MAX {
            return Err(HostError::TooManySelectors(group.clone()));
        }
        let (of_group, of_rule) = (Key::Group(group.clone()).to_string(), Key::Rule(group.clone()).to_string());
        let made = Change::put(&of_group, Expect::Any, encode(&of_group, &())?);
        let ruled = match rule {
            [] => Change::delete(of_rule, Expect::Any),
            _ => Change::put(&of_rule, Expect::Any, encode(&of_rule, &rule.to_vec())?),
        };
        self.commit(vec![made, ruled]).await?;
        Ok(())
    }

    /// Adds hosts to a group, making it if need be.
    ///
    /// # Errors
    /// The control state failed; some may be added then.
    pub async fn add_members(&self, group: &GroupName, hosts: &[HostName]) -> Result<(), ControlError> {
        let mut keys = vec![Key::Group(group.clone()).to_string()];
        keys.extend(hosts.iter().collect::<BTreeSet<_>>().into_iter().map(|host| member(group, host)));
        for keys in keys.chunks(CHANGES_MAX) {
            let put = |key: &String| Ok(Change::put(key, Expect::Any, encode(key, &())?));
            self.commit(keys.iter().map(put).collect::<Result<_, ControlError>>()?).await?;
        }
        Ok(())
    }

    /// Takes hosts out of a group, which stays.
    ///
    /// # Errors
    /// [`HostError::InByRule`]. The control state failed; some may be taken out then.
    pub async fn remove_members(&self, group: &GroupName, hosts: &[HostName]) -> Result<(), HostError> {
        let hosts: BTreeSet<&HostName> = hosts.iter().collect();
        let (added, members) = {
            let tables = self.view.read();
            (tables.added_to(group), tables.members_of(group))
        };
        if let Some(host) = hosts.iter().find(|host| members.contains(**host) && !added.contains(**host)) {
            return Err(HostError::InByRule { group: group.clone(), host: (*host).clone() });
        }
        self.delete_all(hosts.into_iter().map(|host| member(group, host)).collect()).await?;
        Ok(())
    }

    /// Deletes a group and the exports to it.
    ///
    /// # Errors
    /// [`HostError::UnknownGroup`]. The control state failed; the group is still there then, and can be deleted again.
    pub async fn delete_group(&self, group: &GroupName) -> Result<(), HostError> {
        let target = Target::Group(group.clone());
        self.hosts_of(&target)?;
        let added = self.view.read().added_to(group);
        let exports = self.exports().into_iter().filter(|export| export.target == target);
        // What it permits goes first, what it is called by last.
        let mut keys: Vec<String> =
            exports.map(|export| Key::Export(export.product, export.version, export.target).to_string()).collect();
        keys.extend(self.keys_of_target(&target));
        keys.push(Key::Rule(group.clone()).to_string());
        keys.extend(added.iter().map(|host| member(group, host)));
        keys.push(Key::Group(group.clone()).to_string());
        Ok(self.delete_all(keys).await?)
    }

    /// The hosts that a target means now.
    ///
    /// # Errors
    /// [`HostError::UnknownGroup`]. A host is meant whether it is enrolled or not: it may be later.
    pub fn hosts_of(&self, target: &Target) -> Result<BTreeSet<HostName>, HostError> {
        match target {
            Target::Host(host) => Ok(BTreeSet::from([host.clone()])),
            Target::Group(group) => {
                let tables = self.view.read();
                if !tables.groups.contains(group) {
                    return Err(HostError::UnknownGroup(group.clone()));
                }
                Ok(tables.members_of(group))
            }
        }
    }
}

fn member(group: &GroupName, host: &HostName) -> String {
    Key::Member(group.clone(), host.clone()).to_string()
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
