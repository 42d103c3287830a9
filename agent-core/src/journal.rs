//! The small durable record that is the truth about an agent: written before every step that cannot be undone.
//!
//! `STATE/agents/<product>/journal` and `journal.2`: two copies, written in turn, so that a bit that flips, or a sector
//! that cannot be read any more, costs one step and not the agent. Each has a checksum and a number; the newest that can
//! be read is the truth. The agent writes it while it runs, the stub while no agent does, and the mount daemon reads it
//! to know what must stay mounted and cached. After a power cut it decides what is started; `docs/swap.md` has the table.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::agent::ChangeId;
use proto::{Product, TreeId, Version, codec};
use serde::{Deserialize, Serialize};

use crate::durable::{self, Durability, FileFault};
use crate::paths::AgentPaths;

const MAGIC: &[u8; 8] = b"MFSJRN\0\x01";
/// A reason with the last lines of a failed program is the longest part.
const BYTES_MAX: usize = 64 << 10;
const REASON_MAX: usize = 4096;

/// One version of the product, as the journal names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Names the saved record: `records/<version>.record`, which alone says how to start it.
    pub version: Version,
    /// The tree of that record when this was written: what the mount daemon keeps.
    pub tree: TreeId,
}

/// How far the current version is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The first version of the product on this host; it has not confirmed yet, and there is nothing to return to.
    Launching,
    /// It proved itself.
    Confirmed,
    /// The intent to change over to it is on disk; it has not confirmed. If it fails, the last good version returns.
    Probation {
        /// The manager's number of the change-over that brought it.
        change: ChangeId,
        /// Starts so far, this one included. At two the next start returns instead of trying again.
        attempts: u32,
        /// From exec to confirmation at most this long, milliseconds.
        probation_ms: u64,
    },
}

/// The generation that is staged beside the current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The manager's number of the change-over that it is for.
    pub change: ChangeId,
    /// The version that message B named.
    pub entry: Entry,
}

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Grows by one with every write.
    pub sequence: u64,
    /// What runs, or runs next.
    pub current: Entry,
    /// The version before it that had confirmed. During probation it is what the stub returns to.
    pub last_good: Option<Entry>,
    /// What is being prepared.
    pub staged: Option<Staged>,
    /// How far `current` is believed.
    pub phase: Phase,
    /// Why `current` runs: `launched`, `changed over from X`, `returned from X: …`.
    pub reason: String,
}

/// What the two copies say.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) newest: Option<Journal>,
    newest_is_second: bool,
    /// What is there and cannot be used.
    pub(crate) faults: Vec<FileFault>,
}

impl Copies {
    pub(crate) fn read(first: &Path) -> Self {
        let mut copies = Self { newest: None, newest_is_second: false, faults: Vec::new() };
        for (is_second, path) in [(false, first.to_owned()), (true, second(first))] {
            match read_copy(&path) {
                Ok(Some(journal)) if copies.newest.as_ref().is_none_or(|n| n.sequence < journal.sequence) => {
                    copies.newest = Some(journal);
                    copies.newest_is_second = is_second;
                }
                Ok(_) => {}
                Err(fault) => copies.faults.push(fault),
            }
        }
        copies
    }

    /// Moves what cannot be used out of the way and keeps it for people. Returns, for them, what was found and where it
    /// is now. A file that a later version wrote, and one that cannot be read just now, stay where they are.
    pub(crate) fn set_aside(&self, now_unix_ms: u64) -> Vec<String> {
        self.faults
            .iter()
            .map(|fault| match fault {
                FileFault::Damaged { path, .. } => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let aside = path.with_file_name(format!("{name}.damaged-{now_unix_ms}"));
                    match fs::rename(path, &aside) {
                        Ok(()) => format!("{fault}; it is kept as {}", aside.display()),
                        Err(e) => format!("{fault}; it stays there: {e}"),
                    }
                }
                FileFault::Format { .. } | FileFault::Io { .. } => fault.to_string(),
            })
            .collect()
    }
}

/// The second copy.
fn second(first: &Path) -> PathBuf {
    let mut name = first.as_os_str().to_owned();
    name.push(".2");
    PathBuf::from(name)
}

fn read_copy(path: &Path) -> Result<Option<Journal>, FileFault> {
    match fs::read(path) {
        Ok(bytes) => Journal::from_bytes(&bytes, path).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // In the way of the file that is written next.
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            Err(FileFault::Damaged { path: path.to_owned(), what: "journal", detail: e.to_string() })
        }
        Err(e) => Err(FileFault::io(path, e)),
    }
}

/// What the mount daemon must keep for one product.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// Trees that must stay mounted.
    pub mounted: Vec<TreeId>,
    /// Trees whose local objects must not be evicted; the mounted ones are among them.
    pub cached: Vec<TreeId>,
}

