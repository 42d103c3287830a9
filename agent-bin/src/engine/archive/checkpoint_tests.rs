use std::time::{Duration, Instant};

use ::tests::noise;
use rustic_core::repofile::MasterKey;

use super::super::super::format::files::Files;
use super::super::super::format::seal::Key;
use super::*;

/// A repository with some pieces of a file that is there, too.
struct Bench {
    dir: tempfile::TempDir,
    files: Files,
    key: Key,
    pieces: Vec<Id>,
    facts: Facts,
}

const PIECE: usize = 100_000;

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (files, key) = (Files::new(&dir.path().join("repository")), Key::new(&MasterKey::new()).unwrap());
        let path = dir.path().join("file");
        File::create(&path).unwrap().set_len(LARGE_BYTES).unwrap();
        let facts = Facts { ctime: (1_000_000_000, 7), ..Facts::of(File::open(&path).unwrap()).unwrap() };
        let mut bench = Self { dir, files, key, pieces: Vec::new(), facts };
        bench.pieces = bench.store(0..5, |_| ());
        bench
    }

    /// Stores pieces, and lets somebody look when an index file names them.
    fn store(&self, numbers: std::ops::Range<u64>, look: impl FnOnce(&Packs<'_>)) -> Vec<Id> {
        let index = self.index();
        let packs = Packs::new(&self.files, &self.key, &index, None);
        let ids = numbers.map(|number| packs.add(BlobKind::Data, &noise(number, PIECE)).unwrap()).collect();
        packs.finish().unwrap();
        look(&packs);
        ids
    }

    fn index(&self) -> Index {
        Index::load(&self.files, &self.key, &mut Vec::new()).unwrap()
    }

    fn of_job(&self, job: u64, own_only: bool) -> Checkpoints {
        Checkpoints::new(&self.dir.path().join("state"), "repository".into(), job, own_only)
    }

    /// How many pieces a new run goes on behind. A child that another test has forked holds what was open then, and its
    /// lock, until it executes something: that passes.
    fn goes_on_at(&self, all: &Checkpoints, facts: &Facts) -> Option<usize> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.goes_on_now(all, facts) {
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                at => return at,
            }
        }
    }

    /// The same, asked once: for what is not to go on.
    fn goes_on_now(&self, all: &Checkpoints, facts: &Facts) -> Option<usize> {
        let on = all.begin(Path::new("/srv/image"), facts, &self.index())?;
        assert_eq!(on.offset, (on.pieces.len() * PIECE) as u64);
        assert_eq!(on.pieces, self.pieces[..on.pieces.len()]);
        lock(&all.shelf).open.clear();
        Some(on.pieces.len())
    }

    /// Leaves a record of as many pieces, of which this run stored the last in another order.
    fn leave(&self, all: &Checkpoints, count: usize) {
        let on = all.begin(Path::new("/srv/image"), &self.facts, &self.index()).unwrap();
        let new = on.pieces.len()..count;
        new.clone().for_each(|_| on.checkpoint.reserve());
        new.rev().for_each(|number| on.checkpoint.stored(number, self.pieces[number]));
        self.store(0..0, |packs| all.note(packs));
        lock(&all.shelf).open.clear();
    }

    fn record(&self) -> PathBuf {
        let mut records = fs::read_dir(self.dir.path().join("state/checkpoints")).unwrap();
        let record = records.next().unwrap().unwrap().path();
        assert!(records.next().is_none());
        record
    }
}

#[test]
fn a_file_goes_on_behind_its_noted_pieces_and_only_as_it_was() {
    let bench = Bench::new();
    let all = bench.of_job(1, false);
    assert_eq!(bench.goes_on_at(&all, &bench.facts), Some(0));
    bench.leave(&all, 3);
    assert_eq!(bench.goes_on_at(&bench.of_job(2, false), &bench.facts), Some(3));
    bench.leave(&bench.of_job(2, false), 5);
    assert_eq!(bench.goes_on_at(&bench.of_job(1, true), &bench.facts), Some(5), "it is this job's own");
    assert_eq!(bench.goes_on_at(&bench.of_job(3, false), &bench.facts), Some(5));
    let elsewhere = Checkpoints::new(&bench.dir.path().join("state"), "another".into(), 3, false);
    assert_eq!(bench.goes_on_at(&elsewhere, &bench.facts), Some(0));
    elsewhere.end();
    assert!(bench.record().exists(), "only its own");

    let facts = bench.facts;
    for other in [
        Facts { size: facts.size + 1, ..facts },
        Facts { mtime: (facts.mtime.0, facts.mtime.1 + 1), ..facts },
        Facts { ctime: (facts.ctime.0, facts.ctime.1 + 1), ..facts },
        Facts { identity: (facts.identity.0, facts.identity.1 + 1), ..facts },
        Facts { identity: (facts.identity.0 + 1, facts.identity.1), ..facts },
    ] {
        bench.leave(&bench.of_job(1, false), 4);
        assert!(bench.goes_on_at(&bench.of_job(1, false), &facts) >= Some(4));
        assert_eq!(bench.goes_on_at(&bench.of_job(1, false), &other), Some(0), "{other:?}");
    }
    bench.leave(&bench.of_job(1, false), 4);
    assert_eq!(bench.goes_on_at(&bench.of_job(2, true), &facts), Some(0), "whoever wants all to be read reads it");
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let new = Facts { ctime: (i64::try_from(now.as_secs()).unwrap(), 0), ..facts };
    assert_eq!(bench.goes_on_now(&bench.of_job(1, false), &new), None, "it may change without looking different");
    let small = Facts { size: LARGE_BYTES - 1, ..facts };
    assert_eq!(bench.goes_on_now(&bench.of_job(1, false), &small), None);
    let all = bench.of_job(1, false);
    bench.leave(&all, 4);
    all.end();
    assert_eq!(fs::read_dir(bench.dir.path().join("state/checkpoints")).unwrap().count(), 0);
}

