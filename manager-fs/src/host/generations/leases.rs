//! Why a tree must stay on this host: derived from what is true now, never from a marker of its own.
//!
//! | holder | where it is written | keeps |
//! |---|---|---|
//! | operator (`attach`) | `STATE/attached` | mounted |
//! | a connection (`exec`, the stub) | the connection itself | mounted |
//! | an agent's journal | `STATE/agents/<product>/journal` | mounted: current, staged, under probation the last good; cached: the last good |
//! | an agent's `current` link | `RUN/agents/<product>/current` | mounted |
//! | a stage under way | memory, until the journals tell | mounted |
//!
//! A program that runs from a tree without any of these keeps it all the same: its mount is busy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use agent_core::internal::journal;
use agent_core::internal::report::unix_ms;
use proto::{Product, TreeId};

use crate::clock::Clock;
use crate::host::files;
use crate::moments::Moment;
use crate::sync::lock;

/// How long a staged tree waits for an agent's journal to name it. Staging may precede the journal's entry by the whole
/// drain; a change-over that was given up leaves its stage behind for this long at most.
const STAGED_MAX: Duration = Duration::from_secs(2 * 3600);
/// How long a mount that an earlier worker left stays without a reason: time for its users to connect again.
const INHERITED_MAX: Duration = Duration::from_secs(60);

/// Who holds what.
pub(crate) struct Leases {
    clock: Clock,
    state_dir: PathBuf,
    agents_dir: PathBuf,
    /// One at a time writes the attachments; who only looks at them never waits for the disk.
    writing: Mutex<()>,
    held: Mutex<Held>,
    /// Why nothing may be given up, if something that was attached cannot be read.
    doubt: Option<String>,
}

#[derive(Default)]
struct Held {
    /// The operator's attachments, with the name that was typed.
    attached: BTreeMap<TreeId, String>,
    /// By connection: tree and process.
    connections: BTreeMap<u64, Vec<(TreeId, Option<u32>)>>,
    staged: BTreeMap<TreeId, Until>,
}

#[derive(Clone, Copy)]
struct Until {
    ends: Instant,
    why: &'static str,
}

/// What must stay, as of one moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Trees that must stay mounted, with the reasons, for people.
    pub(crate) mounted: BTreeMap<TreeId, Vec<String>>,
    /// Trees that agents may return to: their objects must stay local.
    pub(crate) cached: BTreeSet<TreeId>,
    /// The trees that agents run from, by the product: what the manager calls attached, beside the operator's.
    pub(crate) current: BTreeMap<Product, TreeId>,
    /// A journal cannot be read, so nothing may be given up.
    pub(crate) uncertain: Option<String>,
}

impl Kept {
    /// Whether this tree must stay mounted.
    pub(crate) fn keeps(&self, tree: &TreeId) -> bool {
        self.uncertain.is_some() || self.mounted.contains_key(tree)
    }

    /// Every tree that has any reason to stay.
    pub(crate) fn all(&self) -> BTreeSet<TreeId> {
        self.mounted.keys().chain(&self.cached).copied().collect()
    }

    fn add(&mut self, tree: TreeId, why: String) {
        self.mounted.entry(tree).or_default().push(why);
    }
}

impl Leases {
    /// Reads the operator's attachments below `state`. A line that cannot be read is said aloud and kept aside, and as long
    /// as this process lives nothing is given up: it may be what that line named.
    pub(crate) fn open(state: &Path, agents_dir: PathBuf, clock: Clock) -> Self {
        let path = state.join("attached");
        let (attached, doubt) = match read_attached(&path) {
            Ok((attached, 0)) => (attached, None),
            Ok((attached, damaged)) => {
                let aside = path.with_file_name(format!("attached.damaged-{}", unix_ms()));
                let kept = std::fs::rename(&path, &aside).and_then(|()| write_attached(&path, &attached));
                let kept =
                    kept.map_or_else(|e| format!("it stays there: {e}"), |()| format!("kept as {}", aside.display()));
                (attached, Some(format!("{damaged} lines of {} are damaged; {kept}", path.display())))
            }
            Err(error) => (BTreeMap::new(), Some(format!("{}: {error}", path.display()))),
        };
        if let Some(doubt) = &doubt {
            tracing::error!("{doubt}; nothing is unmounted or evicted until the mount daemon is started again");
        }
        let held = Mutex::new(Held { attached, ..Held::default() });
        Self { clock, state_dir: state.to_owned(), agents_dir, writing: Mutex::default(), held, doubt }
    }