impl Journal {
    /// The journal of a product that starts here for the first time.
    pub fn first(current: Entry) -> Self {
        let reason = "launched".to_owned();
        Self { sequence: 0, current, last_good: None, staged: None, phase: Phase::Launching, reason }
    }

    /// Reads the newest copy that can be read; `None` when the product has never run here. `path` is the first copy's.
    ///
    /// # Errors
    /// There are copies, and none of them can be read, is of this format, and is whole.
    pub fn read(path: &Path) -> Result<Option<Self>, FileFault> {
        let copies = Copies::read(path);
        match (copies.newest, copies.faults.into_iter().next()) {
            (Some(journal), _) => Ok(Some(journal)),
            (None, Some(fault)) => Err(fault),
            (None, None) => Ok(None),
        }
    }

    /// Writes the journal, with the next number, over the older of the two copies. When this returns it survives a power
    /// cut. `path` is the first copy's. The number grows also when the write fails: what is in memory is newer then than
    /// what is on disk.
    ///
    /// # Errors
    /// The file system's; both copies are still there then.
    pub fn write(&mut self, path: &Path) -> Result<(), FileFault> {
        let copies = Copies::read(path);
        let newest = copies.newest.as_ref().map_or(0, |journal| journal.sequence);
        self.sequence = self.sequence.max(newest) + 1;
        let target = if copies.newest_is_second { path.to_owned() } else { second(path) };
        let target = if copies.newest.is_none() { path.to_owned() } else { target };
        cut(&mut self.reason, REASON_MAX);
        let bytes = self.to_bytes(path)?;
        durable::write(&target, &bytes, Durability::PowerCut)
    }

    /// As it is on disk, and as the stub gives it to a program. `path` is for the error.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, FileFault> {
        let body = codec::encode(self).map_err(|e| FileFault::io(path, io::Error::other(e)))?;
        Ok(durable::seal(MAGIC, &body))
    }

    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, FileFault> {
        let body = durable::unseal(MAGIC, bytes, path, "journal")?;
        codec::decode::<_, BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
            path: path.to_owned(),
            what: "journal",
            detail: e.to_string(),
        })
    }

    /// Whether both say the same, whenever they were written.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        Self { sequence: other.sequence, ..self.clone() } == *other
    }

    /// What the mount daemon must keep because of this journal.
    pub fn pins(&self) -> Pins {
        let mut mounted = vec![self.current.tree];
        mounted.extend(self.staged.as_ref().map(|staged| staged.entry.tree));
        let last_good = self.last_good.as_ref().map(|entry| entry.tree);
        if matches!(self.phase, Phase::Probation { .. }) {
            mounted.extend(last_good);
        }
        let mut cached = mounted.clone();
        cached.extend(last_good);
        for trees in [&mut mounted, &mut cached] {
            trees.sort_unstable();
            trees.dedup();
        }
        Pins { mounted, cached }
    }
}

/// Every product that has a directory below `STATE/agents`, with its journal. A product whose journal is not readable
/// is listed with the fault: nothing of it may be collected then.
///
/// # Errors
/// `STATE/agents` is there and cannot be listed.
#[allow(clippy::type_complexity)]
pub fn list(state: &Path) -> Result<Vec<(Product, Result<Option<Journal>, FileFault>)>, FileFault> {
    let dir = state.join("agents");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileFault::io(&dir, e)),
    };
    let mut products = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| FileFault::io(&dir, e))?.file_name();
        let Some(Ok(product)) = name.to_str().map(str::parse::<Product>) else { continue };
        let paths = AgentPaths::new(state, "", product.clone());
        products.push((product, Journal::read(&paths.journal())));
    }
    products.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(products)
}

