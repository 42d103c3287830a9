//! Mounts with less than root: in a user namespace, without FUSE, without any mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::lab::Lab;
use crate::tree::make_tree;

/// Runs a script where the daemon's mounts are.
fn inside(lab: &Lab, script: &str) -> String {
    let pid = lab.holder_pid().to_string();
    let run = Command::new("nsenter")
        .args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "sh", "-ec", script])
        .output()
        .unwrap();
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

pub(crate) fn in_a_user_namespace_the_mounts_exist_only_inside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    lab.start("hold-namespace");
    assert!(lab.ask("probe").contains("Some(\"user\")"), "{}", lab.ask("probe"));
    let root = lab.attach(&tree);
    assert!(!root.join("bin").exists(), "the host does not see the namespace's mounts");
    lab.ask(&format!("view agent 1.0 {tree}"));
    let view = lab.layout().mountpoint.join("agent/1.0");
    for root in [root, view] {
        let root = root.display();
        assert_eq!(inside(&lab, &format!("{root}/bin/hello")), format!("hello from {root}/bin/hello\n"));
        inside(&lab, &format!("cmp {root}/lib/big {}/lib/big", source.display()));
        assert_eq!(inside(&lab, &format!("stat -c %Y.%a.%h {root}/lib/big")), "1234567890.644.2\n");
        inside(&lab, &format!("! touch {root}/new 2>/dev/null"));
    }
    lab.kill_worker();
    inside(&lab, &format!("cat {}/lib/deep/er/secret", lab.layout().generation(&tree).display()));
}

pub(crate) fn without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (mut lab, source, tree) = Lab::with_tree(dir.path());
    fs::write(dir.path().join("no-fuse"), b"").unwrap();
    lab.start_unprivileged("hold-namespace");
    let refused = lab.ask(&format!("attach {tree}"));
    assert!(refused.contains("every object") && refused.contains("must be local first"), "{refused}");
    lab.ask(&format!("hydrate {tree}"));
    let root = lab.attach(&tree);
    assert_eq!(inside(&lab, &format!("{}/bin/hello | cut -c1-10", root.display())), "hello from\n");
    inside(&lab, &format!("cmp {}/lib/big {}/lib/big", root.display(), source.display()));
}

pub(crate) fn where_nothing_may_be_mounted_a_plain_copy_is_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    fs::set_permissions(source.join("lib/deep/er/secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let mut lab = Lab::new(dir.path());
    let tree = lab.origin.publish(&source);
    fs::write(dir.path().join("no-fuse"), b"").unwrap();
    // As nobody, and without a namespace of its own.
    lab.start_unprivileged("hold");
    assert!(lab.ask("probe").starts_with("(Copy"), "{}", lab.ask("probe"));
    assert_eq!(lab.ask(&format!("hydrate {tree}")), "ok");
    let root = lab.attach(&tree);
    let hello = Command::new(root.join("bin/hello")).output().unwrap();
    assert!(hello.stdout.starts_with(b"hello from"));
    // Times, links and contents are exact; owners and capabilities are beyond this user.
    let want = fs::metadata(source.join("lib/big")).unwrap();
    let got = fs::metadata(root.join("lib/big")).unwrap();
    assert_eq!((got.mtime(), got.mtime_nsec(), got.nlink()), (want.mtime(), want.mtime_nsec(), 2));
    assert_eq!(fs::read(root.join("lib/big")).unwrap(), fs::read(source.join("lib/big")).unwrap());
    // Nothing holds a copy still: what was changed is made anew before its next use.
    let was = fs::read(root.join("bin/hello")).unwrap();
    fs::write(root.join("bin/hello"), b"#!/bin/sh\necho changed\n").unwrap();
    assert_eq!(lab.attach(&tree), root);
    assert_eq!(fs::read(root.join("bin/hello")).unwrap(), was);
    // A directory that nobody may write goes too.
    fs::set_permissions(root.join("lib/deep"), fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(lab.ask(&format!("release {tree}")), "ok");
    assert!(!root.exists());
    assert_eq!(fs::read_dir(root.parent().unwrap()).unwrap().count(), 0, "nothing is left under another name");
}
