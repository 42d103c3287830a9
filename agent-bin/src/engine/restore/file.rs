//! One file restored: piece by piece, with holes where there are only zeros.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

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
struct Unreadable {
    from: u64,
    to: u64,
    fault: BlobFault,
}

/// What became of a file's content.
struct Written {
    bytes: u64,
    readable: bool,
    unreadable: Vec<Unreadable>,
}

impl Restore<'_> {
    pub(super) fn file(&self, task: &FileTask) -> Result<(), RestoreFault> {
        self.go_on()?;
        let FileTask { path, node, folder } = task;
        let content = node.content.as_deref().unwrap_or_default();
        if self.order.continued && self.is_whole(path, content)? {
            self.done(task, File::open(path), node.size);
            return Ok(());
        }
        let file = match self.create(path) {
            Ok(file) => file,
            Err(error) => return self.failed(path, error),
        };
        let written = match self.write(&file, content, node.size)? {
            Ok(written) => written,
            Err(error) => {
                drop(fs::remove_file(path));
                return self.failed(path, error);
            }
        };
        if written.unreadable.is_empty() {
            self.done(task, Ok(file), written.bytes);
            return Ok(());
        }
        if !written.readable {
            drop(fs::remove_file(path));
            self.lost(path, &describe(&written));
            return Ok(());
        }
        let name = path.file_name().unwrap_or_default();
        let part = name_of_part(name, |name| folder.has(name) || folder.path.join(name).symlink_metadata().is_ok());
        let part = folder.path.join(part);
        if let Err(error) = fs::rename(path, &part) {
            return self.failed(path, error);
        }
        set_metadata(&file, node, self.privileged, |what, error| self.not_set(&part, what, &error));
        let zeros = "zeros stand for what is missing";
        self.lost(path, &format!("{}; what can be read is in {}, {zeros}", describe(&written), part.display()));
        Ok(())
    }

    fn done(&self, task: &FileTask, file: io::Result<File>, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match file {
            Ok(file) => {
                set_metadata(&file, &task.node, self.privileged, |what, error| {
                    self.not_set(&task.path, what, &error)
                });
            }
            Err(error) => self.not_set(&task.path, "mode, owner and times", &error),
        }
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        if !self.order.continued {
            return options.create_new(true).open(path);
        }
        let file = options.create(true).truncate(true).open(path)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }

    /// Whether an earlier run restored all of the content.
    fn is_whole(&self, path: &Path, content: &[Id]) -> Result<bool, RestoreFault> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(false) };
        let lengths: Option<Vec<u64>> = content.iter().map(|piece| self.length(piece)).collect();
        let Some(lengths) = lengths.filter(|lengths| lengths.iter().sum::<u64>() == metadata.size()) else {
            return Ok(false);
        };
        let Some(mut file) = metadata.is_file().then(|| File::open(path).ok()).flatten() else { return Ok(false) };
        let mut found = Vec::new();
        for (piece, length) in content.iter().zip(lengths) {
            self.go_on()?;
            found.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            if file.read_exact(&mut found).is_err() || Id::of(&found) != *piece {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn length(&self, piece: &Id) -> Option<u64> {
        self.order.blobs.index().find(BlobKind::Data, piece).next().map(|location| location.plain_length())
    }

    /// Writes every piece that can be read at its place.
    fn write(&self, file: &File, content: &[Id], size: u64) -> Result<io::Result<Written>, RestoreFault> {
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
