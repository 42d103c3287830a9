//! A repository that goes to and fro between another program and the agent: either checks, lists, restores, adds and
//! prunes what the other one wrote. The other one is Debian's restic, and rustic, by the library that its program is
//! made of.

use rustic_backend::LocalBackend;
use rustic_core::repofile::SnapshotFile;
use rustic_core::{
    CheckOptions, ConfigOptions, Credentials, KeyOptions, LocalDestination, LsOptions, OpenStatus, PathList,
    PruneOptions, Repository, RepositoryBackends, RepositoryOptions, SnapshotOptions,
};

use super::*;

/// A person's password of the repository.
const PASSWORD: &str = "a person's";

/// What a person does to the same repository with another program.
trait Other {
    fn init(&self, bench: &Bench);
    fn back_up(&self, bench: &Bench, source: &Path) -> String;
    /// Reads every byte, and fails where anything is wrong.
    fn check(&self, bench: &Bench);
    /// Into `target`, where the source then lies below its own path.
    fn restore(&self, bench: &Bench, snapshot: &str, target: &Path);
    fn count(&self, bench: &Bench) -> usize;
    fn forget_and_prune(&self, bench: &Bench, snapshots: &[&str]);
}

struct DebianRestic;

impl Other for DebianRestic {
    fn init(&self, bench: &Bench) {
        restic(bench, &["init"]);
    }

    fn back_up(&self, bench: &Bench, source: &Path) -> String {
        let said = restic(bench, &["backup", "--json", &source.display().to_string()]);
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let id = last["snapshot_id"].as_str().unwrap().to_owned();
        let all = restic(bench, &["snapshots", "--json"]);
        let all: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
        let found = all.iter().map(|one| one["id"].as_str().unwrap()).find(|one| one.starts_with(&id));
        found.unwrap().to_owned()
    }

    fn check(&self, bench: &Bench) {
        restic(bench, &["check", "--read-data"]);
    }

    fn restore(&self, bench: &Bench, snapshot: &str, target: &Path) {
        restic(bench, &["restore", snapshot, "--target", &target.display().to_string()]);
    }

    fn count(&self, bench: &Bench) -> usize {
        restic(bench, &["snapshots", "--json"]).matches("\"short_id\"").count()
    }

    fn forget_and_prune(&self, bench: &Bench, snapshots: &[&str]) {
        restic(bench, &[&["forget", "--prune"], snapshots].concat());
    }
}

struct Rustic;

impl Rustic {
    fn connect(bench: &Bench) -> Repository<()> {
        let files = Arc::new(LocalBackend::new(bench.path("repo").to_string_lossy(), []).unwrap());
        let options = RepositoryOptions::default().no_cache(true);
        Repository::new(&options, &RepositoryBackends::new(files, None)).unwrap()
    }

    fn open(bench: &Bench) -> Repository<OpenStatus> {
        Self::connect(bench).open(&Credentials::password(PASSWORD)).unwrap()
    }
}

impl Other for Rustic {
    fn init(&self, bench: &Bench) {
        fs::create_dir_all(bench.path("repo")).unwrap();
        let credentials = Credentials::password(PASSWORD);
        Self::connect(bench).init(&credentials, &KeyOptions::default(), &ConfigOptions::default()).unwrap();
    }

    fn back_up(&self, bench: &Bench, source: &Path) -> String {
        let repository = Self::open(bench).to_indexed_ids().unwrap();
        let source = PathList::from_iter([source]);
        let snapshot = SnapshotOptions::default().to_snapshot().unwrap();
        repository.backup(&rustic_core::BackupOptions::default(), &source, snapshot).unwrap().id.to_hex().to_string()
    }

    fn check(&self, bench: &Bench) {
        let found = Self::open(bench).check(CheckOptions::default().read_data(true)).unwrap();
        found.is_ok().unwrap();
    }

    fn restore(&self, bench: &Bench, snapshot: &str, target: &Path) {
        let repository = Self::open(bench).to_indexed().unwrap();
        let node = repository.node_from_snapshot_path(snapshot, |_| true).unwrap();
        let all = LsOptions::default();
        let nodes = || repository.ls(&node, &all).unwrap();
        let into = LocalDestination::new(&target.display().to_string(), true, !node.is_dir()).unwrap();
        let options = rustic_core::RestoreOptions::default();
        let plan = repository.prepare_restore(&options, nodes(), &into, false).unwrap();
        repository.restore(plan, &options, nodes(), &into).unwrap();
    }

    fn count(&self, bench: &Bench) -> usize {
        Self::open(bench).get_all_snapshots().unwrap().len()
    }

