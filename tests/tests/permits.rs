//! `docs/permits.md`: what a host's administrator does not allow is refused with the line that says so, and shown where
//! it was ordered.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::{Host, Manager, TreeFixture};

#[test]
fn a_host_refuses_what_its_permits_do_not_allow_and_job_show_says_by_which_line() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    for version in ["1.0", "2.0"] {
        manager.publish("data-agent", version, TreeFixture::agent(version, "data", "").path());
        manager.export(&format!("data-agent@{version}"), "host-1");
    }
    let permits = host.path("state/permits.toml");
    let source = host.path("data");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let (source, target) = (source.to_str().unwrap(), host.path("restored"));
    let text = format!("[change-over]\npinned = [\"data-agent\"]\n[restore]\ntargets = [{target:?}]\n");
    fs::write(&permits, &text).unwrap();
    host.launch("data-agent");
    manager.wait_for_version("host-1", "data-agent", "2.0");

    let repository = host.path("repository").to_string_lossy().into_owned();
    let order = |kind: &str, more: &[&str]| {
        manager.run(&[&["job", kind, "--host", "host-1", "--repository", &repository], more].concat())
    };
    order("backup", &[source]).expect(0);
    let elsewhere = host.path("elsewhere").to_string_lossy().into_owned();
    let refused = order("restore", &["--snapshot", "latest", "--target", &elsewhere, "--detach"]).text();
    manager.run(&["job", "wait", &refused]).expect(1);
    let shown = manager.run(&["job", "show", &refused]).expect(0).stdout;
    let line = format!("({}, line 4: restore.targets)", permits.display());
    assert!(shown.contains(&line) && shown.contains(&elsewhere), "{shown}");
    assert!(!host.path("elsewhere").exists());
    order("restore", &["--snapshot", "latest", "--target", target.to_str().unwrap()]).expect(0);

    let other = "data-agent@1.0";
    let pinned = manager.run(&["upgrade", "data-agent", other, "--to", "host-1"]).expect(1);
    let said = format!("{}{}", pinned.stdout, pinned.stderr);
    assert!(said.contains("pinned") && said.contains("line 2"), "{said}");
    // The administrator's next word holds from the next order on, also after a change-over.
    fs::write(&permits, "[backup]\nsources = [\"/nowhere\"]\n").unwrap();
    manager.run(&["upgrade", "data-agent", other, "--to", "host-1"]).expect(0);
    let refused = order("backup", &[source]).expect(1);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("line 2: backup.sources"), "{said}");

    let check = host.run(&["permits", "check", "--backup", source]).expect(1);
    assert!(check.stdout.contains("line 2"), "{}", check.stdout);
    fs::write(&permits, "[backup]\nsource = []\n").unwrap();
    let check = host.run(&["permits", "check"]).expect(1);
    assert!(check.stderr.contains("line 2") && check.stderr.contains("source"), "{}", check.stderr);
    fs::remove_file(&permits).unwrap();
    host.run(&["permits", "check", "--restore", &elsewhere]).expect(0);
    host.run(&["permits", "check", "--restore", "/etc/cron.d"]).expect(1);
}
