//! The program's state on its way: a sealed memory file of any size, which the version that leaves writes and the next
//! one reads.
//!
//! What a version saves when it leaves also stays, under names of the library's own, for the case that it comes back:
//! the stub holds it with everything else that is kept, so a version that fails its probation costs the one before it
//! nothing that it had in memory; and a version that is gone back to, and cannot read the newer schema, gets what it
//! had saved itself.
//!
//! ```text
//!  version 1 ── save ──> memory file, sealed ──> handoff ──> version 2 ── believed, writes schema 1 too: dropped
//!                             │ kept as manager-fs.state.1           │ fails, or goes back without a schema in common
//!                             └──────────────────────────────────────┴──> version 1 gets it back
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::Path;

use proto::codec;
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};

use crate::descriptor_name::DescriptorName;
use crate::durable::{self, FileFault};
use crate::handoff::{read_sealed, seal_in_memory};
use crate::inherited::Inherited;
use crate::journal::Entry;
use crate::operations::Operations;

const MAGIC: &[u8; 8] = b"MFSSNP\0\x01";
const BYTES_MAX: usize = 4096;
/// A version that is believed and writes none of the older schemas keeps what was saved in the newest few of them.
const KEPT_MAX: usize = 4;
const SNAPSHOT: &str = "snapshot";
const STATE: &str = "state";

/// What is said about a state that is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Who saved it.
    pub(crate) saved_by: Entry,
    /// In which schema.
    pub(crate) schema: u32,
    /// How long it is.
    pub(crate) bytes: u64,
    /// When, milliseconds since 1970.
    pub(crate) saved_unix_ms: u64,
}

impl Snapshot {
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(durable::seal(MAGIC, &codec::encode(self).map_err(io::Error::other)?))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, FileFault> {
        let (path, what) = (Path::new(SNAPSHOT), "note of a saved state");
        let body = durable::unseal(MAGIC, bytes, path, what)?;
        codec::decode::<_, BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
            path: path.to_owned(),
            what,
            detail: e.to_string(),
        })
    }
}

/// An empty memory file that can be sealed. It is closed by `execve` unless somebody says otherwise.
pub(crate) fn memory() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create(STATE, flags)?))
}

/// Lets nobody change it any more, and says how long it is.
///
/// # Errors
/// Somebody has it mapped for writing still.
pub(crate) fn seal(file: &File) -> io::Result<u64> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals).map_err(|e| match e {
        rustix::io::Errno::BUSY => io::Error::other("its file is still mapped for writing: unmap it first"),
        e => e.into(),
    })?;
    Ok(file.metadata()?.len())
}

/// All of it.
pub(crate) fn bytes(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps a sealed state for the version that saved it, here and at the stub.
pub(crate) fn keep(inherited: &Inherited, snapshot: &Snapshot, state: &File) -> io::Result<()> {
    let note = seal_in_memory(SNAPSHOT, &snapshot.to_bytes()?)?;
    let kept = inherited
        .keep_own(DescriptorName::own(STATE, snapshot.schema), state.as_fd())
        .and_then(|()| inherited.keep_own(DescriptorName::own(SNAPSHOT, snapshot.schema), note.as_fd()));
    kept.map_err(|fault| {
        forget(inherited, snapshot.schema);
        io::Error::other(fault)
    })
}

/// Drops what is kept in this schema, here and at the stub.
pub(crate) fn forget(inherited: &Inherited, schema: u32) {
    for kind in [SNAPSHOT, STATE] {
        inherited.forget_own(&DescriptorName::own(kind, schema));
    }
}

/// Everything that is kept, the newest schema last.
pub(crate) fn kept(inherited: &Inherited) -> Vec<Snapshot> {
    let notes = inherited.own_names(SNAPSHOT).into_iter().filter_map(|name| inherited.take_own(&name));
    let read = |note| read_sealed(note, SNAPSHOT).and_then(|bytes| Snapshot::from_bytes(&bytes));
    let mut kept: Vec<Snapshot> = notes
        .filter_map(|note| read(note).inspect_err(|e| tracing::warn!("a saved state cannot be used: {e}")).ok())
        .collect();
    kept.sort_by_key(|snapshot| snapshot.schema);
    kept
}

/// The state that is kept in this schema, of this length, at its beginning.
///
/// # Errors
/// It is not there, not sealed, or not of this length.
pub(crate) fn open(inherited: &Inherited, schema: u32, length: u64) -> Result<File, FileFault> {
    let (path, what) = (Path::new(STATE), "saved state");
    let damaged = |detail: String| FileFault::Damaged { path: path.to_owned(), what, detail };
    let name = DescriptorName::own(STATE, schema);
    let file = inherited.take_own(&name).ok_or_else(|| damaged(format!("descriptor '{name}' was not inherited")))?;
    let seals = rustix::fs::fcntl_get_seals(&file).map_err(|e| FileFault::io(path, e.into()))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(damaged("not sealed".to_owned()));
    }
    let mut file = File::from(file);
    let found = file.metadata().map_err(|e| FileFault::io(path, e))?.len();
    if found != length {
        return Err(damaged(format!("{found} bytes, and {length} were saved")));
    }
    file.seek(SeekFrom::Start(0)).map_err(|e| FileFault::io(path, e))?;
    Ok(file)
}

