//! An archive that is unpacked while it is downloaded.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Shelf, USUAL, fresh, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::http;
use crate::lab::Lab;
use crate::tool;
use crate::trees::Tree;

const FILE: &str = "tree.tar.zst";

struct Archive {
    shelf: Shelf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Archive { shelf: archives(lab, trees)? }))
}

/// Archives of all trees, served over HTTP.
///
/// # Errors
/// `tar` or `zstd` is missing.
pub fn archives(lab: &Lab, trees: &[Tree]) -> Result<Shelf> {
    tool::need("zstd")?;
    let shelf = Shelf::make(lab, "archive")?;
    for tree in trees {
        let archive = shelf.of(tree)?.join(FILE);
        let mut command = Command::new(tool::need("tar")?);
        command.args(["-I", "zstd -9 -T2", "-cf"]).arg(archive).arg("-C").arg(tree.newest()?).arg(".");
        tool::finish(&mut command)?;
    }
    Ok(shelf)
}

/// Where the archive of a tree is on its server.
pub fn path(tree: &Tree) -> String {
    format!("/{}/{FILE}", tree.name)
}

impl Contender for Archive {
    fn name(&self) -> &'static str {
        USUAL
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["tar", "zstd"]), vec![self.shelf.dir.join(&tree.name)]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (self.shelf.dial(lab)?, fresh(lab, "archive")?);
        let watch = Stopwatch::start(lab)?;
        let mut tar = Command::new("tar");
        tar.args(["-I", "zstd", "-xf", "-", "-C"]).arg(dir.path()).stdin(Stdio::piped());
        let mut tar = tar.spawn().context("starting tar")?;
        let mut stdin = tar.stdin.take().context("a piped stdin")?;
        let got = http::get(address, &path(tree), &mut stdin);
        drop(stdin);
        let status = tar.wait()?;
        got?;
        ensure!(status.success(), "tar ended with {status}");
        watch.first_byte(&mut tree.command(dir.path()))
    }
}
