//! What was recorded, and its moments.

use std::path::PathBuf;

use super::disk::{Disk, Operation, Unsynced};

/// What programs did to some directories, from a moment at which they were at rest until they had ended.
#[derive(Debug)]
pub struct Recording {
    base: Disk,
    operations: Vec<(f64, Operation)>,
}

/// A moment just before a sync returns: when most is in doubt.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    at: usize,
    /// Seconds since 1970.
    pub time: f64,
    /// What is being synced.
    pub syncs: PathBuf,
}

impl Recording {
    pub(super) fn new(base: Disk, operations: Vec<(f64, Operation)>) -> Self {
        Self { base, operations }
    }

    /// The moments before each sync of something below one of `roots` returns, and the end.
    pub fn moments(&self, roots: &[PathBuf]) -> Vec<Moment> {
        let ends = self.operations.iter().enumerate().filter_map(|(at, (time, operation))| match operation {
            Operation::Synced { path, .. } if roots.iter().any(|root| path.starts_with(root)) => {
                Some(Moment { at, time: *time, syncs: path.clone() })
            }
            _ => None,
        });
        let time = self.operations.last().map_or(0.0, |(time, _)| *time);
        ends.chain([Moment { at: self.operations.len(), time, syncs: PathBuf::from("nothing: the end") }]).collect()
    }

    /// Makes of each of `roots` what is left of it when the power is cut at that moment.
    pub fn cut(&self, roots: &[PathBuf], moment: &Moment, unsynced: Unsynced) {
        let disk = self.disk_at(moment.at);
        for root in roots {
            disk.leave(root, unsynced);
        }
    }

    fn disk_at(&self, at: usize) -> Disk {
        let mut disk = self.base.clone();
        for (_, operation) in &self.operations[..at] {
            disk.run(operation);
        }
        disk
    }

    /// Demands that the operations account for every byte that is there now: that nothing escaped the recording.
    ///
    /// # Panics
    /// A file is not as recorded.
    pub fn accounts_for(&self, roots: &[PathBuf]) {
        let recorded = self.disk_at(self.operations.len()).now();
        let found = Disk::of(roots).now();
        for path in recorded.keys().chain(found.keys()) {
            let (recorded, found) = (recorded.get(path), found.get(path));
            let length = |bytes: Option<&Vec<u8>>| bytes.map(Vec::len);
            let lengths = (length(recorded), length(found));
            assert!(recorded == found, "{}: recorded, found: {lengths:?} bytes", path.display());
        }
    }
}
