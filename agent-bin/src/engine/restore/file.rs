//! One file restored: piece by piece, with holes where there are only zeros.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::super::format::blobs::BlobFault;
use super::super::format::id::Id;
use super::super::format::index::BlobKind;
use super::super::live::set_metadata;
use super::{FileTask, Restore, RestoreFault, name_of_part};

/// Zeros of this many bytes become a hole: fewer would cost a write more than they save of the disk.
const HOLE_BYTES: usize = 64 << 10;
/// How many unreadable parts of one file are named.
const PARTS_NAMED: usize = 3;

/// A stretch of a file that cannot be read.
pub(super) struct Unreadable {
    from: u64,
    to: u64,
    fault: BlobFault,
}

/// What became of a file's content.
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) readable: bool,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Restore<'_> {
    pub(super) fn file(&self, task: &FileTask) -> Result<(), RestoreFault> {
        self.go_on()?;
        if let Some(over) = &self.order.over {
            return self.file_over(over, task);
        }
        let FileTask { below, node, .. } = task;
        let content = node.content.as_deref().unwrap_or_default();
        if self.order.continued
            && let Some(whole) = self.whole(task, content)?
        {
            self.done(task, &whole, node.size);
            return Ok(());
        }
        let file = match self.create(below) {
            Ok(file) => file,
            Err(error) => return self.failed(below, error),
        };
        let written = match self.write(&file, content, node.size)? {
            Ok(written) => written,
            Err(error) => {
                drop(self.order.target.remove(below));
                return self.failed(below, error);
            }
        };
        if written.unreadable.is_empty() {
            self.done(task, &file, written.bytes);
            return Ok(());
        }
        self.not_whole(task, &file, below, &written)
    }

    /// Leaves what can be read of a file, which was written to `at`, under another name.
    pub(super) fn not_whole(
        &self,
        task: &FileTask,
        file: &File,
        at: &Path,
        written: &Written,
    ) -> Result<(), RestoreFault> {
        let FileTask { below, node, folder } = task;
        if !written.readable {
            drop(self.order.target.remove(at));
            self.lost(below, &describe(written));
            return Ok(());
        }
        let part = loop {
            let name = below.file_name().unwrap_or_default();
            let part = name_of_part(name, |name| {
                folder.has(name) || self.order.target.look(&folder.below.join(name)).is_ok()
            });
            match self.order.target.rename(at, &part) {
                Ok(()) => {
                    folder.name(std::iter::once(part.clone()));
                    break folder.below.join(part);
                }
                // Somebody took the name a moment ago.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.go_on()?,
                Err(error) => return self.failed(below, error),
            }
        };
        set_metadata(file, node, self.privileged, |what, error| self.not_set(&part, what, &error));
        let (zeros, part) = ("zeros stand for what is missing", self.order.target.shown(&part));
        let why = format!("{}; what can be read is in {}, {zeros}", describe(written), part.display());
        self.lost(below, &why);
        Ok(())
    }

    fn done(&self, task: &FileTask, file: &File, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        set_metadata(file, &task.node, self.privileged, |what, error| self.not_set(&task.below, what, &error));
    }

    fn create(&self, below: &Path) -> io::Result<File> {
        match self.order.target.make_file(below) {
            // Never written to: it may have another name elsewhere.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.order.continued => {
                self.order.target.remove(below)?;
                self.order.target.make_file(below)
            }
            made => made,
        }
    }

    /// A file of which an earlier run restored all of the content.
    pub(super) fn whole(&self, task: &FileTask, content: &[Id]) -> Result<Option<File>, RestoreFault> {
        // A FIFO that took its name would be waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Ok(mut file) = self.order.target.open(&task.below, flags, 0).map(File::from) else { return Ok(None) };
        let Ok(metadata) = file.metadata() else { return Ok(None) };
        // A file with a second name may be somebody's elsewhere, who would lose it to the owner that it gets here.
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Ok(None);
        }
        let lengths: Option<Vec<u64>> = content.iter().map(|piece| self.length(piece)).collect();
        let Some(lengths) = lengths.filter(|lengths| lengths.iter().sum::<u64>() == metadata.size()) else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for (piece, length) in content.iter().zip(lengths) {
            self.go_on()?;
            found.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            if file.read_exact(&mut found).is_err() || Id::of(&found) != *piece {
                return Ok(None);
            }
        }
        Ok(Some(file))
    }

    fn length(&self, piece: &Id) -> Option<u64> {
        self.order.blobs.index().find(BlobKind::Data, piece).next().map(|location| location.plain_length())
    }

    /// Writes every piece that can be read at its place.
    pub(super) fn write(&self, file: &File, content: &[Id], size: u64) -> Result<io::Result<Written>, RestoreFault> {
        let mut written = Written { bytes: 0, readable: false, unreadable: Vec::new() };
        let mut at = 0u64;
        for (number, piece) in content.iter().enumerate() {
            self.go_on()?;
            match self.order.blobs.read(BlobKind::Data, piece) {
                Ok(bytes) => {
                    if let Err(error) = write_sparse(file, &bytes, at) {
                        return Ok(Err(error));
                    }
                    written.readable = true;
                    written.bytes += bytes.len() as u64;
                    at += bytes.len() as u64;
                    self.order.meter.advance(bytes.len() as u64);
                }
                Err(fault) => {
                    let Some(length) = self.length(piece).or_else(|| self.rest(content, number, size)) else {
                        // Nobody knows how long it was: what follows has no place.
                        written.unreadable.push(Unreadable { from: at, to: size.max(at), fault });
                        at = size.max(at);
                        break;
                    };
                    written.unreadable.push(Unreadable { from: at, to: at + length, fault });
                    at += length;
                }
            }
        }
        Ok(file.set_len(at).map(|()| written))
    }

    /// The length of a piece that no index names, from the file's size and the other pieces.
    fn rest(&self, content: &[Id], number: usize, size: u64) -> Option<u64> {
        let others = content.iter().enumerate().filter(|(other, _)| *other != number);
        let others: Option<Vec<u64>> = others.map(|(_, piece)| self.length(piece)).collect();
        size.checked_sub(others?.iter().sum())
    }
}

