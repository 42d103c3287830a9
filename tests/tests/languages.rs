//! Services that are written in other languages than Rust change their versions under load, as `docs/embedding.md` says.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{SocketAddr, TcpListener};

use tests::languages::CInterface;
use tests::load::{Seen, get, under_load};
use tests::{Host, Manager, TreeFixture, needs};

const PRODUCT: &str = "service";
const CLIENTS: usize = 4;
/// Under valgrind everything takes thirty times as long.
const SLOWLY: &str = "12s";

/// A manager, a host, and an address that the service of the test listens on.
struct Lab {
    manager: Manager,
    host: Host,
    address: SocketAddr,
}

impl Lab {
    fn new() -> Self {
        let manager = Manager::start();
        let host = Host::mounted("host-1", &manager);
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { manager, host, address }
    }

    /// A version of a tree, with what it is started with, and a file that makes it another tree.
    fn publish(&self, version: &str, tree: &TreeFixture, entry: &str, arguments: &[&str]) {
        let probation = if entry.contains("valgrind") { SLOWLY } else { "4s" };
        tree.file("VERSION", 0o644, version);
        let file = format!("entrypoint = {entry:?}\narguments = {arguments:?}\nprobation = {probation:?}\n");
        tree.file("manager-fs.toml", 0o644, file);
        self.manager.publish(PRODUCT, version, tree.path());
        self.manager.export(&format!("{PRODUCT}@{version}"), "host-1");
    }

    #[track_caller]
    fn launch(&mut self, version: &str) {
        self.host.launch(PRODUCT);
        self.manager.wait_for_version("host-1", PRODUCT, version);
    }

    /// The change-over with clients that ask meanwhile; nobody may be lost.
    #[track_caller]
    fn upgrade(&self, version: &str, code: i32) -> Seen {
        let generation = format!("{PRODUCT}@{version}");
        let upgrade = || self.manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1"]);
        let (seen, output) = under_load(CLIENTS, || get(self.address, "/"), upgrade);
        assert_eq!(output.code, Some(code), "{output:?}");
        assert_eq!(seen.lost(), 0, "{version}: {seen:?}");
        seen
    }

    /// Up, to one that fails and comes back, and down; returns how many were answered.
    #[track_caller]
    fn changes(&self) -> u64 {
        let pid = self.manager.agent("host-1", PRODUCT).unwrap()["pid"].clone();
        let up = self.upgrade("2", 0);
        assert!(up.of("200 version 1 ") > 0 && up.of("200 version 2 ") > 0, "{up:?}");
        assert_eq!(self.manager.agent("host-1", PRODUCT).unwrap()["pid"], pid, "it is the same process");
        let back = self.upgrade("bad", 1);
        self.manager.wait_for_version("host-1", PRODUCT, "2");
        let down = self.upgrade("1", 0);
        assert!(down.of("200 version 2 ") > 0 && down.of("200 version 1 ") > 0, "{down:?}");
        println!("up: {up}\nfailed: {back}\ndown: {down}");
        down.of("")
    }
}

/// The numbers after `answered` are those that were answered before.
fn count(answer: &str) -> u64 {
    let words: Vec<&str> = answer.split(' ').collect();
    words[words.len() - 2].parse().unwrap()
}

/// The example in C, and where its versions are published.
struct InC {
    lab: Lab,
}

impl InC {
    /// Version 1 runs, 2 and one that fails are exported.
    #[track_caller]
    fn running(flags: &str, entry: &str) -> Self {
        let mut lab = Lab::new();
        let tree = CInterface::install(&lab.manager.path("")).service(flags);
        // The stacks of threads that run at the end are only "possibly" lost.
        let valgrind = "valgrind --quiet --leak-check=full --show-leak-kinds=definite --error-exitcode=9";
        let script = format!("#!/bin/sh\nexec {valgrind} \"${{0%/*}}/service\" \"$@\"\n");
        tree.file("bin/under-valgrind", 0o755, script);
        let address = lab.address.to_string();
        lab.publish("1", &tree, entry, &[&address]);
        lab.launch("1");
        lab.publish("2", &tree, entry, &[&address]);
        lab.publish("bad", &tree, entry, &["no address", "and too much"]);
        assert_eq!(count(&get(lab.address, "/").unwrap()), 0);
        Self { lab }
    }

    #[track_caller]
    fn job(&self, more: &[&str], code: i32) -> String {
        let output = self.lab.manager.run(&[&["job", "run", PRODUCT, "tell", "--host", "host-1"], more].concat());
        let output = output.expect(code);
        format!("{}{}", output.stdout, output.stderr)
    }

    /// It ends in good order, and what watches its memory has said nothing.
    #[track_caller]
    fn ends_clean(mut self) {
        let stub = self.lab.host.stub(PRODUCT);
        assert_eq!(stub.end(), Some(0));
        let log = stub.log();
        for word in ["Sanitizer", "runtime error", "==ERROR", " at 0x", "definitely lost"] {
            assert!(!log.contains(word), "{log}");
        }
    }
}

#[track_caller]
fn c_service_changes(flags: &str) {
    let mut service = InC::running(flags, "bin/service");
    let answered = service.lab.changes();
    let now = count(&get(service.lab.address, "/").unwrap());
    assert!(now >= answered, "{now} of {answered}: the state crosses a change-over");
    assert!(service.job(&["--arg", "of=requests"], 0).contains(&format!("requests: {}", now + 1)));
    assert!(service.job(&[], 1).contains("want --arg of=requests"));
    assert!(service.job(&["--arg", "off=requests"], 1).contains("takes no argument 'off'; it takes of"));
    let log = service.lab.host.stub(PRODUCT).log();
    assert!(log.contains("usage: service ADDRESS"), "{log}");
    service.ends_clean();
}

#[test]
fn a_service_in_c_changes_its_version_under_load_and_nobody_is_lost() {
    c_service_changes("-O2");
}

#[test]
fn the_c_interface_is_clean_under_the_compilers_sanitizers() {
    needs::demand(needs::sanitizers());
    c_service_changes("-g -fsanitize=address,undefined -fno-omit-frame-pointer");
}

#[test]
fn the_c_interface_is_clean_under_valgrind() {
    needs::demand(needs::program("valgrind"));
    let service = InC::running("-g", "bin/under-valgrind");
    let seen = service.lab.upgrade("2", 0);
    assert!(seen.of("200 version 2 ") > 0, "{seen:?}");
    assert!(service.job(&["--arg", "of=requests"], 0).contains("requests: "));
    service.ends_clean();
}
