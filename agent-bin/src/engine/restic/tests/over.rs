//! Restores over what is there: what stays, what is replaced, what is removed, and what a kill leaves.

use proto::restore::{Over, Overwrite};
use rustix::fs::CWD;

use super::*;
use crate::engine::Onto;

const NEVER: Over = Over { policy: Overwrite::Never, delete: false };
const ALWAYS: Over = Over { policy: Overwrite::Always, delete: false };
const EXACT: Over = Over { policy: Overwrite::Always, delete: true };

impl Bench {
    fn restore_over(&self, target: &Path, over: Over, options: &RestoreOptions) -> (Work, Vec<String>) {
        let meter = SharedMeter::default();
        let onto = Onto { target, options, over: Some(over) };
        let work = self.engine.restore_over(&self.at(), &reference("latest"), &onto, &mark(false), &meter).unwrap();
        (work, meter.take_problems().into_lines())
    }

    /// Restores in place, and expects no problem.
    fn over(&self, over: Over) -> Work {
        let (work, problems) = self.restore_over(&self.path("source"), over, &RestoreOptions::default());
        assert_eq!(problems, Vec::<String>::new());
        work
    }
}

fn set_time(path: &Path, seconds: i64) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap());
    File::open(path).unwrap().set_modified(then).unwrap();
}

