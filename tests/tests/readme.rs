//! README, word by word: its blocks run in their order, as one operator on one machine, and its two lines for newcomers
//! are those that CI runs.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use tests::command::program;
use tests::needs;
use tests::operator::{Operator, commands};
use tests::repository::{files, root};
use tests::site::free_address;

#[test]
fn readme_can_be_followed_word_by_word() {
    needs::demand(needs::mounts());
    let dir = checkout();
    let lines = commands("README.md", "Use it");
    assert!(lines.len() > 15, "{lines:#?}");
    let mut operator = Operator::start(dir.path());
    for line in lines {
        operator.types(&with_address(&line, dir.path()));
    }
}

#[test]
fn a_program_becomes_an_agent_as_the_page_says() {
    needs::demand(needs::mounts());
    let page = fs::read_to_string(root().join("docs/embedding.md")).unwrap();
    let program = fs::read_to_string(root().join("agent-core/examples/hello_service.rs")).unwrap();
    assert!(page.contains(&format!("```rust\n{program}```")), "the page shows another program than the example");
    let dir = checkout();
    let mut operator = Operator::start(dir.path());
    for line in commands("README.md", "Use it").iter().take_while(|line| !line.starts_with("manager-fs export")) {
        operator.types(&with_address(line, dir.path()));
    }
    // The number that a reader may have to replace.
    let port = free_address().port().to_string();
    for heading in ["Publish and start it", "Change its version while it is asked"] {
        for line in commands("docs/embedding.md", heading) {
            operator.types(&line.replace("8080", &port));
        }
    }
    let answers = fs::read_to_string(dir.path().join("build/answers")).unwrap();
    for version in ["1.0", "2.0"] {
        assert!(answers.contains(&format!("hello from version {version}")), "{answers}");
    }
}

#[test]
fn programs_in_c_and_python_become_agents_as_the_page_says() {
    needs::demand(needs::mounts());
    needs::demand(needs::python());
    for name in ["make", "cc", "pkg-config"] {
        needs::demand(needs::program(name));
    }
    for heading in ["In C", "In Python"] {
        let dir = checkout();
        std::os::unix::fs::symlink(root().join("agent-core"), dir.path().join("agent-core")).unwrap();
        let mut operator = Operator::start(dir.path());
        for line in commands("README.md", "Use it").iter().take_while(|line| !line.starts_with("manager-fs export")) {
            operator.types(&with_address(line, dir.path()));
        }
        // Where the tests' build has left what the page's first line builds.
        let library = program("deps/libagent_core_c.so");
        let libraries = library.parent().unwrap();
        operator.types(&format!("export LIBRARIES={} AGENT_CORE_LIBRARY={}", libraries.display(), library.display()));
        let port = free_address().port().to_string();
        for line in commands("docs/embedding.md", heading).iter().filter(|line| !line.starts_with("cargo build")) {
            operator.types(&line.replace("8080", &port));
        }
        for line in commands("docs/embedding.md", "Publish and start it").iter().skip(3) {
            operator.types(&line.replace("8080", &port).replace("./build/hello", "./build/service"));
        }
    }
}

/// What a checkout has after the build, as far as the pages use it.
fn checkout() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("readme").tempdir().unwrap();
    fs::create_dir_all(dir.path().join("target")).unwrap();
    std::os::unix::fs::symlink(program("manager-fs").parent().unwrap(), dir.path().join("target/release")).unwrap();
    fs::create_dir(dir.path().join("docs")).unwrap();
    for document in files("docs", ".md") {
        fs::copy(root().join(&document), dir.path().join(&document)).unwrap();
    }
    dir
}

/// With the one word that every reader has to replace.
fn with_address(line: &str, dir: &Path) -> String {
    if !line.contains("manager.example") {
        return line.to_owned();
    }
    let address = fs::read_to_string(dir.join("store/address")).unwrap();
    line.replace("manager.example:7420", address.trim())
}

#[test]
fn ci_runs_the_lines_that_a_newcomer_runs() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    for heading in ["See it", "Test it"] {
        let lines = commands("README.md", heading);
        assert_eq!(lines.len(), 1, "one line is promised below {heading:?}: {lines:?}");
        assert!(ci.lines().any(|line| line == lines[0]), ".ci/run does not run {:?} as it stands", lines[0]);
    }
}

#[test]
fn what_readme_links_to_is_there() {
    let mut documents = vec!["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/README.md"];
    documents.retain(|name| root().join(name).is_file());
    assert_eq!(documents.len(), 4);
    for name in documents {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let below = root().join(name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                assert!(below.join(path).exists(), "{name} links to {link}, which is not there");
            }
        }
    }
}
