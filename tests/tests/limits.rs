//! What ends: disk space, and the validity of certificates.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::time::Duration;

use proto::width::millis;
use serde_json::Value;
use tests::command::until;
use tests::{Host, Manager, TreeFixture, noise};

/// Files that do not compress: as many bytes of the store as of content.
fn files(count: u64, bytes: usize, seed: u64) -> TreeFixture {
    let tree = TreeFixture::new();
    for n in 0..count {
        tree.file(&format!("file-{n}"), 0o644, noise(seed + n, bytes));
    }
    tree
}

#[test]
fn a_full_store_takes_nothing_in_half_and_serves_on() {
    let manager = Manager::on_a_small_disk(24 << 20);
    let (small, large) = (files(4, 1 << 20, 0), files(40, 1 << 20, 100));
    manager.publish("sample", "1", small.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1", "host-1");
    let root = host.attach("sample@1");
    // The host says a moment later what is attached there, which stands in the list too.
    let listed = || manager.run(&["generations", "--json"]).expect(0).stdout;
    let before = until("the attachment is reported", || {
        Some(listed()).filter(|list| list.contains("\"host-1\"\n      ],\n      \"content"))
    });

    let large = large.path().to_string_lossy().into_owned();
    let refused = manager.run(&["publish", "sample", "2", &large]).expect(1).stderr;
    assert!(refused.contains("no space left") && refused.contains("nothing was published"), "{refused}");
    assert_eq!(listed(), before);
    manager.wait_until_repacked();
    assert_eq!(fs::read_dir(manager.store().join("tmp")).unwrap().count(), 0, "a draft stays");
    let gc = manager.run(&["gc", "--dry-run"]).expect(0).stdout;
    assert!(gc.contains(" 0 B freed"), "{gc}");
    manager.run(&["verify"]).expect(0);

    // Not a byte left: what changes the control state is refused, hosts are served.
    let filler = manager.store().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let tiny = files(1, 1000, 200);
    let refused = manager.run(&["publish", "sample", "3", &tiny.path().to_string_lossy()]).expect(1).stderr;
    assert!(refused.to_lowercase().contains("no space left"), "{refused}");
    // The control state may have room in the file that it has; then it has not any more.
    let refused =
        (0..2_000).map(|n| manager.run(&["token", &format!("host-2-{n}")])).find(|token| token.code != Some(0));
    let refused = refused.expect("a token that does not fit").expect(1).stderr;
    assert!(refused.contains("No space left"), "{refused}");
    assert_eq!(fs::read(root.join("file-3")).unwrap(), fs::read(small.path().join("file-3")).unwrap());
    assert_eq!(manager.run(&["generations", "--json"]).expect(0).stdout, before);
    fs::remove_file(&filler).unwrap();
    manager.run(&["token", "host-2"]).expect(0);
    manager.publish("sample", "3", tiny.path());
    manager.run(&["verify"]).expect(0);
}

fn certificate_ends(manager: &Manager) -> Option<u64> {
    manager.run(&["hosts", "--json"]).expect(0).json()["hosts"][0]["certificate_expires_unix_ms"].as_u64()
}

#[test]
fn certificates_are_renewed_while_the_host_is_connected() {
    let manager = Manager::with_certificates_for("6s");
    let tree = files(1, 100_000, 300);
    manager.publish("sample", "1", tree.path());
    let host = Host::mounted("host-1", &manager);
    let first = certificate_ends(&manager).unwrap();
    // Twice, so that what was renewed is what is renewed.
    until("the certificate is renewed twice", || (certificate_ends(&manager)? > first + 6_000).then_some(()));
    manager.export("sample@1", "host-1");
    let root = host.attach("sample@1");
    assert_eq!(fs::read(root.join("file-0")).unwrap(), fs::read(tree.path().join("file-0")).unwrap());
    assert!(!host.log().contains("expired"), "{}", host.log());
}

#[test]
fn an_expired_certificate_is_named_and_a_new_token_helps() {
    let manager = Manager::with_certificates_for("2s");
    let tree = files(1, 100_000, 300);
    manager.publish("sample", "1", tree.path());
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    let ends = certificate_ends(&manager).unwrap();
    let now = || millis(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap());
    until("the certificate has expired", || (now() > ends + 1_000).then_some(()));
    manager.export("sample@1", "host-1");
    host.mount(&[]);
    until("status names the fault", || {
        let status = host.run(&["status"]);
        status.stdout.contains("expired").then_some(())
    });
    let status: Value = host.status();
    assert_eq!(status["manager"]["connected"], false, "{status}");
    for command in [&["attach", "sample@1"][..], &["exec", "sample@1", "--", "/bin/true"], &["launch", "sample"]] {
        let refused = host.run(command).expect(1).stderr;
        for part in
            ["host-1", "expired at 2", "manager-fs token host-1", "manager-fs enroll --force", &manager.address()]
        {
            assert!(refused.contains(part), "{part} is not in: {refused}");
        }
    }
    // As the message says; the daemon that runs takes the new identity.
    let token = manager.run(&["token", "host-1"]).text();
    host.run(&["enroll", "--force", "--manager", &manager.address(), "--token", &token]).expect(0);
    let root = host.attach("sample@1");
    assert_eq!(fs::read(root.join("file-0")).unwrap(), fs::read(tree.path().join("file-0")).unwrap());
}

#[test]
fn a_host_that_its_manager_shuts_out_is_told_why() {
    let (manager, other) = (Manager::start(), Manager::start());
    let host = Host::mounted("host-1", &manager);
    manager.run(&["host", "revoke", "host-1"]).expect(0);
    let refused = host.run(&["attach", "sample@1"]).expect(1).stderr;
    assert!(
        refused.contains("host 'host-1' was revoked") && refused.contains("manager-fs token host-1"),
        "{refused}"
    );

    // An address that is now another manager's.
    let mut host = Host::new("host-2");
    host.enroll(&manager, &manager.address());
    host.mount(&["--manager", &other.address()]);
    let refused = host.run(&["attach", "sample@1"]).expect(1).stderr;
    assert!(refused.contains("issued by another manager") && refused.contains(&other.address()), "{refused}");
}

/// Seconds that each thread of a process has worked so far, but for those that work while nobody waits (at nice 19).
fn worked(pid: u32) -> BTreeMap<OsString, f64> {
    let mut threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap();
        // One that has ended meanwhile works no more.
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        if fields[16] == "19" {
            continue;
        }
        // In hundredths, on every Linux (`USER_HZ`).
        let hundredths = fields[11..13].iter().map(|field| field.parse::<u32>().unwrap()).sum::<u32>();
        threads.insert(thread.file_name(), f64::from(hundredths) / 100.0);
    }
    threads
}

