//! The server's directory over SSH.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{fresh, tools};
use crate::cold::{Contender, Start, Stopwatch};
use crate::lab::Lab;
use crate::mounted::{Daemon, Mounted};
use crate::tool;
use crate::trees::Tree;

pub(super) const NAME: &str = "sshfs";
/// Free: the server's namespace is the lab's own.
const PORT: u16 = 2222;

struct Sshfs {
    key: PathBuf,
    _server: Daemon,
}

pub(super) fn prepare(lab: &Lab, _trees: &[Tree]) -> Result<Box<dyn Contender>> {
    tool::need("sshfs")?;
    let (sshd, dir) = (tool::need("sshd")?, lab.scratch().join("ssh"));
    std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("making {}", dir.display()))?;
    for name in ["host", "client"] {
        tool::finish(
            Command::new(tool::need("ssh-keygen")?).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name)),
        )?;
    }
    let config = dir.join("config");
    std::fs::write(&config, configuration(&dir))?;
    // The daemon's chroot before a login; the package makes it when the service starts.
    std::fs::create_dir_all("/run/sshd").context("making /run/sshd")?;
    let server = lab.on_server(|| Daemon::start(Command::new(sshd).arg("-D").arg("-f").arg(config)))?;
    Ok(Box::new(Sshfs { key: dir.join("client"), _server: server }))
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Port {PORT}\nListenAddress 0.0.0.0\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/client.pub\n\
         StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nLogLevel ERROR\n\
         Subsystem sftp internal-sftp\n"
    )
}

impl Contender for Sshfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn warm(&self, tree: &Tree) -> Vec<PathBuf> {
        [tools(&["sshfs", "ssh", "sshd", "fusermount3"]), tree.versions.last().cloned().into_iter().collect()]
            .concat()
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        let (address, dir) = (lab.dial(PORT)?, fresh(lab, "sshfs")?);
        let source = tree.newest()?.canonicalize()?;
        let options = format!(
            "ro,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR,IdentityFile={}",
            self.key.display()
        );
        let watch = Stopwatch::start(lab)?;
        let mut sshfs = Command::new("sshfs");
        sshfs.args(["-F", "/dev/null", "-p", &address.port().to_string(), "-o", &options]);
        sshfs.arg(format!("root@{}:{}", address.ip(), source.display())).arg(dir.path());
        // In the foreground, so that it ends with the start.
        let mut daemon = Daemon::start(sshfs.arg("-f"))?;
        let mounted = Mounted::by(&mut daemon, dir.path())?;
        watch.first_byte(&mut tree.command(mounted.path()))
    }
}
