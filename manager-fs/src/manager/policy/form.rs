//! A policy as people write it: one TOML file, or the flags of `policy create`. Every refusal names the key, and of a file
//! the line.

use std::collections::BTreeSet;

use proto::agent::Repository;
use proto::backup::BackupOptions;
use proto::limits::{SOURCES_MAX, TAGS_MAX};
use proto::look::Keep;
use proto::means::Commands;
use proto::name::{NameError, Target};
use proto::{CommandName, GroupName, Product, RepositoryName};
use serde::{Deserialize, Serialize};

use super::definition::{AT_REPOSITORY, Place, Policy, UNLIMITED};
use super::machine::vocabulary::Limits;
use super::schedule::Schedule;
use crate::manager::toml_text::{duration_ms, read};

/// Bytes of a policy's text.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Hosts and groups of one policy.
const TARGETS_MAX: usize = 1000;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Nobody waits longer for the load to be spread.
const JITTER_MS_MAX: u64 = DAY_MS;
/// How long a command may take, unless a policy says otherwise.
const COMMAND_MS: u64 = 3600 * 1000;
const RPO_MS_MAX: u64 = 10 * 366 * DAY_MS;

/// Why a text or some flags are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy cannot be used: {0}")]
pub struct NotAPolicy(String);

/// What is typed, not checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "its fields are the keys of docs/policies.md")]
pub struct PolicyForm {
    pub name: String,
    pub hosts: Vec<String>,
    pub sources: Vec<String>,
    pub repository: String,
    pub password_file: Option<String>,
    pub product: Option<String>,
    pub schedule: String,
    pub jitter: Option<String>,
    pub window: Option<String>,
    pub rpo: Option<String>,
    pub verify: Option<String>,
    pub restore_test: Option<String>,
    pub media: Vec<String>,
    pub media_product: Option<String>,
    pub check: Option<String>,
    pub prune: Option<String>,
    pub keep: KeepForm,
    pub limits: LimitsForm,
    pub backup: BackupForm,
}

/// What stays, as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "its fields are the keys of docs/policies.md")]
pub struct KeepForm {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    pub within: Option<String>,
    pub tags: Vec<String>,
}

/// What may be under way at once, as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "its fields are the keys of docs/policies.md")]
pub struct LimitsForm {
    pub repository: Option<u32>,
    pub host: Option<u32>,
    pub site: Option<u32>,
    pub sites: Vec<String>,
}

/// How sources are backed up, as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "its fields are the keys of docs/policies.md")]
pub struct BackupForm {
    pub exclude: Vec<String>,
    pub exclude_files: Vec<String>,
    pub exclude_if_present: Vec<String>,
    pub exclude_caches: bool,
    pub exclude_larger_than: Option<u64>,
    pub one_file_system: bool,
    pub together: bool,
    pub tags: Vec<String>,
    pub force: bool,
    pub readers: Option<u8>,
    pub compression: Option<u8>,
    pub before: Option<String>,
    pub after: Option<String>,
    pub command_deadline: Option<String>,
}

impl From<BackupOptions> for BackupForm {
    fn from(of: BackupOptions) -> Self {
        Self {
            exclude: of.exclude,
            exclude_files: of.exclude_files,
            exclude_if_present: of.exclude_if_present,
            exclude_caches: of.exclude_caches,
            exclude_larger_than: of.exclude_larger_than,
            one_file_system: of.one_file_system,
            together: of.together,
            tags: of.tags,
            force: of.force,
            readers: of.readers,
            compression: of.compression,
            ..Self::default()
        }
    }
}

