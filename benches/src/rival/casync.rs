//! casync: content-defined chunks over HTTP, mounted without unpacking.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{Shelf, fresh, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::lab::Lab;
use crate::mounted::{Daemon, Mounted};
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "casync";

struct Casync {
    shelf: Shelf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    let program = tool::need("casync")?;
    let shelf = Shelf::make(lab, "casync")?;
    for tree in trees {
        let dir = shelf.of(tree)?;
        let mut command = Command::new(&program);
        command.arg("make").arg(format!("--store={}", dir.join("store.castr").display()));
        tool::finish(command.arg(dir.join("tree.caidx")).arg(tree.newest()?))?;
    }
    Ok(Box::new(Casync { shelf }))
}

impl Contender for Casync {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        let helper = PathBuf::from("/usr/lib/casync/protocols/casync-http");
        let helper = helper.is_file().then_some(helper).into_iter().collect();
        [tools(&["casync"]), helper, vec![self.shelf.dir.join(&tree.name)]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (self.shelf.dial(lab)?, fresh(lab, "casync")?);
        let (cache, mountpoint) = (dir.path().join("cache"), dir.path().join("mnt"));
        std::fs::create_dir_all(&cache)?;
        std::fs::create_dir(&mountpoint)?;
        let base = format!("http://{address}/{}", tree.name);
        let watch = Stopwatch::start(lab)?;
        let mut casync = Command::new("casync");
        casync.arg("mount").arg(format!("--store={base}/store.castr")).arg(format!("{base}/tree.caidx"));
        let mut daemon = Daemon::start(casync.arg(&mountpoint).env("CASYNC_CACHE_PATH", &cache))?;
        let mounted = Mounted::by(&mut daemon, &mountpoint)?;
        watch.first_byte(&mut tree.command(mounted.path()))
    }
}
