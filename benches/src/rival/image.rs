//! A squashfs image that is downloaded whole and then mounted.

use std::path::PathBuf;

use anyhow::Result;

use super::{Shelf, fresh, squash, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::http;
use crate::lab::Lab;
use crate::mounted::Mounted;
use crate::trees::Tree;

pub(super) const NAME: &str = "squashfs";
/// Name of an image on a shelf.
pub(super) const FILE: &str = "tree.squashfs";

struct Image {
    shelf: Shelf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    Ok(Box::new(Image { shelf: shelf(lab, trees, "image")? }))
}

/// Images of all trees.
pub(super) fn shelf(lab: &Lab, trees: &[Tree], name: &str) -> Result<Shelf> {
    let shelf = Shelf::make(lab, name)?;
    for tree in trees {
        squash(tree.newest()?, &shelf.of(tree)?.join(FILE))?;
    }
    Ok(shelf)
}

impl Contender for Image {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["mount"]), vec![self.shelf.dir.join(&tree.name)]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (self.shelf.dial(lab)?, fresh(lab, "image")?);
        let watch = Stopwatch::start(lab)?;
        let image = http::download(address, &format!("/{}/{FILE}", tree.name), &dir.path().join(FILE))?;
        let mounted = Mounted::image(&image, &dir.path().join("mnt"))?;
        watch.first_byte(&mut tree.command(mounted.path()))
    }
}
