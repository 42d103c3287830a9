//! CernVM-FS: a repository a tree, read on demand over HTTP without a proxy cache, defaults throughout.
//!
//! Its server keeps repositories at fixed places of the machine (`/srv/cvmfs`, `/etc/cvmfs`); they are removed at the end.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{fresh, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::http;
use crate::lab::Lab;
use crate::mounted::{Daemon, Mounted};
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "cvmfs";
const SERVED: &str = "/srv";

struct Cvmfs {
    port: u16,
    repositories: Vec<String>,
}

pub(super) fn prepare(lab: &Lab, trees: &[Tree]) -> Result<Box<dyn Contender>> {
    tool::need("cvmfs2")?;
    tool::need("cvmfs_server")?;
    let port = lab.on_server(|| http::serve(SERVED.as_ref()))?;
    let mut made = Cvmfs { port, repositories: Vec::new() };
    for tree in trees {
        let repository = repository(tree);
        let url = format!("http://127.0.0.1:{port}/cvmfs/{repository}");
        // Its commands ask the server's address for what they have just written.
        lab.on_server(|| tool::run("cvmfs_server", ["mkfs", "-p", "-w", &url, "-o", "root", &repository]))?;
        made.repositories.push(repository.clone());
        lab.on_server(|| {
            tool::run("cvmfs_server", ["transaction", &repository])?;
            let target = format!("/cvmfs/{repository}/tree");
            tool::finish(Command::new("cp").arg("-a").arg(tree.newest()?).arg(target))?;
            tool::run("cvmfs_server", ["publish", &repository])
        })?;
    }
    Ok(Box::new(made))
}

fn repository(tree: &Tree) -> String {
    format!("{}.bench.example", tree.name)
}

impl Contender for Cvmfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["cvmfs2"]), vec![PathBuf::from(SERVED).join("cvmfs").join(repository(tree))]].concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir, repository) = (lab.dial(self.port)?, fresh(lab, "cvmfs")?, repository(tree));
        let (config, mountpoint) = (dir.path().join("config"), dir.path().join("mnt"));
        std::fs::create_dir(&mountpoint)?;
        let text = format!(
            "CVMFS_SERVER_URL=http://{address}/cvmfs/{repository}\nCVMFS_HTTP_PROXY=DIRECT\n\
             CVMFS_PUBLIC_KEY=/etc/cvmfs/keys/{repository}.pub\nCVMFS_CACHE_BASE={0}/cache\n\
             CVMFS_RELOAD_SOCKETS={0}/cache\nCVMFS_SHARED_CACHE=no\nCVMFS_CLIENT_PROFILE=single\nCVMFS_USYSLOG={0}/log\n",
            dir.path().display()
        );
        std::fs::write(&config, text)?;
        let watch = Stopwatch::start(lab)?;
        let mut cvmfs = Command::new("cvmfs2");
        cvmfs.args(["-f", "-o"]).arg(format!("config={}", config.display())).arg(&repository);
        let mut daemon = Daemon::start(cvmfs.arg(&mountpoint))?;
        let mounted = Mounted::by(&mut daemon, &mountpoint)?;
        watch.first_byte(&mut tree.command(&mounted.path().join("tree")))
    }
}

impl Drop for Cvmfs {
    fn drop(&mut self) {
        for repository in &self.repositories {
            if let Err(error) = tool::run("cvmfs_server", ["rmfs", "-f", repository]) {
                eprintln!("{error:#}");
            }
        }
    }
}