    /// By which what is staged ends.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Keeps a tree for the operator; durable when this returns.
    pub(crate) fn attach(&self, tree: TreeId, name: &str) -> io::Result<()> {
        let _one_at_a_time = lock(&self.writing);
        let mut attached = self.attached();
        attached.insert(tree, name.to_owned());
        write_attached(&self.state_dir.join("attached"), &attached)?;
        self.lock().attached = attached;
        Ok(())
    }

    /// Ends [`Leases::attach`]; `false` if the tree was not attached.
    pub(crate) fn release(&self, tree: &TreeId) -> io::Result<bool> {
        let _one_at_a_time = lock(&self.writing);
        let mut attached = self.attached();
        if attached.remove(tree).is_none() {
            return Ok(false);
        }
        write_attached(&self.state_dir.join("attached"), &attached)?;
        self.lock().attached = attached;
        Ok(true)
    }

    /// The operator's attachments with the names that were typed.
    pub(crate) fn attached(&self) -> BTreeMap<TreeId, String> {
        self.lock().attached.clone()
    }

    /// Keeps a tree as long as a connection is open.
    pub(crate) fn hold(&self, connection: u64, tree: TreeId, pid: Option<u32>) {
        self.lock().connections.entry(connection).or_default().push((tree, pid));
    }

    /// A connection is gone.
    pub(crate) fn connection_ended(&self, connection: u64) -> bool {
        self.lock().connections.remove(&connection).is_some()
    }

    /// Keeps a tree that is prepared for a change-over.
    pub(crate) fn stage(&self, tree: TreeId) {
        let until = Until { ends: self.clock.now() + STAGED_MAX, why: "staged" };
        self.lock().staged.insert(tree, until);
    }

    /// A change-over to this tree is over, or was given up: from now on the journals alone tell.
    pub(crate) fn stage_over(&self, tree: &TreeId) {
        self.lock().staged.remove(tree);
    }

    /// Keeps a mount that an earlier worker left for long enough that its users come back.
    pub(crate) fn inherit(&self, tree: TreeId) {
        let until = Until { ends: self.clock.now() + INHERITED_MAX, why: "found mounted" };
        self.lock().staged.entry(tree).or_insert(until);
    }

    /// Everything that must stay now. Reads the agents' journals and links.
    pub(crate) fn kept(&self) -> Kept {
        let mut kept = Kept { uncertain: self.doubt.clone(), ..Kept::default() };
        let now = self.clock.now();
        {
            let mut held = self.lock();
            held.staged.retain(|_, until| until.ends > now);
            for (tree, name) in &held.attached {
                kept.add(*tree, format!("attached as {name}"));
            }
            for (tree, pid) in held.connections.values().flatten() {
                let who = pid.map_or_else(|| "a connection".to_owned(), |pid| format!("process {pid}"));
                kept.add(*tree, format!("held by {who}"));
            }
            for (tree, until) in &held.staged {
                kept.add(*tree, until.why.to_owned());
            }
        }
        self.add_journals(&mut kept);
        self.add_links(&mut kept);
        kept
    }

    fn add_journals(&self, kept: &mut Kept) {
        let journals = match journal::list(&self.state_dir) {
            Ok(journals) => journals,
            Err(fault) => {
                kept.uncertain = Some(fault.to_string());
                return;
            }
        };
        for (product, journal) in journals {
            match journal {
                Ok(Some(journal)) => {
                    let pins = journal.pins();
                    for tree in pins.mounted {
                        kept.add(tree, format!("agent {product}"));
                    }
                    kept.cached.extend(pins.cached);
                    kept.current.insert(product, journal.current.tree);
                }
                Ok(None) => {}
                Err(fault) => kept.uncertain = Some(fault.to_string()),
            }
        }
    }

