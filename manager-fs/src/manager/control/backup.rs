//! A copy of all decisions beside the database, from which they can be built anew.
//!
//! One line an entry: the key, a tab, the value in hex. A value has a check of its own over itself and its key, so a line
//! that is damaged is found and passed over, and the others are still good. What is decided afterwards is appended, a key
//! that was deleted as `-` and a check; of several lines with one key the last counts. When what was appended is more than
//! the rest, all is written anew.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::contract::{ControlError, ControlStore, Entry, Event, list_all};
use super::state::{self, Key};
use crate::moments::{self, Moment};

/// The copy's file in a store.
pub const BACKUP_FILE: &str = "control.backup";
/// First line of the file.
const HEAD: &str = "manager-fs control backup 1";
/// Between two additions, which are a sync each: what is decided meanwhile shares one.
const EVERY: Duration = Duration::from_millis(500);
/// After a failure of the disk. Then the copy is written anew: an addition may have been cut short.
const AGAIN: Duration = Duration::from_secs(5);
/// So much is appended before the copy is written anew, however small it is.
const APPENDED_MIN: u64 = 1 << 20;
/// What a deleted key's check is over.
const DELETED: &[u8] = b"-";

/// Lets the copy follow every decision, until it is aborted.
pub(in crate::manager) async fn keep(store: Arc<dyn ControlStore>, path: PathBuf) {
    loop {
        match follow(store.as_ref(), &path, APPENDED_MIN).await {
            Err(ControlError::Closed) => return,
            Err(error) => tracing::error!(%error, "the decisions are not copied; it is tried again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Writes the copy, then adds what is decided.
async fn follow(store: &dyn ControlStore, path: &Path, appended_min: u64) -> Result<Infallible, ControlError> {
    loop {
        let (entries, revision) = list_all(store, "").await?;
        let whole = on_disk(path, move |path| write(path, &entries)).await?;
        let (mut watch, mut appended) = (store.watch("", revision), 0);
        while appended <= whole.max(appended_min) {
            let events = match watch.next().await {
                // Much was decided while the disk was slow.
                Err(ControlError::Compacted { .. }) => break,
                events => events?.events,
            };
            appended += on_disk(path, move |path| append(path, &events)).await?;
            tokio::time::sleep(EVERY).await;
        }
    }
}

async fn on_disk(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<u64> + Send + 'static,
) -> Result<u64, ControlError> {
    let path = path.to_path_buf();
    let working = tokio::task::spawn_blocking(move || {
        work(&path).map_err(|error| ControlError::Storage(format!("{}: {error}", path.display())))
    });
    working.await.map_err(|_| ControlError::Closed)?
}

/// Writes the copy beside the old one, then in its place; returns its bytes. Waits for the disk.
///
/// # Errors
/// The disk fails; the old copy stays.
pub(super) fn write(path: &Path, entries: &[Entry]) -> io::Result<u64> {
    let draft = path.with_extension("backup.new");
    moments::reach(Moment::DecisionsPut, path)?;
    // Hashes of tokens, and which host may see what: nobody's but the manager's.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let mut file = BufWriter::new(file);
    writeln!(file, "{HEAD}")?;
    for entry in entries {
        write_line(&mut file, &entry.key, Some(&entry.value))?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
    Ok(file.metadata()?.len())
}

/// Adds what has happened since; returns how many bytes that is. Waits for the disk.
fn append(path: &Path, events: &[Event]) -> io::Result<u64> {
    let mut lines = Vec::new();
    for event in events {
        write_line(&mut lines, &event.key, event.value.as_deref())?;
    }
    moments::reach(Moment::DecisionsAppend, path)?;
    // Not created: without what was there it would be no copy.
    let mut file = File::options().append(true).open(path)?;
    file.write_all(&lines)?;
    file.sync_data()?;
    Ok(lines.len() as u64)
}

/// One line: the key with its value, or that it was deleted.
fn write_line(to: &mut impl Write, key: &str, value: Option<&[u8]>) -> io::Result<()> {
    write!(to, "{key}\t")?;
    let check = state::check(key, DELETED);
    if value.is_none() {
        write!(to, "-")?;
    }
    for byte in value.unwrap_or(&check) {
        write!(to, "{byte:02x}")?;
    }
    writeln!(to)
}

/// What a copy holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// Keys and their last values, as far as they can be read.
    pub entries: BTreeMap<String, Vec<u8>>,
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
            Ok((key, Some(value))) => drop(backup.entries.insert(key, value)),
            Ok((key, None)) => drop(backup.entries.remove(&key)),
            Err(key) => {
                backup.damaged += 1;
                // What the key had before is not what it has: a host that was revoked must not be let in by it.
                key.and_then(|key| backup.entries.remove(&key));
            }
        }
    }
    backup
}

/// A key and its value, `None` of one that was deleted. Of a damaged line, the key if it can be one.
fn parse(line: &[u8]) -> Result<(String, Option<Vec<u8>>), Option<String>> {
    let at = line.iter().position(|byte| *byte == b'\t').unwrap_or(line.len());
    let key = std::str::from_utf8(&line[..at]).ok().filter(|key| Key::parse(key).is_some());
    let key = key.ok_or(None)?.to_owned();
    let rest = line.get(at + 1..).unwrap_or_default();
    let value = match rest.strip_prefix(b"-") {
        Some(digits) => from_hex(digits).filter(|found| *found == state::check(&key, DELETED)).map(|_| None),
        None => from_hex(rest).filter(|value| state::is_whole(&key, value)).map(Some),
    };
    match value {
        Some(value) => Ok((key, value)),
        None => Err(Some(key)),
    }
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(byte).collect::<Option<_>>().filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::LocalStore;
    use super::super::contract::{Change, Expect, Revision};
    use super::super::state::encode;
    use super::*;

    fn key(number: usize) -> String {
        format!("token/{number:064x}")
    }

    fn value(number: usize, text: &str) -> Vec<u8> {
        encode(&key(number), &(number as u64, text.to_owned())).unwrap()
    }

    fn event(number: usize, text: Option<&str>) -> Event {
        Event { revision: Revision(1), key: key(number), value: text.map(|text| value(number, text)) }
    }

    #[test]
    fn of_a_key_that_is_there_more_than_once_the_last_line_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BACKUP_FILE);
        assert!(append(&path, &[event(1, None)]).is_err(), "there is nothing to add to");
        let entry = |number| Entry { key: key(number), value: value(number, "old"), changed: Revision(1) };
        write(&path, &[entry(1), entry(2), entry(3)]).unwrap();
        append(&path, &[event(1, Some("new")), event(2, None), event(4, Some("new"))]).unwrap();
        append(&path, &[event(4, None), event(4, Some("newer"))]).unwrap();
        let expected = [(1, "new"), (3, "old"), (4, "newer")].map(|(at, text)| (key(at), value(at, text)));
        assert_eq!(read(&path).unwrap(), Backup { entries: expected.into(), damaged: 0 });
        // Cut short in the middle of what was added last: that is lost, and nothing older takes its place.
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 7).unwrap();
        let cut = read(&path).unwrap();
        assert_eq!((cut.damaged, cut.entries.keys().cloned().collect::<Vec<_>>()), (1, vec![key(1), key(3)]));
        // A deletion that is damaged deletes all the same.
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(2).position(|part| part == b"\t-").unwrap();
        bytes[at + 3] ^= 1;
        let damaged = from_bytes(&bytes);
        assert!(!damaged.entries.contains_key(&key(2)) && damaged.damaged == 2, "{damaged:?}");
    }

    #[tokio::test]
    async fn the_copy_follows_every_decision_and_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BACKUP_FILE);
        let store = Arc::new(LocalStore::open(&directory.path().join("control.redb")).unwrap());
        let (followed, file) = (Arc::clone(&store), path.clone());
        let following = tokio::spawn(async move { follow(followed.as_ref(), &file, 4 << 10).await });
        let put = |number, text: &str| Change::put(key(number), Expect::Any, value(number, text));
        let (mut largest, mut copies) = (0, Vec::new());
        for round in 0..12 {
            store
                .commit(vec![put(round % 7, &format!("{round}").repeat(200)), put(10 + round % 5, "x")])
                .await
                .unwrap();
            store.commit(vec![Change::delete(key(round % 3), Expect::Any)]).await.unwrap();
            let (entries, _) = list_all(store.as_ref(), "").await.unwrap();
            let now: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
            let mut tries = 0;
            while read(&path).map_or(true, |copy| copy.entries != now) {
                tries += 1;
                assert!(tries < 2_000 && !following.is_finished(), "the copy does not follow");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(read(&path).unwrap().damaged, 0);
            let file = fs::metadata(&path).unwrap();
            largest = largest.max(file.len());
            copies.push(file.ino());
        }
        assert!(largest < 40 << 10, "{largest} bytes");
        // Some of it was added to the copy that was there, and when that was much, the copy was written anew.
        copies.dedup();
        assert!((2..=6).contains(&copies.len()), "{copies:?}");
        following.abort();
    }

    #[tokio::test]
    async fn the_copy_is_kept_until_the_state_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BACKUP_FILE);
        let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
        store.commit(vec![Change::put(key(1), Expect::Any, value(1, "x"))]).await.unwrap();
        let keeping = tokio::spawn(keep(Arc::new(store), path.clone()));
        while !path.exists() {
            assert!(!keeping.is_finished(), "nobody keeps it");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(read(&path).unwrap().entries.len(), 1);
        keeping.abort();
    }

    #[test]
    fn a_copy_with_flipped_bits_gives_all_that_was_not_hit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BACKUP_FILE);
        let entry =
            |number: usize| Entry { key: key(number), value: value(number, &"v".repeat(50)), changed: Revision(1) };
        let entries: Vec<Entry> = (0..1000).map(entry).collect();
        write(&path, &entries).unwrap();
        assert_eq!(read(&path).unwrap().entries.len(), 1000);
        let mut bytes = fs::read(&path).unwrap();
        let step = bytes.len() / 200;
        (0..200).for_each(|at| bytes[at * step + 40] ^= 4);
        fs::write(&path, &bytes).unwrap();
        let backup = read(&path).unwrap();
        assert!((750..=820).contains(&backup.entries.len()), "{}", backup.entries.len());
        let good = |(key, value): (&String, &Vec<u8>)| entries.iter().any(|e| e.key == *key && e.value == *value);
        assert!(backup.entries.iter().all(good), "what is read is what was written");
    }
}
