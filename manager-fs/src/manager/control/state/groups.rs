//! Groups of hosts: a key for the group, and one for each member.

use std::collections::BTreeSet;

use proto::name::Target;
use proto::{GroupName, HostName};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::refusal::HostError;
use super::{Key, State, encode};

impl State {
    /// Every group with its hosts.
    pub fn groups(&self) -> Vec<(GroupName, BTreeSet<HostName>)> {
        let tables = self.view.read();
        let of = |group: &GroupName| tables.members.get(group).cloned().unwrap_or_default();
        tables.groups.iter().map(|group| (group.clone(), of(group))).collect()
    }

    /// The groups that a host is in.
    pub fn groups_of(&self, host: &HostName) -> BTreeSet<GroupName> {
        self.view.read().groups_of.get(host).cloned().unwrap_or_default()
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
    /// The control state failed; some may be taken out then.
    pub async fn remove_members(&self, group: &GroupName, hosts: &[HostName]) -> Result<(), ControlError> {
        let hosts: BTreeSet<&HostName> = hosts.iter().collect();
        self.delete_all(hosts.into_iter().map(|host| member(group, host)).collect()).await
    }

    /// Deletes a group and the exports to it.
    ///
    /// # Errors
    /// [`HostError::UnknownGroup`]. The control state failed; the group is still there then, and can be deleted again.
    pub async fn delete_group(&self, group: &GroupName) -> Result<(), HostError> {
        let target = Target::Group(group.clone());
        let members = self.hosts_of(&target)?;
        let exports = self.exports().into_iter().filter(|export| export.target == target);
        // What it permits goes first, what it is called by last.
        let mut keys: Vec<String> =
            exports.map(|export| Key::Export(export.product, export.version, export.target).to_string()).collect();
        keys.extend(self.keys_of_target(&target));
        keys.extend(members.iter().map(|host| member(group, host)));
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
                Ok(tables.members.get(group).cloned().unwrap_or_default())
            }
        }
    }
}

fn member(group: &GroupName, host: &HostName) -> String {
    Key::Member(group.clone(), host.clone()).to_string()
}
