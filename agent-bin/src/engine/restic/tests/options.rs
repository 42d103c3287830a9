//! What a backup can be told: what it leaves out, how it stores, what it says; and that restic sees it so, too.

use proto::backup::BackupCounts;

use super::*;

fn options() -> BackupOptions {
    BackupOptions::default()
}

impl Bench {
    fn backup_with(&self, sources: &[&Path], options: &BackupOptions) -> Result<Work, EngineError> {
        self.engine.backup(&self.at(), sources, options, &mark(false), &SharedMeter::default())
    }

    /// What restic says is in a snapshot, below its source.
    fn listed(&self, work: &Work, source: &Path) -> Vec<String> {
        let listed = restic(self, &["ls", &work.snapshots[0]]);
        let below = format!("{}/", source.display());
        let mut names: Vec<String> =
            listed.lines().filter_map(|line| Some(line.strip_prefix(&below)?.to_owned())).collect();
        names.sort();
        names
    }
}

/// Every rule has something to leave out here.
fn many_kinds(bench: &Bench) -> PathBuf {
    let source = bench.path("many");
    for (path, content) in [
        ("a.txt", &b"text"[..]),
        ("a.o", b"object"),
        ("keep.o", b"object"),
        ("large", &[7; 5000]),
        ("tmp/x", b"x"),
        ("deep/tmp/y", b"y"),
        ("cache/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n"),
        ("cache/data", b"cached"),
        ("marked/.nobackup", b""),
        ("marked/below/file", b"file"),
    ] {
        fs::create_dir_all(source.join(path).parent().unwrap()).unwrap();
        fs::write(source.join(path), content).unwrap();
    }
    source
}