/// Writes all but long runs of zeros, which a new file has anyway.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    let mut from = 0;
    while from < bytes.len() {
        // On the file's own blocks, whatever the pieces are: a hole is made of whole ones.
        let step = |here: usize| HOLE_BYTES - proto::width::index(at + here as u64) % HOLE_BYTES;
        let mut to = from;
        while to < bytes.len() {
            let end = (to + step(to)).min(bytes.len());
            if is_zero(&bytes[to..end]) {
                break;
            }
            to = end;
        }
        file.write_all_at(&bytes[from..to], at + from as u64)?;
        from = to;
        while from < bytes.len() {
            let end = (from + step(from)).min(bytes.len());
            if !is_zero(&bytes[from..end]) {
                break;
            }
            from = end;
        }
    }
    Ok(())
}

fn describe(written: &Written) -> String {
    let parts: Vec<String> = written
        .unreadable
        .iter()
        .take(PARTS_NAMED)
        .map(|Unreadable { from, to, fault }| format!("bytes {from} to {to} cannot be read ({fault})"))
        .collect();
    let more = written.unreadable.len().saturating_sub(PARTS_NAMED);
    let more = if more > 0 { format!(", and {more} more parts") } else { String::new() };
    format!("{}{more}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use super::*;

    #[test]
    fn zeros_become_holes_and_everything_else_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for (pieces, blocks_max) in [
            (vec![vec![0u8; 1 << 20]; 4], 64),
            (vec![[vec![1; 10], vec![0; 500_000], vec![2; 3]].concat(), vec![0; 300_000], vec![3; 1]], 600),
            (vec![vec![7; 100_001], vec![0; 100], vec![8; 100_000]], 4_000),
        ] {
            let path = dir.path().join("file");
            let file = OpenOptions::new().create(true).write(true).read(true).truncate(true).open(&path).unwrap();
            let mut at = 0;
            for piece in &pieces {
                write_sparse(&file, piece, at).unwrap();
                at += piece.len() as u64;
            }
            file.set_len(at).unwrap();
            assert_eq!(fs::read(&path).unwrap(), pieces.concat());
            assert!(file.metadata().unwrap().blocks() <= blocks_max, "{}", file.metadata().unwrap().blocks());
        }
    }
}
