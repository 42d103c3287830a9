//! What an operator meets on the command line: exit codes, what goes where, and refusals that name the fault.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::command::{program, until};
use tests::sources::hostile;
use tests::{Host, Manager, Output, TreeFixture, files_below};

fn bare(args: &[&str], dir: &std::path::Path) -> Output {
    let mut command = Command::new(program("manager-fs"));
    for (variable, name) in [
        ("MANAGER_FS_STORE", "store"),
        ("MANAGER_FS_STATE", "state"),
        ("MANAGER_FS_CACHE", "cache"),
        ("MANAGER_FS_RUN", "run"),
    ] {
        command.env(variable, dir.join(name));
    }
    Output::of(command.args(args))
}

#[test]
fn wrong_usage_is_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["publish"][..],
        &["publish", "one", "1"],
        &["publish", "UPPER/slash", "1", "/tmp"],
        &["show"],
        &["show", "--no-such-flag", "a@1"],
        &["export", "a@1"],
        &["upgrade", "a"],
        &["job"],
        &["job", "no-such-kind"],
        &["token"],
        &["token", "not a host name"],
        &["mount", "--no-such-flag"],
        &["exec"],
        &["frobnicate"],
    ] {
        let output = bare(args, dir.path());
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.stderr);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    let dir = tempfile::tempdir().unwrap();
    let help = bare(&["--help"], dir.path()).text();
    for command in [
        "serve",
        "publish",
        "generations",
        "show",
        "diff",
        "verify",
        "gc",
        "export",
        "unexport",
        "hosts",
        "host",
        "token",
        "enroll",
        "mount",
        "unmount",
        "attach",
        "release",
        "exec",
        "launch",
        "upgrade",
        "agents",
        "job",
        "status",
        "demo",
    ] {
        assert!(help.contains(command), "--help does not list {command}");
        let text = bare(&[command, "--help"], dir.path()).expect(0).stdout;
        assert!(text.contains("Usage:"), "{command}: {text}");
    }
}

#[test]
fn without_a_manager_or_a_daemon_commands_say_so_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["generations"][..],
        &["agents"],
        &["hosts"],
        &["token", "host-1"],
        &["attach", "a@1"],
        &["exec", "a@1", "--", "true"],
        &["unmount"],
    ] {
        let since = Instant::now();
        let output = bare(args, dir.path()).expect(1);
        assert!(since.elapsed() < Duration::from_secs(5), "{args:?} took {:?}", since.elapsed());
        assert!(output.stdout.is_empty(), "{args:?}: {}", output.stdout);
        let named = output.stderr.contains(&dir.path().display().to_string());
        assert!(named && (output.stderr.contains("serve") || output.stderr.contains("mount")), "{}", output.stderr);
    }
    // What is on the disk can be told all the same; that the daemon does not run is the problem of code 3.
    let status = bare(&["status", "--json"], dir.path()).expect(3);
    assert_eq!(status.json()["daemon"]["running"], false);
    assert!(status.stderr.contains("manager-fs mount"), "{}", status.stderr);
    assert!(bare(&["status"], dir.path()).expect(3).stdout.contains("not running"));
}

#[test]
fn a_token_is_printed_alone_and_works_once() {
    let manager = Manager::start();
    let output = manager.run(&["token", "host-1"]).expect(0);
    assert_eq!(output.stdout.lines().count(), 1, "{}", output.stdout);
    let token = output.stdout.trim().to_owned();
    let address = manager.address();
    let (first, second, third) = (Host::new("a"), Host::new("b"), Host::new("c"));
    let enroll = |host: &Host, token: &str| host.run(&["enroll", "--manager", &address, "--token", token]);
    // A mistyped token is wrong usage, and uses nothing up.
    let mut changed = token.clone().into_bytes();
    let last = changed.len() - 1;
    changed[last] = if changed[last] == b'a' { b'b' } else { b'a' };
    let refused = enroll(&third, std::str::from_utf8(&changed).unwrap()).expect(2);
    assert!(refused.stderr.contains("token"), "{}", refused.stderr);
    enroll(&first, &token).expect(0);
    let twice = enroll(&second, &token).expect(1);
    assert!(twice.stderr.contains("token"), "{}", twice.stderr);
    assert!(!second.path("state/identity/host.pem").exists(), "a refused host has no identity");
    enroll(&third, "not-a-token").expect(2);
    let mode = fs::metadata(first.path("state/identity/host.key")).map(|meta| {
        use std::os::unix::fs::PermissionsExt;
        meta.permissions().mode() & 0o777
    });
    assert_eq!(mode.unwrap(), 0o600);
    let hosts = manager.run(&["hosts", "--json"]).expect(0).json();
    assert!(hosts.to_string().contains("host-1"), "{hosts}");
}

