//! Hosts, their certificates, groups and tokens, and what the hosts report.

use std::collections::BTreeSet;
use std::str::FromStr;

use proto::agent::{AgentStatus, StepEvent};
use proto::message::Unix;
use proto::name::Target;
use proto::{GroupName, HostName, Product, TreeId};
use serde::{Deserialize, Serialize};

use super::{Change, ControlError, Expect, State};

/// Steps remembered of one agent: some twenty change-overs.
const HISTORY_STEPS: usize = 200;
/// Bytes of their details; the evidence of a failed version is up to 16 KiB.
const HISTORY_DETAIL_BYTES: usize = 256 << 10;
/// Wrong hashes remembered of one host.
const WRONG_HASHES: usize = 20;

/// Why a host, group or token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// No host of this name is enrolled.
    #[error("host '{0}' is not enrolled; `manager-fs hosts` lists those that are")]
    Unknown(HostName),
    /// There is no such group.
    #[error("group '{0}' does not exist; `manager-fs host group list` lists those that do")]
    UnknownGroup(GroupName),
    /// The host may not connect.
    #[error(
        "host '{host}' {why}: to let it in again, `manager-fs token {host}` on the manager, then \
         `manager-fs enroll --force` with that token on the host"
    )]
    ShutOut {
        /// Which.
        host: HostName,
        /// Why.
        why: ShutOut,
    },
    /// The token enrols nobody.
    #[error("{0}; print a new one with `manager-fs token`")]
    Token(TokenFault),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why a host is shut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShutOut {
    /// It never enrolled, or with another manager.
    #[error("is not known to this manager")]
    Unknown,
    /// An operator revoked it.
    #[error("was revoked")]
    Revoked,
    /// The certificate that it shows was replaced by an enrolment.
    #[error("was enrolled anew since, and this certificate is no longer accepted")]
    EnrolledAnew,
}

/// What is wrong with an enrolment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Another manager's, or long gone.
    #[error("this manager did not print this token")]
    Unknown,
    /// It has enrolled a host already.
    #[error("this token was used before, it enrols only once")]
    Used,
    /// Its time is over.
    #[error("this token has expired")]
    Expired,
}

/// One enrolled host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// When it last enrolled.
    pub enrolled: Unix,
    /// The certificates that are accepted from it.
    pub certificates: Vec<IssuedCertificate>,
    /// When it was revoked; it may enrol again with a new token.
    pub revoked: Option<Unix>,
}

impl HostRecord {
    /// When the last of its certificates ends; `None`: it has none that is accepted.
    pub fn newest_certificate_ends(&self) -> Option<Unix> {
        self.certificates.iter().map(|issued| issued.not_after).max()
    }
}

/// A certificate that was issued to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Serial number, hex.
    pub serial: String,
    /// When it ends.
    pub not_after: Unix,
}

/// A token that was printed and may still be used, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Whom it enrols.
    pub host: HostName,
    /// Until when.
    pub expires: Unix,
    /// When it was used.
    pub used: Option<Unix>,
}

/// What a host last said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Version of its `manager-fs`.
    pub software: String,
    /// When it was last heard of.
    pub last_seen: Unix,
    /// Its agents.
    pub agents: Vec<AgentStatus>,
    /// The trees attached there.
    pub attached: Vec<TreeId>,
    /// The last wrong hashes that it found, with times.
    pub wrong_hashes: Vec<(Unix, String)>,
}

impl State {
    /// Every host.
    ///
    /// # Errors
    /// The control state failed.
    pub fn hosts(&self) -> Result<Vec<(HostName, HostRecord)>, ControlError> {
        let found: Vec<(String, HostRecord)> = self.read_all("host/")?;
        found.into_iter().map(|(key, record)| Ok((named(&key, "host/")?, record))).collect()
    }

    /// One host.
    ///
    /// # Errors
    /// The control state failed.
    pub fn host(&self, host: &HostName) -> Result<Option<HostRecord>, ControlError> {
        Ok(self.read(&host_key(host))?.map(|(record, _)| record))
    }

    /// One host, which must exist.
    ///
    /// # Errors
    /// [`HostError::Unknown`], or the control state failed.
    pub fn known_host(&self, host: &HostName) -> Result<HostRecord, HostError> {
        self.host(host)?.ok_or_else(|| HostError::Unknown(host.clone()))
    }

