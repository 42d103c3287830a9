use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::tests::noise;
use agent_core::Permits;
use proto::agent::{HostScope, JobOrigin};

use super::super::format::id::Id;
use super::super::format::index::Index;
use super::*;

mod company;
mod damage;
mod hostile;
mod interop;
mod large;
mod looks;
mod options;
mod outputs;
mod over;
mod rehearsals;
mod sources;
mod week;

struct Bench {
    dir: tempfile::TempDir,
    engine: Restic,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Restic::new(&dir.path().join("state"));
        Self { dir, engine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self) -> Location {
        Location { path: self.path("repo").display().to_string(), password_file: None }
    }

    /// Files of several kinds, sizes and times.
    fn source(&self) -> PathBuf {
        let source = self.path("source");
        fs::create_dir_all(source.join("bin/deep/er")).unwrap();
        fs::create_dir(source.join("empty")).unwrap();
        // Does not compress, so that what is stored is as large as what is read.
        fs::write(source.join("bin/program"), noise(0, 3_000_000)).unwrap();
        fs::write(source.join("bin/deep/er/text"), "hello\n").unwrap();
        fs::write(source.join("nothing"), "").unwrap();
        fs::set_permissions(source.join("bin/program"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(source.join("bin/program"), source.join("program-too")).unwrap();
        symlink("bin/program", source.join("link")).unwrap();
        rustix::fs::setxattr(source.join("nothing"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(&source, "user.root", b"kept too", rustix::fs::XattrFlags::empty()).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o750)).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
        for path in ["nothing", "bin", ""] {
            File::open(source.join(path)).unwrap().set_times(fs::FileTimes::new().set_modified(then)).unwrap();
        }
        source
    }

    fn backup(&self, source: &Path) -> (Work, Vec<String>) {
        let meter = SharedMeter::default();
        let work =
            self.engine.backup(&self.at(), &[source], &BackupOptions::default(), &mark(false), &meter).unwrap();
        (work, meter.take_problems().into_lines())
    }

    /// Leaves it on record that a restore into `target` was cut off.
    fn cut_off(&self, target: &Path, work: &Work) {
        drop(Unfinished::begin(&self.path("state"), target, Id::parse(&work.snapshots[0]).unwrap(), false).unwrap());
    }

    fn restore(&self, target: &Path) -> (Result<Work, EngineError>, Vec<String>) {
        let meter = SharedMeter::default();
        let ended = self.engine.restore(
            &self.at(),
            &reference("latest"),
            target,
            &RestoreOptions::default(),
            &mark(false),
            &meter,
        );
        (ended, meter.take_problems().into_lines())
    }

    fn verify(&self, snapshot: &str) -> Vec<String> {
        let meter = SharedMeter::default();
        self.engine.verify(&self.at(), &reference(snapshot), &mark(false), &meter).unwrap();
        meter.take_problems().into_lines()
    }
}

/// Debian's restic on the bench's repository.
fn restic_output(bench: &Bench, arguments: &[&str]) -> std::process::Output {
    let output = Command::new("restic")
        .args(["--no-cache", "--repo"])
        .arg(bench.path("repo"))
        .arg("--password-file")
        .arg(bench.path("state/repository.password"))
        .args(arguments)
        .output();
    output.expect("restic is not installed: apt-get install restic")
}

fn restic(bench: &Bench, arguments: &[&str]) -> String {
    let output = restic_output(bench, arguments);
    assert!(output.status.success(), "restic {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn mark(look: bool) -> Mark {
    let origin = JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap());
    let nowhere = Path::new("/nowhere");
    let permits = Arc::new(Permits::read(nowhere, nowhere).unwrap());
    Mark { job: 1, origin, since_unix_ms: 0, look, permits, pace: proto::means::Pace::default() }
}

fn reference(snapshot: &str) -> SnapshotRef {
    SnapshotRef { snapshot: snapshot.into(), ..SnapshotRef::latest() }
}

#[test]
fn what_is_backed_up_comes_back_the_same() {
    let bench = Bench::new();
    let source = bench.source();
    let (work, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!((work.snapshots.len(), work.files), (1, 5), "{work:?}");
    let password = fs::metadata(bench.path("state/repository.password")).unwrap();
    assert_eq!(password.mode() & 0o777, 0o600);

    assert_eq!(bench.verify("latest"), Vec::<String>::new());

    let (target, meter) = (bench.path("back/again"), SharedMeter::default());
    let restored = bench
        .engine
        .restore(
            &bench.at(),
            &reference(&work.snapshots[0][..8]),
            &target,
            &RestoreOptions::default(),
            &mark(false),
            &meter,
        )
        .unwrap();
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    assert_eq!(restored.snapshots, work.snapshots);
    assert_eq!(work.snapshots[0].len(), 64, "ids are whole");
    let (before, after) = (fs::metadata(&source).unwrap(), fs::metadata(&target).unwrap());
    assert_eq!((before.mode(), before.mtime_nsec()), (after.mode(), after.mtime_nsec()));
    assert_eq!(fs::metadata(target.join("bin/program")).unwrap().nlink(), 2);
    assert_eq!(fs::read_dir(bench.path("state/restores")).unwrap().count(), 0);
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([&source, &target]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

#[test]
fn verify_names_every_kind_of_difference() {
    let bench = Bench::new();
    let source = bench.source();
    let (work, _) = bench.backup(&source);
    // The same size and the same time: only the content tells.
    let program = source.join("bin/program");
    let modified = fs::metadata(&program).unwrap().modified().unwrap();
    let mut content = fs::read(&program).unwrap();
    content[1_500_000] ^= 1;
    fs::write(&program, content).unwrap();
    File::options().write(true).open(&program).unwrap().set_modified(modified).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    symlink("elsewhere", source.join("link")).unwrap();
    fs::write(source.join("bin/new"), "new").unwrap();
    fs::remove_dir(source.join("empty")).unwrap();
    fs::set_permissions(source.join("bin/deep/er/text"), fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::setxattr(source.join("nothing"), "user.note", b"lost", rustix::fs::XattrFlags::empty()).unwrap();

    let problems = bench.verify(&work.snapshots[0]).join("\n");
    for expected in [
        "bin/program: differs from the snapshot from byte 1500000 on",
        "program-too: differs from the snapshot from byte 1500000 on",
        "link: leads to elsewhere, in the snapshot to bin/program",
        "bin/new: is in the directory and not in the snapshot",
        "empty: is in the snapshot and not in the directory",
        "er/text: has mode 0600, in the snapshot 0644",
        "nothing: has another value of the extended attribute user.note",
    ] {
        assert!(problems.contains(expected), "no {expected:?} in:\n{problems}");
    }
}

#[test]
fn of_a_policy_a_source_that_lives_is_no_failure_of_its_backup_and_a_repository_that_rots_is() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    let verify = || {
        let (meter, mut mark) = (SharedMeter::default(), mark(false));
        mark.origin.policy = Some("nightly".into());
        let work = bench.engine.verify(&bench.at(), &reference("latest"), &mark, &meter).unwrap();
        (work.files, meter.take_problems().into_lines())
    };
    assert_eq!(verify(), (4, vec![]));
    fs::write(source.join("bin/program"), "another version of it").unwrap();
    fs::remove_file(source.join("link")).unwrap();
    fs::create_dir(source.join("link")).unwrap();
    fs::write(source.join("bin/new"), "new").unwrap();
    fs::remove_dir_all(source.join("bin/deep")).unwrap();
    fs::set_permissions(source.join("nothing"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(verify(), (4, vec![]), "all that was backed up can be had");
    assert!(bench.verify("latest").len() > 3, "and whoever asks for the differences gets them");
    // What only the repository has by now is read, too.
    for pack in
        fs::read_dir(bench.path("repo/data")).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap())
    {
        let path = pack.unwrap().path();
        if fs::metadata(&path).unwrap().len() > 500_000 {
            fs::remove_file(path).unwrap();
        }
    }
    let (_, problems) = verify();
    assert!(
        problems.iter().any(|line| line.contains("bin/program: cannot be read from the repository")),
        "{problems:?}"
    );
}

#[test]
fn debian_restic_reads_checks_and_restores_what_was_written() {
    let bench = Bench::new();
    let source = bench.source();
    let (work, _) = bench.backup(&source);
    let target = bench.path("by-restic");
    restic(&bench, &["check", "--read-data"]);
    restic(&bench, &["restore", &work.snapshots[0], "--target", &target.display().to_string()]);
    let restored = target.join(source.strip_prefix("/").unwrap());
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([&source, &restored]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    let metadata = fs::metadata(&restored).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o750);
    assert_eq!(metadata.mtime_nsec(), 123_456_789);

    // And the other way round: a snapshot that restic adds is one that we verify.
    restic(&bench, &["backup", &source.display().to_string()]);
    assert!(restic(&bench, &["snapshots", "--json"]).matches("short_id").count() == 2);
    let meter = SharedMeter::default();
    let any = SnapshotRef { of: HostScope::Any, ..SnapshotRef::latest() };
    let verified = bench.engine.verify(&bench.at(), &any, &mark(false), &meter).unwrap();
    assert_eq!(verified.snapshots.len(), 2, "ours and restic's");
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
}

#[test]
fn a_second_backup_stores_only_what_changed() {
    let bench = Bench::new();
    let source = bench.source();
    let (first, _) = bench.backup(&source);
    fs::write(source.join("changed"), vec![7u8; 1000]).unwrap();
    let (second, _) = bench.backup(&source);
    assert!(first.repository_bytes > 1_000_000, "{first:?}");
    assert!(second.repository_bytes < 20_000, "{second:?}");
}

#[test]
fn a_stopped_backup_leaves_no_snapshot_and_loses_no_work() {
    let bench = Bench::new();
    let source = bench.source();
    let meter = SharedMeter::default();
    meter.stop();
    let stopped = bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &mark(false), &meter);
    assert!(matches!(stopped, Err(EngineError::Stopped)), "{stopped:?}");
    let none = bench.engine.verify(&bench.at(), &reference("latest"), &mark(false), &SharedMeter::default());
    assert!(matches!(none, Err(EngineError::NoRepository(_))), "{none:?}");
    let (work, problems) = bench.backup(&source);
    assert_eq!((work.files, problems), (5, Vec::new()));
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn a_rerun_finds_the_snapshot_that_its_first_run_finished() {
    let bench = Bench::new();
    let source = bench.source();
    let (first, _) = bench.backup(&source);
    let meter = SharedMeter::default();
    let again = bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &mark(true), &meter).unwrap();
    assert_eq!(again.snapshots, first.snapshots);
    let later = Mark { since_unix_ms: u64::MAX, ..mark(true) };
    let new = bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &later, &meter).unwrap();
    assert_ne!(new.snapshots, first.snapshots, "a snapshot older than the job is not the job's");
}

#[test]
fn an_unfinished_restore_goes_on_and_a_strange_target_is_refused() {
    let bench = Bench::new();
    let source = bench.source();
    let (work, _) = bench.backup(&source);
    let target = bench.path("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "precious").unwrap();
    let (refused, _) = bench.restore(&target);
    assert!(refused.unwrap_err().to_string().contains("is not empty"));
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "precious");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);

    // As a restore that was cut off leaves it: some files, half of one, links already there.
    fs::remove_file(target.join("mine")).unwrap();
    bench.cut_off(&target, &work);
    fs::create_dir(target.join("bin")).unwrap();
    fs::write(target.join("bin/program"), vec![0u8; 3_000_000]).unwrap();
    fs::hard_link(target.join("bin/program"), target.join("program-too")).unwrap();
    symlink("bin/program", target.join("link")).unwrap();
    let (finished, problems) = bench.restore(&target);
    assert!(finished.is_ok(), "{finished:?}");
    assert_eq!(problems, Vec::<String>::new());
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([&source, &target]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

#[test]
fn prune_keeps_the_newest_of_each_source_and_frees_the_rest() {
    let bench = Bench::new();
    let source = bench.source();
    let other = bench.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "other").unwrap();
    bench.backup(&other);
    bench.backup(&source);
    fs::remove_file(source.join("bin/program")).unwrap();
    fs::remove_file(source.join("program-too")).unwrap();
    let (newest, _) = bench.backup(&source);

    let meter = SharedMeter::default();
    let forgotten = bench.engine.forget(&bench.at(), 1, &mark(false), &meter).unwrap();
    assert_eq!(forgotten.snapshots.len(), 1, "{forgotten:?}");
    let freed = bench.engine.reclaim(&bench.at(), &mark(false), &meter).unwrap();
    assert!(freed.repository_bytes > 1_000_000, "{freed:?}");
    bench.engine.check(&bench.at(), true, &mark(false), &meter).unwrap();
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    assert_eq!(bench.verify(&newest.snapshots[0]), Vec::<String>::new());
}

#[test]
fn check_finds_a_damaged_pack_and_verify_survives_it() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    let meter = SharedMeter::default();
    let mut packs: Vec<PathBuf> = Vec::new();
    for directory in fs::read_dir(bench.path("repo/data")).unwrap() {
        packs.extend(fs::read_dir(directory.unwrap().path()).unwrap().map(|pack| pack.unwrap().path()));
    }
    let largest = packs.into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::set_permissions(&largest, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&largest, bytes).unwrap();

    bench.engine.check(&bench.at(), false, &mark(false), &meter).unwrap();
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new(), "the structure is sound");
    bench.engine.check(&bench.at(), true, &mark(false), &meter).unwrap();
    assert!(!meter.take_problems().lines.is_empty());
    let problems = bench.verify("latest").join("\n");
    assert!(problems.contains("bin/program: cannot be read from the repository"), "{problems}");
}

#[test]
fn what_cannot_be_done_is_named() {
    let bench = Bench::new();
    let source = bench.source();
    let at = bench.at();
    let meter = SharedMeter::default();
    let text = |result: Result<Work, EngineError>| result.expect_err("must fail").to_string();

    let missing = bench.path("missing");
    let error = text(bench.engine.backup(&at, &[&missing], &BackupOptions::default(), &mark(false), &meter));
    assert!(error.contains(&missing.display().to_string()), "{error}");
    assert!(!Path::new(&at.path).exists(), "a refused backup makes no repository");
    let error =
        text(bench.engine.backup(&at, &[Path::new("relative")], &BackupOptions::default(), &mark(false), &meter));
    assert!(error.contains("absolute"), "{error}");
    let error =
        text(bench.engine.backup(&at, &[&source.join("link")], &BackupOptions::default(), &mark(false), &meter));
    assert!(error.contains("symbolic link") && error.contains("bin/program"), "{error}");
    let error = text(bench.engine.verify(&at, &reference("latest"), &mark(false), &meter));
    assert!(error.contains("there is no repository here"), "{error}");
    let strange = Location { path: source.display().to_string(), password_file: None };
    let error = text(bench.engine.backup(&strange, &[&source], &BackupOptions::default(), &mark(false), &meter));
    assert!(error.contains("is not a repository"), "{error}");

    bench.backup(&source);
    let error = text(bench.engine.verify(&at, &reference("0123abcd"), &mark(false), &meter));
    assert!(error.contains("0123abcd"), "{error}");
    let wrong = bench.path("wrong");
    fs::write(&wrong, "not it\n").unwrap();
    let with = |file: &Path| Location { password_file: Some(file.display().to_string()), ..bench.at() };
    let error = text(bench.engine.verify(&with(&wrong), &reference("latest"), &mark(false), &meter));
    assert!(error.to_lowercase().contains("password"), "{error}");
    let error = text(bench.engine.verify(&with(&missing), &reference("latest"), &mark(false), &meter));
    assert!(error.contains("password file") && error.contains("missing"), "{error}");
}

/// A directory with an entry of each name, each a small file.
fn small(bench: &Bench, names: &[&str]) -> PathBuf {
    let source = bench.path("small");
    fs::create_dir(&source).unwrap();
    for name in names {
        fs::write(source.join(name), *name).unwrap();
    }
    source
}

#[test]
fn an_entry_that_became_another_kind_is_named_with_both() {
    let bench = Bench::new();
    let names = ["directory", "link", "fifo", "socket"];
    let source = small(&bench, &names);
    let (work, _) = bench.backup(&source);
    for name in names {
        fs::remove_file(source.join(name)).unwrap();
    }
    fs::create_dir(source.join("directory")).unwrap();
    symlink("directory", source.join("link")).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, source.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let problems = bench.verify(&work.snapshots[0]).join("\n");
    for kind in ["directory", "symbolic link", "fifo", "socket"] {
        assert!(problems.contains(&format!("is a {kind}, in the snapshot a file")), "no {kind} in:\n{problems}");
    }
}

#[test]
fn times_lengths_and_attributes_are_compared_on_both_sides() {
    let bench = Bench::new();
    let source = small(&bench, &["touched", "longer", "more", "less"]);
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(source.join(name), "user.note", value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("less", b"there");
    let (work, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    File::options().write(true).open(source.join("touched")).unwrap().set_modified(later).unwrap();
    fs::write(source.join("longer"), "longer than it was").unwrap();
    set("more", b"new");
    rustix::fs::removexattr(source.join("less"), "user.note").unwrap();
    let problems = bench.verify(&work.snapshots[0]).join("\n");
    for expected in [
        "touched: was modified at another time than in the snapshot",
        "longer: has 18 bytes, in the snapshot 6",
        "more: has the extended attribute user.note only in the directory",
        "less: has the extended attribute user.note only in the snapshot",
    ] {
        assert!(problems.contains(expected), "no {expected:?} in:\n{problems}");
    }
}

#[test]
fn special_files_and_odd_names_are_kept() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new();
    let source = small(&bench, &["plain", "name with spaces", "\"quoted\"", "line\nbreak", "ünïcödé"]);
    fs::write(source.join(std::ffi::OsStr::from_bytes(b"bytes \xff\xfe")), "not text").unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, source.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    symlink("/no/such/place", source.join("dangling")).unwrap();
    let (work, problems) = bench.backup(&source);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let (target, meter) = (bench.path("back"), SharedMeter::default());
    bench
        .engine
        .restore(
            &bench.at(),
            &reference(&work.snapshots[0]),
            &target,
            &RestoreOptions::default(),
            &mark(false),
            &meter,
        )
        .unwrap();
    assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&source), names(&target));
    assert_eq!(fs::read_link(target.join("dangling")).unwrap(), Path::new("/no/such/place"));
    let kind = fs::symlink_metadata(target.join("fifo")).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
}

#[test]
fn what_is_stopped_ends_soon_and_says_that_it_was_stopped() {
    let bench = Bench::new();
    let source = bench.source();
    let (work, _) = bench.backup(&source);
    let stopped = SharedMeter::default();
    stopped.stop();
    let (at, snapshot) = (bench.at(), &work.snapshots[0]);
    let target = bench.path("target");
    for (what, ended) in [
        ("verify", bench.engine.verify(&at, &reference(snapshot), &mark(false), &stopped)),
        (
            "restore",
            bench.engine.restore(
                &at,
                &reference(snapshot),
                &target,
                &RestoreOptions::default(),
                &mark(false),
                &stopped,
            ),
        ),
        ("check", bench.engine.check(&at, true, &mark(false), &stopped)),
    ] {
        assert!(matches!(ended, Err(EngineError::Stopped)), "{what}: {ended:?}");
    }
    assert_eq!(bench.verify(snapshot), Vec::<String>::new(), "and nothing is the worse for it");
    // A restore that was stopped goes on where it is asked again.
    let meter = SharedMeter::default();
    bench
        .engine
        .restore(&at, &reference(snapshot), &target, &RestoreOptions::default(), &mark(false), &meter)
        .unwrap();
    assert_eq!(fs::read(target.join("bin/program")).unwrap(), fs::read(source.join("bin/program")).unwrap());
}