#[test]
fn a_piece_counts_when_it_and_all_before_it_are_where_others_find_them() {
    let bench = Bench::new();
    let all = bench.of_job(1, false);
    let on = all.begin(Path::new("/srv/image"), &bench.facts, &bench.index()).unwrap();
    (0..4).for_each(|_| on.checkpoint.reserve());
    on.checkpoint.stored(1, bench.pieces[1]);
    on.checkpoint.stored(0, bench.pieces[0]);
    // The second is stored and the third is not; the fourth is in a pack that no index file names.
    let index = bench.index();
    let packs = Packs::new(&bench.files, &bench.key, &index, None);
    let late = packs.add(BlobKind::Data, &noise(77, PIECE)).unwrap();
    on.checkpoint.stored(3, late);
    all.note(&packs);
    let noted = || {
        (fs::read(bench.record()).unwrap().split(|byte| *byte == b'\n').count() > 1)
            .then(|| lock(&on.checkpoint.0).noted)
    };
    assert_eq!(noted(), Some(2));
    on.checkpoint.stored(2, bench.pieces[2]);
    all.note_if_due(&packs);
    assert_eq!(noted(), Some(2), "nothing was written since");
    all.note(&packs);
    assert_eq!(noted(), Some(3));
    packs.finish().unwrap();
    all.note_if_due(&packs);
    assert_eq!(noted(), Some(4));
    let another = bench.of_job(2, false).begin(Path::new("/srv/image"), &bench.facts, &bench.index());
    assert!(another.is_none(), "two jobs do not write one record");
    on.checkpoint.end();
    all.note(&packs);
    assert!(lock(&all.shelf).open.is_empty(), "what is over has no descriptor");
}

#[test]
fn a_damaged_record_leads_to_a_shorter_beginning_and_never_to_another_content() {
    let bench = Bench::new();
    bench.leave(&bench.of_job(1, false), 5);
    let whole = fs::read(bench.record()).unwrap();
    let goes_on = |bytes: &[u8]| {
        fs::write(bench.record(), bytes).unwrap();
        bench.goes_on_at(&bench.of_job(1, false), &bench.facts).unwrap()
    };
    assert_eq!(goes_on(&whole), 5);
    let header = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in 0..whole.len() {
        let expected = length.checked_sub(header).map_or(0, |ids| ids / ID_BYTES);
        assert_eq!(goes_on(&whole[..length]), expected, "cut at {length}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        // What it is of may be another job; that changes nothing.
        let expected = at.checked_sub(header).map_or(0, |ids| ids / ID_BYTES);
        assert!(goes_on(&changed) == expected || at < header, "changed at {at}");
    }
    assert_eq!(goes_on(&[&whole[..], &[0; 4096]].concat()), 5, "a power cut may leave zeros");
    assert_eq!(goes_on(&vec![b'x'; 1 << 20]), 0);
    // What a prune has removed is read again, and what is behind it.
    bench.leave(&bench.of_job(1, false), 5);
    let none = bench.of_job(1, false).begin(Path::new("/srv/image"), &bench.facts, &Index::default()).unwrap();
    assert_eq!((none.pieces.len(), none.offset), (0, 0));
}

#[test]
fn what_nobody_goes_on_with_is_removed_and_there_are_never_many() {
    let bench = Bench::new();
    bench.leave(&bench.of_job(1, false), 2);
    let record = bench.record();
    File::options().write(true).open(&record).unwrap().set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
    let all = bench.of_job(1, false);
    assert!(!record.exists());
    lock(&all.shelf).count = RECORDS_MAX;
    assert_eq!(bench.goes_on_now(&all, &bench.facts), None);
    let all = bench.of_job(1, false);
    let begin = |number: usize| all.begin(Path::new(&format!("/srv/{number}")), &bench.facts, &bench.index());
    let open: Vec<GoOn> = (0..OPEN_MAX).map(|number| begin(number).unwrap()).collect();
    assert!(begin(OPEN_MAX).is_none());
    open[0].checkpoint.end();
    assert!(begin(OPEN_MAX).is_some(), "what is read goes before what was read");
}
