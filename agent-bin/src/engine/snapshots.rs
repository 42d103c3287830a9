//! Which snapshots are meant: whose they are, and how a reference finds one among those of the right host and source.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use proto::agent::{HostScope, JobOrigin, SnapshotRef};
use proto::look::SnapshotFilter;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::SnapshotFile;

use super::format::files::{FileFault, FileKind, Files};
use super::format::id::Id;
use super::format::seal::{Key, SealFault};
use super::selection::Rules;

/// Marks a snapshot whose host name is the enrolled one.
pub(super) const OURS: &str = "manager-fs";
/// Snapshots that an error lists.
const LISTED_MAX: usize = 8;
/// Where a snapshot file has what was left out, beside restic's own `excludes`, which has only the patterns. Other programs
/// pass over it.
const RULES: &str = "manager_fs_left_out";

/// A snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotFault {
    #[error("snapshot {id:.8} {fault}")]
    Sealed { id: Id, fault: SealFault },
    #[error("snapshot {id:.8} is no snapshot: {what}")]
    NotASnapshot { id: Id, what: String },
    #[error(transparent)]
    File(#[from] FileFault),
}

/// A reference means no snapshot, or not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferenceFault {
    #[error("{0:?} is no snapshot: give an id, the start of one, `latest`, or `latest~N` for the Nth before it")]
    Malformed(String),
    #[error("there is no snapshot {reference:?} of {scope}{hint}")]
    Nothing { reference: String, scope: String, hint: Hint },
    #[error("{reference:?} is the start of several snapshots: {}", .found.join(", "))]
    Ambiguous { reference: String, found: Vec<String> },
    #[error("{reference:?} means one snapshot each of {}; say which with --source", .sources.join(" and "))]
    SeveralSources { reference: String, sources: Vec<String> },
    #[error("snapshot {id:.8} cannot be used: {fault}")]
    Damaged { id: Id, fault: Box<SnapshotFault> },
}

/// What there is instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    None,
    /// It is somebody else's.
    OtherHost(String),
    /// There are snapshots of others.
    Others(usize),
}

impl fmt::Display for Hint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::None => Ok(()),
            Hint::OtherHost(owner) => write!(to, "; it is of {owner} (--any-host, or --of-host, takes it)"),
            Hint::Others(count) => write!(to, "; there are {count} of others (--any-host, or --of-host, takes them)"),
        }
    }
}

/// Whose a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    /// An enrolled host: the snapshot says so, or the manager knows whose job made it.
    Host(String),
    /// An agent made it before snapshots carried the enrolled host, and the manager does not know the job any more. Its
    /// host name is the machine's, which clones share.
    Unknown(String),
    /// Made by another program, on a machine of this name.
    Machine(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Host(host) => write!(to, "host {host}"),
            Owner::Unknown(machine) => write!(to, "an unknown host on a machine named {machine}"),
            Owner::Machine(machine) => write!(to, "a machine named {machine}"),
        }
    }
}

/// One snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: Id,
    pub(crate) owner: Owner,
    pub(crate) file: SnapshotFile,
    /// What was left out of it; of what other programs made that is not known.
    pub(super) rules: Rules,
}

impl Snapshot {
    /// What it was made of.
    pub(crate) fn sources(&self) -> Vec<PathBuf> {
        self.file.paths.iter().map(PathBuf::from).collect()
    }

    pub(crate) fn at(&self) -> Timestamp {
        self.file.time.timestamp()
    }

    /// The root of its tree.
    pub(crate) fn tree(&self) -> Option<Id> {
        Id::parse(&self.file.tree.to_hex())
    }

    fn describe(&self) -> String {
        let sources: Vec<_> = self.sources().iter().map(|source| source.display().to_string()).collect();
        format!("{:.8} ({}, {}, {})", self.id, self.owner, sources.join(", "), self.at().strftime("%F %T"))
    }
}

/// The snapshots of a repository.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// Oldest first.
    all: Vec<Snapshot>,
    /// Files that cannot be used.
    pub(crate) damaged: Vec<(Id, SnapshotFault)>,
}

