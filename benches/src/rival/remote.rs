//! A squashfs image that stays on the server: rclone mounts the HTTP directory, the kernel mounts the image in it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{Shelf, fresh, image, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::lab::Lab;
use crate::mounted::{Daemon, Mounted};
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "rclone";

struct Remote {
    shelf: Shelf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    tool::need("rclone")?;
    Ok(Box::new(Remote { shelf: image::shelf(lab, trees, "remote")? }))
}

impl Contender for Remote {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["rclone", "mount", "fusermount", "fusermount3"]), vec![self.shelf.dir.join(&tree.name)]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (self.shelf.dial(lab)?, fresh(lab, "remote")?);
        let directory = dir.path().join("directory");
        std::fs::create_dir(&directory)?;
        let watch = Stopwatch::start(lab)?;
        let mut rclone = Command::new("rclone");
        rclone.args(["mount", ":http:", "--http-url", &format!("http://{address}/{}/", tree.name)]).arg(&directory);
        rclone
            .args(["--config", "/dev/null", "--read-only", "--vfs-cache-mode", "full", "--cache-dir"])
            .arg(dir.path().join("cache"));
        let mut daemon = Daemon::start(&mut rclone)?;
        // Dropped before the daemon: first the image, then the directory.
        let below = Mounted::by(&mut daemon, &directory)?;
        let mounted = Mounted::image(&below.path().join(image::FILE), &dir.path().join("mnt"))?;
        watch.first_byte(&mut tree.command(mounted.path()))
    }
}
