//! Services that are written in other languages than Rust change their versions under load, as `docs/embedding.md` says.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::languages::{CInterface, PythonPackage};
use tests::load::Seen;
use tests::real::python_in_a_tree;
use tests::repository::root;
use tests::{Output, Site, TreeFixture, needs};

const CLIENTS: usize = 4;
/// Under valgrind everything takes thirty times as long.
const SLOWLY: &str = "20s";

/// The product with one of the services in it.
struct Lab {
    site: Site,
}

impl Lab {
    fn new() -> Self {
        Self { site: Site::new("service") }
    }

    /// A version of a tree, with what it is started with, and a file that makes it another tree.
    fn publish(&self, version: &str, tree: &Path, entry: &str, arguments: &[&str]) {
        // Long enough for a first start whose files all come over the line.
        let probation = if entry.contains("valgrind") { SLOWLY } else { "8s" };
        fs::write(tree.join("VERSION"), version).unwrap();
        let file = format!("entrypoint = {entry:?}\narguments = {arguments:?}\nprobation = {probation:?}\n");
        fs::write(tree.join("manager-fs.toml"), file).unwrap();
        self.site.publish(version, tree);
    }

    /// The change-over with clients that ask meanwhile; nobody may be lost.
    #[track_caller]
    fn upgrade(&self, version: &str, code: i32) -> Seen {
        self.upgrade_under(CLIENTS, version, code)
    }

    #[track_caller]
    fn upgrade_under(&self, clients: usize, version: &str, code: i32) -> Seen {
        let (seen, output) = self.site.upgrade_under(clients, version);
        assert_eq!(output.code, Some(code), "{output:?}");
        assert_eq!(seen.lost(), 0, "{version}: {seen:?}");
        seen
    }