/// What a directory has, without the times of directories: names, kinds, modes, contents.
fn all(directory: &Path) -> Vec<String> {
    let args = ["-mindepth", "1", "-printf", "%P %y %m %s %l\\n", "-type", "f", "-exec", "cksum", "{}", ";"];
    let found = Command::new("find").current_dir(directory).arg(".").args(args).output().unwrap();
    let mut lines: Vec<_> = String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A source with three files of the second 1,000, backed up; then one is older, one newer, one of another size, and one
/// is gone.
fn changed(bench: &Bench) -> PathBuf {
    let source = bench.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    for name in ["older", "newer", "longer", "gone", "dir/same"] {
        fs::write(source.join(name), "as backed up").unwrap();
        set_time(&source.join(name), 1_000);
    }
    bench.backup(&source);
    for (name, content, seconds) in
        [("older", "WAS OLDER!!!", 900), ("newer", "WAS NEWER!!!", 1_100), ("longer", "longer than it was", 1_000)]
    {
        fs::write(source.join(name), content).unwrap();
        set_time(&source.join(name), seconds);
    }
    fs::remove_file(source.join("gone")).unwrap();
    fs::write(source.join("dir/extra"), "nobody backed it up").unwrap();
    source
}

#[test]
fn each_policy_leaves_and_replaces_what_it_says() {
    let own = ["WAS OLDER!!!", "WAS NEWER!!!", "longer than it was"];
    let back = "as backed up";
    for (policy, [older, newer, longer], files) in [
        (Overwrite::Never, own, 1),
        (Overwrite::IfNewer, [back, own[1], own[2]], 2),
        (Overwrite::IfChanged, [back, back, back], 4),
        (Overwrite::Always, [back, back, back], 4),
    ] {
        let bench = Bench::new();
        let source = changed(&bench);
        let done = bench.over(Over { policy, delete: false });
        let read = |name: &str| fs::read_to_string(source.join(name)).unwrap();
        let found = [read("older"), read("newer"), read("longer")];
        assert_eq!(found, [older, newer, longer], "{policy:?}");
        assert_eq!((read("gone"), done.files), (back.to_owned(), files), "{policy:?}");
        assert_eq!(read("dir/extra"), "nobody backed it up", "{policy:?}");
        assert_eq!(fs::read_dir(bench.path("state/restores")).unwrap().count(), 0);
        // Once more changes nothing.
        let before = all(&source);
        assert_eq!(bench.over(Over { policy, delete: false }).files, 0, "{policy:?}");
        assert_eq!(all(&source), before);
    }
}

#[test]
fn if_changed_believes_size_and_time_and_always_reads() {
    let bench = Bench::new();
    let source = changed(&bench);
    fs::write(source.join("dir/same"), "AS BACKED UP").unwrap();
    set_time(&source.join("dir/same"), 1_000);
    bench.over(Over { policy: Overwrite::IfChanged, delete: false });
    assert_eq!(fs::read_to_string(source.join("dir/same")).unwrap(), "AS BACKED UP");
    bench.over(ALWAYS);
    assert_eq!(fs::read_to_string(source.join("dir/same")).unwrap(), "as backed up");
    assert_eq!(bench.verify("latest").join("\n").matches("extra").count(), 1, "nothing else differs");
}

#[test]
fn every_kind_comes_back_over_every_other_kind() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    let whole = all(&source);
    // What was a file, a directory and a link is something else by now.
    fs::remove_file(source.join("nothing")).unwrap();
    fs::create_dir_all(source.join("nothing/deep")).unwrap();
    fs::remove_dir(source.join("empty")).unwrap();
    fs::write(source.join("empty"), "a file").unwrap();
    fs::remove_file(source.join("link")).unwrap();
    rustix::fs::mkfifoat(CWD, source.join("link"), rustix::fs::Mode::RWXU).unwrap();
    fs::remove_file(source.join("program-too")).unwrap();
    fs::write(source.join("program-too"), "no second name of it").unwrap();
    rustix::fs::setxattr(source.join("bin"), "user.new", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    let before = all(&source);
    let kept = bench.over(NEVER);
    assert_eq!((all(&source), kept.files), (before, 0), "all of it is there, whatever it is");
    // A directory with something in it gives way only where what is not in the snapshot goes.
    let (_, problems) = bench.restore_over(&source, ALWAYS, &RestoreOptions::default());
    assert!(problems.len() == 1 && problems[0].contains("nothing: a directory with something"), "{problems:?}");
    bench.over(EXACT);
    assert_eq!(all(&source), whole);
    assert_eq!(fs::metadata(source.join("bin/program")).unwrap().nlink(), 2);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn what_is_not_in_the_snapshot_goes_only_if_it_is_wanted_and_was_not_left_out() {
    let bench = Bench::new();
    let source = bench.path("source");
    for file in ["a/file", "b/file", "cache/x.o"] {
        fs::create_dir_all(source.join(file).parent().unwrap()).unwrap();
        fs::write(source.join(file), "backed up").unwrap();
    }
    let options = BackupOptions { exclude: vec!["*.o".into()], ..BackupOptions::default() };
    let meter = SharedMeter::default();
    bench.engine.backup(&bench.at(), &[&source], &options, &mark(false), &meter).unwrap();
    for new in ["a/new", "b/new", "a/dir/deep/new", "cache/y.o", "top"] {
        fs::create_dir_all(source.join(new).parent().unwrap()).unwrap();
        fs::write(source.join(new), "new").unwrap();
    }
    let only = RestoreOptions { include: vec!["/a".into(), "a".into()], ..RestoreOptions::default() };
    let dry = RestoreOptions { dry_run: true, ..only.clone() };
    let changed = Over { policy: Overwrite::IfChanged, delete: true };
    let (tried, _) = bench.restore_over(&source, changed, &dry);
    let changes = |work: &Work| -> Vec<(String, String)> {
        let of = |found: &Found| match found {
            Found::Entry(entry) => {
                let below = Path::new(&entry.path).strip_prefix(&source).unwrap().display().to_string();
                (below, entry.change.clone().unwrap())
            }
            other => panic!("{other:?}"),
        };
        let mut all: Vec<_> = work.found.iter().map(of).collect();
        all.sort();
        all
    };
    let removed = |name: &str| (name.to_owned(), "removed".to_owned());
    assert_eq!(changes(&tried), [removed("a/dir"), removed("a/new")]);
    assert!(source.join("a/new").exists(), "it was a dry run");
    let (_, problems) = bench.restore_over(&source, EXACT, &only);
    assert_eq!(problems, Vec::<String>::new());
    assert!(!source.join("a/new").exists() && !source.join("a/dir").exists());
    assert!(source.join("b/new").exists() && source.join("top").exists(), "outside of what was wanted");
    bench.over(EXACT);
    assert!(!source.join("b/new").exists() && !source.join("top").exists());
    assert!(
        source.join("cache/x.o").exists() && source.join("cache/y.o").exists(),
        "no backup has them, by its rules"
    );

    fs::write(source.join("a/file"), "another").unwrap();
    fs::remove_file(source.join("b/file")).unwrap();
    let dry = RestoreOptions { dry_run: true, ..RestoreOptions::default() };
    let (tried, _) = bench.restore_over(&source, ALWAYS, &dry);
    let change = |name: &str, change: &str| (name.to_owned(), change.to_owned());
    assert_eq!(changes(&tried), [change("a/file", "overwritten"), change("b/file", "added")]);
    let (tried, _) = bench.restore_over(&source, NEVER, &dry);
    assert_eq!(changes(&tried), [change("b/file", "added")]);
    let elsewhere = bench.path("elsewhere");
    let (tried, _) = bench.restore_over(&elsewhere, EXACT, &dry);
    assert!(changes(&tried).iter().all(|(_, change)| change == "added") && !elsewhere.exists());
}

#[test]
fn above_the_sources_of_a_snapshot_nothing_is_removed() {
    let bench = Bench::new();
    let (one, two) = (bench.path("one"), bench.path("two"));
    for source in [&one, &two] {
        fs::create_dir(source).unwrap();
        fs::write(source.join("file"), "backed up").unwrap();
    }
    let options = BackupOptions { together: true, ..BackupOptions::default() };
    bench.engine.backup(&bench.at(), &[&one, &two], &options, &mark(false), &SharedMeter::default()).unwrap();
    let target = bench.path("target");
    let there = target.join(one.strip_prefix("/").unwrap());
    fs::create_dir_all(&there).unwrap();
    fs::write(there.join("new"), "new").unwrap();
    fs::write(there.parent().unwrap().join("beside"), "nobody's").unwrap();
    fs::write(target.join("top"), "nobody's").unwrap();
    let (_, problems) = bench.restore_over(&target, EXACT, &RestoreOptions::default());
    assert_eq!(problems, Vec::<String>::new());
    assert!(!there.join("new").exists() && there.join("file").exists());
    assert!(there.parent().unwrap().join("beside").exists() && target.join("top").exists());
    // Nor beside a source that is one file.
    let file = one.join("file");
    bench.backup(&file);
    let single = bench.path("single");
    fs::create_dir(&single).unwrap();
    fs::write(single.join("mine"), "mine").unwrap();
    let onto = Onto { target: &single, options: &RestoreOptions::default(), over: Some(EXACT) };
    let of_file = SnapshotRef { source: Some(file.display().to_string()), ..reference("latest") };
    bench.engine.restore_over(&bench.at(), &of_file, &onto, &mark(false), &SharedMeter::default()).unwrap();
    assert_eq!(
        (fs::read_to_string(single.join("file")).unwrap(), single.join("mine").exists()),
        ("backed up".into(), true)
    );
}

#[test]
fn a_restore_that_was_killed_leaves_no_half_file_and_removes_its_drafts_when_it_goes_on() {
    let bench = Bench::new();
    let source = changed(&bench);
    let snapshots = bench.engine.look(
        &bench.at(),
        &proto::look::Query::Snapshots(proto::look::SnapshotFilter {
            of: HostScope::Any,
            source: None,
            tags: vec![],
        }),
        &mark(false),
        &SharedMeter::default(),
    );
    let Found::Snapshot(snapshot) = snapshots.unwrap().found.remove(0) else { panic!("no snapshot") };
    let id = Id::parse(&snapshot.id).unwrap();
    let killed = Unfinished::begin(&bench.path("state"), &source, id, true).unwrap();
    let draft = killed.over.unwrap().draft;
    // Half a file under its draft's name, in two directories, and somebody's own file of nearly the same name.
    for directory in ["", "dir"] {
        fs::write(source.join(directory).join(format!("{draft}7")), "half").unwrap();
    }
    fs::write(source.join(".manager-fs-mine"), "mine").unwrap();
    bench.over(NEVER);
    let names = all(&source).join("\n");
    assert!(!names.contains(&draft) && names.contains(".manager-fs-mine"), "{names}");
    assert_eq!(fs::read_to_string(source.join("gone")).unwrap(), "as backed up");
}

#[test]
fn another_name_of_a_file_elsewhere_keeps_what_it_has() {
    let bench = Bench::new();
    let source = changed(&bench);
    let (elsewhere, same) = (bench.path("elsewhere"), bench.path("same"));
    fs::hard_link(source.join("older"), &elsewhere).unwrap();
    fs::hard_link(source.join("dir/same"), &same).unwrap();
    fs::set_permissions(&same, fs::Permissions::from_mode(0o600)).unwrap();
    bench.over(ALWAYS);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "WAS OLDER!!!");
    assert_eq!(fs::metadata(&same).unwrap().mode() & 0o777, 0o600, "its mode is not changed through a second name");
    assert_eq!(fs::metadata(source.join("dir/same")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn what_cannot_be_read_leaves_what_is_there() {
    let bench = Bench::new();
    let source = changed(&bench);
    // All packs are gone: nothing can be restored.
    for pack in
        fs::read_dir(bench.path("repo/data")).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap())
    {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let before = all(&source);
    let meter = SharedMeter::default();
    let options = RestoreOptions::default();
    let onto = Onto { target: &source, options: &options, over: Some(EXACT) };
    let ended = bench.engine.restore_over(&bench.at(), &reference("latest"), &onto, &mark(false), &meter);
    let problems = meter.take_problems().into_lines();
    assert!(ended.is_err() || !problems.is_empty(), "{ended:?}");
    let kept: Vec<_> = all(&source).into_iter().filter(|line| before.contains(line)).collect();
    assert!(
        kept.iter().any(|line| line.contains("older")) && kept.iter().any(|line| line.contains("longer")),
        "{kept:?}"
    );
}