/// Cuts a text to at most `bytes_max` bytes, at a character.
pub(crate) fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> Entry {
        Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
    }

    #[test]
    fn a_journal_comes_back_and_damage_is_named() {
        let state = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new(state.path(), "", "agent".parse().unwrap());
        assert!(Journal::read(&paths.journal()).unwrap().is_none());
        durable::create_dir(&paths.directory()).unwrap();
        let mut journal = Journal::first(entry(1));
        journal.write(&paths.journal()).unwrap();
        assert_eq!(journal.sequence, 1);
        assert_eq!(Journal::read(&paths.journal()).unwrap(), Some(journal));
        let mut bytes = fs::read(paths.journal()).unwrap();
        bytes[50] ^= 0x40;
        fs::write(paths.journal(), &bytes).unwrap();
        let listed = list(state.path()).unwrap();
        assert_eq!(listed[0].0, *paths.product());
        assert!(matches!(&listed[0].1, Err(FileFault::Damaged { .. })));
        bytes[7] = 2;
        fs::write(paths.journal(), &bytes).unwrap();
        let fault = Journal::read(&paths.journal()).unwrap_err().to_string();
        assert!(fault.contains("newer version"), "{fault}");
    }

    /// Every single bit of the newer copy, and every length of it: what it said before is read, and the next write is
    /// in its place.
    #[test]
    fn whatever_is_wrong_with_one_copy_the_other_is_read() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("journal");
        let mut journal = Journal::first(entry(1));
        journal.write(&path).unwrap();
        let older = journal.clone();
        journal.phase = Phase::Confirmed;
        journal.write(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), Some(journal.clone()));
        let whole = fs::read(second(&path)).unwrap();
        let flipped = (0..whole.len() * 8).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        for bytes in flipped.chain(cut) {
            fs::write(second(&path), &bytes).unwrap();
            let copies = Copies::read(&path);
            assert_eq!((copies.newest.as_ref(), copies.faults.len()), (Some(&older), 1));
        }
        let said = Copies::read(&path).set_aside(77);
        assert!(said[0].contains("journal.2.damaged-77"), "{said:?}");
        assert!(state.path().join("journal.2.damaged-77").exists());
        journal.write(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), Some(journal.clone()));
        // In turn, whichever is older.
        for _ in 0..5 {
            let before = Journal::read(&path).unwrap();
            journal.write(&path).unwrap();
            let copies = [read_copy(&path).unwrap(), read_copy(&second(&path)).unwrap()];
            assert!(copies.contains(&before) && copies.contains(&Some(journal.clone())));
        }
        // Something else in its place is put out of the way of the next write.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), b"").unwrap();
        assert!(Copies::read(&path).set_aside(78)[0].contains("journal.damaged-78"));
        for _ in 0..2 {
            journal.write(&path).unwrap();
            assert_eq!(Journal::read(&path).unwrap(), Some(journal.clone()));
        }
        fs::write(&path, b"").unwrap();
        fs::write(second(&path), b"").unwrap();
        assert!(Journal::read(&path).is_err(), "that both are damaged is not as if there were none");
    }

    /// The bytes of format 1. If this fails the format has changed, and hosts could not come up after an upgrade.
    #[test]
    fn the_format_is_pinned() {
        let mut journal = Journal::first(entry(1));
        journal.last_good = Some(entry(2));
        journal.staged = Some(Staged { change: ChangeId(3), entry: entry(4) });
        journal.phase = Phase::Probation { change: ChangeId(3), attempts: 1, probation_ms: 10_000 };
        let body = codec::encode(&journal).unwrap();
        assert_eq!(TreeId::of(&body).to_hex(), "a36fae2dd697c50438e495cce0930d071f6ee445dc639ceb15dbbd3b0971b9a3");
    }

    #[test]
    fn the_last_good_tree_stays_mounted_only_while_it_may_be_needed() {
        let mut journal = Journal::first(entry(1));
        journal.last_good = Some(entry(2));
        journal.phase = Phase::Confirmed;
        assert_eq!(journal.pins().mounted, [entry(1).tree]);
        assert_eq!(journal.pins().cached.len(), 2);
        journal.phase = Phase::Probation { change: ChangeId(1), attempts: 1, probation_ms: 1 };
        assert_eq!(journal.pins().mounted.len(), 2);
    }

    #[test]
    fn of_two_copies_with_one_number_the_first_is_believed() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("journal");
        let mut journal = Journal::first(entry(1));
        journal.write(&path).unwrap();
        let other = Journal { reason: "another".to_owned(), ..journal.clone() };
        fs::write(second(&path), other.to_bytes(&path).unwrap()).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), Some(journal.clone()));
        assert!(!journal.says_as(&other));
        assert!(journal.says_as(&Journal { sequence: 9, ..journal.clone() }), "its number is not what it says");
    }

    #[test]
    fn a_copy_that_cannot_be_read_just_now_stays_where_it_is() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("journal");
        std::os::unix::fs::symlink("journal", &path).unwrap();
        assert!(Journal::read(&path).unwrap_err().is_io());
        let said = Copies::read(&path).set_aside(1);
        assert!(said.len() == 1 && !said[0].contains("damaged-1"), "{said:?}");
        assert!(fs::symlink_metadata(&path).is_ok());
    }

    #[test]
    fn a_host_without_agents_has_none_and_one_that_cannot_be_listed_is_told() {
        let state = tempfile::tempdir().unwrap();
        assert!(list(state.path()).unwrap().is_empty());
        fs::write(state.path().join("agents"), b"").unwrap();
        assert!(list(state.path()).unwrap_err().is_io());
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_at_a_character() {
        let cut = |text: &str, bytes_max| {
            let mut text = text.to_owned();
            cut(&mut text, bytes_max);
            text
        };
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("ab", 3), "ab");
        assert_eq!(cut("a\u{e4}\u{e4}", 4), "a\u{e4}");
        let state = tempfile::tempdir().unwrap();
        let mut journal = Journal { reason: "x".repeat(REASON_MAX + 1), ..Journal::first(entry(1)) };
        journal.write(&state.path().join("journal")).unwrap();
        assert_eq!(journal.reason.len(), REASON_MAX);
    }
}