#[test]
fn what_is_unknown_is_named() {
    let manager = Manager::start();
    manager.publish("known", "1.0", TreeFixture::script("exit 0", "").path());
    for (args, named) in [
        (&["show", "unknown@1.0"][..], "unknown@1.0"),
        (&["show", "known@9"], "known@9"),
        (&["show", "ffffffffffff"], "ffffffffffff"),
        (&["diff", "known@1.0", "known@9"], "known@9"),
        (&["export", "known@9", "--to", "nobody"], "known@9"),
        (&["export", "known@1.0", "--to", "@nogroup"], "nogroup"),
        (&["host", "revoke", "nobody"], "nobody"),
        (&["upgrade", "known", "known@1.0", "--to", "nobody"], "nobody"),
        (&["job", "show", "4711"], "4711"),
        (&["publish", "known", "2.0", "/no/such/source"], "/no/such/source"),
    ] {
        let output = manager.run(args).expect(1);
        assert!(output.stderr.contains(named), "{args:?} does not name {named}: {}", output.stderr);
        assert!(output.stdout.is_empty(), "{args:?}: {}", output.stdout);
    }
}

#[test]
fn a_tree_under_two_versions_is_ambiguous_by_its_id() {
    let manager = Manager::start();
    let tree = TreeFixture::script("exit 0", "");
    let id = manager.publish("twice", "1.0", tree.path());
    assert_eq!(manager.publish("twice", "1.0-again", tree.path()), id);
    let output = manager.run(&["export", &id, "--to", "nobody"]).expect(1);
    assert!(output.stderr.contains("twice@1.0") && output.stderr.contains("twice@1.0-again"), "{}", output.stderr);
}

#[test]
fn a_version_is_published_once() {
    let manager = Manager::start();
    let (one, other) = (TreeFixture::script("exit 0", ""), TreeFixture::script("exit 1", ""));
    let id = manager.publish("known", "1.0", one.path());
    let output = manager.run(&["publish", "known", "1.0", &other.path().to_string_lossy()]).expect(1);
    assert!(output.stderr.contains("known@1.0"), "{}", output.stderr);
    assert_eq!(manager.run(&["show", "known@1.0", "--json"]).expect(0).json()["tree_id"], id);
}

/// As `docker save` wrote it, named from the directory in which it lies; and what only a container has is told.
#[test]
fn a_container_image_is_published_by_its_name() {
    let manager = Manager::start();
    let tree = TreeFixture::script("exit 0", "");
    fs::remove_file(tree.path().join("manager-fs.toml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tar =
        |args: &[&str]| assert!(Command::new("tar").args(args).current_dir(dir.path()).status().unwrap().success());
    tar(&["czf", "layer.tar", "-C", &tree.path().to_string_lossy(), "."]);
    let sums = [format!("sha256:{}", "0".repeat(64))];
    let start = json!({ "Entrypoint": ["agent"], "Cmd": ["--serve"], "Env": ["PATH=/bin", "MODE=fast"] });
    let config = json!({ "config": start, "rootfs": { "diff_ids": sums } });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["it:1.0"], "Layers": ["layer.tar"] }]);
    fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
    tar(&["cf", "saved.tar", "manifest.json", "config.json", "layer.tar"]);

    let mut command = manager.command(&["publish", "image", "1.0", "docker-archive:saved.tar:it:1.0"]);
    let output = command.current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the environment (MODE)"), "{said}");
    let shown = manager.run(&["show", "image@1.0"]).expect(0).stdout;
    assert!(shown.contains("entry point     bin/agent") && shown.contains("--serve"), "{shown}");
}

#[test]
fn json_is_one_document_and_nothing_else() {
    let manager = Manager::start();
    manager.publish("known", "1.0", TreeFixture::script("exit 0", "").path());
    let host = Host::mounted("host-1", &manager);
    for args in
        [&["generations", "--json"][..], &["hosts", "--json"], &["agents", "--json"], &["job", "list", "--json"]]
    {
        manager.run(args).expect(0).json();
    }
    let status = host.run(&["status", "--json"]).expect(0).json();
    assert!(status["fuse"]["requests"].is_object(), "{status}");
    let people = host.run(&["status"]).expect(0).stdout;
    assert!(!people.trim_start().starts_with('{'), "{people}");
}

