//! Restore tests: what is really restored and compared, what of it may change meanwhile, and that nothing is left.

use super::*;
use crate::engine::SampleBounds;

const ALL: SampleBounds = SampleBounds { files: 100, bytes: 1 << 30 };

impl Bench {
    fn test(&self, job: u64, bounds: SampleBounds) -> (Result<Work, EngineError>, Vec<String>) {
        let meter = SharedMeter::default();
        let mark = Mark { job, ..mark(false) };
        let ended = self.engine.restore_test(&self.at(), &reference("latest"), bounds, &mark, &meter);
        let left = fs::read_dir(self.path("state/restore-tests/data-agent")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing is left of it");
        (ended, meter.take_problems().into_lines())
    }
}

#[test]
fn a_sample_of_each_source_is_restored_and_compared() {
    let bench = Bench::new();
    let (source, other) = (bench.source(), bench.path("other"));
    fs::create_dir(&other).unwrap();
    (0..20).for_each(|number| fs::write(other.join(format!("file-{number}")), noise(number, 1_000)).unwrap());
    bench.backup(&source);
    bench.backup(&other);
    let (work, problems) = bench.test(1, ALL);
    let work = work.unwrap();
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!((work.snapshots.len(), work.files), (2, 24), "{work:?}");
    // As many as the bounds take; what is too large for them is no part of any sample.
    let (work, problems) = bench.test(1, SampleBounds { files: 5, bytes: 1 << 30 });
    assert_eq!((work.unwrap().files, problems), (4 + 5, Vec::new()));
    let (work, _) = bench.test(1, SampleBounds { files: 100, bytes: 7_500 });
    let work = work.unwrap();
    assert!(work.bytes <= 2 * 7_500 && work.files >= 7, "{work:?}");
}

#[test]
fn what_changed_in_the_source_is_no_failure_and_what_rotted_there_or_here_is() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    for number in 0..6 {
        fs::write(source.join(format!("file-{number}")), noise(number, 100_000)).unwrap();
    }
    bench.backup(&source);
    fs::write(source.join("file-1"), "changed since").unwrap();
    fs::remove_file(source.join("file-2")).unwrap();
    fs::write(source.join("new"), "new since").unwrap();
    let (work, problems) = bench.test(1, ALL);
    assert_eq!((work.unwrap().files, problems), (6, Vec::new()));
    // One byte of a pack.
    let packs = fs::read_dir(bench.path("repo/data")).unwrap();
    let packs = packs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap().map(|pack| pack.unwrap().path()));
    let pack = packs.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&pack, bytes).unwrap();
    let (work, problems) = bench.test(1, ALL);
    let problems = problems.join("\n");
    assert!(problems.contains("cannot be read") && work.is_ok_and(|work| work.files == 5), "{problems}");
}

#[test]
fn each_job_takes_another_sample_and_the_same_job_the_same() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    // Sizes that tell which were chosen.
    (0..40).for_each(|number| fs::write(source.join(format!("{number}")), vec![7; 1 << (number % 20)]).unwrap());
    bench.backup(&source);
    let three = SampleBounds { files: 3, bytes: 1 << 30 };
    let bytes = |job| bench.test(job, three).0.unwrap().bytes;
    let first = bytes(1);
    assert_eq!(bytes(1), first);
    let others: std::collections::BTreeSet<u64> = (2..12).map(bytes).collect();
    assert!(others.len() > 5, "{others:?}");
}

#[test]
fn a_host_that_permits_no_test_has_none() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    fs::write(bench.path("state").join(agent_core::internal::PERMITS_FILE), "[restore]\ntests = false\n").unwrap();
    let permits = Permits::read(&bench.path("state"), &bench.path("run")).unwrap();
    let mark = Mark { permits: Arc::new(permits), ..mark(false) };
    let refused = bench.engine.restore_test(&bench.at(), &reference("latest"), ALL, &mark, &SharedMeter::default());
    assert!(refused.unwrap_err().to_string().contains("restore.tests"));
    assert!(!bench.path("state/restore-tests").exists());
    // A test that is stopped leaves nothing either.
    let meter = SharedMeter::default();
    meter.stop();
    let stopped = bench.engine.restore_test(&bench.at(), &reference("latest"), ALL, &super::mark(false), &meter);
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    assert_eq!(fs::read_dir(bench.path("state/restore-tests/data-agent")).map_or(0, Iterator::count), 0);
}
