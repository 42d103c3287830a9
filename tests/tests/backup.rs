//! What people expect of a backup, through the command line and beside Debian's restic: what is left out, dry runs, counts,
//! progress.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
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
    let job = dry["job"].to_string();
    let shown = lab.manager.run(&["job", "show", &job]).expect(0).stdout;
    assert!(shown.contains("2 new") && shown.contains("nothing is stored"), "{shown}");
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