    /// Whether this certificate is still accepted from this host.
    ///
    /// # Errors
    /// [`HostError::ShutOut`] with the reason.
    pub fn admit(&self, host: &HostName, serial: &str) -> Result<(), HostError> {
        let shut_out = |why| Err(HostError::ShutOut { host: host.clone(), why });
        match self.host(host)? {
            None => shut_out(ShutOut::Unknown),
            Some(record) if record.revoked.is_some() => shut_out(ShutOut::Revoked),
            Some(record) if record.certificates.iter().all(|issued| issued.serial != serial) => {
                shut_out(ShutOut::EnrolledAnew)
            }
            Some(_) => Ok(()),
        }
    }

    /// Records an enrolment: only the new certificate is accepted from now on.
    ///
    /// # Errors
    /// The control state failed.
    pub fn enrolled(&self, host: &HostName, certificate: &IssuedCertificate, now: Unix) -> Result<(), ControlError> {
        self.update(&host_key(host), |_: Option<HostRecord>| {
            let certificates = vec![certificate.clone()];
            Ok((Some(HostRecord { enrolled: now, certificates, revoked: None }), ()))
        })
    }

    /// Records a renewal: the old certificate stays accepted until it ends, as the host may crash before it has saved
    /// the new one.
    ///
    /// # Errors
    /// [`HostError::ShutOut`] when the host is gone or revoked.
    pub fn renewed(&self, host: &HostName, certificate: &IssuedCertificate, now: Unix) -> Result<(), HostError> {
        self.update(&host_key(host), |record: Option<HostRecord>| match record {
            Some(mut record) if record.revoked.is_none() => {
                record.certificates.retain(|issued| issued.not_after > now);
                record.certificates.push(certificate.clone());
                Ok((Some(record), ()))
            }
            _ => Err(HostError::ShutOut { host: host.clone(), why: ShutOut::Revoked }),
        })
    }

    /// Revokes a host.
    ///
    /// # Errors
    /// [`HostError::Unknown`], or the control state failed.
    pub fn revoke(&self, host: &HostName, now: Unix) -> Result<(), HostError> {
        self.known_host(host)?;
        self.update(&host_key(host), |record: Option<HostRecord>| {
            Ok((record.map(|record| HostRecord { revoked: Some(now), certificates: Vec::new(), ..record }), ()))
        })
    }

    /// Remembers a token's hash. Tokens that ended more than a week ago are forgotten on the way.
    ///
    /// # Errors
    /// The control state failed.
    pub fn add_token(&self, hash: &str, token: &TokenRecord, now: Unix) -> Result<(), ControlError> {
        const WEEK_MS: u64 = 7 * 24 * 3600 * 1000;
        let tokens: Vec<(String, TokenRecord)> = self.read_all("token/")?;
        let old = tokens.into_iter().filter(|(_, old)| old.expires + WEEK_MS < now);
        let mut changes: Vec<Change> = old.map(|(key, _)| Change::delete(key, Expect::Any)).collect();
        changes.push(Change::put(format!("token/{hash}"), Expect::Absent, super::encode(token)?));
        self.store().commit(&changes).map(drop)
    }

    /// Uses a token up. Of two at the same time one wins.
    ///
    /// # Errors
    /// [`HostError::Token`]: unknown, expired, or used before.
    pub fn use_token(&self, hash: &str, now: Unix) -> Result<HostName, HostError> {
        self.update(&format!("token/{hash}"), |token: Option<TokenRecord>| match token {
            None => Err(HostError::Token(TokenFault::Unknown)),
            Some(token) if token.used.is_some() => Err(HostError::Token(TokenFault::Used)),
            Some(token) if token.expires <= now => Err(HostError::Token(TokenFault::Expired)),
            Some(token) => {
                let host = token.host.clone();
                Ok((Some(TokenRecord { used: Some(now), ..token }), host))
            }
        })
    }

    /// Every group with its hosts.
    ///
    /// # Errors
    /// The control state failed.
    pub fn groups(&self) -> Result<Vec<(GroupName, BTreeSet<HostName>)>, ControlError> {
        let found: Vec<(String, BTreeSet<HostName>)> = self.read_all("group/")?;
        found.into_iter().map(|(key, hosts)| Ok((named(&key, "group/")?, hosts))).collect()
    }

    /// The groups that a host is in.
    ///
    /// # Errors
    /// The control state failed.
    pub fn groups_of(&self, host: &HostName) -> Result<BTreeSet<GroupName>, ControlError> {
        let found: Vec<(String, BTreeSet<HostName>)> = self.read_all("group/")?;
        let found = found.into_iter().filter(|(_, hosts)| hosts.contains(host));
        // Only checked names were ever written as keys.
        Ok(found.filter_map(|(key, _)| key["group/".len()..].parse().ok()).collect())
    }

