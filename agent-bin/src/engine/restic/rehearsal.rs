//! A restore test: a sample of the newest snapshots is really restored, into a place of the agent's own where nobody else
//! looks, compared byte for byte with what the repository says and with the source, as far as that has not changed, and
//! removed.
//!
//! Which files: those whose hash with the snapshot and the job is the smallest. So nobody can know them before, each run
//! takes others, and one that is begun again takes the same.

use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use proto::agent::SnapshotRef;

use super::super::beneath::{Beneath, READ};
use super::super::compare::{Comparison, Depth};
use super::super::fault::{EngineError, Refusal};
use super::super::format::blobs::Blobs;
use super::super::format::id::Id;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::time;
use super::super::restore::{self, Restored};
use super::super::session::Session;
use super::super::snapshots::Snapshot;
use super::super::source::Source;
use super::super::wanted::Wanted;
use super::super::{Mark, SampleBounds, SharedMeter, Work};
use super::{content_of, place_of, stopped_or_io};

/// The agent takes no larger sample, whatever it is told.
const FILES_MAX: u32 = 10_000;
/// Read at once of two files that are compared.
const BLOCK_BYTES: usize = 256 << 10;
/// Places that running tests use, so that none removes another's.
static IN_USE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// One file of a sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    hash: Id,
    below: PathBuf,
    bytes: u64,
}

/// Restores samples, and compares them.
///
/// # Errors
/// Nothing could be restored at all, or it was stopped. What is not as it should be is a problem of the meter's.
pub(super) fn restore_test(
    session: &Session,
    state: &Path,
    reference: &SnapshotRef,
    bounds: SampleBounds,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    mark.permits.restore_test()?;
    let snapshots = session.snapshots(&mark.origin, reference.is_latest(), meter)?;
    let found = snapshots.resolve(reference, mark.origin.host.as_str());
    let found = found.map_err(|fault| session.reference_fault(fault))?;
    let index = session.index(meter)?;
    let blobs = session.blobs(&index);
    let room = Room::make(&state.join("restore-tests").join(mark.origin.product.as_str()), mark.job)?;
    let mut work = Work::default();
    for (number, snapshot) in found.iter().enumerate() {
        let (root, path) = content_of(session, &blobs, snapshot)?;
        meter.begin("choosing a sample");
        let sample = choose(&blobs, (snapshot.id, mark.job), &root, bounds, meter)?;
        room.must_have_room(sample.iter().map(|chosen| chosen.bytes).sum())?;
        let wanted = Wanted::only(path, sample.iter().map(|chosen| chosen.below.clone()));
        let target = Beneath::make(&room.path.join(number.to_string())).map_err(EngineError::from)?;
        meter.begin("restoring a sample");
        let order = restore::Order {
            blobs: &blobs,
            root: &root,
            target: &target,
            wanted: &wanted,
            continued: false,
            over: None,
            meter,
        };
        let restored = restore::restore(&order).map_err(stopped_or_io)?;
        meter.begin("comparing the sample");
        compare(&blobs, &root, &target, &wanted, &restored, meter)?;
        compare_with_source(&root, snapshot, (&sample, &target), mark, meter)?;
        work.snapshots.push(snapshot.id.to_string());
        work.files += restored.files;
        work.bytes += restored.bytes;
    }
    Ok(work)
}

