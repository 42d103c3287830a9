//! The keys of the control store: one path of checked names for each kind of record.

use std::fmt;

use proto::agent::{ChangeId, JobId};
use proto::name::{ApiTokenName, Target};
use proto::number::RolloutId;
use proto::{GroupName, HostName, PolicyName, Product, RepositoryName, Version};

/// A key, by what it is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `generation/PRODUCT/VERSION`: a published generation.
    Generation(Product, Version),
    /// `generation/PRODUCT/VERSION/ARCHITECTURE`: the same version for one more architecture.
    Also(Product, Version, String),
    /// `part/HASH/NUMBER`: a piece of a signed record that is too long for one value. `HASH` is the record's BLAKE3.
    Part(String, u16),
    /// `sequence`: the number of the record that was signed last.
    Sequence,
    /// `lists`: below which the numbers of the lists lie that hosts were told.
    Lists,
    /// `export/PRODUCT/VERSION/TARGET`: to whom a generation is exported.
    Export(Product, Version, Target),
    /// `host/HOST`: an enrolled host.
    Host(HostName),
    /// `token/HASH`: a one-time secret, by its hash in hex.
    Token(String),
    /// `group/GROUP`: that there is such a group.
    Group(GroupName),
    /// `group/GROUP/HOST`: that a host is in a group.
    Member(GroupName, HostName),
    /// `label/HOST`: what an operator says of a host.
    Labels(HostName),
    /// `rule/GROUP`: which hosts are in a group by their labels.
    Rule(GroupName),
    /// `job/ID`: a storage operation.
    Job(JobId),
    /// `turn/REPOSITORY/JOB`: that a job is at a repository, by the repository's own id.
    Turn(String, JobId),
    /// `change/ID`: a change-over.
    Change(ChangeId),
    /// `target/PRODUCT/TARGET`: what a host or group should run.
    Target(Product, Target),
    /// `rollout/ID`: a planned change over many hosts.
    Rollout(RolloutId),
    /// `policy/NAME`: what is backed up where and when.
    Policy(PolicyName),
    /// `repository/NAME`: a repository that a media agent serves.
    Repository(RepositoryName),
    /// `grant/NAME/ID`: a token that was given for a repository, until it has ended.
    Grant(RepositoryName, String),
    /// `api-token/NAME`: who may use the HTTP interface.
    ApiToken(ApiTokenName),
    /// `set-aside/KEY`: that a record of an older store could not be brought over.
    SetAside(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Generation(product, version) => write!(f, "generation/{product}/{version}"),
            Key::Also(product, version, machine) => write!(f, "generation/{product}/{version}/{machine}"),
            Key::Part(hash, number) => write!(f, "part/{hash}/{number:04x}"),
            Key::Sequence => f.write_str("sequence"),
            Key::Lists => f.write_str("lists"),
            Key::Export(product, version, target) => write!(f, "export/{product}/{version}/{target}"),
            Key::Host(host) => write!(f, "host/{host}"),
            Key::Token(hash) => write!(f, "token/{hash}"),
            Key::Group(group) => write!(f, "group/{group}"),
            Key::Member(group, host) => write!(f, "group/{group}/{host}"),
            Key::Labels(host) => write!(f, "label/{host}"),
            Key::Rule(group) => write!(f, "rule/{group}"),
            // Hex of fixed width, so that keys are in the order of numbers.
            Key::Job(id) => write!(f, "job/{:016x}", id.0),
            Key::Turn(repository, id) => write!(f, "turn/{repository}/{:016x}", id.0),
            Key::Change(id) => write!(f, "change/{:016x}", id.0),
            Key::Target(product, target) => write!(f, "target/{product}/{target}"),
            Key::Rollout(id) => write!(f, "rollout/{:016x}", id.0),
            Key::Policy(name) => write!(f, "policy/{name}"),
            Key::Repository(name) => write!(f, "repository/{name}"),
            Key::Grant(name, id) => write!(f, "grant/{name}/{id}"),
            Key::ApiToken(name) => write!(f, "api-token/{name}"),
            Key::SetAside(key) => write!(f, "set-aside/{key}"),
        }
    }
}

