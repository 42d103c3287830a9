//! Looks into a repository, held against what restic says of the same.

use proto::look::{FoundEntry, SnapshotFilter};

use super::*;

impl Bench {
    fn look(&self, query: &Query) -> Result<Work, EngineError> {
        self.engine.look(&self.at(), query, &mark(false), &SharedMeter::default())
    }

    fn entries(&self, query: &Query) -> Vec<FoundEntry> {
        let entry = |found| match found {
            Found::Entry(entry) => entry,
            other => panic!("{other:?}"),
        };
        self.look(query).unwrap().found.into_iter().map(entry).collect()
    }
}

fn any(snapshot: &str) -> SnapshotRef {
    SnapshotRef { of: HostScope::Any, ..reference(snapshot) }
}

#[test]
fn what_is_listed_is_what_restic_lists_of_either_ones_snapshot() {
    let bench = Bench::new();
    let source = bench.source();
    let (ours, _) = bench.backup(&source);
    restic(&bench, &["backup", &source.display().to_string()]);
    let all = restic(&bench, &["snapshots", "--json"]);
    let all: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
    for snapshot in all.iter().map(|one| one["id"].as_str().unwrap()) {
        let listed = bench.entries(&Query::List { snapshot: any(snapshot), path: None, recursive: true });
        let listed: Vec<_> = listed.iter().map(|entry| entry.path.clone()).collect();
        let theirs = restic(&bench, &["ls", snapshot]);
        let theirs: Vec<_> = theirs.lines().filter(|line| line.starts_with('/')).collect();
        assert_eq!(listed, theirs, "{snapshot}");
    }
    let of_bin = Query::List {
        snapshot: any(&ours.snapshots[0]),
        path: Some(source.join("bin").display().to_string()),
        recursive: false,
    };
    let [deep, program] = &bench.entries(&of_bin)[..] else { panic!("two entries") };
    assert_eq!((deep.kind.as_str(), program.kind.as_str()), ("directory", "file"));
    assert_eq!((program.size, program.mode, program.snapshot == ours.snapshots[0]), (3_000_000, Some(0o4755), true));
    let missing = Query::List { snapshot: any("latest"), path: Some("/no/such".into()), recursive: false };
    assert!(bench.look(&missing).is_err());
}

#[test]
fn what_is_found_by_time_is_what_restic_finds() {
    let bench = Bench::new();
    let source = bench.path("source");
    fs::create_dir(&source).unwrap();
    // Years, each in its middle.
    for year in 0..5u64 {
        let path = source.join(format!("y{}", 2000 + year));
        fs::write(&path, "x").unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs((30 + year) * 31_557_600 + 15_000_000);
        File::open(&path).unwrap().set_times(fs::FileTimes::new().set_modified(at)).unwrap();
    }
    let (work, _) = bench.backup(&source);
    let begin = |year: i64| (year - 1970) * 31_557_600_000;
    let filter = || SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
    for (patterns, since, until) in [
        (&["y*"][..], Some(2002), None),
        (&["y*"], None, Some(2002)),
        (&["y*"], Some(2001), Some(2003)),
        (&["*4"], Some(2001), Some(2003)),
        (&[], Some(2001), Some(2003)),
    ] {
        let found = bench.entries(&Query::FindModified {
            snapshots: filter(),
            patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
            since_unix_ms: since.map(begin),
            until_unix_ms: until.map(begin),
        });
        let ours: Vec<_> = found.into_iter().map(|entry| entry.path).collect();
        let mut words = vec!["find".to_owned(), "--snapshot".into(), work.snapshots[0].clone()];
        words.extend(since.map(|year| format!("--oldest={year}-01-01")));
        words.extend(until.map(|year| format!("--newest={year}-01-01")));
        words.extend(patterns.iter().map(|pattern| (*pattern).to_owned()));
        words.extend(patterns.is_empty().then(|| "*".to_owned()));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let theirs = restic(&bench, &words);
        let theirs: Vec<_> = theirs.lines().filter(|line| line.starts_with('/')).collect();
        assert_eq!(ours, theirs, "{words:?}");
    }
}

#[test]
fn a_diff_says_what_restics_diff_says() {
    let bench = Bench::new();
    let source = bench.source();
    let (before, _) = bench.backup(&source);
    fs::write(source.join("bin/program"), noise(9, 1_000)).unwrap();
    fs::create_dir(source.join("fresh")).unwrap();
    fs::write(source.join("fresh/file"), "fresh").unwrap();
    fs::remove_dir(source.join("empty")).unwrap();
    fs::set_permissions(source.join("bin/deep/er/text"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    fs::write(source.join("link"), "a file now").unwrap();
    let (after, _) = bench.backup(&source);
    let diff = Query::Diff { old: any(&before.snapshots[0]), new: any(&after.snapshots[0]) };
    let mut found: Vec<_> = bench
        .entries(&diff)
        .into_iter()
        .map(|entry| (entry.path.trim_end_matches('/').to_owned(), entry.change.unwrap()))
        .filter(|(path, _)| *path != source.display().to_string())
        .collect();
    found.sort();
    // `TU`: of another kind, and its metadata too. The first letter is what matters more.
    let sign = |sign: &str| match &sign[..1] {
        "+" => "added",
        "-" => "removed",
        "M" => "content",
        "T" => "kind",
        "U" => "metadata",
        other => panic!("{other}"),
    };
    let theirs = restic(&bench, &["diff", "--metadata", &before.snapshots[0], &after.snapshots[0]]);
    let mut theirs: Vec<_> = theirs
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace).filter(|(_, path)| path.trim().starts_with('/')))
        .map(|(how, path)| (path.trim().trim_end_matches('/').to_owned(), sign(how).to_owned()))
        // restic counts a directory's new time as a change of its own.
        .filter(|(path, how)| how != "metadata" || !Path::new(path).is_dir())
        .collect();
    theirs.sort();
    assert_eq!(found, theirs);
    let none = Query::Diff { old: any(&after.snapshots[0]), new: any(&after.snapshots[0]) };
    assert!(bench.look(&none).unwrap().found.is_empty());
}

#[test]
fn a_file_is_shown_only_where_the_host_permits_it_and_never_a_large_one() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    let dump = |name: &str, permits: &str| {
        let state = bench.path("permits");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("permits.toml"), permits).unwrap();
        let permits = Permits::read(&state, Path::new("/nowhere")).unwrap();
        let mark = Mark { permits: Arc::new(permits), ..mark(false) };
        let query = Query::Dump { snapshot: any("latest"), path: source.join(name).display().to_string() };
        bench.engine.look(&bench.at(), &query, &mark, &SharedMeter::default()).map(|work| work.found)
    };
    let text = "bin/deep/er/text";
    assert!(dump(text, "").unwrap_err().to_string().contains("repository.show"));
    let show = format!("[repository]\nshow = [{:?}]\n", source);
    assert_eq!(dump(text, &show).unwrap(), [Found::Content(b"hello\n".to_vec())]);
    assert!(dump("bin/program", &show).unwrap_err().to_string().contains("3000000 bytes"));
    assert!(dump("bin", &show).unwrap_err().to_string().contains("is a directory"));
    assert!(dump("../source2/x", &show).is_err());
}