impl Snapshots {
    /// Reads every snapshot.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub(crate) fn load(files: &Files, key: &Key, origin: &JobOrigin) -> Result<Self, FileFault> {
        let earlier: HashMap<u64, &str> = origin.earlier.iter().map(|(job, host)| (job.0, host.as_str())).collect();
        let mut snapshots = Snapshots::default();
        for (id, _) in files.list(FileKind::Snapshot)? {
            match read(files, key, &id) {
                Ok((file, rules)) => {
                    let owner = owner(&file, &earlier);
                    snapshots.all.push(Snapshot { id, owner, file, rules });
                }
                Err(SnapshotFault::File(fault)) if fault.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(fault) => snapshots.damaged.push((id, fault)),
            }
        }
        snapshots.all.sort_by_key(|snapshot| (snapshot.at(), snapshot.id));
        Ok(snapshots)
    }

    pub(crate) fn all(&self) -> &[Snapshot] {
        &self.all
    }

    /// The newest one of exactly these sources of a host: what an incremental backup is held against.
    pub(crate) fn parent(&self, host: &str, sources: &[PathBuf]) -> Option<&Snapshot> {
        let own = Owner::Host(host.to_owned());
        self.all.iter().rev().find(|snapshot| snapshot.owner == own && snapshot.sources() == sources)
    }

    /// The snapshots that a reference means: one, or with `latest` one of each source.
    ///
    /// # Errors
    /// It means none, or it is not clear which.
    pub(crate) fn resolve(&self, reference: &SnapshotRef, own_host: &str) -> Result<Vec<&Snapshot>, ReferenceFault> {
        let text = reference.snapshot.as_str();
        let source = reference.source.as_deref().map(Path::new);
        let in_scope = |snapshot: &&Snapshot| {
            is_in(&snapshot.owner, &reference.of, own_host)
                && source.is_none_or(|source| snapshot.sources().iter().any(|of| of == source))
        };
        if let Some(back) = latest(text)? {
            let found = self.newest(back, in_scope);
            return if found.is_empty() { Err(self.nothing(reference, own_host)) } else { Ok(found) };
        }
        if text.len() < 4 || text.len() > 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(ReferenceFault::Malformed(text.to_owned()));
        }
        let start = text.to_ascii_lowercase();
        let begins = |id: &Id| id.to_string().starts_with(&start);
        let found: Vec<_> = self.all.iter().filter(|snapshot| begins(&snapshot.id)).filter(in_scope).collect();
        match found.as_slice() {
            [one] => Ok(vec![one]),
            [] => Err(self.nothing(reference, own_host)),
            several => {
                let found = several.iter().take(LISTED_MAX).map(|snapshot| snapshot.describe()).collect();
                Err(ReferenceFault::Ambiguous { reference: text.to_owned(), found })
            }
        }
    }

    /// Those of some hosts, with some source and tags; oldest first.
    pub(super) fn filtered<'a>(
        &'a self,
        filter: &SnapshotFilter,
        own_host: &str,
    ) -> impl Iterator<Item = &'a Snapshot> {
        self.all.iter().filter(move |snapshot| {
            let source = filter.source.as_deref().map(Path::new);
            is_in(&snapshot.owner, &filter.of, own_host)
                && source.is_none_or(|source| snapshot.sources().iter().any(|of| of == source))
                && filter.tags.iter().all(|tag| snapshot.file.tags.contains(tag))
        })
    }

    /// The one snapshot that a reference means.
    ///
    /// # Errors
    /// As [`Snapshots::resolve`], and if it means several.
    pub(crate) fn resolve_one(&self, reference: &SnapshotRef, own_host: &str) -> Result<&Snapshot, ReferenceFault> {
        match self.resolve(reference, own_host)?.as_slice() {
            [one] => Ok(one),
            several => {
                let mut sources: Vec<_> = several.iter().map(|snapshot| snapshot.describe()).collect();
                sources.truncate(LISTED_MAX);
                Err(ReferenceFault::SeveralSources { reference: reference.snapshot.clone(), sources })
            }
        }
    }

    /// Of each host and source the newest but `back`.
    fn newest<'a>(&'a self, back: usize, in_scope: impl Fn(&&'a Snapshot) -> bool) -> Vec<&'a Snapshot> {
        let mut of_source: BTreeMap<(&Owner, Vec<PathBuf>), Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in self.all.iter().filter(in_scope) {
            of_source.entry((&snapshot.owner, snapshot.sources())).or_default().push(snapshot);
        }
        of_source.into_values().filter_map(|snapshots| snapshots.into_iter().rev().nth(back)).collect()
    }

    fn nothing(&self, reference: &SnapshotRef, own_host: &str) -> ReferenceFault {
        let text = &reference.snapshot;
        let start = text.to_ascii_lowercase();
        if let Some((id, fault)) = self.damaged.iter().find(|(id, _)| id.to_string().starts_with(&start)) {
            let fault = match fault {
                SnapshotFault::Sealed { id, fault } => SnapshotFault::Sealed { id: *id, fault: fault.clone() },
                other => SnapshotFault::NotASnapshot { id: *id, what: other.to_string() },
            };
            return ReferenceFault::Damaged { id: *id, fault: Box::new(fault) };
        }
        let mut scope = match &reference.of {
            HostScope::Own => format!("host {own_host}"),
            HostScope::Host(host) => format!("host {host}"),
            HostScope::Any => "any host".to_owned(),
        };
        if let Some(source) = &reference.source {
            scope = format!("{scope} with source {source}");
        }
        let elsewhere = self.all.iter().find(|snapshot| snapshot.id.to_string().starts_with(&start));
        let hint = match (&reference.of, elsewhere, self.all.len()) {
            (HostScope::Any, ..) | (_, None, 0) => Hint::None,
            (_, Some(other), _) => Hint::OtherHost(other.owner.to_string()),
            (_, None, count) => Hint::Others(count),
        };
        ReferenceFault::Nothing { reference: text.clone(), scope, hint }
    }

    /// What a prune may remove: all but the newest `keep_last` of each host and source. Returns also how many it leaves
    /// because it is not known whose they are.
    pub(crate) fn surplus(&self, keep_last: usize) -> (Vec<&Snapshot>, usize) {
        let now = rustic_core::jiff::Zoned::now();
        let mut of_source: BTreeMap<(&Owner, Vec<PathBuf>), Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in &self.all {
            of_source.entry((&snapshot.owner, snapshot.sources())).or_default().push(snapshot);
        }
        let (mut surplus, mut unknown) = (Vec::new(), 0);
        for ((owner, _), snapshots) in of_source {
            let more = snapshots.into_iter().rev().skip(keep_last.max(1));
            let more: Vec<_> = more.filter(|snapshot| !snapshot.file.must_keep(&now)).collect();
            match owner {
                // Several hosts may be behind one name, and what is one too many of two is the only one of one.
                Owner::Unknown(_) => unknown += more.len(),
                Owner::Host(_) | Owner::Machine(_) => surplus.extend(more),
            }
        }
        (surplus, unknown)
    }
}