#[test]
fn a_reader_that_has_had_enough_is_no_fault_and_a_full_disk_is() {
    let manager = Manager::start();
    let (one, two) = (TreeFixture::new(), TreeFixture::new());
    for n in 0..3000 {
        two.file(&format!("a-file-with-a-name-that-fills-pipes-{n}"), 0o644, "x");
    }
    manager.publish("sample", "1", one.path());
    manager.publish("sample", "2", two.path());
    let run = |out: std::process::Stdio| {
        let mut command = manager.command(&["diff", "sample@1", "sample@2"]);
        command.stdout(out).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut gone = run(std::process::Stdio::piped());
    drop(gone.stdout.take());
    let gone = gone.wait_with_output().unwrap();
    assert_eq!((gone.status.code(), String::from_utf8_lossy(&gone.stderr).as_ref()), (Some(0), ""));
    let full = run(fs::File::options().write(true).open("/dev/full").unwrap().into()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(1) && said.contains("cannot write to standard output"), "{said}");
}

#[test]
fn hostile_archives_are_refused_and_the_store_is_as_before() {
    let manager = Manager::start();
    manager.publish("good", "1.0", TreeFixture::script("exit 0", "").path());
    manager.wait_until_repacked();
    let files = || ["packs", "manifests", "tmp"].map(|dir| files_below(&manager.store().join(dir)));
    let before = files();
    let work = tempfile::tempdir().unwrap();
    for (archive, named) in hostile(work.path()) {
        let output = manager.run(&["publish", "bad", "1.0", &archive.to_string_lossy()]);
        assert_eq!(output.code, Some(1), "{} was taken in: {output:?}", archive.display());
        assert!(output.stderr.contains(named), "{}: {named} is not named: {}", archive.display(), output.stderr);
        assert_eq!(files(), before, "{} left something behind", archive.display());
    }
    assert!(!std::path::Path::new("/etc/escape").exists() && !std::path::Path::new("/tmp/escape").exists());
    let garbage = work.path().join("garbage");
    fs::write(&garbage, "neither an archive nor a directory\n").unwrap();
    let output = manager.run(&["publish", "bad", "1.0", &garbage.to_string_lossy()]).expect(1);
    assert!(output.stderr.contains("garbage"), "{}", output.stderr);
    let generations = manager.run(&["generations", "--json"]).expect(0).stdout;
    assert!(!generations.contains("\"bad\""), "{generations}");
    manager.run(&["verify"]).expect(0);
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let mut manager = Manager::start();
    manager.stop();
    fs::write(manager.store().join("format"), "manager-fs store 3\n").unwrap();
    let output = manager.run(&["serve", "--listen", "127.0.0.1:0"]).expect(1);
    assert!(output.stderr.contains('3') && output.stderr.contains("format"), "{}", output.stderr);
    fs::write(manager.store().join("format"), "manager-fs store 2\n").unwrap();
    manager.serve();
}

#[test]
fn one_store_has_one_manager() {
    let manager = Manager::start();
    let output = manager.run(&["serve", "--listen", "127.0.0.1:0"]).expect(1);
    assert!(output.stderr.contains(&manager.store().display().to_string()), "{}", output.stderr);
    manager.run(&["generations"]).expect(0);
}

#[test]
fn services_end_cleanly_and_start_again() {
    let mut manager = Manager::start();
    manager.publish("known", "1.0", TreeFixture::script("exit 0", "").path());
    let mut host = Host::mounted("host-1", &manager);
    manager.export("known@1.0", "host-1");
    host.attach("known@1.0");
    manager.stop();
    manager.serve();
    assert_eq!(host.unmount(), Some(0), "{}", host.log());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&host.path("run").display().to_string()), "left mounted:\n{mounts}");
    host.mount(&[]);
    host.attach("known@1.0");
    host.run(&["release", "known@1.0"]).expect(0);
}

