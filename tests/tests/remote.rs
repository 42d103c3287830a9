//! `docs/api.md`, *The command line from another machine*: commands ask a manager through its HTTP interface, as whoever
//! has a token or a certificate there, and each may what its role may.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::command::{program, until};
use tests::web::Lab;
use tests::{Host, Output, TreeFixture, noise};

/// Another machine, from which somebody asks.
struct Desk<'a> {
    lab: &'a Lab,
    files: tempfile::TempDir,
}

impl<'a> Desk<'a> {
    fn of(lab: &'a Lab) -> Self {
        Self { lab, files: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("manager-fs"));
        for dir in ["store", "state", "cache", "run"] {
            command.env(format!("MANAGER_FS_{}", dir.to_uppercase()), self.files.path().join(dir));
        }
        command.args(["--manager", &format!("https://{}", self.lab.address)]).args(args);
        command
    }

    fn with(&self, token: &str, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.arg("--manager-ca").arg(self.lab.manager.store().join("keys/ca.pem"));
        command.env("MANAGER_FS_MANAGER_TOKEN", token);
        command
    }

    /// As whoever has the token of this role.
    fn run(&self, role: &str, args: &[&str]) -> Output {
        Output::of(&mut self.with(self.lab.token(role), args))
    }

    /// That it is refused, and why.
    #[track_caller]
    fn refused(&self, role: &str, args: &[&str]) -> String {
        self.run(role, args).expect(1).stderr
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let file = self.files.path().join(name);
        fs::write(&file, text).unwrap();
        file
    }
}

#[test]
fn commands_of_another_machine_do_what_those_of_the_managers_own_do() {
    let lab = Lab::open();
    let desk = Desk::of(&lab);
    let tree = TreeFixture::script("echo one", "");
    fs::write(tree.path().join("large"), noise(7, 3 << 20)).unwrap();
    let source = tree.path().to_str().unwrap().to_owned();
    // The files are of that machine, and become the same tree.
    let sent = desk.run("publisher", &["publish", "sample", "1", &source, "--json"]).json();
    let local = lab.manager.run(&["publish", "local", "1", &source, "--json"]).json();
    assert_eq!(sent["tree_id"], local["tree_id"], "{sent}");
    let archive = desk.files.path().join("one.tar");
    Output::of(Command::new("tar").args(["--format=pax", "-cf"]).arg(&archive).arg("-C").arg(tree.path()).arg("."))
        .expect(0);
    let again = desk.run("publisher", &["publish", "sample", "1", archive.to_str().unwrap(), "--json"]).json();
    assert_eq!(again["already_published"], true, "{again}");
    lab.nothing_sent_stays();

    let host = Host::mounted("host-1", &lab.manager);
    desk.run("operator", &["export", "sample@1", "--to", "host-1"]).expect(0);
    host.run(&["exec", "sample@1", "--", "/bin/true"]).expect(0);
    desk.run("operator", &["host", "label", "host-1", "site=fra"]).expect(0);
    for line in [&["generations"][..], &["show", "sample@1"], &["host", "group", "list"], &["policy", "list"]] {
        let line = &[line, &["--json"]].concat();
        until(&format!("both say the same: {line:?}"), || {
            (desk.run("viewer", line).json() == lab.manager.run(line).json()).then_some(())
        });
    }
    let hosts = desk.run("viewer", &["hosts", "--label", "site=fra", "--json"]).json();
    assert_eq!(hosts["hosts"][0]["name"], "host-1");
    // Work that takes its time, with what it tells on the way.
    assert_eq!(desk.run("admin", &["verify", "--json"]).json()["problems"], Value::Array(Vec::new()));
    desk.run("admin", &["gc"]).expect(0);
    // A slip of a finger is understood there, too.
    assert!(desk.refused("viewer", &["show", "sampel@1"]).contains("did you mean 'sample@1'"));
    let token = desk.run("admin", &["token", "host-2"]).expect(0).text();
    assert!(token.len() > 20, "{token}");
    desk.run("publisher", &["unpublish", "local@1"]).expect(0);
    desk.run("operator", &["unexport", "sample@1", "--from", "host-1", "--force"]).expect(0);
}