    /// Up, to one that fails and comes back, and down; returns how many were answered.
    #[track_caller]
    fn changes(&self) -> u64 {
        let pid = self.site.agent()["pid"].clone();
        let up = self.upgrade("2", 0);
        assert!(up.of("200 version 1 ") > 0 && up.of("200 version 2 ") > 0, "{up:?}");
        assert_eq!(self.site.agent()["pid"], pid, "it is the same process");
        let back = self.upgrade("bad", 1);
        self.site.serves("2");
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

/// The example in one of the languages, as a product.
struct Example {
    lab: Lab,
}

impl Example {
    /// Version 1 runs; 2, and one that fails, are exported.
    #[track_caller]
    fn running(mut lab: Lab, tree: &Path, entry: &str) -> Self {
        let address = lab.site.address.to_string();
        lab.publish("1", tree, entry, &[&address]);
        lab.site.launch("1");
        lab.publish("2", tree, entry, &[&address]);
        lab.publish("bad", tree, entry, &["no address", "and too much"]);
        assert_eq!(count(&lab.site.ask().unwrap()), 0);
        Self { lab }
    }

    #[track_caller]
    fn in_c(flags: &str, entry: &str) -> Self {
        let lab = Lab::new();
        let tree = CInterface::install(&lab.site.manager.path("")).service(flags);
        // The stacks of threads that run at the end are only "possibly" lost.
        let valgrind = "valgrind --quiet --leak-check=full --show-leak-kinds=definite --error-exitcode=9";
        let script = format!("#!/bin/sh\nexec {valgrind} \"${{0%/*}}/service\" \"$@\"\n");
        tree.file("bin/under-valgrind", 0o755, script);
        Self::running(lab, tree.path(), entry)
    }

    #[track_caller]
    fn job(&self, more: &[&str], code: i32) -> String {
        let output = self.lab.site.job("tell", more).expect(code);
        format!("{}{}", output.stdout, output.stderr)
    }

    /// Changes its version in every way under load, performs its operation, and ends in good order.
    #[track_caller]
    fn does_all_that_it_should(self, refuses: &str) {
        let answered = self.lab.changes();
        let now = count(&self.lab.site.ask().unwrap());
        assert!(now >= answered, "{now} of {answered}: the state crosses a change-over");
        assert!(self.job(&["--arg", "of=requests"], 0).contains(&format!("requests: {}", now + 1)));
        assert!(self.job(&["--arg", "of=answers"], 1).contains(refuses));
        assert!(self.job(&["--arg", "off=requests"], 1).contains("takes no argument 'off'; it takes of"));
        let log = self.ends_clean();
        assert!(log.contains("usage: service"), "{log}");
    }

    /// It ends in good order, and what watches its memory has said nothing. Returns what it printed.
    #[track_caller]
    fn ends_clean(mut self) -> String {
        let stub = self.lab.site.stub();
        assert_eq!(stub.end(), Some(0));
        let log = stub.log();
        for word in ["Sanitizer", "runtime error", "==ERROR", " at 0x", "definitely lost", "Traceback"] {
            assert!(!log.contains(word), "{log}");
        }
        log
    }
}

#[test]
fn a_service_in_c_changes_its_version_under_load_and_nobody_is_lost() {
    Example::in_c("-O2", "bin/service").does_all_that_it_should("want --arg of=requests");
}

#[test]
fn the_c_interface_is_clean_under_the_compilers_sanitizers() {
    needs::demand(needs::sanitizers());
    let flags = "-g -fsanitize=address,undefined -fno-omit-frame-pointer";
    Example::in_c(flags, "bin/service").does_all_that_it_should("want --arg of=requests");
}

#[test]
fn the_c_interface_is_clean_under_valgrind() {
    needs::demand(needs::program("valgrind"));
    let service = Example::in_c("-g", "bin/under-valgrind");
    let seen = service.lab.upgrade_under(1, "2", 0);
    assert!(seen.of("200 version 2 ") > 0, "{seen:?}");
    assert!(service.job(&["--arg", "of=requests"], 0).contains("requests: "));
    service.ends_clean();
}

fn example_in_python() -> std::path::PathBuf {
    root().join("agent-core/python/example/service.py")
}

#[test]
fn a_service_in_python_changes_its_version_under_load_and_nobody_is_lost() {
    let lab = Lab::new();
    let package = PythonPackage::install(&lab.site.manager.path(""));
    let tree = TreeFixture::new();
    // The interpreter is the host's.
    package.service(tree.path(), &package.interpreter().display().to_string(), &example_in_python());
    Example::running(lab, tree.path(), "bin/service")
        .does_all_that_it_should("argument 'of' is 'answers': want one of");
}

#[test]
fn the_interpreter_may_come_from_the_tree_as_well() {
    let lab = Lab::new();
    let package = PythonPackage::install(&lab.site.manager.path(""));
    let program = python_in_a_tree().expect("the Python that the package was installed with");
    let tree = lab.site.manager.path("tree");
    Output::of(Command::new("cp").arg("-a").arg(&program.tree).arg(&tree)).expect(0);
    let (words, variables) = program.at(Path::new("$tree"));
    let variables = variables.iter().map(|(name, value)| format!("{name}=\"{value}\" ")).collect::<String>();
    package.service(&tree, &format!("env {variables} \"$tree/{}\"", words[0]), &example_in_python());
    Example::running(lab, &tree, "bin/service").does_all_that_it_should("argument 'of' is 'answers': want one of");
}

#[test]
fn the_python_package_is_what_its_own_tests_say() {
    let dir = tempfile::tempdir().unwrap();
    let package = PythonPackage::install(dir.path());
    let mut python = Command::new(package.python());
    python.arg(root().join("agent-core/python/tests/test_interface.py")).current_dir(dir.path());
    python.env("AGENT_CORE_HEADER", root().join("agent-core/c/include/agent_core.h"));
    let said = Output::of(&mut python).expect(0).stderr;
    assert!(said.contains("Ran 8 tests") && said.contains("\nOK"), "{said}");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let project = fs::read_to_string(root().join("agent-core/python/pyproject.toml")).unwrap();
    let version = manifest.lines().find(|line| line.starts_with("version = ")).unwrap();
    assert!(project.contains(version), "the package's version is not the workspace's: {version}");
}
