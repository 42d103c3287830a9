//! nydus: RAFS v6 blobs over HTTP, read on demand by `nydusd` over FUSE, defaults throughout.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::{Shelf, fresh, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::http;
use crate::lab::Lab;
use crate::mounted::{Daemon, Mounted};
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "nydus";
const BOOTSTRAP: &str = "bootstrap";
const BLOBS: &str = "blobs";

struct Nydus {
    shelf: Shelf,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    tool::need("nydusd")?;
    let program = tool::need("nydus-image")?;
    let shelf = Shelf::make(lab, "nydus")?;
    for tree in trees {
        let dir = shelf.of(tree)?;
        std::fs::create_dir_all(dir.join(BLOBS))?;
        let mut command = Command::new(&program);
        command.args(["create", "--type", "directory", "--fs-version", "6", "--compressor", "zstd", "--bootstrap"]);
        command.arg(dir.join(BOOTSTRAP)).arg("--blob-dir").arg(dir.join(BLOBS)).arg(tree.newest()?);
        tool::finish(&mut command)?;
    }
    Ok(Box::new(Nydus { shelf }))
}

impl Contender for Nydus {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["nydusd"]), vec![self.shelf.dir.join(&tree.name)]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (self.shelf.dial(lab)?, fresh(lab, "nydus")?);
        let (config, mountpoint) = (dir.path().join("config.json"), dir.path().join("mnt"));
        std::fs::create_dir(&mountpoint)?;
        let backend = json!({ "addr": format!("http://{address}"), "path": format!("/{}/{BLOBS}", tree.name) });
        let document = json!({
            "device": {
                "backend": { "type": "http-proxy", "config": backend },
                "cache": { "type": "blobcache", "config": { "work_dir": dir.path().join("cache") } },
            },
            "mode": "direct",
            "digest_validate": false,
        });
        std::fs::write(&config, document.to_string())?;
        let watch = Stopwatch::start(lab)?;
        let path = format!("/{}/{BOOTSTRAP}", tree.name);
        let bootstrap = http::download(address, &path, &dir.path().join(BOOTSTRAP))?;
        let mut nydusd = Command::new("nydusd");
        nydusd.arg("--config").arg(&config).arg("--bootstrap").arg(&bootstrap).arg("--mountpoint").arg(&mountpoint);
        let mut daemon = Daemon::start(nydusd.args(["--log-level", "error"]))?;
        let mounted = Mounted::by(&mut daemon, &mountpoint)?;
        watch.first_byte(&mut tree.command(mounted.path()))
    }
}
