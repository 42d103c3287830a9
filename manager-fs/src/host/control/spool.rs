//! What the manager has not been told yet: durable reports, in order, delivered when it can be reached.
//!
//! ```text
//! file   = magic "MFSSPL\0\x01" | record*
//! record = length u32 | first 16 bytes of BLAKE3(body) | body (bincode of HostReport)
//! ```
//! A record that a power cut tore is cut off. One that is damaged, wherever it stands, is left out, and what is behind it
//! is found by its checksum: what a host did last says most about its state.
//! Delivery is at least once: the manager may see a report again when the host loses power between its answer and the
//! truncation here.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use proto::codec;
use proto::limits::{HOST_REQUEST_BYTES_MAX, MESSAGE_BYTES_MAX};
use proto::message::HostReport;
use proto::width;
use tokio::sync::Notify;

use crate::host::files;
use crate::moments::{self, Moment};
use crate::sync::lock;

const MAGIC: &[u8; 8] = b"MFSSPL\0\x01";
const HEAD_BYTES: usize = 4 + 16;

/// Bytes of reports kept for a manager that stays away: some ten thousand steps. The oldest give way to the newest, because
/// what a host did last says most about its state.
const SPOOL_BYTES_MAX: usize = 8 << 20;

/// Bytes that are hashed in search of what is behind damaged records.
const SEARCH_BYTES_MAX: usize = 256 << 20;

/// The reports that wait. Who only looks at them never waits for the disk.
#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
    /// Taken before `waiting`, and held while the disk works: what is in the file is in the order of `waiting`. `None` while
    /// the disk does not take it; then the reports live in memory alone.
    file: Mutex<Option<File>>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default, Clone)]
struct Waiting {
    reports: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many reports were before the first of `reports`, delivered or dropped.
    first: u64,
}

/// The oldest reports, and where they stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) reports: Vec<HostReport>,
    pub(crate) first: u64,
}

impl Spool {
    /// Opens the spool at `path`, which is made if it is missing. On a disk that gives or takes nothing the reports live in
    /// memory: a host must not be without its mounts because it cannot write down what it would tell.
    pub(crate) fn open(path: &Path) -> Self {
        let found = files::read_bounded(path, 4 * SPOOL_BYTES_MAX as u64);
        let (reports, whole) = match &found {
            Ok(Some(bytes)) => parse(bytes),
            Ok(None) | Err(_) => (VecDeque::new(), false),
        };
        let file = found.and_then(|_| if whole { append_to(path) } else { rewrite(path, None, &reports) });
        let file = file.inspect_err(|error| {
            tracing::warn!(%error, path = %path.display(), "reports are kept in memory until they can be saved");
        });
        let bytes = reports.iter().map(Vec::len).sum();
        let waiting = Waiting { reports, bytes, first: 0 };
        let (file, waiting) = (Mutex::new(file.ok()), Mutex::new(waiting));
        Self { path: path.to_owned(), file, waiting, arrived: Notify::new() }
    }