/// Gives a version that is back without a handoff what it had saved itself when it left, and drops that: it was returned
/// to, or what it had left for never began. What it cannot use any more is no reason not to start.
pub(crate) fn give_back(operations: &dyn Operations, inherited: &Inherited, running: &Entry) {
    let own: Vec<_> = kept(inherited).into_iter().filter(|snapshot| snapshot.saved_by == *running).collect();
    if let Some(snapshot) = own.iter().max_by_key(|snapshot| snapshot.saved_unix_ms) {
        let given = open(inherited, snapshot.schema, snapshot.bytes).map_err(|e| e.to_string());
        let given = given.and_then(|state| {
            operations.restore_state_from(snapshot.schema, &state).map_err(|refused| refused.to_string())
        });
        match given {
            Ok(()) => tracing::info!("the state that was saved when this version left is taken back"),
            Err(why) => tracing::warn!("the state that was saved when this version left is lost: {why}"),
        }
    }
    drop_own(inherited, running);
}

/// Drops what a version had saved itself: it is back, and has a state.
pub(crate) fn drop_own(inherited: &Inherited, running: &Entry) {
    let kept = kept(inherited);
    let own = kept.iter().filter(|snapshot| snapshot.saved_by == *running);
    own.for_each(|snapshot| forget(inherited, snapshot.schema));
}

/// The schemas of what a version keeps that writes none of them, ascending: the newest few.
pub(crate) fn needed(inherited: &Inherited, writes: &RangeInclusive<u32>) -> Vec<u32> {
    let mut needed: Vec<u32> = kept(inherited).iter().map(|snapshot| snapshot.schema).collect();
    needed.retain(|schema| !writes.contains(schema));
    needed.split_off(needed.len().saturating_sub(KEPT_MAX))
}

