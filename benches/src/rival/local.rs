//! The tree on the client's own disk: no network, the floor.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cold::{Contender, Start, Stopwatch};
use crate::lab::Lab;
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "local";

struct Local {
    dir: PathBuf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    let dir = lab.dir("local")?;
    for tree in trees {
        tool::finish(Command::new("cp").arg("-a").arg(tree.newest()?).arg(dir.join(&tree.name)))?;
    }
    Ok(Box::new(Local { dir }))
}

impl Contender for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, _tree: &Tree) -> Vec<PathBuf> {
        Vec::new()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        Stopwatch::start(lab)?.first_byte(&mut tree.command(&self.dir.join(&tree.name)))
    }
}
