//! Programs in other languages than Rust, built with the interfaces of `agent-core` as their documents say.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Output, program};
use crate::needs;
use crate::repository::root;
use crate::tree::TreeFixture;

/// The C interface, installed below a directory as `make install` does it.
#[derive(Debug)]
pub struct CInterface {
    prefix: PathBuf,
}

impl CInterface {
    /// Installs it.
    ///
    /// # Panics
    /// It is not built, or this machine has no C compiler.
    #[track_caller]
    pub fn install(dir: &Path) -> Self {
        for name in ["make", "cc", "pkg-config"] {
            needs::demand(needs::program(name));
        }
        let prefix = dir.join("prefix");
        let mut make = Command::new("make");
        make.arg("-C").arg(root().join("agent-core/c")).arg("install").arg(format!("PREFIX={}", prefix.display()));
        // Where cargo leaves it when it builds tests.
        make.arg(format!(
            "LIBRARIES={}",
            program("deps/libagent_core_c.so").parent().expect("a directory").display()
        ));
        Output::of(&mut make).expect(0);
        Self { prefix }
    }

    /// Builds a program of one file to this place; its library is beside it in `lib/` as in the example's tree.
    #[track_caller]
    pub fn program(&self, source: &Path, tree: &Path) {
        let library = tree.join("lib/libagent_core.so.0");
        std::fs::create_dir_all(tree.join("lib")).expect("mkdir");
        std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
        std::fs::copy(self.prefix.join("lib/libagent_core.so.0"), &library).expect("the library");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(tree.join("bin/service")).arg(source);
        cc.arg("-I").arg(self.prefix.join("include")).arg(library).args(["-pthread", "-Wl,-rpath,$ORIGIN/../lib"]);
        Output::of(&mut cc).expect(0);
    }

    /// The tree of the example, with these flags of the compiler.
    #[track_caller]
    pub fn service(&self, flags: &str) -> TreeFixture {
        let tree = TreeFixture::new();
        let mut make = Command::new("make");
        make.arg("-C").arg(root().join("agent-core/c/example")).arg(format!("TREE={}", tree.path().display()));
        make.arg(format!("CFLAGS=-Wall -Wextra -Werror {flags}"));
        Output::of(make.env("PKG_CONFIG_PATH", self.prefix.join("lib/pkgconfig"))).expect(0);
        tree
    }
}

/// The package for Python, as `pip` installs its wheel into an environment of its own.
#[derive(Debug)]
pub struct PythonPackage {
    environment: PathBuf,
    wheel: PathBuf,
}

impl PythonPackage {
    /// Builds the wheel and installs it. Nothing is asked of a network.
    ///
    /// # Panics
    /// The library is not built, or this machine has no Python that makes environments.
    #[track_caller]
    pub fn install(dir: &Path) -> Self {
        needs::demand(needs::python());
        let environment = dir.join("environment");
        Output::of(Command::new("python3").args(["-m", "venv"]).arg(&environment)).expect(0);
        let wheels = dir.join("wheels");
        let pip = |args: &[&str]| {
            let mut pip = Command::new(environment.join("bin/python"));
            pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"]).args(args);
            pip.env("PYTHONDONTWRITEBYTECODE", "1");
            pip.env("AGENT_CORE_LIBRARY", program("deps/libagent_core_c.so"));
            Output::of(&mut pip).expect(0);
        };
        let package = root().join("agent-core/python").display().to_string();
        pip(&["wheel", "--no-index", "--no-deps", "--wheel-dir", &wheels.display().to_string(), &package]);
        let mut made = std::fs::read_dir(&wheels).expect("the wheel's directory");
        let wheel = made.next().expect("a wheel").expect("a wheel").path();
        pip(&["install", "--no-index", &wheel.display().to_string()]);
        Self { environment, wheel }
    }

    /// The environment's interpreter.
    pub fn python(&self) -> PathBuf {
        self.environment.join("bin/python")
    }

    /// The interpreter that the environment was made with, which is this machine's.
    #[track_caller]
    pub fn interpreter(&self) -> PathBuf {
        PathBuf::from(
            Output::of(Command::new(self.python()).args(["-c", "import sys; print(sys._base_executable)"])).text(),
        )
    }

    /// Adds the package and a program to a tree, with an entry point `bin/service` that runs it by this shell command;
    /// `$tree` is the tree.
    #[track_caller]
    pub fn service(&self, tree: &Path, python: &str, script: &Path) {
        let mut pip = Command::new(self.python());
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-compile"]);
        Output::of(pip.arg("--target").arg(tree.join("lib/agent-core")).arg(&self.wheel)).expect(0);
        std::fs::create_dir_all(tree.join("app")).expect("mkdir");
        std::fs::copy(script, tree.join("app/service.py")).expect("the program");
        let line = format!("PYTHONPATH=$tree/lib/agent-core PYTHONDONTWRITEBYTECODE=1 exec {python}");
        let text = format!("#!/bin/sh\ntree=${{0%/*}}/..\n{line} \"$tree/app/service.py\" \"$@\"\n");
        let entry = tree.join("bin/service");
        std::fs::create_dir_all(tree.join("bin")).expect("mkdir");
        std::fs::write(&entry, text).expect("the entry point");
        std::fs::set_permissions(&entry, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    }
}
