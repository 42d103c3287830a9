//! What becomes of a repository whose host is lost, who may open it, and who waits for whom in it.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::command::until;
use tests::vault::{Vault, fill, free_address, running, text};
use tests::{files_below, noise};

/// Debian's restic on a directory, by a password in a file.
fn restic(repository: &Path, password_file: &Path) -> Command {
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "--repo"]).arg(repository).arg("--password-file").arg(password_file);
    restic
}

#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command prints, in a file that nobody else reads.
#[track_caller]
fn kept(lab: &Vault, name: &str, command: &[&str]) -> String {
    let path = lab.manager.path(name);
    fs::write(&path, lab.manager.run(command).expect(0).stdout).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    text(&path)
}

#[test]
fn a_lost_host_loses_no_repository_and_another_one_takes_it_over() {
    let lab = Vault::new();
    let source = lab.web.path("source");
    fill(&source);
    lab.job("backup", "web", &[&text(&source)], 0);
    let secret = text(&lab.manager.path("recovery.secret"));
    let key = kept(&lab, "recovery.key", &["repository", "key", "new", &secret]);
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    lab.manager.run(&["repository", "key", "new", &secret]).expect(1);
    let sealed = kept(&lab, "main.sealed", &["repository", "key", "escrow", "main", "--to", &key]);
    lab.manager.run(&["repository", "key", "escrow", "main", "--to", &secret]).expect(1);

    // A further key is restic's own, until it is removed.
    let added = kept(&lab, "added.sealed", &["repository", "key", "add", "main", "--to", &key]);
    let recover = |sealed: &str| kept(&lab, "opened", &["repository", "key", "recover", sealed, "--secret", &secret]);
    let opened = recover(&added);
    let listed: Value =
        serde_json::from_str(&said(restic(&lab.repository(), Path::new(&opened)).args(["key", "list", "--json"])))
            .unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let keys = lab.manager.run(&["repository", "key", "list", "main", "--json"]).expect(0).json();
    let keys = keys["keys"].as_array().unwrap();
    assert_eq!((keys.len(), &keys[0]["own"], &keys[1]["own"]), (2, &json!(true), &json!(false)));
    let (own, other) = (keys[0]["key"].as_str().unwrap(), keys[1]["key"].as_str().unwrap());
    lab.manager.run(&["repository", "key", "remove", "main", own]).expect(1);
    lab.manager.run(&["repository", "key", "remove", "main", other]).expect(0);
    let refused = restic(&lab.repository(), Path::new(&opened)).arg("snapshots").output().unwrap();
    assert!(!refused.status.success(), "a key that was removed opens nothing");

    // Nothing that a manager keeps, the sealed passwords in its records included, tells a password.
    let password = fs::read_to_string(lab.password_file()).unwrap();
    for file in files_below(&lab.manager.store()) {
        let bytes = fs::read(&file).unwrap_or_default();
        let tells = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!tells(password.trim()) && !tells(fs::read_to_string(&opened).unwrap().trim()), "{}", file.display());
    }

    // The host is gone with all that it kept; the disk with the repository is left.
    let Vault { manager, vault, web, .. } = lab;
    let disk = manager.path("disk");
    fs::rename(vault.path("repository"), &disk).unwrap();
    drop(vault);
    // Without any manager.
    let mut offline = Command::new(tests::command::program("manager-fs"));
    offline.args(["repository", "key", "recover", &sealed, "--secret", &secret]).env("MANAGER_FS_STORE", "/nowhere");
    let opened = manager.path("opened");
    fs::write(&opened, said(&mut offline)).unwrap();
    assert_eq!(fs::read_to_string(&opened).unwrap(), password);
    let back = manager.path("back");
    said(restic(&disk, &opened).args(["restore", "latest", "--target"]).arg(&back));
    assert_eq!(fs::read(back.join(source.strip_prefix("/").unwrap()).join("noise")).unwrap(), noise(1, 20 << 20));

    // Another host serves it under its name, by that password.
    let _next = running(&manager, "next", "media-agent", "media");
    let address = free_address();
    let (disk, opened) = (text(&disk), text(&opened));
    let create = ["repository", "create", "main", "--on", "next", "--path", &disk, "--address", &address];
    let refused = manager.run(&create).expect(1);
    assert!(refused.stderr.contains("--adopt"), "{}", refused.stderr);
    manager.run(&[&create[..], &["--password-file", &opened, "--adopt"]].concat()).expect(0);
    let job = |kind: &str, more: &[&str]| {
        let order = ["job", kind, "--host", "web", "--repository", "main", "--json"];
        manager.run(&[&order, more].concat()).expect(0).json_lines().pop().unwrap()
    };
    let again = job("backup", &[&text(&source)]);
    // Files that were written right before the first backup are read once more, and are there already.
    assert!(again["counts"]["added_bytes"].as_u64().unwrap() < 1 << 20, "it goes on from what is there: {again}");
    job("verify", &[]);
    drop(web);
}