#[test]
fn a_host_that_leaves_with_running_jobs_keeps_its_manager_neither_busy_nor_from_ending() {
    let mut manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish("data-agent", "1.0", TreeFixture::agent("1.0", "data", "").path());
    manager.export("data-agent@1.0", "host-1");
    host.launch("data-agent");
    manager.wait_for_version("host-1", "data-agent", "1.0");
    let source = host.path("source");
    fs::create_dir(&source).unwrap();
    for n in 0..8 {
        fs::write(source.join(n.to_string()), noise(n, 16 << 20)).unwrap();
    }
    let source = source.to_str().unwrap().to_owned();
    let backup = |repository: &str| {
        let repository = host.path(repository);
        let to = ["--repository", repository.to_str().unwrap(), "--detach", &source];
        manager.run(&[&["job", "backup", "--host", "host-1"][..], &to].concat()).text()
    };
    manager.run(&["job", "wait", &backup("first")]).expect(0);
    let jobs: Vec<String> = (0..4).map(|n| backup(&format!("repository-{n}"))).collect();
    host.stop("data-agent");
    assert_eq!(host.unmount(), Some(0));
    until("the manager knows that it has left", || {
        let hosts = manager.run(&["hosts", "--json"]).expect(0).json();
        (hosts["hosts"][0]["connected"] == false).then_some(())
    });
    let before = worked(manager.pid());
    std::thread::sleep(Duration::from_secs(3));
    let after = worked(manager.pid());
    let took: f64 = after.iter().map(|(thread, seconds)| seconds - before.get(thread).unwrap_or(&0.0)).sum();
    assert!(took < 0.5, "it works {took} of 3 seconds for a host that is gone");
    for job in &jobs {
        manager.run(&["job", "show", job]).expect(0);
    }
    manager.stop();
    manager.serve();
    host.mount(&[]);
    host.launch("data-agent");
    for job in &jobs {
        let ended = manager.run(&["job", "wait", job, "--json"]).json_lines().pop().unwrap();
        assert_eq!(ended["state"], "done", "{ended}");
    }
}
