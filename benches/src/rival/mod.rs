//! What others do to start a program on another machine. Each prepares what it serves for every tree, and then starts
//! on a client that has nothing.

mod archive;
mod casync;
mod cvmfs;
mod image;
mod local;
mod nydus;
mod remote;
mod sshfs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::choice::Choice;
use crate::cold::Contender;
use crate::http;
use crate::lab::Lab;
use crate::tool;
use crate::trees::Tree;

pub use archive::{archives, path as archive_path};

/// The one that ours is compared with: what people do today.
pub const USUAL: &str = "tar.zst";

/// Files of one kind for each tree, served over HTTP: `DIR/TREE/…`.
#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    port: u16,
}

impl Shelf {
    /// An empty one.
    fn make(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.dir(&format!("served-{name}"))?;
        let port = lab.on_server(|| http::serve(&dir))?;
        Ok(Self { dir, port })
    }

    /// The directory of one tree.
    fn of(&self, tree: &Tree) -> Result<PathBuf> {
        let dir = self.dir.join(&tree.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Where clients find it on the present network.
    ///
    /// # Errors
    /// The relay cannot be started.
    pub fn dial(&self, lab: &Lab) -> Result<SocketAddr> {
        lab.dial(self.port)
    }
}

/// The paths of a contender's tools, to be warmed.
fn tools(names: &[&str]) -> Vec<PathBuf> {
    names.iter().filter_map(|name| tool::find(name)).collect()
}

/// An empty directory on the client.
fn fresh(lab: &Lab, name: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(name).tempdir_in(lab.scratch());
    dir.with_context(|| format!("a directory for {name}"))
}

/// A squashfs image of a tree as its maker would ship it.
fn squash(source: &Path, image: &Path) -> Result<()> {
    let mut command = Command::new(tool::need("mksquashfs")?);
    tool::finish(command.arg(source).arg(image).args(["-comp", "zstd", "-all-root", "-noappend", "-quiet"]))
}

type Prepare = fn(&Lab, &[Tree]) -> Result<Box<dyn Contender>>;

/// Every rival that is chosen and installed, prepared; and a line for each that is left out.
pub fn prepare(lab: &Lab, trees: &[Tree], choice: &Choice) -> (Vec<Box<dyn Contender>>, Vec<String>) {
    let all: [(&str, Prepare); 8] = [
        (local::NAME, local::prepare),
        (USUAL, archive::prepare),
        (image::NAME, image::prepare),
        (remote::NAME, remote::prepare),
        (sshfs::NAME, sshfs::prepare),
        (casync::NAME, casync::prepare),
        (nydus::NAME, nydus::prepare),
        (cvmfs::NAME, cvmfs::prepare),
    ];
    let (mut rivals, mut left_out, mut not_chosen) = (Vec::new(), Vec::new(), Vec::new());
    for (name, prepare) in all {
        if !choice.has_rival(name) {
            not_chosen.push(name);
            continue;
        }
        match prepare(lab, trees) {
            Ok(rival) => rivals.push(rival),
            Err(error) => left_out.push(format!("{name} is left out: {error:#}")),
        }
    }
    if !not_chosen.is_empty() {
        left_out.push(format!("left out by BENCH_RIVALS: {}", not_chosen.join(", ")));
    }
    (rivals, left_out)
}