/// The state of a job, and what it says that it waits for.
fn waits(lab: &Vault, job: &str) -> (Value, String) {
    let shown = lab.manager.run(&["job", "show", job, "--json"]).expect(0).json();
    let waits = format!("{} {}", shown["waiting"], shown["progress"]["activity"]);
    (shown, waits)
}

#[track_caller]
fn over(lab: &Vault, job: &str) -> Value {
    until("the job is over", || {
        let (shown, _) = waits(lab, job);
        (!["queued", "running"].contains(&shown["state"].as_str().unwrap())).then_some(shown)
    })
}

#[test]
fn nobody_prunes_beside_a_backup_and_nobody_backs_up_beside_who_is_alone() {
    let lab = Vault::new();
    let source = lab.web.path("source");
    fill(&source);
    lab.job("backup", "web", &[&text(&source)], 0);
    lab.job("backup", "web", &["--force", &text(&source)], 0);
    // Of nothing: it is read until it is cut.
    let endless = File::create(source.join("endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let order = |kind: &str, host: &str, more: &[&str]| {
        let order = ["job", kind, "--host", host, "--repository", "main", "--detach"];
        lab.manager.run(&[&order, more].concat()).expect(0).text()
    };
    let backup = order("backup", "web", &[&text(&source)]);
    // By their names: until restic has written a lock it is called `…-tmp-…`, and holds nobody up.
    let locks = || {
        let names = fs::read_dir(lab.repository().join("locks")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().contains("-tmp-")).count()
    };
    until("the backup has its lock on the other host", || (locks() > 0).then_some(()));

    // A person's prune on that host itself finds it; the media agent's own is told for whom it waits.
    let by_hand = restic(&lab.repository(), &lab.password_file()).arg("prune").output().unwrap();
    let why = String::from_utf8_lossy(&by_hand.stderr).into_owned();
    assert!(!by_hand.status.success() && why.contains("locked") && why.contains("web"), "{why}");
    let prune = order("prune", "vault", &["--keep-last", "1"]);
    until("the prune waits for the backup", || waits(&lab, &prune).1.contains(&backup).then_some(()));
    endless.set_len(0).unwrap();
    let backed_up = over(&lab, &backup);
    assert_eq!(backed_up["state"], json!("done"), "{backed_up}");
    let pruned = over(&lab, &prune);
    assert_eq!(
        (&pruned["state"], pruned["snapshots"].as_array().map(Vec::len)),
        (&json!("done"), Some(2)),
        "{pruned}"
    );
    lab.restic(&["check", "--read-data"]);

    // Somebody is alone in the directory, whom no manager knows: a served backup waits for that lock.
    let (mut alone, process) = until("restic is stopped while it is alone", || {
        let mut check = restic(&lab.repository(), &lab.password_file());
        let mut alone = check.args(["check", "--read-data"]).stdout(Stdio::null()).spawn().unwrap();
        let process = Pid::from_child(&alone);
        while locks() == 0 {
            if alone.try_wait().unwrap().is_some() {
                return None;
            }
        }
        // Whoever nobody has waited for can be told, also when it has ended.
        kill_process(process, Signal::STOP).unwrap();
        let stat = Path::new("/proc").join(process.to_string()).join("stat");
        until("it stands still", || {
            let stat = fs::read_to_string(&stat).unwrap();
            [") T", ") Z"].iter().any(|state| stat.contains(state)).then_some(())
        });
        // It may have let go just then.
        if locks() > 0 {
            return Some((alone, process));
        }
        kill_process(process, Signal::CONT).unwrap();
        assert!(alone.wait().unwrap().success());
        None
    });
    let backup = order("backup", "web", &["--force", &text(&source)]);
    until("the backup waits for it", || waits(&lab, &backup).1.contains("waits for").then_some(()));
    kill_process(process, Signal::CONT).unwrap();
    assert!(alone.wait().unwrap().success());
    let backed_up = over(&lab, &backup);
    assert_eq!(backed_up["state"], json!("done"), "{backed_up}");
    assert_eq!(locks(), 0, "nobody leaves a lock behind");
}