#[test]
fn each_command_takes_its_role_and_what_is_of_the_managers_machine_stays_there() {
    let lab = Lab::open();
    let desk = Desk::of(&lab);
    let tree = TreeFixture::script("echo one", "");
    lab.manager.publish("sample", "1", tree.path());
    let source = tree.path().to_str().unwrap().to_owned();
    let backup = ["job", "backup", "--host", "h", "--repository", "/r", "/etc"];
    for (role, needed, line) in [
        ("viewer", "operator", &["export", "sample@1", "--to", "h"][..]),
        ("viewer", "operator", &["host", "label", "h", "a=b"]),
        ("viewer", "operator", &backup),
        ("operator", "publisher", &["publish", "sample", "2", &source]),
        ("operator", "publisher", &["unpublish", "sample@1"]),
        ("publisher", "admin", &["gc"]),
        ("publisher", "admin", &["token", "h"]),
        ("publisher", "admin", &["api-token", "list"]),
        ("publisher", "admin", &["host", "revoke", "h"]),
        ("publisher", "admin", &["repository", "token", "add", "main"]),
    ] {
        let said = desk.refused(role, line);
        assert!(said.contains(&format!("takes the role {needed}, and the token has {role}")), "{line:?}: {said}");
    }
    let there = lab.manager.path("there").to_str().unwrap().to_owned();
    for line in [
        &["store", "backup", &there][..],
        &["save", "sample@1", &there],
        &["load", &there],
        &["verify", "--repair", "--from", &source],
        &["recover"],
        &["serve"],
        &["publish", "sample", "2", "oci:/x"],
    ] {
        let said = desk.refused("admin", line);
        assert!(said.contains("manager's machine"), "{line:?}: {said}");
    }
    assert!(!Path::new(&there).exists());
}

#[test]
fn who_asks_must_be_known_there_and_the_manager_here() {
    let lab = Lab::open();
    let desk = Desk::of(&lab);
    let ca = lab.manager.store().join("keys/ca.pem");
    let failed = |command: &mut Command| Output::of(command).expect(1).stderr;
    assert!(failed(&mut desk.with("mfs_x.00", &["hosts"])).contains("say who you are"));
    assert!(failed(&mut desk.with("a b", &["hosts"])).contains("no token"));
    assert!(failed(desk.command(&["hosts"]).arg("--manager-ca").arg(&ca)).contains("--manager-token-file"));
    assert!(failed(&mut desk.command(&["hosts"])).contains("--manager-ca"));
    // Of another authority nobody is believed.
    let other = tests::Manager::start();
    let mut wrong = desk.command(&["hosts"]);
    wrong.arg("--manager-ca").arg(other.store().join("keys/ca.pem")).env("MANAGER_FS_MANAGER_TOKEN", "x");
    assert!(failed(&mut wrong).contains("signed by none of those in --manager-ca"));
    // A token in a file; and it counts no longer when it is taken back.
    let file = desk.write("token", &format!("{}\n", lab.token("viewer")));
    let by_file = || {
        let mut command = desk.command(&["hosts"]);
        command.arg("--manager-ca").arg(&ca).arg("--manager-token-file").arg(&file);
        command
    };
    Output::of(&mut by_file()).expect(0);
    lab.manager.run(&["api-token", "revoke", "viewer"]).expect(0);
    assert!(failed(&mut by_file()).contains("say who you are"));
    // A certificate in the place of a token.
    let (certificate, key) = (desk.files.path().join("me.pem"), desk.files.path().join("me.key"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=me",
    ]);
    openssl.args(["-days", "1", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    Output::of(&mut openssl).expect(0);
    let by_certificate = || {
        let mut command = desk.command(&["export", "sample@1", "--to", "h"]);
        command.arg("--manager-ca").arg(&ca).arg("--manager-certificate").arg(&certificate);
        command.arg("--manager-key").arg(&key);
        command
    };
    assert!(failed(&mut by_certificate()).contains("say who you are"));
    let add = ["api-token", "add", "me", "--role", "viewer", "--certificate", certificate.to_str().unwrap()];
    lab.manager.run(&add).expect(0);
    assert!(failed(&mut by_certificate()).contains("takes the role operator, and the token has viewer"));
}

#[test]
fn a_connection_that_goes_on_ends_with_its_token() {
    let lab = Lab::open();
    let desk = Desk::of(&lab);
    lab.manager.publish("sample", "1", TreeFixture::script("echo one", "").path());
    let _host = Host::mounted("h", &lab.manager);
    let plan = "product = \"sample\"\ngeneration = \"sample@1\"\n[[ring]]\nname = \"r\"\nto = [\"h\"]\n";
    let plan = desk.write("plan.toml", plan);
    desk.run("operator", &["rollout", "plan", plan.to_str().unwrap()]).expect(0);
    desk.run("operator", &["rollout", "start"]).expect(0);
    desk.run("operator", &["rollout", "pause"]).expect(0);
    let watch = desk.with(lab.token("operator"), &["rollout", "watch", "--silence", "1s"]).spawn();
    let mut watch = watch.unwrap();
    until("it is watched", || lab.manager.log().contains("RolloutWish").then_some(()));
    lab.manager.run(&["api-token", "revoke", "operator"]).expect(0);
    let ended = until("the one who watches is out", || watch.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
}
