//! A copy of all decisions beside the database, from which they can be built anew.
//!
//! One line an entry: the key, a tab, the value in hex. A value has a check of its own over itself and its key, so a line
//! that is damaged is found and passed over, and the others are still good.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::contract::{ControlError, ControlStore, Entry, Revision, list_all};
use super::state::Key;
use crate::moments::{self, Moment};

/// The copy's file in a store.
pub const BACKUP_FILE: &str = "control.backup";
/// First line of the file.
const HEAD: &str = "manager-fs control backup 1";
/// A copy is at most this much older than the decisions, if the disk allows.
const EVERY: Duration = Duration::from_secs(60);

/// Writes the copy whenever something was decided since the last one, until it is aborted.
pub(in crate::manager) async fn keep(store: Arc<dyn ControlStore>, path: std::path::PathBuf) {
    let mut written = None;
    loop {
        match copy(store.as_ref(), &path, written).await {
            Ok(revision) => written = Some(revision),
            Err(ControlError::Closed) => return,
            Err(error) => tracing::error!(%error, "the decisions are not copied; it is tried again"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Writes the copy, unless it is of this revision already.
async fn copy(store: &dyn ControlStore, path: &Path, written: Option<Revision>) -> Result<Revision, ControlError> {
    let (entries, revision) = list_all(store, "").await?;
    if written == Some(revision) {
        return Ok(revision);
    }
    let path = path.to_path_buf();
    let writing = tokio::task::spawn_blocking(move || {
        write(&path, &entries).map_err(|error| ControlError::Storage(format!("{}: {error}", path.display())))
    });
    writing.await.map_err(|_| ControlError::Closed)??;
    Ok(revision)
}

/// Writes the copy beside the old one, then in its place. Waits for the disk.
///
/// # Errors
/// The disk fails; the old copy stays.
pub(super) fn write(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let draft = path.with_extension("backup.new");
    moments::reach(Moment::DecisionsPut, path)?;
    // Hashes of tokens, and which host may see what: nobody's but the manager's.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let mut file = BufWriter::new(file);
    writeln!(file, "{HEAD}")?;
    for entry in entries {
        write!(file, "{}\t", entry.key)?;
        for byte in &entry.value {
            write!(file, "{byte:02x}")?;
        }
        writeln!(file)?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// What a copy holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// Keys and values that can be read.
    pub entries: Vec<(String, Vec<u8>)>,
    /// How many lines cannot be read: cut off, or with another check than their bytes.
    pub damaged: usize,
}

/// Reads a copy, as far as it can be read. Waits for the disk.
///
/// # Errors
/// The file cannot be read at all.
pub fn read(path: &Path) -> io::Result<Backup> {
    Ok(from_bytes(&fs::read(path)?))
}

/// As [`read`], of the file's bytes.
pub(super) fn from_bytes(bytes: &[u8]) -> Backup {
    let mut backup = Backup::default();
    for line in bytes.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty()) {
        match parse(line) {
            Some(entry) => backup.entries.push(entry),
            None => backup.damaged += 1,
        }
    }
    backup
}

fn parse(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let key = std::str::from_utf8(&line[..tab]).ok()?;
    let (digits, rest) = line[tab + 1..].as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let value: Vec<u8> = digits.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty())?;
    let whole = Key::parse(key).is_some() && super::state::is_whole(key, &value);
    whole.then(|| (key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::super::state::encode;
    use super::*;

    #[test]
    fn a_copy_with_flipped_bits_gives_all_that_was_not_hit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BACKUP_FILE);
        let key = |number: usize| format!("token/{number:064x}");
        let entry = |number: usize| {
            let value = encode(&key(number), &(number as u64, "v".repeat(50))).unwrap();
            Entry { key: key(number), value, changed: Revision(1) }
        };
        let entries: Vec<Entry> = (0..1000).map(entry).collect();
        write(&path, &entries).unwrap();
        assert_eq!(read(&path).unwrap().entries.len(), 1000);
        let mut bytes = fs::read(&path).unwrap();
        let step = bytes.len() / 200;
        (0..200).for_each(|at| bytes[at * step + 40] ^= 4);
        fs::write(&path, &bytes).unwrap();
        let backup = read(&path).unwrap();
        assert!((750..=820).contains(&backup.entries.len()), "{}", backup.entries.len());
        let good = |(key, value): &(String, Vec<u8>)| entries.iter().any(|e| e.key == *key && e.value == *value);
        assert!(backup.entries.iter().all(good), "what is read is what was written");
    }
}