#[test]
fn what_is_left_out_is_in_no_snapshot_and_not_missed_by_verify() {
    let bench = Bench::new();
    let source = many_kinds(&bench);
    let file = bench.path("patterns");
    fs::write(&file, "# from a file\ndeep/tmp\n").unwrap();
    let left_out = BackupOptions {
        exclude: vec!["*.o".into(), "!keep.o".into(), format!("{}/tmp", source.display())],
        exclude_files: vec![file.display().to_string()],
        exclude_if_present: vec![".nobackup".into()],
        exclude_caches: true,
        exclude_larger_than: Some(4999),
        ..options()
    };
    let work = bench.backup_with(&[&source], &left_out).unwrap();
    let expected = ["a.txt", "cache", "cache/CACHEDIR.TAG", "deep", "keep.o", "marked", "marked/.nobackup"];
    assert_eq!(bench.listed(&work, &source), expected);
    restic(&bench, &["check", "--read-data"]);
    let snapshots = restic(&bench, &["snapshots", "--json"]);
    assert!(snapshots.contains("\"excludes\":[\"*.o\",\"!keep.o\""), "restic knows the patterns: {snapshots}");
    assert_eq!(bench.verify("latest"), Vec::<String>::new());

    // What is not left out is missed as ever.
    fs::write(source.join("new"), "new").unwrap();
    fs::write(source.join("new.o"), "left out").unwrap();
    assert_eq!(bench.verify("latest").len(), 2, "the file, and the directory's time: {:?}", bench.verify("latest"));
    let all = bench.backup_with(&[&source], &options()).unwrap();
    assert_eq!(bench.listed(&all, &source).len(), 18);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn several_sources_become_one_snapshot_with_its_tags_and_come_back() {
    let bench = Bench::new();
    let (source, other) = (bench.source(), bench.path("other"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "other").unwrap();
    let together = BackupOptions { together: true, tags: vec!["weekly".into()], ..options() };
    let work = bench.backup_with(&[&source, &other], &together).unwrap();
    assert_eq!((work.snapshots.len(), work.files), (1, 6));
    let snapshots = restic(&bench, &["snapshots", "--json", "--tag", "weekly"]);
    assert!(snapshots.contains(&source.display().to_string()) && snapshots.contains(&other.display().to_string()));
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let target = bench.path("by-restic");
    restic(&bench, &["restore", &work.snapshots[0], "--target", &target.display().to_string()]);
    for source in [&source, &other] {
        let restored = target.join(source.strip_prefix("/").unwrap());
        let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([source, &restored]).output().unwrap();
        assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    }
    for (tag, why) in [("a,b", "comma"), ("job-7", "the agent itself"), ("manager-fs", "snapshots of agents")] {
        let refused = bench.backup_with(&[&source], &BackupOptions { tags: vec![tag.into()], ..options() });
        assert!(refused.unwrap_err().to_string().contains(why), "{tag}");
    }
}

#[test]
fn a_dry_run_counts_what_a_run_then_does() {
    let bench = Bench::new();
    let source = bench.source();
    let dry = BackupOptions { dry_run: true, ..options() };
    let none = bench.backup_with(&[&source], &dry);
    assert!(matches!(none, Err(EngineError::NoRepository(_))), "a dry run makes no repository: {none:?}");
    bench.backup_with(&[&source], &options()).unwrap();
    fs::write(source.join("bin/deep/er/text"), noise(7, 20_000)).unwrap();
    fs::write(source.join("new"), "new").unwrap();
    let files = || {
        let walked = Command::new("find").arg(bench.path("repo")).args(["-type", "f"]).output().unwrap();
        String::from_utf8(walked.stdout).unwrap().lines().count()
    };
    let before = files();
    let tried = bench.backup_with(&[&source], &dry).unwrap();
    assert_eq!((tried.snapshots.len(), files()), (0, before), "{tried:?}");
    let done = bench.backup_with(&[&source], &options()).unwrap();
    let counts = |work: &Work| BackupCounts { duration_ms: 0, added_bytes: 0, ..work.counts };
    assert_eq!(counts(&tried), counts(&done));
    // Of the five files and links two have one content, which was read again: the second is too young to be believed.
    let BackupCounts { files_new, files_changed, files_unmodified, added_bytes, .. } = done.counts;
    assert_eq!((files_new, files_changed + files_unmodified), (1, 5), "{done:?}");
    assert!((20_000..30_000).contains(&added_bytes), "{done:?}");
    // The directories above belong to others, and their times change.
    assert!(tried.repository_bytes.abs_diff(done.repository_bytes) < 200, "{tried:?} {done:?}");
}

#[test]
fn levels_of_compression_and_threads_change_only_what_they_are_for() {
    let sizes: Vec<u64> = [Some(0), None, Some(19)]
        .into_iter()
        .map(|compression| {
            let bench = Bench::new();
            let source = bench.path("text");
            fs::create_dir(&source).unwrap();
            let text: String = (0..60_000).map(|n| format!("line {n} of a text that repeats itself\n")).collect();
            fs::write(source.join("file"), text).unwrap();
            let how = BackupOptions { compression, readers: Some(1), force: true, ..options() };
            let work = bench.backup_with(&[&source], &how).unwrap();
            restic(&bench, &["check", "--read-data"]);
            assert_eq!(bench.verify("latest"), Vec::<String>::new());
            work.repository_bytes
        })
        .collect();
    assert!(sizes[0] > 2_000_000 && sizes[1] < sizes[0] / 4 && sizes[2] < sizes[1], "{sizes:?}");
}

#[test]
fn with_force_every_file_is_read() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup_with(&[&source], &options()).unwrap();
    let forced = bench.backup_with(&[&source], &BackupOptions { force: true, ..options() }).unwrap();
    assert_eq!(forced.counts.files_unmodified, 0, "{forced:?}");
    assert!(forced.counts.added_bytes < 5_000, "and nothing is stored twice: {forced:?}");
}

#[test]
fn other_file_systems_are_left_out_but_for_the_place_where_they_are_mounted() {
    let bench = Bench::new();
    // `/dev` has file systems of its own on every machine.
    let rules = rules_of(&BackupOptions { one_file_system: true, ..options() }, &mark(false).permits).unwrap();
    let selection = Selection::new(&rules).unwrap();
    let source = Source::open(Path::new("/dev"), &mark(false).permits).unwrap();
    let facts = |path: &str| Source::open(Path::new(path), &mark(false).permits).unwrap().look().unwrap().1;
    let shm = facts("/dev/shm");
    assert!(selection.is_beyond(&shm, source.device()) && !selection.is_beyond(&facts("/dev/null"), source.device()));
    assert!(!selection.leaves_out(Path::new("/dev/shm"), &shm, source.device()), "the directory itself is taken");
    drop(bench);
}

#[test]
fn a_part_of_a_snapshot_is_restored_with_what_leads_to_it() {
    let bench = Bench::new();
    let source = many_kinds(&bench);
    bench.backup_with(&[&source], &options()).unwrap();
    let restore = |name: &str, options: &RestoreOptions| {
        let (target, meter) = (bench.path(name), SharedMeter::default());
        let ended = bench.engine.restore(&bench.at(), &reference("latest"), &target, options, &mark(false), &meter);
        assert_eq!(meter.take_problems().into_lines(), Vec::<String>::new());
        let walked = Command::new("find").arg(&target).args(["-mindepth", "1", "-printf", "%P\n"]).output().unwrap();
        let mut names: Vec<_> = String::from_utf8(walked.stdout).unwrap().lines().map(str::to_owned).collect();
        names.sort();
        (names, ended.unwrap())
    };
    let of = |include: &[&str], exclude: &[&str]| RestoreOptions {
        include: include.iter().map(|pattern| (*pattern).to_owned()).collect(),
        exclude: exclude.iter().map(|pattern| (*pattern).to_owned()).collect(),
        dry_run: false,
    };
    let marked = source.join("marked").display().to_string();
    let some = of(&[&marked, "y", "*.o"], &[".nobackup", "keep.o"]);
    let expected = ["a.o", "deep", "deep/tmp", "deep/tmp/y", "marked", "marked/below", "marked/below/file"];
    let dry = RestoreOptions { dry_run: true, ..some.clone() };
    let (names, tried) = restore("dry", &dry);
    assert!(names.is_empty() && !bench.path("dry").exists(), "{names:?}");
    let listed = tried.found.iter().map(|found| match found {
        Found::Entry(entry) => Path::new(&entry.path).strip_prefix(&source).unwrap().display().to_string(),
        other => panic!("{other:?}"),
    });
    assert_eq!(listed.collect::<Vec<_>>(), expected);
    let (names, restored) = restore("some", &some);
    assert_eq!(names, expected);
    assert_eq!((restored.files, restored.bytes), (tried.files, tried.bytes));
    assert_eq!(fs::read(bench.path("some/deep/tmp/y")).unwrap(), b"y");
    let (before, after) =
        (fs::metadata(source.join("deep")).unwrap(), fs::metadata(bench.path("some/deep")).unwrap());
    assert_eq!((before.mode(), before.modified().unwrap()), (after.mode(), after.modified().unwrap()));
    assert!(restore("nothing", &of(&["no-such-thing"], &[])).0.is_empty());
    assert_eq!(
        restore("all-but", &of(&[], &["deep", "cache", "marked", "tmp"])).0,
        ["a.o", "a.txt", "keep.o", "large"]
    );
}
