//! Groups of hosts.

use std::collections::BTreeMap;

use proto::{GroupName, HostName};
use schemars::JsonSchema;
use serde::Serialize;

use super::texts;
use crate::manager::labels::Selector;

/// Every group.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GroupsDocument {
    /// By name.
    pub(crate) groups: Vec<GroupDocument>,
}

/// A group.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GroupDocument {
    /// Its name, without @.
    pub(crate) name: String,
    /// Its hosts, also those that are not enrolled.
    pub(crate) hosts: Vec<String>,
    /// What those meet that are in it by their labels.
    pub(crate) rule: Vec<String>,
}

/// A group as it is after a change.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GroupChangedDocument {
    /// Its name, without @.
    group: String,
    /// Its hosts.
    hosts: Vec<String>,
    /// Hosts that were named and are not enrolled yet.
    not_enrolled: Vec<String>,
}

impl GroupsDocument {
    /// These groups, with the rules of some of them.
    pub(crate) fn of(groups: &[(GroupName, Vec<HostName>)], rules: &BTreeMap<GroupName, Vec<Selector>>) -> Self {
        let of = |(name, hosts): &(GroupName, Vec<HostName>)| GroupDocument {
            name: name.to_string(),
            hosts: texts(hosts),
            rule: texts(rules.get(name).into_iter().flatten()),
        };
        Self { groups: groups.iter().map(of).collect() }
    }
}

impl GroupChangedDocument {
    /// This one of all groups. Of one whose last host was removed nothing may be left.
    pub(crate) fn of(group: &GroupName, groups: &[(GroupName, Vec<HostName>)], not_enrolled: &[HostName]) -> Self {
        let hosts = groups.iter().find(|(name, _)| name == group).map(|(_, hosts)| texts(hosts));
        Self { group: group.to_string(), hosts: hosts.unwrap_or_default(), not_enrolled: texts(not_enrolled) }
    }
}
