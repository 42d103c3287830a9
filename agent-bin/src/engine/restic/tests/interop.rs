//! A repository that goes to and fro between Debian's restic and the agent: either checks, lists, restores, adds and prunes
//! what the other one wrote.

use super::*;

struct Both {
    bench: Bench,
    source: PathBuf,
    at: Location,
}

impl Both {
    /// A repository that a person's restic has made, with a person's password.
    fn new() -> Self {
        let bench = Bench::new();
        let source = bench.source();
        fs::create_dir(bench.path("state")).unwrap();
        // Under the name that the bench gives restic, and named in each order: the agent draws none.
        let password = bench.path("state/repository.password");
        fs::write(&password, "a person's").unwrap();
        restic(&bench, &["init"]);
        let at = Location { password_file: Some(password.display().to_string()), ..bench.at() };
        Self { bench, source, at }
    }

    fn back_up(&self) -> String {
        let (options, meter) = (BackupOptions::default(), SharedMeter::default());
        let work = self.bench.engine.backup(&self.at, &[&self.source], &options, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
        work.snapshots[0].clone()
    }

    fn restic_backs_up(&self) -> String {
        let said = restic(&self.bench, &["backup", "--json", &self.source.display().to_string()]);
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let id = last["snapshot_id"].as_str().unwrap().to_owned();
        let all = restic(&self.bench, &["snapshots", "--json"]);
        let all: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
        let found = all.iter().map(|one| one["id"].as_str().unwrap()).find(|one| one.starts_with(&id));
        found.unwrap().to_owned()
    }

    /// Both find nothing wrong with it.
    fn check(&self) {
        restic(&self.bench, &["check", "--read-data"]);
        let meter = SharedMeter::default();
        self.bench.engine.check(&self.at, true, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    }

    /// Both restore the snapshot to what the source is, and list the same.
    fn restore(&self, snapshot: &str) {
        let (ours, theirs) = (self.bench.path("by-agent"), self.bench.path("by-restic"));
        drop((fs::remove_dir_all(&ours), fs::remove_dir_all(&theirs)));
        let any = SnapshotRef { of: HostScope::Any, ..reference(snapshot) };
        let (options, meter) = (RestoreOptions::default(), SharedMeter::default());
        self.bench.engine.restore(&self.at, &any, &ours, &options, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
        restic(&self.bench, &["restore", snapshot, "--target", &theirs.display().to_string()]);
        for restored in [ours, theirs.join(self.source.strip_prefix("/").unwrap())] {
            let mut diff = Command::new("diff");
            let diff = diff.args(["-r", "--no-dereference"]).args([&self.source, &restored]).output().unwrap();
            assert!(diff.status.success(), "{snapshot}: {}", String::from_utf8_lossy(&diff.stdout));
        }
    }

    fn snapshots(&self) -> usize {
        let meter = SharedMeter::default();
        let filter = proto::look::SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        let found = self.bench.engine.look(&self.at, &Query::Snapshots(filter), &mark(false), &meter).unwrap();
        let theirs = restic(&self.bench, &["snapshots", "--json"]);
        assert_eq!(theirs.matches("\"short_id\"").count(), found.found.len());
        found.found.len()
    }
}

#[test]
fn a_repository_goes_to_and_fro_between_restic_and_the_agent() {
    let both = Both::new();
    let theirs = both.restic_backs_up();
    let ours = both.back_up();
    assert_eq!(both.snapshots(), 2);
    both.check();
    both.restore(&theirs);
    both.restore(&ours);

    // restic forgets what we wrote, and prunes; what it shares with the other snapshot stays.
    fs::write(both.source.join("bin/program"), noise(1, 2_000_000)).unwrap();
    let newer = both.back_up();
    restic(&both.bench, &["forget", &ours, &theirs, "--prune"]);
    assert_eq!(both.snapshots(), 1);
    both.check();
    both.restore(&newer);

    // And we what restic wrote: of each host and source the newest stays, so it writes two.
    let of_restic = both.restic_backs_up();
    fs::write(both.source.join("bin/program"), noise(2, 2_000_000)).unwrap();
    let last = both.restic_backs_up();
    assert_ne!(of_restic, last);
    let meter = SharedMeter::default();
    let forgotten = both.bench.engine.forget(&both.at, 1, &mark(false), &meter).unwrap();
    assert_eq!(forgotten.snapshots, [of_restic]);
    both.bench.engine.reclaim(&both.at, &mark(false), &meter).unwrap();
    assert_eq!(both.snapshots(), 2);
    both.check();
    both.restore(&last);
    // Nothing is stored twice of what the other one stored.
    let meter = SharedMeter::default();
    let options = BackupOptions { force: true, ..BackupOptions::default() };
    let again = both.bench.engine.backup(&both.at, &[&both.source], &options, &mark(false), &meter).unwrap();
    assert!(again.counts.added_bytes < 20_000, "{:?}", again.counts);
    both.check();
}
