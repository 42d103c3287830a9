//! How a server of SFTP is reached: by the system's `ssh`, which is told everything that it would look up elsewhere. No file
//! of settings, one key, one file of known hosts, no question to anybody.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use proto::location::Login;

use super::line::Line;

/// How long it takes at most until the server has said its version: a name is looked up, keys are exchanged.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);
/// Where `ssh` is looked for.
const SEARCHED: &str = "/usr/local/bin:/usr/bin:/bin";

/// How a server is reached.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Way {
    pub(in crate::engine) login: Login,
    /// Of a key without a passphrase.
    pub(in crate::engine) identity: PathBuf,
    pub(in crate::engine) known_hosts: PathBuf,
}

impl Way {
    /// The command that speaks SFTP with the server.
    pub(super) fn command(&self) -> Command {
        let Login { user, port, .. } = &self.login;
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-T", "-x", "-a", "-p", &port.unwrap_or(22).to_string(), "-l", user]);
        let file = |key: &str, path: &PathBuf| format!("{key}=\"{}\"", path.display());
        let files = [file("IdentityFile", &self.identity), file("UserKnownHostsFile", &self.known_hosts)];
        let fixed = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=none",
            "UpdateHostKeys=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "PreferredAuthentications=publickey",
            "ConnectTimeout=15",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=3",
            "ControlMaster=no",
            "ControlPath=none",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
            "EscapeChar=none",
            "LogLevel=ERROR",
        ];
        for option in files.iter().map(String::as_str).chain(fixed) {
            ssh.args(["-o", option]);
        }
        ssh.args(["-s", "--", self.login.name(), "sftp"]);
        ssh.env_clear().env("PATH", SEARCHED).env("LANG", "C.UTF-8").current_dir("/").process_group(0);
        ssh.envs(std::env::var_os("HOME").map(|home| ("HOME", home)));
        ssh
    }

    /// # Errors
    /// There is no `ssh`, it is not let in, or the server is none of SFTP. One that may pass is told by its kind.
    pub(super) fn dial(&self) -> io::Result<Line> {
        Line::over(self.command(), HELLO_DEADLINE)
    }
}
