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