    /// Changes the hosts of a group, making it if need be.
    ///
    /// # Errors
    /// The control state failed.
    pub fn change_group(
        &self,
        group: &GroupName,
        change: impl Fn(&mut BTreeSet<HostName>),
    ) -> Result<(), ControlError> {
        self.update(&format!("group/{group}"), |hosts: Option<BTreeSet<HostName>>| {
            let mut hosts = hosts.unwrap_or_default();
            change(&mut hosts);
            Ok((Some(hosts), ()))
        })
    }

    /// Deletes a group and the exports to it.
    ///
    /// # Errors
    /// [`HostError::UnknownGroup`], or the control state failed.
    pub fn delete_group(&self, group: &GroupName) -> Result<(), HostError> {
        self.hosts_of(&Target::Group(group.clone()))?;
        let mut changes = vec![Change::delete(format!("group/{group}"), Expect::Any)];
        for export in self.exports()?.into_iter().filter(|export| export.target == Target::Group(group.clone())) {
            let key = format!("export/{}/{}/{}", export.product, export.version, export.target);
            changes.push(Change::delete(key, Expect::Any));
        }
        Ok(self.store().commit(&changes).map(drop)?)
    }

    /// The hosts that a target means now. One named by itself need not be enrolled yet.
    ///
    /// # Errors
    /// [`HostError::UnknownGroup`], or the control state failed.
    pub fn hosts_of(&self, target: &Target) -> Result<BTreeSet<HostName>, HostError> {
        match target {
            Target::Host(host) => Ok(BTreeSet::from([host.clone()])),
            Target::Group(group) => {
                let found = self.read(&format!("group/{group}"))?;
                found.map(|(hosts, _)| hosts).ok_or_else(|| HostError::UnknownGroup(group.clone()))
            }
        }
    }

    /// What a host last said.
    ///
    /// # Errors
    /// The control state failed.
    pub fn status(&self, host: &HostName) -> Result<HostStatus, ControlError> {
        Ok(self.read(&format!("status/{host}"))?.map(|(status, _)| status).unwrap_or_default())
    }

    /// Changes what is known of a host's doings.
    ///
    /// # Errors
    /// The control state failed.
    pub fn change_status(&self, host: &HostName, change: impl Fn(&mut HostStatus)) -> Result<(), ControlError> {
        self.update(&format!("status/{host}"), |status: Option<HostStatus>| {
            let mut status = status.unwrap_or_default();
            change(&mut status);
            let surplus = status.wrong_hashes.len().saturating_sub(WRONG_HASHES);
            status.wrong_hashes.drain(..surplus);
            Ok((Some(status), ()))
        })
    }

    /// Adds a step to an agent's history; `false` when it is there already (hosts send again what was not answered).
    ///
    /// # Errors
    /// The control state failed.
    pub fn add_step(&self, host: &HostName, event: &StepEvent) -> Result<bool, ControlError> {
        self.update(&history_key(host, &event.product), |steps: Option<Vec<StepEvent>>| {
            let mut steps = steps.unwrap_or_default();
            if steps.contains(event) {
                return Ok((None, false));
            }
            steps.push(event.clone());
            let surplus = steps.len().saturating_sub(HISTORY_STEPS);
            steps.drain(..surplus);
            let mut bytes = 0;
            let fits = steps.iter().rev().take_while(|step| {
                bytes += step.detail.len();
                bytes <= HISTORY_DETAIL_BYTES
            });
            let kept = fits.count().max(1);
            steps.drain(..steps.len() - kept);
            Ok((Some(steps), true))
        })
    }

    /// The steps of an agent's change-overs, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub fn steps(&self, host: &HostName, product: &Product) -> Result<Vec<StepEvent>, ControlError> {
        Ok(self.read(&history_key(host, product))?.map(|(steps, _)| steps).unwrap_or_default())
    }
}

/// The name in a key. Only checked names were ever written as keys.
fn named<T: FromStr>(key: &str, prefix: &str) -> Result<T, ControlError> {
    let name = key.strip_prefix(prefix).unwrap_or(key);
    name.parse().map_err(|_| ControlError::Damaged { key: key.to_owned(), reason: String::from("it is no name") })
}

fn host_key(host: &HostName) -> String {
    format!("host/{host}")
}

fn history_key(host: &HostName, product: &Product) -> String {
    format!("history/{host}/{product}")
}