impl Policy {
    /// Reads a policy's file.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse(text: &str) -> Result<Self, NotAPolicy> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NotAPolicy(format!("it has {} bytes; {TEXT_BYTES_MAX} are allowed", text.len())));
        }
        let form: PolicyForm = read(text).map_err(|fault| NotAPolicy(fault.to_string()))?;
        form.policy().map_err(|NotAPolicy(fault)| {
            let key = fault.split(':').next().unwrap_or_default();
            let last = key.rsplit('.').next().unwrap_or_default();
            let begins = |line: &str, key: &str| {
                line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
            };
            let line = text.lines().position(|line| begins(line, key));
            match line.or_else(|| text.lines().position(|line| begins(line, last))) {
                Some(line) => NotAPolicy(format!("line {}: {fault}", line + 1)),
                None => NotAPolicy(fault),
            }
        })
    }
}

impl PolicyForm {
    /// Checks everything.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn policy(self) -> Result<Policy, NotAPolicy> {
        let name = of::<NameError>;
        let schedule = Schedule::parse(&self.schedule, None).map_err(of("schedule"))?;
        let when = |key: &'static str, text: &Option<String>| {
            text.as_ref().map(|text| Schedule::parse(text, Some(&schedule)).map_err(of(key))).transpose()
        };
        let (verify, check) = (when("verify", &self.verify)?, when("check", &self.check)?);
        let (prune, restore_test) = (when("prune", &self.prune)?, when("restore-test", &self.restore_test)?);
        let product = |key: &'static str, text: Option<String>, usual: &str| {
            text.as_deref().unwrap_or(usual).parse::<Product>().map_err(name(key))
        };
        let keep = self.keep.keep().map_err(of("keep.within"))?;
        let media = targets("media", &self.media, 0)?;
        if keep.tags.len() > TAGS_MAX || self.backup.tags.len() > TAGS_MAX {
            return Err(of::<String>("tags")(format!("more than {TAGS_MAX} tags")));
        }
        match (keep.is_nothing(), &prune) {
            (true, Some(_)) => return Err(of::<&str>("prune")("say what stays (keep-daily and the like)")),
            (false, None) => return Err(of::<&str>("keep")("say when what is not kept is forgotten (prune)")),
            (true, None) | (false, Some(_)) => {}
        }
        if media.is_empty() && (check.is_some() || prune.is_some()) {
            return Err(of::<&str>("media")("say whose media agent checks and prunes the repository"));
        }
        let ms = |key: &'static str, text: &Option<String>, max: u64| -> Result<Option<u64>, NotAPolicy> {
            let ms = text.as_deref().map(duration_of).transpose().map_err(of(key))?;
            match ms.filter(|ms| *ms > max) {
                Some(_) => Err(of::<String>(key)(format!("longer than {} days", max / DAY_MS))),
                None => Ok(ms),
            }
        };
        if self.sources.is_empty() || self.sources.len() > SOURCES_MAX {
            return Err(of::<String>("sources")(format!(
                "there are {}; want 1 to {SOURCES_MAX}",
                self.sources.len()
            )));
        }
        self.sources.iter().try_for_each(|path| absolute(path).map_err(of("sources")))?;
        // One that is served has a name, which is told from a path by its first character.
        let is_served = self.repository.parse::<RepositoryName>().is_ok();
        if !is_served {
            absolute(&self.repository).map_err(of("repository"))?;
        } else if self.password_file.is_some() {
            return Err(of::<&str>("password-file")("whoever serves the repository has its password"));
        }
        self.password_file.iter().try_for_each(|path| absolute(path).map_err(of("password-file")))?;
        let site = |text: &String| text.strip_prefix('@').unwrap_or(text).parse::<GroupName>();
        let limits = &self.limits;
        Ok(Policy {
            name: self.name.parse().map_err(name("name"))?,
            hosts: targets("hosts", &self.hosts, 1)?,
            jitter_ms: ms("jitter", &self.jitter, JITTER_MS_MAX)?.unwrap_or(0),
            window: self.window.as_deref().map(str::parse).transpose().map_err(of("window"))?,
            rpo_ms: ms("rpo", &self.rpo, RPO_MS_MAX)?,
            sites: limits.sites.iter().map(site).collect::<Result<_, _>>().map_err(name("limits.sites"))?,
            limits: limits.limits().map_err(of("limits"))?,
            place: Place::Directory(Repository { path: self.repository, password_file: self.password_file }),
            product: product("product", self.product, "data-agent")?,
            media_product: product("media-product", self.media_product, "media-agent")?,
            commands: self.backup.commands(ms)?,
            options: self.backup.options(),
            sources: self.sources,
            schedule,
            verify,
            restore_test,
            media,
            keep,
            check,
            prune,
        })
    }
}