fn is_in(owner: &Owner, scope: &HostScope, own_host: &str) -> bool {
    match scope {
        HostScope::Own => is_of(owner, own_host),
        HostScope::Host(host) => is_of(owner, host.as_str()),
        HostScope::Any => true,
    }
}

fn is_of(owner: &Owner, host: &str) -> bool {
    match owner {
        Owner::Host(of) | Owner::Machine(of) => of == host,
        Owner::Unknown(_) => false,
    }
}

fn owner(file: &SnapshotFile, earlier: &HashMap<u64, &str>) -> Owner {
    if file.tags.contains(OURS) {
        return Owner::Host(file.hostname.clone());
    }
    let job = file.tags.iter().find_map(|tag| tag.strip_prefix("job-")?.parse::<u64>().ok());
    match job.map(|job| earlier.get(&job)) {
        Some(Some(host)) => Owner::Host((*host).to_owned()),
        Some(None) => Owner::Unknown(file.hostname.clone()),
        None => Owner::Machine(file.hostname.clone()),
    }
}

/// How many before the newest, if the newest is meant at all.
fn latest(text: &str) -> Result<Option<usize>, ReferenceFault> {
    let Some(rest) = text.strip_prefix("latest") else { return Ok(None) };
    let back = if rest.is_empty() { Some(0) } else { rest.strip_prefix('~').and_then(|number| number.parse().ok()) };
    back.map(Some).ok_or_else(|| ReferenceFault::Malformed(text.to_owned()))
}

