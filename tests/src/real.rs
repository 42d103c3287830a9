//! Real programs as trees: those in `MANAGER_FS_TREES` (NAME/VERSION/…, as the project's script fetches them), and
//! always such as this machine has, so that the tests mean something everywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tree::TreeFixture;

/// A program that can be started from its tree.
#[derive(Debug)]
pub struct RealProgram {
    /// What it is, such as `perl`; a valid product name.
    pub name: String,
    /// Its tree.
    pub tree: PathBuf,
    /// The command, its first word relative to the tree; `{}` stands for the tree's path.
    pub command: Vec<String>,
    /// Environment variables; `{}` stands for the tree's path.
    pub variables: Vec<(String, String)>,
    /// What it prints.
    pub prints: String,
    /// Keeps a tree that was made for the test.
    _fixture: Option<TreeFixture>,
}

impl RealProgram {
    /// The command with the tree's path filled in.
    pub fn at(&self, tree: &Path) -> (Vec<String>, Vec<(String, String)>) {
        let fill = |text: &String| text.replace("{}", &tree.to_string_lossy());
        let variables = self.variables.iter().map(|(name, value)| (name.clone(), fill(value)));
        (self.command.iter().map(fill).collect(), variables.collect())
    }

    /// Runs the program from a tree, as this process sees it; returns what it prints.
    #[track_caller]
    pub fn run(&self, tree: &Path) -> String {
        let (words, variables) = self.at(tree);
        let mut command = Command::new(tree.join(&words[0]));
        let output = command.args(&words[1..]).envs(variables).output();
        let output = output.unwrap_or_else(|e| panic!("{} from {}: {e}", words[0], tree.display()));
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Every program that can be had here: never none.
pub fn programs() -> Vec<RealProgram> {
    let mut found = vec![perl(), bash()];
    found.extend(python());
    if let Some(trees) = std::env::var_os("MANAGER_FS_TREES") {
        found.extend(fetched(Path::new(&trees)));
    }
    found
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// perl with its modules, some of which are shared objects: part of every Debian.
fn perl() -> RealProgram {
    let lines = "print join qq(\\n), grep { -d } @INC";
    let output = Command::new("perl").args(["-e", lines]).output().expect("perl is on every Debian");
    let text = String::from_utf8(output.stdout).expect("paths");
    let base = text.lines().find(|dir| Path::new(dir).join("List/Util.pm").is_file()).expect("perl's List::Util");
    let tree = TreeFixture::new();
    tree.system_program("bin/perl", "perl");
    copy(Path::new(base), &tree.path().join("lib"));
    let program = "use List::Util qw(sum); use POSIX qw(floor); print sum(1 .. 10) + floor(0.5)";
    RealProgram {
        name: "perl".to_owned(),
        tree: tree.path().to_owned(),
        command: strings(["bin/perl", "-I{}/lib", "-e", program]),
        variables: Vec::new(),
        prints: "55".to_owned(),
        _fixture: Some(tree),
    }
}

/// bash with the shared libraries that it needs, started by the tree's own dynamic linker.
fn bash() -> RealProgram {
    let tree = TreeFixture::new();
    tree.system_program("bin/bash", "bash");
    let output = Command::new("ldd").arg(tree.path().join("bin/bash")).output().expect("running ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut linker = None;
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(library).file_name().expect("a library").to_string_lossy().into_owned();
        tree.file(&format!("lib/{name}"), 0o755, fs::read(library).expect("a library"));
        if name.starts_with("ld-") {
            linker = Some(format!("lib/{name}"));
        }
    }
    let linker = linker.expect("bash is linked dynamically");
    RealProgram {
        name: "bash".to_owned(),
        tree: tree.path().to_owned(),
        command: [linker.as_str(), "--library-path", "{}/lib", "{}/bin/bash", "-c", "echo $((40 + 2))"]
            .map(str::to_owned)
            .to_vec(),
        variables: Vec::new(),
        prints: "42".to_owned(),
        _fixture: Some(tree),
    }
}

/// python with its standard library, where the machine has one.
fn python() -> Option<RealProgram> {
    let ask = "import os,sys,sysconfig; print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib'))";
    let output = Command::new("python3").args(["-c", ask]).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (program, library) = text.trim().split_once('\n')?;
    let tree = TreeFixture::new();
    tree.file("bin/python3", 0o755, fs::read(program).ok()?);
    let name = Path::new(library).file_name()?.to_string_lossy().into_owned();
    copy(Path::new(library), &tree.path().join("lib").join(name));
    let script = "import json,asyncio,email.mime.text; print(json.dumps([6 * 7]))";
    Some(RealProgram {
        name: "python".to_owned(),
        tree: tree.path().to_owned(),
        command: strings(["bin/python3", "-c", script]),
        variables: [("PYTHONHOME", "{}"), ("PYTHONDONTWRITEBYTECODE", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        prints: "[42]".to_owned(),
        _fixture: Some(tree),
    })
}

/// A Python that lies in a tree: the fetched one, or else this machine's, where it has one.
pub fn python_in_a_tree() -> Option<RealProgram> {
    programs().into_iter().rfind(|program| program.name.starts_with("python"))
}

fn fetched(trees: &Path) -> Vec<RealProgram> {
    let mut found = Vec::new();
    for (name, command, variables, prints) in [
        ("node", strings(["bin/node", "-e", "console.log(6 * 7)"]), Vec::new(), "42"),
        ("ruff", strings(["bin/ruff", "--version"]), Vec::new(), ""),
        (
            "python311",
            strings(["usr/bin/python3.11", "-c", "import json,ssl,asyncio; print(json.dumps([6 * 7]))"]),
            vec![
                ("PYTHONHOME".to_owned(), "{}/usr".to_owned()),
                ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
            ],
            "[42]",
        ),
    ] {
        let Ok(versions) = fs::read_dir(trees.join(name)) else { continue };
        let mut versions: Vec<_> = versions.filter_map(Result::ok).map(|entry| entry.path()).collect();
        versions.sort();
        let Some(tree) = versions.pop() else { continue };
        let mut program = RealProgram {
            name: name.to_owned(),
            tree,
            command,
            variables,
            prints: prints.to_owned(),
            _fixture: None,
        };
        if program.prints.is_empty() {
            program.prints = program.run(&program.tree);
        }
        found.push(program);
    }
    assert!(!found.is_empty(), "MANAGER_FS_TREES={}: no node, ruff or python311 in it", trees.display());
    found
}

/// Copies a directory, without what a program does not need to start.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("readdir") {
        let entry = entry.expect("entry");
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("file type");
        let left_out = ["site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip"];
        if kind.is_dir()
            && !left_out.iter().any(|other| name == *other)
            && !name.to_string_lossy().starts_with("config-")
        {
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            // Links out of the tree would lead back to the machine's own copy.
            if let Ok(content) = fs::read(entry.path()) {
                fs::write(&target, content).expect("write");
            }
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).expect("copy");
            let times = entry.metadata().and_then(|meta| meta.modified()).expect("mtime");
            fs::File::options().append(true).open(&target).and_then(|file| file.set_modified(times)).expect("mtime");
        }
    }
}