#[test]
fn a_token_comes_from_standard_input_and_one_in_the_list_of_processes_is_warned_of() {
    use std::io::Write;
    let manager = Manager::start();
    let token = manager.run(&["token", "host-1"]).text();
    let (piped, typed, empty) = (Host::new("a"), Host::new("b"), Host::new("c"));
    let enroll = |host: &Host, text: &str| {
        let mut command = host.command(&["enroll", "--manager", &manager.address(), "--token-file", "-", "--json"]);
        let pipes = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = pipes.stderr(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let nothing = enroll(&empty, "\n");
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(nothing.status.code() == Some(1) && said.contains("no token in standard input"), "{said}");
    let done = enroll(&piped, &format!("{token}\n"));
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    let token = manager.run(&["token", "host-2"]).text();
    let warned = typed.run(&["enroll", "--manager", &manager.address(), "--token", &token]).expect(0);
    assert!(warned.stderr.contains("can be read by every user"), "{}", warned.stderr);
}

#[test]
fn what_is_nearly_right_is_asked_for() {
    let manager = Manager::start();
    manager.publish("data-agent", "1.0", TreeFixture::script("exit 0", "").path());
    let host = Host::mounted("host-1", &manager);
    manager.export("data-agent@1.0", "host-1");
    host.attach("data-agent@1.0");
    manager.run(&["host", "group", "add", "production", "host-1"]).expect(0);
    for (args, meant) in [
        (&["show", "data-agnet@1.0"][..], "'data-agent@1.0'"),
        (&["show", "data-agent@1.1"], "'data-agent@1.0'"),
        (&["host", "revoke", "hots-1"], "'host-1'"),
        (&["export", "data-agent@1.0", "--to", "@prodution"], "'@production'"),
    ] {
        let output = manager.run(args).expect(1);
        assert!(output.stderr.contains(&format!("did you mean {meant}?")), "{args:?}: {}", output.stderr);
    }
    let early = manager.run(&["export", "data-agent@1.0", "--to", "host-2"]).expect(0);
    assert!(early.stderr.contains("did you mean 'host-1'?"), "{}", early.stderr);
    let empty = manager.run(&["generations", "dataagent"]).expect(0);
    assert!(empty.stderr.contains("did you mean 'data-agent'?"), "{}", empty.stderr);
    let attach = host.run(&["attach", "data-agnet@1.0"]).expect(1);
    assert!(attach.stderr.contains("did you mean 'data-agent@1.0'?"), "{}", attach.stderr);
    let far = manager.run(&["show", "unlike@7"]).expect(1);
    assert!(!far.stderr.contains("did you mean"), "{}", far.stderr);
}

#[test]
fn ctrl_c_leaves_a_job_running_and_says_how_to_stop_it() {
    use std::io::{BufRead, Read};
    let manager = Manager::start();
    let host = Host::mounted("host-1", &manager);
    let repository = host.path("repository").to_string_lossy().into_owned();
    // No agent runs there: the job waits for one.
    let backup = ["job", "backup", "--host", "host-1", "--repository", &repository, "--detach", "/etc"];
    let job = manager.run(&backup).text();
    let mut command = manager.command(&["job", "wait", &job]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("waits"), "{said}");
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    errors.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("goes on") && said.contains(&format!("job cancel {job}")), "{said}");
    let shown = manager.run(&["job", "show", &job, "--json"]).expect(0).json();
    assert_eq!(shown["cancel_asked"], false, "{shown}");
    manager.run(&["job", "cancel", &job]).expect(0);
}

/// The commands that follow what others do: each ends at once, and says what goes on.
#[test]
fn ctrl_c_ends_whoever_follows_a_change_over_or_a_rollout() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;
    // Believed after half of its probation: so long would be waited.
    const DESCRIPTOR: &str = "drain_deadline = \"20s\"\nprobation = \"120s\"\n";
    let manager = Manager::start();
    let mut hosts = ["host-1", "host-2"].map(|name| Host::mounted(name, &manager));
    manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", "").path());
    manager.run(&["export", "data-agent@1.0", "--to", "host-1", "host-2"]).expect(0);
    hosts.iter_mut().for_each(|host| host.launch("data-agent"));
    hosts.iter().for_each(|host| drop(manager.wait_for_version(&host.name, "data-agent", "1.0")));
    manager.publish("data-agent", "2.0", TreeFixture::agent("2.0", "data", DESCRIPTOR).path());
    let plan = manager.path("plan.toml");
    let ring = "export = true\n[[ring]]\nname = \"all\"\nto = [\"host-1\"]\n";
    std::fs::write(&plan, format!("product = \"data-agent\"\ngeneration = \"data-agent@2.0\"\n{ring}")).unwrap();
    let rollout = manager.run(&["rollout", "plan", plan.to_str().unwrap()]).text();
    manager.run(&["rollout", "start", &rollout]).expect(0);
    let follows: [(&[&str], &str); 2] = [
        (&["rollout", "watch", &rollout, "--json"], "rings"),
        (&["upgrade", "data-agent", "data-agent@2.0", "--to", "host-2", "--export", "--json"], "\"started\""),
    ];
    for (args, follows) in follows {
        let mut command = manager.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let seen = lines.find(|line| line.contains(follows));
        assert!(seen.is_some(), "{args:?} ends before: {:?}", child.wait_with_output());
        kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
        let since = std::time::Instant::now();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}: {said}");
        assert!(since.elapsed() < std::time::Duration::from_secs(5), "{args:?}: {:?}", since.elapsed());
        assert!(said.contains("goes on"), "{args:?}: {said}");
    }
    for host in &hosts {
        until("what was ordered went on", || {
            (manager.agent(&host.name, "data-agent")?["version"] == "2.0").then_some(())
        });
    }
}
