//! The small durable record that is the truth about an agent: written before every step that cannot be undone.
//!
//! `STATE/agents/<product>/journal`. The agent writes it while it runs, the stub while no agent does, and the mount
//! daemon reads it to know what must stay mounted and cached. After a power cut it decides what is started;
//! `docs/swap.md` has the table.

use std::fs;
use std::io;
use std::path::Path;

use proto::agent::ChangeId;
use proto::{Product, TreeId, Version, codec};
use serde::{Deserialize, Serialize};

use crate::durable::{self, Durability, FileFault};
use crate::paths::AgentPaths;

const MAGIC: &[u8; 8] = b"MFSJRN\0\x01";
/// A reason with the last lines of a failed program is the longest part.
const BYTES_MAX: usize = 64 << 10;

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
        /// Which change-over.
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
    /// For which change-over.
    pub change: ChangeId,
    /// Which.
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

    /// Reads the journal; `None` when the product has never run here.
    ///
    /// # Errors
    /// It cannot be read, is of another format, or is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, FileFault> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FileFault::io(path, e)),
        };
        let body = durable::unseal(MAGIC, &bytes, path, "journal")?;
        codec::decode::<_, BYTES_MAX>(body).map(Some).map_err(|e| FileFault::Damaged {
            path: path.to_owned(),
            what: "journal",
            detail: e.to_string(),
        })
    }

    /// Writes the journal with the next sequence number. When this returns it survives a power cut.
    ///
    /// # Errors
    /// The file system's; the old journal is still there then.
    pub fn write(&mut self, path: &Path) -> Result<(), FileFault> {
        self.sequence += 1;
        cut(&mut self.reason, 4096);
        let body = codec::encode(self).map_err(|e| FileFault::io(path, io::Error::other(e)))?;
        durable::write(path, &durable::seal(MAGIC, &body), Durability::PowerCut)
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
}