fn read(files: &Files, key: &Key, id: &Id) -> Result<(SnapshotFile, Rules), SnapshotFault> {
    #[derive(serde::Deserialize)]
    struct More {
        #[serde(default)]
        manager_fs_left_out: Rules,
    }
    let sealed = files.read(FileKind::Snapshot, id)?;
    let document = key.open_document(&sealed).map_err(|fault| SnapshotFault::Sealed { id: *id, fault })?;
    let fault = |e: serde_json::Error| SnapshotFault::NotASnapshot { id: *id, what: e.to_string() };
    let file = serde_json::from_slice(&document).map_err(fault)?;
    // Whoever wrote something else there is no reason not to give back what is in the snapshot.
    let more = serde_json::from_slice::<More>(&document);
    Ok((file, more.map(|more| more.manager_fs_left_out).unwrap_or_default()))
}

/// The document of a new snapshot.
pub(super) fn write(file: &SnapshotFile, rules: &Rules) -> Result<Vec<u8>, serde_json::Error> {
    let mut document = serde_json::to_value(file)?;
    if let Some(fields) = document.as_object_mut().filter(|_| !rules.are_none()) {
        fields.insert("excludes".to_owned(), serde_json::to_value(&rules.exclude)?);
        fields.insert(RULES.to_owned(), serde_json::to_value(rules)?);
    }
    serde_json::to_vec(&document)
}

/// Snapshots as tests want them.
#[cfg(test)]
pub(super) mod testing {
    use rustic_core::StringList;

    use super::*;

    /// Times go up; `tags` and `paths` are separated by commas.
    pub(in super::super) fn snapshots(of: &[(&str, &str, &str)]) -> Snapshots {
        let earlier = HashMap::from([(1, "host-1"), (2, "host-2")]);
        let make = |(number, (hostname, tags, paths)): (usize, &(&str, &str, &str))| {
            let mut file = SnapshotFile { hostname: (*hostname).into(), ..SnapshotFile::default() };
            file.time = Timestamp::new(1_000_000 + i64::try_from(number).unwrap(), 0)
                .unwrap()
                .to_zoned(rustic_core::jiff::tz::TimeZone::UTC);
            file.tags = tags.parse::<StringList>().unwrap();
            file.paths = paths.parse::<StringList>().unwrap();
            let (id, owner) = (Id::of(&number.to_le_bytes()), owner(&file, &earlier));
            Snapshot { id, owner, file, rules: Rules::default() }
        };
        Snapshots { all: of.iter().enumerate().map(make).collect(), damaged: Vec::new() }
    }

