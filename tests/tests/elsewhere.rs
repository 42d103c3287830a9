//! Repositories that lie with a storage elsewhere (S3, a REST server), and that a media agent serves onward: what is done
//! with them from both sides, and what is said when the storage refuses, is cut, or is not there.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::command::until;
use tests::storages::Storage;
use tests::vault::{Vault, fill, text};
use tests::{Proxy, files_below, noise};

/// The file that has this text in it.
fn knows(directory: &Path, secret: &str) -> Option<PathBuf> {
    let holds = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap_or_default();
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    };
    files_below(directory).into_iter().find(holds)
}

/// The text of a key of `storage.toml`.
fn key_of<'a>(storage: &'a Storage, key: &str) -> &'a str {
    storage.access.split(&format!("{key} = \"")).nth(1).unwrap().split('"').next().unwrap()
}

fn everything_works_on(storage: &Storage, secret: &str) {
    let lab = Vault::hosts();
    lab.lets_in(&storage.access);
    lab.create(&[&storage.lies[0], &storage.lies[1]]).expect(0);
    let listed = lab.manager.run(&["repository", "show", "main", "--json"]).expect(0).json();
    assert!(listed["path"].as_str().unwrap().ends_with("/deep/main"), "{listed}");

    // The media agent passes a data agent's backup on.
    let source = lab.web.path("source");
    fill(&source);
    lab.job("backup", "web", &[&text(&source)], 0);
    lab.job("verify", "web", &[], 0);
    lab.job("restore-test", "web", &[], 0);
    let target = lab.web.path("back");
    lab.job("restore", "web", &["--snapshot", "latest", "--target", &text(&target)], 0);
    assert_eq!(fs::read(target.join("noise")).unwrap(), noise(1, 20 << 20));

    // Somebody else's restic finds the storage in order, and adds.
    let (password, read) = (lab.password_file(), lab.token(&["--access", "append"]));
    let restic = |arguments: &[&str]| {
        let direct = || storage.restic(&password, arguments);
        let (succeeded, said) = if storage.suits_restic { direct() } else { lab.restic_by(&read, arguments) };
        assert!(succeeded, "restic {arguments:?}: {said}");
        said
    };
    assert!(restic(&["check", "--read-data"]).contains("no errors were found"));
    // Opening it costs a millisecond there, too.
    let key = restic(&["list", "keys"]);
    assert!(restic(&["cat", "key", key.trim()]).contains("\"N\": 1024"), "{key}");
    restic(&["backup", "--host", "web", &text(&source.join("below"))]);
    let theirs = lab.web.path("theirs");
    let below = text(&source.join("below"));
    lab.job("restore", "web", &["--snapshot", "latest", "--source", &below, "--target", &text(&theirs)], 0);
    assert_eq!(fs::read_to_string(theirs.join("small")).unwrap(), "small\n");

    // What is looked after is so in the storage itself.
    fs::write(source.join("noise"), noise(2, 5 << 20)).unwrap();
    lab.job("backup", "web", &[&text(&source)], 0);
    lab.job("forget", "vault", &["--keep-last", "1", "--dry-run"], 0);
    let pruned = lab.job("prune", "vault", &["--keep-last", "1"], 0);
    assert_eq!(pruned["snapshots"].as_array().map(Vec::len), Some(1), "{pruned}");
    assert!(pruned["repository_bytes"].as_u64().unwrap() > 10 << 20, "{pruned}");
    lab.job("check", "vault", &["--read-data"], 0);
    assert!(restic(&["check", "--read-data"]).contains("no errors were found"));
    assert!(restic(&["snapshots"]).contains("2 snapshots"));
    assert!(restic(&["list", "locks"]).trim().is_empty(), "nobody has left a lock behind");

    // By a token, through the media agent: it reads, adds, and takes nothing away.
    let append = lab.token(&["--access", "append"]);
    let (added, said) = lab.restic_by(&append, &["backup", "--host", "elsewhere", &below]);
    assert!(added, "{said}");
    let (checked, said) = lab.restic_by(&append, &["check", "--read-data"]);
    assert!(checked && said.contains("no errors were found"), "{said}");
    let (forgotten, said) = lab.restic_by(&append, &["forget", "--host", "elsewhere", "--keep-tag", "none"]);
    assert!(!forgotten || said.contains("Forbidden"), "{said}");
    assert!(restic(&["snapshots"]).contains("3 snapshots"));

    // What lets the host in is with that host alone.
    assert_eq!(knows(&lab.manager.store(), secret), None);
    assert_eq!(knows(&lab.web.path("state"), secret), None);
    assert_eq!(knows(&lab.vault.path("state"), secret), Some(lab.vault.path("state/storage.toml")));
    let logs = [lab.manager.log(), lab.vault.log(), lab.manager.run(&["job", "list", "--json"]).expect(0).stdout];
    assert!(!logs.iter().any(|log| log.contains(secret)));
}

#[test]
fn a_repository_lies_in_a_bucket_of_a_server_that_believes_nobody_without_a_signature() {
    let storage = Storage::moto();
    everything_works_on(&storage, key_of(&storage, "secret-access-key"));
}

#[test]
fn a_repository_lies_in_a_bucket_of_another_kind_of_server() {
    let storage = Storage::localbucket();
    everything_works_on(&storage, "secret-access-key = \"thing");
}

#[test]
fn a_repository_lies_with_a_rest_server() {
    let storage = Storage::rest();
    everything_works_on(&storage, key_of(&storage, "password"));
}

#[test]
fn a_repository_lies_on_a_host_that_is_reached_by_ssh() {
    let storage = Storage::sftp();
    everything_works_on(&storage, key_of(&storage, "identity-file"));
}

