//! What commands print for people, line by line, beside what they say as JSON and the code they end with.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use serde_json::json;
use tests::command::until;
use tests::{Host, Manager, Output, TreeFixture, files_below};

/// Whether a line is like a pattern, in which `*` stands for any text.
fn like(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Demands that some text has exactly these lines.
#[track_caller]
fn lines(text: &str, patterns: &[&str]) {
    let got: Vec<&str> = text.lines().collect();
    let fits = got.len() == patterns.len() && got.iter().zip(patterns).all(|(line, pattern)| like(line, pattern));
    assert!(fits, "got\n  {}\nwant\n  {}", got.join("\n  "), patterns.join("\n  "));
}

/// What a command says to people, on standard error.
#[track_caller]
fn notes(output: &Output, patterns: &[&str]) {
    assert_eq!(output.stdout, "", "{}", output.line);
    lines(&output.stderr, patterns);
}

fn split(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A manager with p@1 and p@2, which differ in one file, have one more and lack one.
fn two_versions() -> (Manager, TreeFixture) {
    let manager = Manager::start();
    let tree = TreeFixture::script("echo one", "arguments = [\"--role\", \"data\"]\nprobation = \"7s\"\n");
    tree.file("share/data", 0o644, vec![7; 20_000]).file("share/gone", 0o644, "gone");
    manager.publish("p", "1", tree.path());
    tree.file("share/data", 0o644, vec![8; 20_000]).file("share/new", 0o644, "new");
    fs::remove_file(tree.path().join("share/gone")).unwrap();
    manager.publish("p", "2", tree.path());
    (manager, tree)
}

#[test]
fn patterns_are_as_strict_as_they_look() {
    assert!(like("a b c", "a b c") && like("a b c", "a * c") && like("a b c", "*") && like("abab", "a*b"));
    assert!(!like("a b c d", "a * c") && !like("a b", "a b c") && !like("xa", "a*") && !like("a b", "a*b*b"));
}

#[test]
fn generations_are_listed_shown_and_compared() {
    let (manager, tree) = two_versions();
    let source = tree.path().to_string_lossy().into_owned();
    let again = manager.run(&["publish", "p", "2", &source]).expect(0);
    lines(&again.stdout, &["p@2 is published already, as tree *"]);
    let third = manager.run(&["publish", "p", "3", &source]).expect(0);
    let id = manager.run(&["show", "p@3", "--json"]).expect(0).json()["tree_id"].as_str().unwrap().to_owned();
    lines(&third.stdout, &[&format!("p@3  {id}"), "7 entries, 20.1 kB of content; 0 new chunks, 0 B stored"]);

    lines(
        &manager.run(&["generations"]).text(),
        &[
            "GENERATION  TREE              CONTENT  PUBLISHED             EXPORTED TO",
            "p@1         *  20.1 kB  *Z",
            "p@2         *  20.1 kB  *Z",
            &format!("p@3         {}  20.1 kB  *Z", &id[..16]),
        ],
    );
    let none = manager.run(&["generations", "q"]).expect(0);
    lines(&none.stdout, &["GENERATION  TREE  CONTENT  PUBLISHED  EXPORTED TO"]);
    lines(&none.stderr, &["manager-fs: there is no generation of q (did you mean 'p'?)"]);

    manager.export("p@3", "host-1");
    lines(
        &manager.run(&["show", "p@3"]).text(),
        &[
            "generation      p@3",
            &format!("tree            {id}"),
            "published       *Z (number 3)",
            "publisher       *",
            "architecture    any",
            "entry point     bin/agent",
            "arguments       --role data",
            "entries         *, of them 4 files",
            "content         20.1 kB, distinct 20.1 kB, manifest * B",
            "state schemas   1 to 1",
            "drain deadline  1 min",
            "probation       7.0 s",
            "exported to     host-1",
            "attached on     -",
            "",
            "bin/agent  #!/bin/sh",
        ],
    );
    lines(
        &manager.run(&["diff", "p@1", "p@2"]).text(),
        &[
            "~ share  (time)",
            "~ share/data  (content, time)",
            "- share/gone",
            "+ share/new",
            "1 added, 1 removed, 2 changed, * equal; new content 20.0 kB, of it 20.0 kB in chunks that the first does not have",
        ],
    );
    let document = manager.run(&["diff", "p@1", "p@2", "--json"]).expect(0).json();
    assert_eq!((&document["added"], &document["removed"], &document["changed"]), (&json!(1), &json!(1), &json!(2)));
    let same = manager.run(&["diff", "p@2", "p@3"]).text();
    lines(
        &same,
        &[
            "0 added, 0 removed, 0 changed, * equal; new content 0 B, of it 0 B in chunks that the first does not have",
        ],
    );
}

#[test]
fn exports_groups_and_hosts_say_what_changed_and_who_is_not_there_yet() {
    let (manager, _tree) = two_versions();
    let run = |line: &str| manager.run(&split(line));
    let nowhere = run("export p@1 --to @production").expect(1);
    notes(
        &nowhere,
        &["manager-fs: not found: group 'production' does not exist; `manager-fs host group list` lists *"],
    );
    for group in ["production", "canaries"] {
        run(&format!("host group add {group} host-1")).expect(0);
    }
    let first = run("export p@1 --to host-1 @production").expect(0);
    notes(
        &first,
        &[
            "manager-fs: p@1 is exported to host-1",
            "manager-fs: p@1 is exported to @production",
            "manager-fs: host host-1 is not enrolled yet; it holds for it as soon as it is",
        ],
    );
    let host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    notes(&run("export p@1 --to host-1").expect(0), &["manager-fs: p@1 is exported before to host-1"]);
    let document = run("export p@1 --to host-1 @canaries --json").expect(0).json();
    let targets = json!([{ "target": "host-1", "changed": false }, { "target": "@canaries", "changed": true }]);
    assert_eq!(document["targets"], targets);
    notes(
        &run("host group add production host-l").expect(0),
        &["manager-fs: host host-l is not enrolled yet; it holds for it as soon as it is*host-1*"],
    );
    lines(&run("host group list").text(), &["@canaries: host-1", "@production: host-1 host-l"]);
    notes(&run("host group delete production").expect(0), &[]);
    lines(&run("host group list").text(), &["@canaries: host-1"]);
    assert_eq!(run("show p@1 --json").expect(0).json()["exported_to"], json!(["host-1", "@canaries"]));
    notes(&run("unexport p@1 --from @canaries").expect(0), &["manager-fs: p@1 is no longer exported to @canaries"]);
    notes(&run("unexport p@1 --from @canaries").expect(0), &["manager-fs: p@1 is not exported to @canaries"]);

    let row = |state: &str, certificate: &str| format!("host-1  {state}  {certificate} *@canaries*");
    let header = "HOST    STATE *CERTIFICATE ENDS *GROUPS*LABELS*SOFTWARE";
    lines(&run("hosts").text(), &[header, &row("last seen *", "*Z")]);
    notes(
        &run("host revoke host-1").expect(0),
        &["manager-fs: host-1 is revoked; it may enrol again with a new token"],
    );
    lines(&run("hosts").text(), &[header, &row("revoked *Z", "-")]);
    assert!(run("hosts --json").expect(0).json()["hosts"][0]["revoked_unix_ms"].as_u64() > Some(0));
    notes(&run("host forget host-1").expect(0), &["manager-fs: host-1 is forgotten; it must enrol to come back"]);
    assert_eq!(run("hosts --json").expect(0).json()["hosts"], json!([]));
    let gone = run("host revoke host-1").expect(1);
    notes(&gone, &["manager-fs: *host-1*"]);
}

#[test]
fn a_damaged_store_is_a_problem_that_names_what_it_touches_and_ends_with_3() {
    let (manager, _tree) = two_versions();
    let clean = manager.run(&["verify"]).expect(0).stdout;
    lines(&clean, &["* pack*, * chunks, * objects, 2 manifests, * record*, * read: 0 problems"]);
    manager.wait_until_repacked();
    for pack in files_below(&manager.store().join("packs")) {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::set_permissions(&pack, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    let damaged = manager.run(&["verify"]).expect(3);
    assert!(damaged.stdout.contains(" (in p@1") || damaged.stdout.contains("p@2)"), "{}", damaged.stdout);
    let document = manager.run(&["verify", "--json"]).expect(3).json();
    let problems = document["problems"].as_array().unwrap();
    assert!(!problems.is_empty(), "{document}");
    let told = damaged.stdout.lines().count() - 1;
    assert_eq!(told, problems.len(), "one line a problem, and the sum");
    for problem in problems {
        let (what, fault) = (problem["what"].as_str().unwrap(), problem["fault"].as_str().unwrap());
        assert!(damaged.stdout.contains(&format!("{what}: {fault}")), "{what}: {fault}");
    }
}

#[test]
fn what_is_no_longer_published_is_freed_once_and_a_dry_run_frees_nothing() {
    let (manager, _tree) = two_versions();
    notes(
        &manager.run(&["unpublish", "p@1"]).expect(0),
        &["manager-fs: p@1 is no longer published; `manager-fs gc` frees its space"],
    );
    notes(&manager.run(&["unpublish", "p@1"]).expect(1), &["manager-fs: *p@1*"]);
    // What is made while nobody waits (deltas, bundles) may come between two of these commands; it comes to an end.
    let dry = || manager.run(&["gc", "--dry-run"]).text();
    let said = until("two dry runs say the same: nothing was freed", || {
        let first = dry();
        (dry() == first).then_some(first)
    });
    lines(&said, &["dry run: 1 manifest, *, * freed; * stay"]);
    let freed = manager.run(&["gc", "--json"]).expect(0).json();
    assert_eq!((&freed["manifests_removed"], &freed["dry_run"]), (&json!(1), &json!(false)), "{freed}");
    let nothing = until("there is nothing left to free", || {
        let said = manager.run(&["gc"]).text();
        said.contains("0 packs, 0 deltas and 0 bundles").then_some(said)
    });
    lines(&nothing, &["0 manifests, 0 packs, 0 deltas and 0 bundles removed, *, 0 B freed; * stay"]);
    manager.run(&["verify"]).expect(0);
}

#[test]
fn a_host_says_where_its_trees_are_and_why_they_stay() {
    let (manager, _tree) = two_versions();
    manager.export("p@1", "host-1");
    manager.export("p@2", "host-1");
    let mut host = Host::mounted("host-1", &manager);
    host.attach("p@1");
    host.wait_until_local();
    let status = host.run(&["status"]).text();
    let top = [
        "daemon       running as process *, started *",
        "host         host-1",
        &format!("manager      {}, connected *", manager.address()),
        &format!("view         {} (*)", host.path("run/mnt").display()),
        "cache        * used, no quota",
        "fetched      *",
        "fuse         * request*",
    ];
    let rest: Vec<&str> = status.lines().skip(top.len()).collect();
    lines(&status.lines().take(top.len()).collect::<Vec<_>>().join("\n"), &top);
    let attached = [
        "generation   p@1 (*)",
        "             */gens/*",
        "             20.1 of 20.1 kB local, data path *, 0 processes",
        "             attached as p@1",
        "generation   p@2 (*)",
    ];
    lines(&rest.join("\n"), &attached);
    // One that is in use has its users, and is not detached under them.
    let mut sleeper = host.command(&["exec", "p@1", "--", "/bin/sleep", "600"]).spawn().unwrap();
    until("the lease is seen", || {
        host.run(&["status"]).text().contains(&format!("held by process {}", sleeper.id())).then_some(())
    });
    host.run(&["release", "p@1"]).expect(0);
    let twice = host.run(&["release", "p@1"]).expect(1);
    notes(&twice, &["manager-fs: *p@1*not attached*"]);
    assert!(host.run(&["status"]).text().contains("held by process"), "the program keeps it");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    until("it is released", || {
        let status = host.status();
        let all = status["generations"].as_array().unwrap().clone();
        all.iter().all(|generation| generation["mounted"] != true).then_some(())
    });
    assert_eq!(host.unmount(), Some(0));
    let gone = host.run(&["status"]).expect(3);
    lines(&gone.stdout, &["daemon       not running: *", "host         host-1", "manager      *, not connected"]);
}

#[test]
fn exec_ends_as_its_program_does_and_says_why_one_does_not_start() {
    let manager = Manager::start();
    let tree = TreeFixture::script("echo \"$@\"; exit 7", "arguments = [\"from\", \"the record\"]\n");
    tree.file("bin/not-executable", 0o644, "data").file("bin/no-loader", 0o755, "#!/no/such/interpreter\n");
    tree.link("bin/dangling", "nowhere");
    manager.publish("p", "1", tree.path());
    manager.export("p@1", "host-1");
    let host = Host::mounted("host-1", &manager);
    host.attach("p@1");
    let exec = |args: &[&str]| host.run(&[&["exec", "p@1"], args].concat());
    assert_eq!(exec(&[]).expect(7).stdout, "from the record\n", "the entry point with its arguments");
    assert_eq!(exec(&["--", "agent", "a b", "c"]).expect(7).stdout, "a b c\n", "what is typed");
    let told = exec(&["--", "/bin/sh", "-c", "echo $MANAGER_FS_TREE; exit 9"]).expect(9).stdout;
    assert_eq!(told.trim(), host.status()["generations"][0]["path"].as_str().unwrap());
    assert_eq!(exec(&["--", "/bin/sh", "-c", "kill -9 $$"]).code, None, "it is the program that was killed");
    for (program, why) in [
        ("bin/not-executable", "not executable"),
        ("bin/no-loader", "its interpreter or loader is not on this host"),
        ("bin/dangling", "a link to 'nowhere', which is not there"),
        ("bin/nothing", "no such file in the tree"),
        ("nothing", "there is no 'nothing' in bin, usr/bin"),
        ("../outside", "leads out of the tree"),
    ] {
        let output = exec(&["--", program]).expect(1);
        notes(&output, &[&format!("manager-fs: *{why}*")]);
    }
    let unknown = host.run(&["exec", "p@9"]).expect(1);
    notes(&unknown, &["manager-fs: *p@9*"]);
}

#[test]
fn jobs_and_change_overs_are_told_in_lines() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    for version in ["1", "2"] {
        let tree = TreeFixture::agent(version, "data", "drain_deadline = \"20s\"\nprobation = \"8s\"\n");
        manager.publish("data-agent", version, tree.path());
    }
    manager.export("data-agent@1", "host-1");
    host.attach("data-agent@1");
    host.launch("data-agent");
    manager.wait_for_version("host-1", "data-agent", "1");
    let run = |args: &[&str]| manager.run(args);
    let refused = run(&["upgrade", "data-agent", "data-agent@2", "--to", "host-1"]).expect(1);
    assert!(refused.stderr.contains("--export") || refused.stdout.contains("not exported"), "{refused:?}");
    let upgraded = run(&["upgrade", "data-agent", "data-agent@2", "--to", "host-1", "--export"]).expect(0);
    let told: Vec<&str> = upgraded.stdout.lines().collect();
    assert!(like(told[0], "host-1: accepted as change-over *"), "{told:?}");
    assert!(told.iter().any(|line| like(line, "host-1: *drain*")), "{told:?}");
    assert!(told.iter().any(|line| like(line, "host-1: *confirm*")), "{told:?}");
    manager.wait_for_version("host-1", "data-agent", "2");
    let agents = run(&["agents"]).text();
    let steps = ["metadata saved", "staged", "warmed", "drained", "journaled", "swapped", "started", "confirmed"];
    let steps: Vec<String> = steps.iter().map(|step| format!("    {step} *s*")).collect();
    let first = "host-1  data-agent@2  serving  pid *  since *Z  changed over from 1".to_owned();
    let expected: Vec<&str> = std::iter::once(&first).chain(&steps).map(String::as_str).collect();
    lines(&agents, &expected);

    let data = host.path("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), vec![3; 50_000]).unwrap();
    let (data, repository) = (data.to_string_lossy().into_owned(), host.path("repository"));
    let repository = repository.to_string_lossy().into_owned();
    let backup = run(&["job", "backup", "--host", "host-1", "--repository", &repository, &data]).expect(0);
    assert!(backup.stdout.lines().any(|line| like(line, "snapshot *")), "{backup:?}");
    let table = run(&["job", "list"]).text();
    let id = table.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let row = format!("{id}  host-1  backup     done   *Z  1 file, 50.0 kB, by version 2");
    lines(&table, &["JOB * HOST * OPERATION * STATE * ORDERED", &row]);
    let listed = run(&["job", "list", "--json"]).expect(0).json();
    assert_eq!((&listed["jobs"][0]["operation"], &listed["jobs"][0]["files"]), (&json!("backup"), &json!(1)));
    let shown = run(&["job", "show", &id]).text();
    lines(
        &shown,
        &[
            &format!("job {id}: backup on host-1: done, 1 file, 50.0 kB, by version 2"),
            "files: 1 new, *",
            "snapshot *",
        ],
    );
    notes(&run(&["job", "show", "00h6q-8tz4c"]).expect(1), &["manager-fs: *00h6q-8tz4c*"]);
    let late = run(&["job", "cancel", &id]).expect(1);
    notes(&late, &["manager-fs: *"]);
    let elsewhere = run(&["job", "backup", "--host", "host-2", "--repository", &repository, &data]).expect(1);
    notes(&elsewhere, &["manager-fs: *host-2*"]);
    let missing = run(&["job", "verify", "--host", "host-1", "--repository", "/no/such/repository"]).expect(1);
    assert!(
        missing.stderr.contains("/no/such/repository") || missing.stdout.contains("/no/such/repository"),
        "{missing:?}"
    );
}