    /// Adds a report; it is on disk when this returns, unless the disk refused, which is logged: a report is worth
    /// less than what it reports on, so nothing waits for the disk to recover.
    pub(crate) fn push(&self, report: &HostReport) {
        let body = match codec::encode(report) {
            Ok(body) => body,
            Err(error) => return tracing::error!(%error, ?report, "a report cannot be encoded"),
        };
        let mut file = lock(&self.file);
        let record = record(&body);
        let left = self.lock().add(body);
        let saved = match (left, file.take()) {
            (None, Some(file)) => moments::reach(Moment::SpoolAdd, &self.path).and_then(|()| append(file, &record)),
            // Some were dropped, or an earlier write failed: what is in the file is not what waits.
            (left, file) => rewrite(&self.path, file, &left.unwrap_or_else(|| self.lock().reports.clone())),
        };
        match saved {
            Ok(saved) => *file = Some(saved),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "a report could not be saved; it is kept in memory");
            }
        }
        drop(file);
        self.arrived.notify_one();
    }

    /// The oldest reports, at most `count`, as many as fit one message.
    pub(crate) fn oldest(&self, count: usize) -> Batch {
        let waiting = self.lock();
        let mut bytes = 0;
        let fits = |body: &&Vec<u8>| {
            bytes += body.len();
            bytes == body.len() || bytes <= HOST_REQUEST_BYTES_MAX / 2
        };
        let reports = waiting.reports.iter().take(count).take_while(fits).filter_map(|body| decode(body)).collect();
        Batch { reports, first: waiting.first }
    }

    /// Forgets `count` reports from `first` on: the manager has them. Those that were dropped meanwhile are gone already.
    pub(crate) fn delivered(&self, first: u64, count: usize) {
        let mut file = lock(&self.file);
        let left = {
            let mut waiting = self.lock();
            while waiting.first < first + count as u64 && waiting.drop_oldest() {}
            waiting.reports.clone()
        };
        match rewrite(&self.path, file.take(), &left) {
            Ok(rewritten) => *file = Some(rewritten),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "delivered reports could not be removed");
            }
        }
    }

    /// How many reports wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().reports.len()
    }

    /// Returns when there is something to deliver.
    pub(crate) async fn waiting(&self) {
        loop {
            let arrived = self.arrived.notified();
            if self.len() > 0 {
                return;
            }
            arrived.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

impl Waiting {
    /// Adds a report. Returns what waits now, if older ones had to give way.
    fn add(&mut self, body: Vec<u8>) -> Option<VecDeque<Vec<u8>>> {
        self.bytes += body.len();
        self.reports.push_back(body);
        if self.bytes <= SPOOL_BYTES_MAX {
            return None;
        }
        let mut dropped = 0;
        while self.bytes > SPOOL_BYTES_MAX / 2 && self.drop_oldest() {
            dropped += 1;
        }
        tracing::warn!(dropped, "the manager stays away: the oldest reports were dropped");
        Some(self.reports.clone())
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.reports.pop_front() else { return false };
        self.bytes -= oldest.len();
        self.first += 1;
        true
    }
}

/// Adds a record at the end of the file.
fn append(mut file: File, record: &[u8]) -> io::Result<File> {
    file.write_all(record)?;
    file.sync_data()?;
    Ok(file)
}

/// Makes the file hold exactly these reports.
fn rewrite(path: &Path, file: Option<File>, reports: &VecDeque<Vec<u8>>) -> io::Result<File> {
    if let (true, Some(mut file)) = (reports.is_empty(), file) {
        moments::reach(Moment::SpoolRewrite, path)?;
        file.set_len(MAGIC.len() as u64)?;
        file.seek(SeekFrom::End(0))?;
        return Ok(file);
    }
    let mut bytes = MAGIC.to_vec();
    for body in reports {
        bytes.extend_from_slice(&record(body));
    }
    files::replace(Moment::SpoolRewrite, path, &bytes)?;
    append_to(path)
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut file = File::options().write(true).read(true).open(path)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

fn record(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend_from_slice(&width::count(body.len()).to_le_bytes());
    bytes.extend_from_slice(&blake3::hash(body).as_bytes()[..16]);
    bytes.extend_from_slice(body);
    bytes
}

fn decode(body: &[u8]) -> Option<HostReport> {
    match codec::decode::<_, MESSAGE_BYTES_MAX>(body) {
        Ok(report) => Some(report),
        Err(error) => {
            tracing::error!(%error, "a spooled report cannot be read and is left out");
            None
        }
    }
}

/// The whole records of a spool file, in their order, and whether that was all of it.
fn parse(bytes: &[u8]) -> (VecDeque<Vec<u8>>, bool) {
    let mut reports = VecDeque::new();
    let Some(mut rest) = bytes.strip_prefix(MAGIC.as_slice()) else { return (reports, false) };
    let (mut whole, mut budget) = (true, SEARCH_BYTES_MAX);
    while !rest.is_empty() {
        match first(rest, &mut budget) {
            Some((body, after)) => {
                reports.push_back(body.to_vec());
                rest = after;
            }
            None if budget == 0 => return (reports, false),
            None => {
                whole = false;
                rest = &rest[1..];
            }
        }
    }
    (reports, whole)
}

/// The record that begins here, and what is behind it. `budget` are bytes that may still be hashed of what is none.
fn first<'b>(bytes: &'b [u8], budget: &mut usize) -> Option<(&'b [u8], &'b [u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let (body, after) = rest.split_at_checked(length)?;
    // No report is empty, and any place would do for one.
    if length == 0 || length > MESSAGE_BYTES_MAX {
        return None;
    }
    if blake3::hash(body).as_bytes()[..16] == head[4..] && decode(body).is_some() {
        return Some((body, after));
    }
    *budget = budget.saturating_sub(length);
    None
}

/// For `tests/fuzz`: bytes as one report and as a whole file.
#[cfg(any(test, fuzzing))]
pub(in crate::host) fn read_any(bytes: &[u8]) -> bool {
    let (reports, _) = parse(&[MAGIC.as_slice(), &record(bytes), bytes].concat());
    decode(bytes).is_some() || !reports.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn report(number: u64) -> HostReport {
        HostReport::WrongHash { what: format!("chunk {number}") }
    }

    #[test]
    fn reports_survive_a_restart_in_order_until_they_are_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/events");
        let spool = Spool::open(&path);
        (0..5).for_each(|n| spool.push(&report(n)));
        drop(spool);

        let spool = Spool::open(&path);
        assert_eq!(spool.oldest(2).reports, [report(0), report(1)]);
        spool.delivered(0, 2);
        spool.push(&report(5));
        drop(spool);

        let spool = Spool::open(&path);
        assert_eq!(spool.oldest(9).reports, [report(2), report(3), report(4), report(5)]);
        spool.delivered(0, 4);
        spool.push(&report(6));
        drop(spool);
        assert_eq!(Spool::open(&path).oldest(9).reports, [report(6)]);
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_no_report_while_the_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        // Below a file nothing can be made.
        std::fs::write(dir.path().join("file"), "").unwrap();
        let path = dir.path().join("file/events");
        let spool = Spool::open(&path);
        spool.push(&report(1));
        assert_eq!(spool.oldest(9).reports, [report(1)]);
        std::fs::remove_file(dir.path().join("file")).unwrap();
        spool.push(&report(2));
        assert_eq!(Spool::open(&path).oldest(9).reports, [report(1), report(2)], "the disk takes it again");
    }

    #[test]
    fn a_torn_or_changed_tail_is_cut_off_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let spool = Spool::open(&path);
        (0..3).for_each(|n| spool.push(&report(n)));
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for cut in whole.len() - 20..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let spool = Spool::open(&path);
            assert_eq!(spool.oldest(9).reports, [report(0), report(1)], "cut at {cut}");
            spool.push(&report(7));
            drop(spool);
            assert_eq!(Spool::open(&path).oldest(9).reports, [report(0), report(1), report(7)]);
        }
        let mut changed = whole.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert_eq!(Spool::open(&path).len(), 2);
        fs::write(&path, b"something else").unwrap();
        assert_eq!(Spool::open(&path).len(), 0);
    }

    #[test]
    fn a_damaged_record_hides_none_of_those_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let spool = Spool::open(&path);
        (0..4).for_each(|n| spool.push(&report(n)));
        drop(spool);
        let whole = fs::read(&path).unwrap();
        let each = (whole.len() - MAGIC.len()) / 4;
        // Any bit of the second record: of its length, its checksum or its body.
        for bit in 0..each * 8 {
            let mut changed = whole.clone();
            changed[MAGIC.len() + each + bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &changed).unwrap();
            let spool = Spool::open(&path);
            assert_eq!(spool.oldest(9).reports, [report(0), report(2), report(3)], "bit {bit}");
            spool.push(&report(7));
            drop(spool);
            assert_eq!(Spool::open(&path).oldest(9).reports, [report(0), report(2), report(3), report(7)]);
        }
        // Bytes are gone from the middle of it, and the last one is torn.
        let torn = [&whole[..MAGIC.len() + each + 7], &whole[MAGIC.len() + 2 * each - 3..whole.len() - 1]].concat();
        fs::write(&path, torn).unwrap();
        assert_eq!(Spool::open(&path).oldest(9).reports, [report(0), report(2)]);
        // What looks like records without an end costs a bounded search.
        let nonsense = [MAGIC.as_slice(), &0x0000_ffff_u32.to_le_bytes().repeat(1 << 18)].concat();
        fs::write(&path, nonsense).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(Spool::open(&path).len(), 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_manager_that_stays_away_costs_the_oldest_reports_only() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events"));
        let big = |n: u64| HostReport::WrongHash { what: format!("{n} {}", "x".repeat(1 << 20)) };
        (0..9).for_each(|n| spool.push(&big(n)));
        assert!(spool.len() < 9);
        let left = spool.oldest(1);
        assert_ne!(left.reports, [big(0)]);
        let count = spool.len();
        spool.delivered(0, 1);
        assert_eq!(spool.len(), count, "the first report was dropped, not delivered");
        spool.push(&report(1));
        assert!(fs::metadata(dir.path().join("events")).unwrap().len() <= SPOOL_BYTES_MAX as u64);
    }

    #[tokio::test]
    async fn waiting_ends_when_a_report_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let spool = std::sync::Arc::new(Spool::open(&dir.path().join("events")));
        let waiter = tokio::spawn({
            let spool = std::sync::Arc::clone(&spool);
            async move { spool.waiting().await }
        });
        spool.push(&report(1));
        tokio::time::timeout(std::time::Duration::from_secs(5), waiter).await.unwrap().unwrap();
    }
}