/// The files of a snapshot with the smallest hashes, as many as the bounds take.
fn choose(
    blobs: &Blobs<'_>,
    of: (Id, u64),
    root: &Node,
    bounds: SampleBounds,
    meter: &SharedMeter,
) -> Result<Vec<Chosen>, EngineError> {
    let files_max = usize::try_from(bounds.files.min(FILES_MAX)).unwrap_or(usize::MAX);
    // The largest hash on top: it goes when a smaller one comes.
    let mut smallest: BinaryHeap<Chosen> = BinaryHeap::new();
    let mut waiting = vec![(place_of(root), root.clone())];
    while let Some((below, node)) = waiting.pop() {
        if meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        match node.subtree.filter(|_| node.kind == NodeKind::Dir).map(|tree| blobs.tree(&tree)) {
            Some(Ok(tree)) => {
                waiting.extend(tree.nodes.into_iter().map(|node| (below.join(node.file_name()), node)));
            }
            Some(Err(fault)) => {
                let what = if below.as_os_str().is_empty() { Path::new("the source itself") } else { &below };
                meter.problem(format!("{}: cannot be restored: {fault}", what.display()));
            }
            None if node.kind == NodeKind::File && node.size <= bounds.bytes => {
                smallest.push(Chosen { hash: hash(of, &below), below, bytes: node.size });
                if smallest.len() > files_max {
                    smallest.pop();
                }
            }
            None => {}
        }
    }
    let mut left = bounds.bytes;
    let mut sample = smallest.into_sorted_vec();
    sample.retain(|chosen| match left.checked_sub(chosen.bytes) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    Ok(sample)
}

fn hash((snapshot, job): (Id, u64), below: &Path) -> Id {
    let text = [snapshot.to_string().as_bytes(), &job.to_le_bytes(), below.as_os_str().as_bytes()].concat();
    Id::of(&text)
}

/// What was restored beside the repository, every byte read back from the disk.
fn compare(
    blobs: &Blobs<'_>,
    root: &Node,
    live: &Beneath,
    wanted: &Wanted,
    restored: &Restored,
    meter: &SharedMeter,
) -> Result<(), EngineError> {
    let depth = Depth { contents: true, ownership: rustix::process::geteuid().is_root() };
    let (known, kept) = (&restored.missing, &HashSet::new());
    let wanted = Some(wanted);
    let (beside, since, left_out) = (false, None, None);
    let comparison = Comparison { blobs, live, depth, known, kept, beside, since, wanted, left_out, meter };
    comparison.run(root, &place_of(root)).map(drop).map_err(|_| EngineError::Stopped)
}

/// What was restored beside its source, where that is just what was backed up.
fn compare_with_source(
    root: &Node,
    snapshot: &Snapshot,
    (sample, target): (&[Chosen], &Beneath),
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<(), EngineError> {
    let sources = snapshot.sources();
    let [source] = sources.as_slice() else { return Ok(()) };
    // One that is gone, or may not be read any more, proves nothing of the backup.
    let Ok(source) = Source::open(source, &mark.permits) else { return Ok(()) };
    let (live, name) = source.place();
    for Chosen { below, .. } in sample {
        if meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        let of_source = if root.kind == NodeKind::Dir { below.as_path() } else { name };
        let (Ok(restored), Ok(now)) = (target.look(below), live.look(of_source)) else { continue };
        let unchanged = |at: &super::super::facts::Facts| {
            at.kind == NodeKind::File && at.size == restored.facts.size && at.mtime == restored.facts.mtime
        };
        // Whoever put the time back has changed it later than the snapshot was made.
        let since = snapshot.at();
        if !unchanged(&now.facts) || time(now.facts.ctime).is_none_or(|changed| changed >= since) {
            continue;
        }
        if let Some(at) = differs((target, below), (live, of_source)).unwrap_or(None)
            && live.look(of_source).is_ok_and(|later| later.facts.ctime == now.facts.ctime)
        {
            let shown = live.shown(of_source);
            meter.problem(format!(
                "{}: has not changed since the backup, and what was restored of it differs from byte {at} on",
                shown.display()
            ));
        }
    }
    Ok(())
}

/// From which byte on two files differ.
fn differs((one, name): (&Beneath, &Path), (other, of): (&Beneath, &Path)) -> io::Result<Option<u64>> {
    let mut files = [File::from(one.open(name, READ, 0)?), File::from(other.open(of, READ, 0)?)];
    let (mut at, mut blocks) = (0, [Vec::new(), Vec::new()]);
    loop {
        for (file, block) in files.iter_mut().zip(&mut blocks) {
            block.clear();
            file.take(BLOCK_BYTES as u64).read_to_end(block)?;
        }
        let [one, other] = &blocks;
        if one != other {
            let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same as u64));
        }
        if one.is_empty() {
            return Ok(None);
        }
        at += one.len() as u64;
    }
}