    /// Host, tags, paths, seconds since 1970, and a number that tells them apart.
    pub(in super::super) type Made<'a> = (&'a str, &'a str, &'a str, i64, u64);

    /// In the order of time, as they are read.
    pub(in super::super) fn made(of: &[Made<'_>]) -> Snapshots {
        let mut all = snapshots(&of.iter().map(|(host, tags, paths, ..)| (*host, *tags, *paths)).collect::<Vec<_>>());
        for (snapshot, (_, _, _, at, number)) in all.all.iter_mut().zip(of) {
            snapshot.file.time = Timestamp::new(*at, 0).unwrap().to_zoned(rustic_core::jiff::tz::TimeZone::UTC);
            snapshot.id = Id::of(&number.to_le_bytes());
        }
        all.all.sort_by_key(|snapshot| (snapshot.at(), snapshot.id));
        all
    }

    /// The number of one of these.
    pub(in super::super) fn number(snapshot: &Snapshot, of: &[Made<'_>]) -> u64 {
        of.iter().map(|made| made.4).find(|number| Id::of(&number.to_le_bytes()) == snapshot.id).unwrap()
    }

    /// Of one source, at these seconds.
    pub(in super::super) fn at_times(times: &[i64]) -> Snapshots {
        let all: Vec<_> = times.iter().map(|_| ("host-1", "job-1,manager-fs", "/a")).collect();
        let mut snapshots = snapshots(&all);
        for (snapshot, time) in snapshots.all.iter_mut().zip(times) {
            let time = Timestamp::new(1_700_000_000 + time, 0).unwrap();
            snapshot.file.time = time.to_zoned(rustic_core::jiff::tz::TimeZone::UTC);
        }
        snapshots
    }
}

#[cfg(test)]
mod tests {
    use super::testing::snapshots;
    use super::*;

    const OWN: &str = "host-1";

    fn reference(snapshot: &str) -> SnapshotRef {
        SnapshotRef { snapshot: snapshot.into(), ..SnapshotRef::latest() }
    }

    fn places(found: &Result<Vec<&Snapshot>, ReferenceFault>, all: &Snapshots) -> Vec<usize> {
        let place = |one: &&Snapshot| all.all.iter().position(|other| other.id == one.id).unwrap();
        found.as_ref().unwrap().iter().map(place).collect()
    }

    #[test]
    fn latest_is_the_own_hosts_newest_of_each_source() {
        let all = snapshots(&[
            ("host-1", "job-10,manager-fs", "/a"),
            ("host-1", "job-11,manager-fs", "/a"),
            ("host-1", "job-11,manager-fs", "/b"),
            ("host-2", "job-12,manager-fs", "/a"),
            // A clone of host-2's machine that bears our name and wrote before snapshots carried the enrolled host.
            ("host-1", "job-2", "/a"),
            ("host-1", "job-99", "/a"),
        ]);
        assert_eq!(places(&all.resolve(&reference("latest"), OWN), &all), [1, 2]);
        assert_eq!(places(&all.resolve(&reference("latest~1"), OWN), &all), [0]);
        let fault = all.resolve_one(&reference("latest"), OWN).unwrap_err().to_string();
        assert!(fault.contains("/a") && fault.contains("/b") && fault.contains("--source"), "{fault}");
        let of_b = SnapshotRef { source: Some("/b".into()), ..reference("latest") };
        assert_eq!(all.resolve_one(&of_b, OWN).unwrap().id, all.all[2].id);
        let of_other = SnapshotRef { of: HostScope::Host("host-2".parse().unwrap()), ..reference("latest") };
        assert_eq!(places(&all.resolve(&of_other, OWN), &all), [4], "adopted by its job");
        assert_eq!(all.parent(OWN, &["/a".into()]).unwrap().id, all.all[1].id);
    }

    #[test]
    fn an_id_of_another_host_is_named_and_not_taken() {
        let all = snapshots(&[("host-1", "job-10,manager-fs", "/a"), ("host-2", "job-12,manager-fs", "/a")]);
        let other = all.all[1].id.to_string();
        let fault = all.resolve(&reference(&other[..8]), OWN).unwrap_err().to_string();
        assert!(fault.contains("of host host-2") && fault.contains("--any-host"), "{fault}");
        let any = SnapshotRef { of: HostScope::Any, ..reference(&other) };
        assert_eq!(places(&all.resolve(&any, OWN), &all), [1]);
        let fault = all.resolve(&reference("latest"), "host-3").unwrap_err().to_string();
        assert!(fault.contains("2 of others"), "{fault}");
        for bad in ["", "latest~", "latest~x", "latestt", "abc", "xyzw"] {
            assert!(matches!(all.resolve(&reference(bad), OWN), Err(ReferenceFault::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn prune_never_takes_the_last_of_a_host_nor_what_is_of_nobody_known() {
        let all = snapshots(&[
            ("web", "job-1", "/a"),
            ("web", "job-2", "/a"),
            ("web", "job-98", "/a"),
            ("web", "job-99", "/a"),
            ("host-1", "job-10,manager-fs", "/a"),
            ("person", "", "/a"),
            ("person", "", "/a"),
        ]);
        let (surplus, unknown) = all.surplus(1);
        let places: Vec<_> = surplus.iter().map(|s| all.all.iter().position(|o| o.id == s.id).unwrap()).collect();
        assert_eq!((places, unknown), (vec![0, 5], 1));
    }
}