#[test]
fn an_ssh_server_that_refuses_is_named_with_what_is_to_be_done() {
    let storage = Storage::sftp();
    let lab = Vault::hosts();
    let refused = |url: &str, words: &[&str]| {
        let created = lab.create(&["--adopt", "--sftp", url]).expect(1);
        let said = format!("{}{}", created.stdout, created.stderr);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let url = storage.lies[1].as_str();
    refused(url, &["storage.toml", "sftp://"]);
    let file = |name: &str| text(&storage.path().join(name));
    lab.lets_in(&storage.access.replace(&file("key"), &file("host")));
    refused(url, &[&storage.address, "Permission denied", "identity-file"]);
    lab.lets_in(&storage.access.replace(&file("known"), "/dev/null"));
    refused(url, &[&storage.address, "Host key verification failed", "known-hosts-file"]);
    lab.lets_in(&storage.access);
    refused(&url.replace("deep/main", "config/main"), &["config/main", "config"]);
    refused(&url.replace("sftp://", "sftp://me:word@"), &["no user or password"]);
    let away = |text: &str| text.replace(&storage.address, "127.0.0.1:9");
    lab.lets_in(&away(&storage.access));
    refused(&away(url), &["127.0.0.1:9", "efused"]);
    lab.lets_in(&storage.access);
    lab.create(&["--adopt", "--sftp", url]).expect(0);
}

#[test]
fn a_storage_that_refuses_is_named_with_what_is_to_be_done() {
    let storage = Storage::moto();
    let lab = Vault::hosts();
    let refused = |lies: &[&str], words: &[&str]| {
        let created = lab.create(lies).expect(1);
        let said = format!("{}{}", created.stdout, created.stderr);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let url = storage.lies[1].as_str();
    refused(&["--s3", url], &["storage.toml", "s3:http://"]);
    let secret = key_of(&storage, "secret-access-key");
    lab.lets_in(&storage.access.replace(secret, "another"));
    refused(&["--s3", url], &[&storage.address, "backups", "SignatureDoesNotMatch", "secret-access-key"]);
    lab.lets_in(&storage.access.replace(key_of(&storage, "access-key-id"), "AKIANOBODY"));
    refused(&["--s3", url], &[&storage.address, "InvalidAccessKeyId", "storage.toml"]);
    lab.lets_in(&storage.access.replace("/backups", "/elsewhere"));
    refused(&["--s3", url], &["has no entry for", "backups"]);
    refused(&["--adopt", "--s3", &url.replace("/backups", "/elsewhere")], &["there is no bucket elsewhere"]);
    lab.lets_in(&storage.access);
    let away = url.replace(&storage.address, "127.0.0.1:9");
    lab.lets_in(&storage.access.replace(&storage.address, "127.0.0.1:9"));
    refused(&["--adopt", "--s3", &away], &["127.0.0.1:9", "efused"]);
    refused(&["--s3", "https://me:word@h/bucket"], &["no user or password"]);
    // Two places at once, or none.
    assert_ne!(lab.create(&["--s3", url, "--path", "/srv/x"]).code, Some(0));
    assert_ne!(lab.create(&[]).code, Some(0));
    // Whoever mends it goes on where it was.
    lab.lets_in(&storage.access);
    lab.create(&["--adopt", "--s3", url]).expect(0);
}

#[test]
fn a_backup_outlives_a_line_that_is_cut_and_an_agent_that_is_killed_in_the_middle_of_an_upload() {
    outlives_a_cut_and_a_kill(&Storage::moto());
}

#[test]
fn a_backup_by_sftp_outlives_a_line_that_is_cut_and_an_agent_that_is_killed() {
    outlives_a_cut_and_a_kill(&Storage::sftp());
}

fn outlives_a_cut_and_a_kill(storage: &Storage) {
    let line = Proxy::start(&storage.address);
    let lab = Vault::hosts();
    lab.lets_in(&storage.access.replace(&storage.address, &line.address()));
    let url = storage.lies[1].replace(&storage.address, &line.address());
    lab.create(&[&storage.lies[0], &url]).expect(0);
    let source = lab.web.path("source");
    fs::create_dir(&source).unwrap();
    for number in 0..6 {
        fs::write(source.join(format!("noise-{number}")), noise(number, 20 << 20)).unwrap();
    }
    let endless = File::create(source.join("zz-endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let order = ["job", "backup", "--host", "web", "--repository", "main", "--detach", &text(&source)];
    let job = lab.manager.run(&order).expect(0).text();
    let show = || lab.manager.run(&["job", "show", &job, "--json"]).expect(0).json();
    until("something is on its way", || {
        (line.to_host_bytes() > 4 << 10 && show()["state"] == "running").then_some(())
    });
    line.cut();
    line.heal();
    until("the job is told by the agent", || (show()["progress"] != json!(null)).then_some(()));
    // The media agent dies; its stub begins it anew.
    let agent = lab.manager.agent("vault", "media-agent").unwrap();
    let pid = i32::try_from(agent["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    endless.set_len(0).unwrap();
    let ended = until("the backup is over", || {
        let shown = show();
        (!["queued", "running"].contains(&shown["state"].as_str().unwrap())).then_some(shown)
    });
    assert_eq!(ended["state"], json!("done"), "{ended}");
    assert_eq!(ended["snapshots"].as_array().map(Vec::len), Some(1), "{ended}");
    let (checked, said) = storage.restic(&lab.password_file(), &["check", "--read-data"]);
    assert!(checked && said.contains("no errors were found"), "{said}");
    let target = lab.web.path("back");
    lab.job("restore", "web", &["--snapshot", "latest", "--target", &text(&target)], 0);
    for number in 0..6 {
        assert_eq!(fs::read(target.join(format!("noise-{number}"))).unwrap(), noise(number, 20 << 20));
    }
}
