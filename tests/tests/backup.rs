//! What people expect of a backup, through the command line and beside Debian's restic: what is left out, dry runs, counts,
//! progress.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::{Host, Manager, TreeFixture};

const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"10s\"\n";

struct Lab {
    manager: Manager,
    host: Host,
}

impl Lab {
    fn kill_agent(&self) {
        let pid = self.manager.agent("host-1", "data-agent").unwrap()["pid"].as_i64().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// A host with a data agent.
    fn new() -> Self {
        let manager = Manager::start();
        let mut host = Host::mounted("host-1", &manager);
        manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", DESCRIPTOR).path());
        manager.export("data-agent@1.0", "host-1");
        host.launch("data-agent");
        manager.wait_for_version("host-1", "data-agent", "1.0");
        Self { manager, host }
    }

    fn repository(&self) -> PathBuf {
        self.host.path("repository")
    }

    fn source(&self, files: &[(&str, &str)]) -> PathBuf {
        let source = self.host.path("source");
        for (path, content) in files {
            let path = source.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        source
    }

    /// The lines of JSON that an order prints, the job as the last.
    fn order(&self, kind: &str, more: &[&str], code: i32) -> Vec<Value> {
        let repository = self.repository().display().to_string();
        let args = ["job", kind, "--host", "host-1", "--repository", &repository, "--json"];
        self.manager.run(&[&args, more].concat()).expect(code).json_lines()
    }

    fn end(&self, kind: &str, more: &[&str], code: i32) -> Value {
        self.order(kind, more, code).pop().unwrap()
    }

    fn restic(&self, arguments: &[&str]) -> String {
        let output = Command::new("restic")
            .args(["--no-cache", "--repo"])
            .arg(self.repository())
            .arg("--password-file")
            .arg(self.host.path("state/repository.password"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "restic {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_backup_leaves_out_what_it_is_told_to_and_says_what_it_did() {
    let lab = Lab::new();
    let source = lab.source(&[
        ("a.txt", "text"),
        ("a.o", "object"),
        ("keep.o", "object"),
        ("cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55"),
        ("cache/data", "cached"),
    ]);
    let how = ["--exclude", "*.o", "--exclude", "!keep.o", "--exclude-caches", "--tag", "weekly", &text(&source)];
    let lines = lab.order("backup", &how, 0);
    let end = lines.last().unwrap();
    let counts = &end["counts"];
    assert_eq!((&counts["files_new"], &counts["files_changed"]), (&json!(3), &json!(0)), "{end}");
    assert!(counts["added_bytes"].as_u64().is_some_and(|added| added > 0), "{end}");
    assert_eq!(end["files"], 3);
    assert!(lines.iter().any(|line| line["progress"]["activity"].as_str().is_some()), "{lines:?}");
    let listed = lab.restic(&["ls", "latest"]);
    let has = |name: &str| listed.contains(&format!("{}/{name}\n", source.display()));
    assert!(has("a.txt") && has("keep.o") && has("cache/CACHEDIR.TAG"), "{listed}");
    assert!(!has("a.o") && !has("cache/data"), "{listed}");
    lab.restic(&["check", "--read-data"]);
    assert!(lab.restic(&["snapshots", "--tag", "weekly"]).contains("1 snapshots"));
    lab.end("verify", &[], 0);

    fs::write(source.join("new"), "what is new").unwrap();
    let dry = lab.end("backup", &["--dry-run", &text(&source), "--exclude", "*.o"], 0);
    assert_eq!((&dry["dry_run"], &dry["snapshots"]), (&json!(true), &json!([])), "{dry}");
    assert_eq!(dry["counts"]["files_new"], json!(2), "new, and what was in the cache: {dry}");
    assert!(lab.restic(&["snapshots"]).contains("1 snapshots"), "a dry run makes none");
    let target = lab.host.path("some");
    let some = ["--snapshot", "latest", "--target", &text(&target), "--include", "*.txt"];
    let tried = lab.end("restore", &[&some[..], &["--dry-run"]].concat(), 0);
    assert_eq!(tried["found"][0]["path"], json!(source.join("a.txt")), "{tried}");
    assert!(!target.exists());
    lab.end("restore", &some, 0);
    let names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a.txt"]);
    let job = dry["job"].to_string();
    let shown = lab.manager.run(&["job", "show", &job]).expect(0).stdout;
    assert!(shown.contains("2 new") && shown.contains("nothing is stored"), "{shown}");
}

#[test]
fn a_repository_is_looked_into_and_what_is_in_a_file_only_where_the_host_permits_it() {
    let lab = Lab::new();
    let source = lab.source(&[("a.conf", "one\n"), ("b/c.conf", "two\n"), ("gone", "gone")]);
    lab.end("backup", &[&text(&source)], 0);
    fs::write(source.join("a.conf"), "three\n").unwrap();
    fs::write(source.join("new"), "new").unwrap();
    fs::remove_file(source.join("gone")).unwrap();
    // A person's restic adds one of its own.
    lab.restic(&["backup", "--host", "elsewhere", &text(&source)]);
    lab.end("backup", &["--tag", "after", &text(&source)], 0);
    let found = |kind: &str, more: &[&str], field: &str| {
        let end = lab.end(kind, more, 0);
        let values = end["found"].as_array().unwrap().iter().map(|one| one[field].as_str().unwrap().to_owned());
        values.collect::<Vec<_>>()
    };
    assert_eq!(found("snapshots", &[], "owner"), ["host host-1", "host host-1"]);
    assert_eq!(found("snapshots", &["--any-host"], "owner").len(), 3);
    assert_eq!(found("snapshots", &["--tag", "after"], "owner").len(), 1);
    let at = |name: &str| source.join(name).display().to_string();
    assert_eq!(found("ls", &[&text(&source)], "path"), [at("a.conf"), at("b"), at("new")]);
    assert_eq!(found("ls", &["--recursive", &at("b")], "path"), [at("b/c.conf")]);
    assert_eq!(found("find", &["c.conf"], "path"), [at("b/c.conf"), at("b/c.conf")], "in both");
    let changes = lab.end("diff", &["latest~1"], 0);
    let changes: Vec<(String, String)> = changes["found"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["change"].as_str().unwrap().to_owned(), one["path"].as_str().unwrap().to_owned()))
        .collect();
    let change = |change: &str, name: &str| (change.to_owned(), at(name));
    assert_eq!(changes, [change("content", "a.conf"), change("added", "new"), change("removed", "gone")]);

    let refused = lab.end("dump", &[&at("a.conf")], 1);
    assert!(refused["error"].as_str().unwrap().contains("repository.show"), "{refused}");
    fs::write(lab.host.path("state/permits.toml"), format!("[repository]\nshow = [{source:?}]\n")).unwrap();
    let repository = lab.repository().display().to_string();
    let dump = ["job", "dump", "--host", "host-1", "--repository", &repository, "--snapshot", "latest~1"];
    assert_eq!(lab.manager.run(&[&dump[..], &[&at("a.conf")]].concat()).expect(0).stdout, "one\n");
    let listed = lab.manager.run(&["job", "snapshots", "--host", "host-1", "--repository", &repository]).expect(0);
    assert!(listed.stdout.contains("SOURCES") && listed.stdout.contains("2 findings"), "{}", listed.stdout);
}

#[test]
fn snapshots_are_forgotten_by_rules_after_a_dry_run_that_says_which() {
    let lab = Lab::new();
    let mut vault = Host::mounted("vault", &lab.manager);
    lab.manager.publish("media-agent", "1.0", TreeFixture::agent("1.0", "media", DESCRIPTOR).path());
    lab.manager.export("media-agent@1.0", "vault");
    vault.launch("media-agent");
    lab.manager.wait_for_version("vault", "media-agent", "1.0");
    let source = lab.source(&[("file", "content")]);
    for _ in 0..3 {
        lab.end("backup", &[&text(&source)], 0);
    }
    let (repository, password) = (text(&lab.repository()), text(&lab.host.path("state/repository.password")));
    let forget = |more: &[&str], code: i32| {
        let args = ["job", "forget", "--host", "vault", "--repository", &repository, "--password-file", &password];
        lab.manager.run(&[&args, more, &["--json"]].concat()).expect(code).json_lines().pop()
    };
    assert_eq!(forget(&[], 1), None, "what stays must be said");
    let count = |end: &Value| {
        end["found"].as_array().unwrap().iter().filter(|one| one["forgotten"].as_bool().unwrap()).count()
    };
    let dry = forget(&["--keep-daily", "1", "--dry-run"], 0).unwrap();
    assert_eq!((count(&dry), &dry["dry_run"], dry["found"].as_array().unwrap().len()), (2, &json!(true), 3), "{dry}");
    assert!(lab.restic(&["snapshots"]).contains("3 snapshots"));
    let done = forget(&["--keep-daily", "1", "--prune"], 0).unwrap();
    assert_eq!(count(&done), 2, "{done}");
    assert!(lab.restic(&["snapshots"]).contains("1 snapshots"));
    lab.restic(&["check", "--read-data"]);
    fs::write(vault.path("state/permits.toml"), "[repository]\nkeep-last = 3\n").unwrap();
    let refused = forget(&["--keep-daily", "1"], 1).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("repository.keep-last"), "{refused}");
}

#[test]
fn several_sources_are_one_snapshot_and_what_is_not_understood_is_named() {
    let lab = Lab::new();
    let source = lab.source(&[("one/a", "a"), ("two/b", "b")]);
    let (one, two) = (text(&source.join("one")), text(&source.join("two")));
    let end = lab.end("backup", &["--together", &one, &two, "--compression", "max", "--read-concurrency", "1"], 0);
    assert_eq!(end["snapshots"].as_array().unwrap().len(), 1, "{end}");
    let listed = lab.restic(&["ls", "latest"]);
    assert!(listed.contains(&format!("{one}/a\n")) && listed.contains(&format!("{two}/b\n")), "{listed}");
    for (how, why) in [
        (&["--exclude", "a["][..], "a["),
        (&["--exclude-if-present", "a/b"], "is no name of a file"),
        (&["--exclude-file", "/no/such/file"], "/no/such/file"),
        (&["--tag", "job-1"], "the agent itself says that"),
    ] {
        let refused = lab.end("backup", &[how, &[&one]].concat(), 1);
        assert!(refused["error"].as_str().is_some_and(|error| error.contains(why)), "{how:?}: {refused}");
    }
    // What an administrator does not permit to be read is no file of patterns either.
    let secret = lab.host.path("secret");
    fs::write(&secret, "a word that nobody may hear\n").unwrap();
    fs::write(lab.host.path("state/permits.toml"), format!("[backup]\nsources = [{source:?}]\n")).unwrap();
    let refused = lab.end("backup", &["--exclude-file", &text(&secret), &one], 1).to_string();
    assert!(refused.contains("does not permit") && !refused.contains("a word"), "{refused}");
}

#[test]
fn a_backup_runs_commands_that_the_host_names_and_no_others() {
    let lab = Lab::new();
    let source = lab.source(&[("a", "one")]);
    let dump = ["--stdin-from-command", "dump", "--stdin-filename", "/db/all.sql"];
    let refused = lab.end("backup", &dump, 1);
    let why = refused["error"].as_str().unwrap();
    assert!(why.contains("does not permit the command dump") && why.contains("permits.toml"), "{why}");
    let script = |text: &str| format!("[\"/bin/sh\", \"-c\", {text:?}]");
    let permits = format!(
        "[commands]\ndump = {}\nbad = {}\nfreeze = {}\nthaw = {}\n",
        script("seq 1 100000"),
        script("echo half; echo the disk is full >&2; exit 1"),
        script("echo frozen"),
        script("echo thawed after $MANAGER_FS_ENDED")
    );
    fs::write(lab.host.path("state/permits.toml"), permits).unwrap();
    let done = lab.end("backup", &dump, 0);
    let printed: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!((&done["files"], &done["bytes"]), (&json!(1), &json!(printed.len())), "{done}");
    assert_eq!((&done["ran"][0]["command"], &done["ran"][0]["moment"]), (&json!("dump"), &json!("output")), "{done}");
    assert!(lab.restic(&["dump", "latest", "/db/all.sql"]) == printed);
    let bad = lab.end("backup", &["--stdin-from-command", "bad"], 1);
    assert!(bad["error"].as_str().unwrap().contains("the disk is full"), "{bad}");
    assert!(lab.restic(&["snapshots"]).contains("1 snapshots"), "what failed makes none");

    let hooks = ["--before", "freeze", "--after", "thaw", "--limit-upload", "50M", &text(&source)];
    let done = lab.end("backup", &hooks, 0);
    let ran = |at: usize, field: &str| done["ran"][at][field].clone();
    assert_eq!((ran(0, "moment"), ran(0, "output")), (json!("before"), json!(["frozen"])));
    assert_eq!((ran(1, "moment"), ran(1, "output")), (json!("after"), json!(["thawed after done"])));
    let shown = lab.manager.run(&["job", "show", &done["job"].to_string()]).expect(0).stdout;
    assert!(shown.contains("command freeze (before): exit status: 0") && shown.contains("  frozen"), "{shown}");
    let none = lab.end("backup", &["--before", "bad", "--after", "thaw", &text(&source)], 1);
    assert!(none["error"].as_str().unwrap().contains("command bad (before)"), "{none}");
    assert!(lab.restic(&["snapshots"]).contains("2 snapshots"), "no backup without what comes before it");

    let target = text(&lab.host.path("back"));
    let of_source = text(&source);
    let slow = ["--snapshot", "latest", "--source", &of_source, "--target", &target, "--limit-download", "10M"];
    lab.end("restore", &slow, 0);
    assert_eq!(fs::read_to_string(lab.host.path("back/a")).unwrap(), "one");
    let day_before = ["--newest", "2020-01-01"];
    assert_eq!(lab.end("find", &day_before, 0)["found"], json!([]));
    let since = lab.end("find", &["--oldest", "2020-01-01", "a"], 0);
    assert_eq!(since["found"][0]["path"], json!(source.join("a")), "{since}");
    let checked = |name: &str| lab.host.run(&["permits", "check", "--command", name]).code;
    assert_eq!((checked("dump"), checked("rm")), (Some(0), Some(1)));
}

#[test]
fn a_restore_goes_over_what_is_there_where_the_host_permits_it_through_a_kill_and_a_change_over() {
    let mut lab = Lab::new();
    let source = lab.source(&[("older", "as backed up"), ("gone", "as backed up"), ("dir/same", "as backed up")]);
    // Enough of them that a restore is met in its middle.
    let large = |number: u64| source.join("dir").join(format!("large-{number}"));
    (0..40).for_each(|number| fs::write(large(number), tests::noise(number, 4 << 20)).unwrap());
    lab.end("backup", &[&text(&source)], 0);
    fs::write(source.join("older"), "another content").unwrap();
    fs::remove_file(source.join("gone")).unwrap();
    fs::write(source.join("dir/extra"), "nobody's").unwrap();
    (0..40).for_each(|number| fs::write(large(number), "overwritten by a mistake").unwrap());
    let place = text(&source);
    let over = ["--snapshot", "latest", "--target", &place, "--overwrite", "always", "--delete"];
    let refused = lab.end("restore", &over, 1);
    assert!(refused["error"].as_str().unwrap().contains("restore.over"), "{refused}");
    fs::write(lab.host.path("state/permits.toml"), format!("[restore]\nover = [{source:?}]\n")).unwrap();
    let plain = lab.end("restore", &over[..4], 1);
    assert!(plain["error"].as_str().unwrap().contains("is not empty"), "{plain}");
    let dry = lab.end("restore", &[&over[..], &["--dry-run"]].concat(), 0);
    let change = |name: &str| {
        let one = dry["found"].as_array().unwrap().iter().find(|one| one["path"] == json!(source.join(name)))?;
        Some(one["change"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        ["older", "gone", "dir/extra"].map(change),
        ["overwritten", "added", "removed"].map(|word| Some(word.to_owned()))
    );
    assert!(source.join("dir/extra").exists() && !source.join("gone").exists(), "it was a dry run");

    // The agent is killed in the middle: no half file is left under its name, and its next process goes on.
    let repository = text(&lab.repository());
    let order = ["job", "restore", "--host", "host-1", "--repository", &repository, "--detach", "--json"];
    let job = lab.manager.run(&[&order[..], &over].concat()).expect(0).json()["job"].clone();
    let begun = || (0..40).any(|number| fs::metadata(large(number)).is_ok_and(|file| file.len() > 100));
    tests::command::until("some files are replaced", || begun().then_some(()));
    lab.kill_agent();
    let is_whole =
        |content: Vec<u8>, number| content == b"overwritten by a mistake" || content == tests::noise(number, 4 << 20);
    assert!((0..40).all(|number| is_whole(fs::read(large(number)).unwrap(), number)), "a file is half");
    lab.manager.run(&["job", "wait", &job.to_string()]).expect(0);
    let same = || {
        assert!((0..40).all(|number| fs::read(large(number)).unwrap() == tests::noise(number, 4 << 20)));
        assert_eq!(fs::read_to_string(source.join("older")).unwrap(), "as backed up");
        assert!(source.join("gone").exists() && !source.join("dir/extra").exists());
        let drafts = fs::read_dir(source.join("dir")).unwrap().flatten();
        assert_eq!(drafts.filter(|entry| entry.file_name().to_string_lossy().starts_with(".manager-fs-")).count(), 0);
        lab.end("verify", &[], 0);
    };
    same();

    // And so does the next version, when the agent changes over in the middle.
    (0..40).for_each(|number| fs::write(large(number), "overwritten by a mistake").unwrap());
    let descriptor = "drain_deadline = \"1s\"\nprobation = \"10s\"\n";
    lab.manager.publish("data-agent", "2.0", TreeFixture::agent("2.0", "data", descriptor).path());
    lab.manager.export("data-agent@2.0", "host-1");
    let job = lab.manager.run(&[&order[..], &over].concat()).expect(0).json()["job"].clone();
    lab.manager.run(&["upgrade", "data-agent", "data-agent@2.0", "--to", "host-1"]).expect(0);
    lab.manager.run(&["job", "wait", &job.to_string()]).expect(0);
    lab.manager.wait_for_version("host-1", "data-agent", "2.0");
    same();

    // Another host's snapshot over what is here: only what is missing.
    let mut other = Host::mounted("host-2", &lab.manager);
    lab.manager.export("data-agent@2.0", "host-2");
    other.launch("data-agent");
    lab.manager.wait_for_version("host-2", "data-agent", "2.0");
    let there = other.path("there");
    fs::create_dir_all(&there).unwrap();
    fs::write(there.join("older"), "host-2's own").unwrap();
    fs::write(other.path("state/permits.toml"), format!("[restore]\nover = [{there:?}]\n")).unwrap();
    let password = text(&lab.host.path("state/repository.password"));
    let onto = text(&there);
    let from = ["--snapshot", "latest", "--of-host", "host-1", "--target", &onto, "--overwrite", "never"];
    let at = ["job", "restore", "--host", "host-2", "--repository", &repository, "--password-file", &password];
    lab.manager.run(&[&at[..], &from].concat()).expect(0);
    assert_eq!(fs::read_to_string(there.join("older")).unwrap(), "host-2's own");
    assert_eq!(fs::read_to_string(there.join("gone")).unwrap(), "as backed up");
    lab.host.stop("data-agent");
}

#[test]
fn a_large_file_goes_on_inside_after_a_kill_and_a_change_over() {
    const LARGE: usize = 192 << 20;
    let mut lab = Lab::new();
    let source = lab.source(&[]);
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("image"), tests::noise(1, LARGE)).unwrap();
    let changed = fs::metadata(source.join("image")).unwrap().ctime();
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    tests::command::until("a change would be seen", || (now() > changed.cast_unsigned() + 3).then_some(()));

    let repository = text(&lab.repository());
    let order = ["job", "backup", "--host", "host-1", "--repository", &repository, "--limit-read", "10M", "--detach"];
    let job = lab.manager.run(&[&order[..], &[&text(&source)]].concat()).expect(0).text();
    let noted = || {
        let record = fs::read_dir(lab.host.path("state/checkpoints")).ok()?.next()?.ok()?;
        let record = fs::read(record.path()).ok()?;
        let header = record.iter().position(|byte| *byte == b'\n')? + 1;
        Some(((record.len() - header) / 32) as u64)
    };
    let pieces = tests::command::until("much of the file is noted", || noted().filter(|pieces| *pieces >= 16));
    let pid = || lab.manager.agent("host-1", "data-agent").unwrap()["pid"].as_i64().unwrap();
    lab.kill_agent();
    tests::command::until("more of it is noted by the next process", || noted().filter(|more| *more > pieces));
    let descriptor = "drain_deadline = \"1s\"\nprobation = \"10s\"\n";
    lab.manager.publish("data-agent", "2.0", TreeFixture::agent("2.0", "data", descriptor).path());
    lab.manager.export("data-agent@2.0", "host-1");
    lab.manager.run(&["upgrade", "data-agent", "data-agent@2.0", "--to", "host-1"]).expect(0);
    lab.manager.run(&["job", "wait", &job]).expect(0);
    lab.manager.wait_for_version("host-1", "data-agent", "2.0");

    let log = lab.host.stub("data-agent").log();
    let places: Vec<usize> = log
        .split("image: goes on at byte ")
        .skip(1)
        .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(matches!(places[..], [killed, changed] if 8 << 20 < killed && killed < changed), "{places:?}");
    // The process stays the same through a change-over, of which what was in hand is read twice.
    let read = fs::read_to_string(format!("/proc/{}/io", pid())).unwrap();
    let read: usize = read.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    assert!(read < LARGE - places[0] + (20 << 20), "{read} bytes were read, from {places:?} on");
    lab.end("verify", &[], 0);
    assert!(lab.restic(&["check", "--read-data"]).contains("no errors were found"));
    assert!(lab.restic(&["snapshots", "--json"]).matches("short_id").count() == 1);
    assert_eq!(fs::read_dir(lab.host.path("state/checkpoints")).unwrap().count(), 0);
}