    fn forget_and_prune(&self, bench: &Bench, snapshots: &[&str]) {
        let repository = Self::open(bench);
        let ids: Vec<_> =
            repository.get_snapshots(snapshots).unwrap().iter().map(|one: &SnapshotFile| one.id).collect();
        repository.delete_snapshots(&ids).unwrap();
        // As `rustic forget --prune` does: what is no longer needed is marked now, and removed by a later prune.
        let options = PruneOptions::default();
        let plan = repository.prune_plan(&options).unwrap();
        repository.prune(&options, plan).unwrap();
    }
}

struct Both<'a> {
    other: &'a dyn Other,
    bench: Bench,
    source: PathBuf,
    at: Location,
}

impl<'a> Both<'a> {
    /// A repository that a person's program has made, with a person's password.
    fn new(other: &'a dyn Other) -> Self {
        let bench = Bench::new();
        let source = bench.source();
        fs::create_dir(bench.path("state")).unwrap();
        // Under the name that the bench gives restic, and named in each order: the agent draws none.
        let password = bench.path("state/repository.password");
        fs::write(&password, PASSWORD).unwrap();
        other.init(&bench);
        let at = Location { password_file: Some(password.display().to_string()), ..bench.at() };
        Self { other, bench, source, at }
    }

    fn back_up(&self) -> String {
        let (options, meter) = (BackupOptions::default(), SharedMeter::default());
        let work = self.bench.engine.backup(&self.at, &[&self.source], &options, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
        work.snapshots[0].clone()
    }

    fn other_backs_up(&self) -> String {
        self.other.back_up(&self.bench, &self.source)
    }

    /// A large file becomes another one.
    fn change(&self, seed: u64) {
        let program = self.source.join("bin/program");
        fs::write(&program, noise(seed, 2_000_000)).unwrap();
        // Whoever is not root has lost it by that.
        fs::set_permissions(program, fs::Permissions::from_mode(0o4755)).unwrap();
    }

    /// Both find nothing wrong with it.
    fn check(&self) {
        self.other.check(&self.bench);
        let meter = SharedMeter::default();
        self.bench.engine.check(&self.at, true, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    }

    /// Both restore the snapshot to what the source is.
    fn restore(&self, snapshot: &str) {
        let (ours, theirs) = (self.bench.path("by-agent"), self.bench.path("by-other"));
        drop((fs::remove_dir_all(&ours), fs::remove_dir_all(&theirs)));
        let any = SnapshotRef { of: HostScope::Any, ..reference(snapshot) };
        let (options, meter) = (RestoreOptions::default(), SharedMeter::default());
        self.bench.engine.restore(&self.at, &any, &ours, &options, &mark(false), &meter).unwrap();
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
        self.other.restore(&self.bench, snapshot, &theirs);
        for restored in [ours, theirs.join(self.source.strip_prefix("/").unwrap())] {
            let mut diff = Command::new("diff");
            let diff = diff.args(["-r", "--no-dereference"]).args([&self.source, &restored]).output().unwrap();
            assert!(diff.status.success(), "{snapshot}: {}", String::from_utf8_lossy(&diff.stdout));
            let program = fs::metadata(restored.join("bin/program")).unwrap();
            assert_eq!((program.mode() & 0o7777, program.nlink()), (0o4755, 2), "{}", restored.display());
        }
    }

    /// Both list the same.
    fn snapshots(&self) -> usize {
        let meter = SharedMeter::default();
        let filter = proto::look::SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        let found = self.bench.engine.look(&self.at, &Query::Snapshots(filter), &mark(false), &meter).unwrap();
        assert_eq!(self.other.count(&self.bench), found.found.len());
        found.found.len()
    }
}

fn goes_to_and_fro(other: &dyn Other) {
    let both = Both::new(other);
    let theirs = both.other_backs_up();
    let ours = both.back_up();
    assert_eq!(both.snapshots(), 2);
    both.check();
    both.restore(&theirs);
    both.restore(&ours);

    // The other one forgets what we wrote, and prunes; what it shares with the other snapshot stays.
    both.change(1);
    let newer = both.back_up();
    other.forget_and_prune(&both.bench, &[&ours, &theirs]);
    assert_eq!(both.snapshots(), 1);
    both.check();
    both.restore(&newer);

    // And we what it wrote: of each host and source the newest stays, so it writes two.
    let of_other = both.other_backs_up();
    both.change(2);
    let last = both.other_backs_up();
    assert_ne!(of_other, last);
    let meter = SharedMeter::default();
    let forgotten = both.bench.engine.forget(&both.at, 1, &mark(false), &meter).unwrap();
    assert_eq!(forgotten.snapshots, [of_other]);
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

#[test]
fn a_repository_goes_to_and_fro_between_restic_and_the_agent() {
    goes_to_and_fro(&DebianRestic);
}

#[test]
fn a_repository_goes_to_and_fro_between_rustic_and_the_agent() {
    goes_to_and_fro(&Rustic);
}
