//! Backups of what a command prints, and how fast backups and restores are, with real repositories.

use std::time::Instant;

use proto::means::{Commands, Pace};

use super::*;

impl Bench {
    /// A host that names one command: this script of the shell.
    fn printing(&self, script: &str) -> (Mark, Commands) {
        let line = format!("[commands]\ndump = [\"/bin/sh\", \"-c\", {script:?}]\n");
        fs::create_dir_all(self.path("permits")).unwrap();
        fs::write(self.path("permits/permits.toml"), line).unwrap();
        let permits = Arc::new(Permits::read(&self.path("permits"), Path::new("/nowhere")).unwrap());
        let output_of = Some("dump".parse().unwrap());
        (Mark { permits, ..mark(false) }, Commands { output_of, seconds: 60, ..Commands::default() })
    }

    fn back_up_output(&self, script: &str, path: &str, options: &BackupOptions) -> Result<Work, EngineError> {
        let (mark, commands) = self.printing(script);
        let meter = SharedMeter::default();
        self.engine.backup_output(&self.at(), Path::new(path), options, &commands, &mark, &meter)
    }
}

#[test]
fn what_a_command_prints_is_one_file_that_restic_dumps_and_verify_reads() {
    let bench = Bench::new();
    let options = BackupOptions::default();
    // More than one piece, and one that is all holes.
    let script = "seq 1 2000000; head -c 3000000 /dev/zero";
    let work = bench.back_up_output(script, "/dumps/all.sql", &options).unwrap();
    assert_eq!((work.files, work.counts.files_new, work.counts.dirs_new), (1, 1, 1));
    assert_eq!((work.ran.len(), work.ran[0].moment.as_str()), (1, "output"));
    let printed = Command::new("/bin/sh").args(["-c", script]).output().unwrap().stdout;
    assert_eq!(work.bytes, printed.len() as u64);
    restic(&bench, &["check", "--read-data"]);
    assert!(restic_output(&bench, &["dump", "latest", "/dumps/all.sql"]).stdout == printed);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let target = bench.path("back");
    let (ended, problems) = bench.restore(&target);
    ended.unwrap();
    assert!(problems.is_empty() && fs::read(target.join("all.sql")).unwrap() == printed, "{problems:?}");
    assert_eq!(fs::metadata(target.join("all.sql")).unwrap().mode() & 0o777, 0o600);
    // The same again adds nothing but what says when.
    let again = bench.back_up_output(script, "/dumps/all.sql", &options).unwrap();
    assert!(again.counts.added_bytes < 4096, "{:?}", again.counts);
    // As do a dry run, and what prints nothing.
    let dry = BackupOptions { dry_run: true, ..BackupOptions::default() };
    assert_eq!(bench.back_up_output("echo 1", "/one", &dry).unwrap().snapshots, Vec::<String>::new());
    let none = bench.back_up_output("true", "/none", &options).unwrap();
    assert_eq!((none.bytes, none.snapshots.len()), (0, 1));
    // One damaged byte is found, though there is nothing to compare with.
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    for pack in walked(&bench.path("repo/data")) {
        let mut bytes = fs::read(&pack).unwrap();
        bytes[100] ^= 1;
        fs::remove_file(&pack).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    let meter = SharedMeter::default();
    let whole = bench.engine.verify(&bench.at(), &reference(&work.snapshots[0]), &mark(false), &meter);
    assert!(whole.is_err() || !meter.take_problems().into_lines().is_empty());
}

/// The files below a directory.
fn walked(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walked(&path) } else { vec![path] }).collect()
}

#[test]
fn a_command_that_fails_makes_no_snapshot_and_what_it_printed_is_not_stored_twice() {
    let bench = Bench::new();
    let (all, options) = ("seq 1 1000000", BackupOptions::default());
    let failing = bench.back_up_output(&format!("{all}; echo no space >&2; exit 2"), "/a", &options);
    let why = failing.unwrap_err().to_string();
    assert!(why.contains("command dump (output)") && why.contains("exit status: 2: no space"), "{why}");
    assert_eq!(restic(&bench, &["snapshots", "--json"]).trim(), "[]");
    let work = bench.back_up_output(all, "/a", &options).unwrap();
    assert!(work.counts.added_bytes < 100_000, "{:?}", work.counts);
    for path in ["a", "/", "/a/..", "/a/../b"] {
        assert!(bench.back_up_output("true", path, &options).is_err(), "{path}");
    }
}

#[test]
fn a_limit_holds_for_what_is_read_written_and_read_back() {
    let bench = Bench::new();
    let source = bench.path("paced");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(3, 400_000)).unwrap();
    let paced = |pace: Pace| Mark { pace, ..mark(false) };
    let (meter, options) = (SharedMeter::default(), BackupOptions { force: true, ..BackupOptions::default() });
    let back_up = |pace: Pace| {
        let began = Instant::now();
        bench.engine.backup(&bench.at(), &[&source], &options, &paced(pace), &meter).unwrap();
        began.elapsed()
    };
    let least = Duration::from_millis(900);
    let upload = back_up(Pace { upload: Some(400_000), ..Pace::default() });
    assert!(upload > least, "{upload:?}");
    let read = back_up(Pace { read: Some(400_000), ..Pace::default() });
    assert!(read > least, "{read:?}");
    let began = Instant::now();
    let (options, mark) = (RestoreOptions::default(), paced(Pace { download: Some(400_000), ..Pace::default() }));
    let target = bench.path("back");
    bench.engine.restore(&bench.at(), &reference("latest"), &target, &options, &mark, &meter).unwrap();
    assert!(began.elapsed() > least, "{:?}", began.elapsed());
    assert!(fs::read(target.join("file")).unwrap() == noise(3, 400_000));
}