/// A place that nobody else looks into, and that is gone afterwards, whatever happens. What a killed agent left is removed
/// by the next test.
struct Room {
    path: PathBuf,
}

impl Room {
    /// `above` is this agent's own, whose tests are all in this process.
    fn make(above: &Path, job: u64) -> Result<Self, EngineError> {
        let fault = |error| EngineError::io(above, error);
        let private = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(above).map_err(fault)?;
        let path = above.join(job.to_string());
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if !in_use.insert(path.clone()) {
            return Err(EngineError::refused(&path, Refusal::TestUnderWay));
        }
        // An error before gives the place free again, which locks anew.
        let swept = sweep(above, &path, &in_use);
        drop(in_use);
        let room = Self { path };
        swept.map_err(fault)?;
        private(&room.path).map_err(|error| EngineError::io(&room.path, error))?;
        Ok(room)
    }

    /// A test must not fill the disk on which the agent keeps its state.
    fn must_have_room(&self, bytes: u64) -> Result<(), EngineError> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|error| EngineError::io(&self.path, error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes > free / 2 {
            return Err(EngineError::refused(&self.path, Refusal::NoRoomForTest { bytes, free }));
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(above) = self.path.parent()
            && let Err(error) = remove(above, &self.path)
        {
            tracing::warn!("{}: what a restore test left cannot be removed: {error}", self.path.display());
        }
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

/// Removes what killed agents left.
fn sweep(above: &Path, own: &Path, in_use: &BTreeSet<PathBuf>) -> io::Result<()> {
    for left in fs::read_dir(above)? {
        let left = left?.path();
        if left == own || !in_use.contains(&left) {
            remove(above, &left)?;
        }
    }
    Ok(())
}

fn remove(above: &Path, path: &Path) -> io::Result<()> {
    let Some(above) = Beneath::find(above)? else { return Ok(()) };
    match above.remove_all(Path::new(path.file_name().unwrap_or_default())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_private_and_gone_afterwards_and_what_a_killed_agent_left_with_it() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let above = dir.path().join("restore-tests");
        fs::create_dir_all(above.join("7/0/deep")).unwrap();
        fs::write(above.join("7/0/deep/file"), "left").unwrap();
        fs::set_permissions(above.join("7/0/deep"), fs::Permissions::from_mode(0o500)).unwrap();
        let room = Room::make(&above, 8).unwrap();
        assert_eq!(fs::metadata(&room.path).unwrap().mode() & 0o777, 0o700);
        assert!(!above.join("7").exists());
        let other = Room::make(&above, 9).unwrap();
        assert!(room.path.exists(), "another test removes nothing that is in use");
        assert!(Room::make(&above, 9).is_err());
        assert!(other.path.exists(), "nor one that is refused");
        assert!(room.must_have_room(u64::MAX).unwrap_err().to_string().contains("free"));
        room.must_have_room(0).unwrap();
        drop((room, other));
        assert_eq!(fs::read_dir(&above).unwrap().count(), 0);
    }

    #[test]
    fn two_files_differ_from_a_byte_on() {
        let dir = tempfile::tempdir().unwrap();
        let long = vec![7; BLOCK_BYTES + 10];
        let mut other = long.clone();
        other[BLOCK_BYTES + 3] = 8;
        for (name, content) in [("a", &long), ("b", &other), ("c", &long[..BLOCK_BYTES].to_vec())] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let at = Beneath::at(dir.path()).unwrap();
        let of = |one: &str, other: &str| differs((&at, Path::new(one)), (&at, Path::new(other))).unwrap();
        assert_eq!(of("a", "a"), None);
        assert_eq!(of("a", "b"), Some(BLOCK_BYTES as u64 + 3));
        assert_eq!(of("a", "c"), Some(BLOCK_BYTES as u64));
    }
}