impl Key {
    /// What a key of the store is of; `None`: nothing that this program knows.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(key) = text.strip_prefix("set-aside/") {
            return Some(Key::SetAside(key.to_owned()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
        let key = match parts.as_slice() {
            ["generation", product, version] => Key::Generation(product.parse().ok()?, version.parse().ok()?),
            ["generation", product, version, machine] if is_architecture(machine) => {
                Key::Also(product.parse().ok()?, version.parse().ok()?, (*machine).to_owned())
            }
            ["part", hash, number] if is_hash(hash) => {
                Key::Part((*hash).to_owned(), u16::from_str_radix(number, 16).ok()?)
            }
            ["sequence"] => Key::Sequence,
            ["lists"] => Key::Lists,
            ["export", product, version, target] => {
                Key::Export(product.parse().ok()?, version.parse().ok()?, target.parse().ok()?)
            }
            ["host", host] => Key::Host(host.parse().ok()?),
            ["token", hash] if is_hash(hash) => Key::Token((*hash).to_owned()),
            ["group", group] => Key::Group(group.parse().ok()?),
            ["group", group, host] => Key::Member(group.parse().ok()?, host.parse().ok()?),
            ["label", host] => Key::Labels(host.parse().ok()?),
            ["rule", group] => Key::Rule(group.parse().ok()?),
            ["job", id] => Key::Job(JobId(number(id)?)),
            ["turn", repository, id] if is_hash(repository) => {
                Key::Turn((*repository).to_owned(), JobId(number(id)?))
            }
            ["change", id] => Key::Change(ChangeId(number(id)?)),
            ["target", product, target] => Key::Target(product.parse().ok()?, target.parse().ok()?),
            ["grant", name, id] if is_grant(id) => Key::Grant(name.parse().ok()?, (*id).to_owned()),
            ["repository", name] => Key::Repository(name.parse().ok()?),
            ["api-token", name] => Key::ApiToken(name.parse().ok()?),
            ["rollout", id] => Key::Rollout(RolloutId(number(id)?)),
            ["policy", name] => Key::Policy(name.parse().ok()?),
            _ => return None,
        };
        // One way to write each, or two keys would be of the same thing.
        (key.to_string() == text).then_some(key)
    }
}

/// As they are drawn: 16 hex digits.
fn is_grant(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name that a part of a key and of a file's name can have.
pub fn is_architecture(text: &str) -> bool {
    let is_sign = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (1..=32).contains(&text.len()) && text.bytes().all(is_sign)
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_is_read_as_it_is_written() {
        let (product, version): (Product, Version) = ("data-agent".parse().unwrap(), "1:2.0~rc1+b".parse().unwrap());
        let (host, group): (HostName, GroupName) = ("web-1.example".parse().unwrap(), "all".parse().unwrap());
        let keys = [
            Key::Generation(product.clone(), version.clone()),
            Key::Also(product.clone(), version.clone(), String::from("x86_64")),
            Key::Part("0f".repeat(32), 3),
            Key::Sequence,
            Key::Lists,
            Key::Export(product.clone(), version.clone(), Target::Host(host.clone())),
            Key::Export(product.clone(), version, Target::Group(group.clone())),
            Key::Target(product.clone(), Target::Host(host.clone())),
            Key::Target(product, Target::Group(group.clone())),
            Key::Rollout(RolloutId(1 << 50)),
            Key::Host(host.clone()),
            Key::Token("ab".repeat(32)),
            Key::Group(group.clone()),
            Key::Member(group, host),
            Key::Job(JobId(1 << 50)),
            Key::Turn("5e".repeat(32), JobId(1 << 50)),
            Key::Change(ChangeId(7)),
            Key::Policy("nightly".parse().unwrap()),
            Key::Repository("vault".parse().unwrap()),
            Key::Grant("vault".parse().unwrap(), "5e".repeat(8)),
            Key::ApiToken("on-call".parse().unwrap()),
            Key::SetAside(String::from("job/0000000000000007")),
        ];
        for key in keys {
            assert_eq!(Key::parse(&key.to_string()), Some(key.clone()), "{key}");
        }
        let number = "job/000000000000000G";
        for bad in
            ["", "host", "host/", "host/a/b", "job/7", number, "sequence/x", "generation/p/1/A", "x/y", "host/-"]
        {
            assert_eq!(Key::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_longest_names_make_a_key_that_may_be_written() {
        let longest = Key::Export(
            "p".repeat(64).parse().unwrap(),
            "v".repeat(128).parse().unwrap(),
            Target::Host("h".repeat(253).parse().unwrap()),
        );
        assert!(longest.to_string().len() <= super::super::super::contract::KEY_BYTES_MAX);
    }
}