impl KeepForm {
    fn keep(&self) -> Result<Keep, String> {
        let KeepForm { last, hourly, daily, weekly, monthly, yearly, .. } = *self;
        let within_seconds = self.within.as_deref().map(duration_of).transpose()?.map(|ms| ms / 1000);
        Ok(Keep { last, hourly, daily, weekly, monthly, yearly, within_seconds, tags: self.tags.clone() })
    }
}

impl LimitsForm {
    fn limits(&self) -> Result<Limits, String> {
        let limits = Limits {
            repository: self.repository.unwrap_or(AT_REPOSITORY),
            host: self.host.unwrap_or(1),
            site: self.site.unwrap_or(UNLIMITED),
        };
        if limits.repository == 0 || limits.host == 0 || limits.site == 0 {
            return Err("one is 0: nothing would ever begin".into());
        }
        if self.site.is_some() == self.sites.is_empty() {
            return Err("site and sites belong together: how many at once, and which groups are sites".into());
        }
        Ok(limits)
    }
}

impl BackupForm {
    fn commands(
        &self,
        ms: impl Fn(&'static str, &Option<String>, u64) -> Result<Option<u64>, NotAPolicy>,
    ) -> Result<Commands, NotAPolicy> {
        let named = |key: &'static str, text: &Option<String>| {
            text.as_deref().map(str::parse::<CommandName>).transpose().map_err(of::<NameError>(key))
        };
        let (before, after) = (named("backup.before", &self.before)?, named("backup.after", &self.after)?);
        let ms = ms("backup.command-deadline", &self.command_deadline, DAY_MS)?;
        if before.is_none() && after.is_none() {
            return match ms {
                Some(_) => Err(of::<&str>("backup.command-deadline")("there is no command (before, after)")),
                None => Ok(Commands::default()),
            };
        }
        let seconds = u32::try_from(ms.unwrap_or(COMMAND_MS) / 1000).unwrap_or(u32::MAX);
        if seconds == 0 {
            return Err(of::<&str>("backup.command-deadline")("a command needs a second at least"));
        }
        Ok(Commands { output_of: None, before, after, seconds })
    }

    fn options(self) -> BackupOptions {
        BackupOptions {
            exclude: self.exclude,
            exclude_files: self.exclude_files,
            exclude_if_present: self.exclude_if_present,
            exclude_caches: self.exclude_caches,
            exclude_larger_than: self.exclude_larger_than,
            one_file_system: self.one_file_system,
            together: self.together,
            tags: self.tags,
            dry_run: false,
            force: self.force,
            readers: self.readers,
            compression: self.compression,
        }
    }
}

fn targets(key: &'static str, all: &[String], min: usize) -> Result<Vec<Target>, NotAPolicy> {
    if all.len() < min || all.len() > TARGETS_MAX {
        return Err(NotAPolicy(format!("{key}: {} hosts and groups; want {min} to {TARGETS_MAX}", all.len())));
    }
    let read: BTreeSet<Target> = all
        .iter()
        .map(|text| text.parse().map_err(|fault| NotAPolicy(format!("{key}: {fault}"))))
        .collect::<Result<_, _>>()?;
    Ok(read.into_iter().collect())
}

/// What is wrong with a key.
fn of<E: std::fmt::Display>(key: &'static str) -> impl Fn(E) -> NotAPolicy {
    move |fault| NotAPolicy(format!("{key}: {fault}"))
}

fn duration_of(text: &str) -> Result<u64, String> {
    duration_ms(text).map_err(|fault| fault.to_string())
}

fn absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("'{path}' is not an absolute path on the host")) }
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