/// A version that is believed lets go of what no earlier version needs of it: what it can write itself, and all but the
/// newest few.
pub(crate) fn let_go(inherited: &Inherited, writes: &RangeInclusive<u32>) {
    let needed = needed(inherited, writes);
    let kept = kept(inherited);
    let others = kept.iter().filter(|snapshot| !needed.contains(&snapshot.schema));
    others.for_each(|snapshot| forget(inherited, snapshot.schema));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inherited::Table;
    use crate::operations::StateRefused;
    use proto::TreeId;
    use std::io::Write;
    use std::sync::Mutex;

    fn entry(version: &str) -> Entry {
        Entry { version: version.parse().unwrap(), tree: TreeId::of(version.as_bytes()) }
    }

    fn save(inherited: &Inherited, by: &str, schema: u32, text: &str) {
        let mut file = memory().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let bytes = seal(&file).unwrap();
        let snapshot = Snapshot { saved_by: entry(by), schema, bytes, saved_unix_ms: schema.into() };
        keep(inherited, &snapshot, &file).unwrap();
    }

    #[derive(Default)]
    struct Remembers(Mutex<Vec<(u32, String)>>);

    impl Operations for Remembers {
        fn restore_state(&self, schema: u32, state: &[u8]) -> Result<(), StateRefused> {
            let text = String::from_utf8_lossy(state).into_owned();
            let refused = text == "refused";
            self.0.lock().unwrap().push((schema, text));
            if refused { Err("no".into()) } else { Ok(()) }
        }
    }

    fn alone() -> Inherited {
        Inherited::new(Table::default(), None)
    }

    #[test]
    fn a_version_that_is_back_gets_its_own_newest_state_once() {
        let inherited = alone();
        save(&inherited, "1.0", 1, "older");
        save(&inherited, "1.0", 2, "newer");
        save(&inherited, "2.0", 3, "another's");
        let program = Remembers::default();
        give_back(&program, &inherited, &entry("1.0"));
        give_back(&program, &inherited, &entry("1.0"));
        assert_eq!(*program.0.lock().unwrap(), [(2, "newer".to_owned())]);
        assert_eq!(kept(&inherited).iter().map(|snapshot| snapshot.schema).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn what_cannot_be_used_is_dropped_and_stops_nobody() {
        let inherited = alone();
        save(&inherited, "1.0", 1, "refused");
        let program = Remembers::default();
        give_back(&program, &inherited, &entry("1.0"));
        assert_eq!((program.0.lock().unwrap().len(), kept(&inherited).len()), (1, 0));
        // A state that is missing, not sealed, or of another length.
        save(&inherited, "1.0", 1, "four");
        assert!(open(&inherited, 1, 5).unwrap_err().to_string().contains("4 bytes, and 5 were saved"));
        assert!(open(&inherited, 2, 4).unwrap_err().to_string().contains("manager-fs.state.2"));
        inherited.keep_own(DescriptorName::own(STATE, 1), memory().unwrap().as_fd()).unwrap();
        assert!(open(&inherited, 1, 0).unwrap_err().to_string().contains("not sealed"));
        give_back(&program, &inherited, &entry("1.0"));
        assert_eq!((program.0.lock().unwrap().len(), kept(&inherited).len()), (1, 0));
    }

    #[test]
    fn a_believed_version_keeps_what_it_cannot_write_itself_and_few_of_these() {
        let inherited = alone();
        (1..=8).for_each(|schema| save(&inherited, "1.0", schema, "x"));
        let_go(&inherited, &(7..=9));
        assert_eq!(kept(&inherited).iter().map(|snapshot| snapshot.schema).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn a_program_neither_sees_nor_touches_the_names_of_the_library() {
        let inherited = alone();
        save(&inherited, "1.0", 1, "x");
        assert!(inherited.names().is_empty());
        inherited.forget("manager-fs.state.1");
        assert!(inherited.take("manager-fs.state.1").is_none());
        let refused = inherited.keep("manager-fs.state.1", memory().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("manager-fs.state.1"), "{refused}");
        assert_eq!(kept(&inherited).len(), 1);
    }

    #[test]
    fn nobody_changes_a_sealed_state() {
        let mut file = memory().unwrap();
        file.write_all(b"state").unwrap();
        assert_eq!(seal(&file).unwrap(), 5);
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        assert_eq!(bytes(&file).unwrap(), b"state");
    }

    #[test]
    fn a_state_that_somebody_could_change_still_is_not_given_to_a_program() {
        let all = [SealFlags::WRITE, SealFlags::SHRINK, SealFlags::GROW];
        for missing in 0..all.len() {
            let inherited = alone();
            let file = memory().unwrap();
            for (n, seal) in all.into_iter().enumerate() {
                if n != missing {
                    rustix::fs::fcntl_add_seals(&file, seal).unwrap();
                }
            }
            inherited.keep_own(DescriptorName::own(STATE, 1), file.as_fd()).unwrap();
            let fault = open(&inherited, 1, 0).unwrap_err().to_string();
            assert!(fault.contains("not sealed"), "without {:?}: {fault}", all[missing]);
        }
    }
}