    fn add_links(&self, kept: &mut Kept) {
        for entry in std::fs::read_dir(&self.agents_dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(Ok(product)) = name.to_str().map(str::parse::<Product>) else { continue };
            let Ok(target) = std::fs::read_link(entry.path().join("current")) else { continue };
            if let Some(Ok(tree)) = target.file_name().and_then(|name| name.to_str()).map(str::parse::<TreeId>) {
                kept.add(tree, format!("current of agent {product}"));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }
}

/// One line an attachment: the tree's 64 digits, a space, the name that was typed. Also returns how many lines are none.
fn read_attached(path: &Path) -> io::Result<(BTreeMap<TreeId, String>, usize)> {
    let text = files::read_bounded(path, 1 << 20)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let parse = |line: &str| {
        let (tree, name) = line.split_once(' ')?;
        Some((tree.parse().ok()?, name.to_owned()))
    };
    let lines = text.lines().filter(|line| !line.is_empty());
    let parsed: Vec<_> = lines.map(parse).collect();
    let damaged = parsed.iter().filter(|line| line.is_none()).count();
    Ok((parsed.into_iter().flatten().collect(), damaged))
}

fn write_attached(path: &Path, attached: &BTreeMap<TreeId, String>) -> io::Result<()> {
    let text: String = attached.iter().map(|(tree, name)| format!("{tree} {name}\n")).collect();
    files::replace(Moment::AttachmentNote, path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::testing::Manual;
    use agent_core::internal::journal::{Entry, Journal};
    use std::fs;

    fn tree(name: u8) -> TreeId {
        TreeId::of(&[name])
    }

    fn leases(dir: &Path) -> Leases {
        Leases::open(dir, dir.join("run"), Clock::system())
    }

    #[test]
    fn attachments_survive_a_restart_and_connections_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = leases(dir.path());
        first.attach(tree(1), "p@1").unwrap();
        first.attach(tree(2), "p@2").unwrap();
        first.hold(7, tree(3), Some(42));
        assert!(first.release(&tree(2)).unwrap());
        assert!(!first.release(&tree(2)).unwrap());
        assert_eq!(first.kept().mounted[&tree(3)], ["held by process 42"]);
        assert!(first.connection_ended(7));
        assert!(!first.kept().keeps(&tree(3)));

        let again = leases(dir.path());
        assert_eq!(again.attached(), BTreeMap::from([(tree(1), "p@1".to_owned())]));
        assert!(again.kept().keeps(&tree(1)) && !again.kept().keeps(&tree(2)));
        let text = fs::read_to_string(dir.path().join("attached")).unwrap();
        fs::write(dir.path().join("attached"), format!("nonsense\n{text}")).unwrap();
        let doubtful = leases(dir.path());
        assert_eq!(doubtful.attached(), again.attached(), "what can be read counts");
        assert!(doubtful.kept().keeps(&tree(9)), "and what cannot be read may have named anything");
        let aside = fs::read_dir(dir.path()).unwrap().flatten();
        let aside = aside.filter(|file| file.file_name().to_string_lossy().starts_with("attached.damaged-"));
        assert_eq!(aside.count(), 1);
        assert!(!leases(dir.path()).kept().keeps(&tree(9)), "it is said once");
    }

    #[test]
    fn journals_and_links_keep_what_an_agent_needs() {
        let dir = tempfile::tempdir().unwrap();
        let leases = leases(dir.path());
        let agent = dir.path().join("agents/p");
        fs::create_dir_all(&agent).unwrap();
        let entry = |n: u8| Entry { version: format!("{n}").parse().unwrap(), tree: tree(n) };
        let mut journal = Journal::first(entry(1));
        journal.last_good = Some(entry(2));
        journal.phase = journal::Phase::Confirmed;
        journal.write(&agent.join("journal")).unwrap();
        fs::create_dir_all(dir.path().join("run/p")).unwrap();
        std::os::unix::fs::symlink(format!("../../gens/{}", tree(3)), dir.path().join("run/p/current")).unwrap();

        let kept = leases.kept();
        assert!(kept.keeps(&tree(1)) && kept.keeps(&tree(3)) && !kept.keeps(&tree(2)), "{kept:?}");
        assert!(kept.all().contains(&tree(2)), "the last good version must stay local");
        assert_eq!(kept.current[&"p".parse().unwrap()], tree(1));

        fs::write(agent.join("journal"), "damaged").unwrap();
        assert!(leases.kept().keeps(&tree(9)), "nothing is given up while a journal cannot be read");
    }

    #[test]
    fn a_stage_ends_when_its_change_over_does() {
        let dir = tempfile::tempdir().unwrap();
        let leases = leases(dir.path());
        leases.stage(tree(1));
        leases.inherit(tree(1));
        assert_eq!(leases.kept().mounted[&tree(1)], ["staged"]);
        leases.stage_over(&tree(1));
        assert!(!leases.kept().keeps(&tree(1)));
    }

    #[test]
    fn what_nobody_comes_back_for_is_given_up_in_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (time, clock) = Manual::new();
        let leases = Leases::open(dir.path(), dir.path().join("run"), clock);
        leases.inherit(tree(1));
        leases.stage(tree(2));
        let keeps_after = |time_passes: Duration| {
            time.advance(time_passes);
            [1, 2].map(|name| leases.kept().keeps(&tree(name)))
        };
        let second = Duration::from_secs(1);
        assert_eq!(keeps_after(INHERITED_MAX - second), [true, true]);
        assert_eq!(keeps_after(second), [false, true], "its users have had a minute to connect again");
        assert_eq!(keeps_after(STAGED_MAX - INHERITED_MAX - second), [false, true], "a drain may take that long");
        assert_eq!(keeps_after(second), [false, false]);
    }
}
