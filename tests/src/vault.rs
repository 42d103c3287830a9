//! A repository that the media agent of one host serves to another one.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Host, Manager, Output, TreeFixture, noise};

/// Of the agents that a lab publishes.
pub const DESCRIPTOR: &str = "drain_deadline = \"2s\"\nprobation = \"12s\"\n";

/// A host that runs this agent, in version 1.0.
#[track_caller]
pub fn running(manager: &Manager, name: &str, product: &str, role: &str) -> Host {
    let mut host = Host::mounted(name, manager);
    let published = manager.run(&["show", &format!("{product}@1.0")]).code == Some(0);
    if !published {
        manager.publish(product, "1.0", TreeFixture::agent("1.0", role, DESCRIPTOR).path());
    }
    manager.export(&format!("{product}@1.0"), name);
    host.launch(product);
    manager.wait_for_version(name, product, "1.0");
    host
}

/// An address that is free now. Somebody else may take it before the agent does; then the test says so.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A repository `main` of the host `vault`, and a host `web` that backs up to it.
#[derive(Debug)]
pub struct Vault {
    /// Who orders.
    pub manager: Manager,
    /// Whose media agent serves `main`.
    pub vault: Host,
    /// Whose data agent uses it.
    pub web: Host,
    /// Where it is served.
    pub address: String,
}

impl Vault {
    /// Both hosts, and an empty repository.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it starts programs")]
    pub fn new() -> Self {
        let lab = Self::hosts();
        let path = text(&lab.repository());
        lab.create(&["--path", &path]).expect(0);
        lab
    }

    /// Orders a repository that lies there.
    #[track_caller]
    pub fn create(&self, lies: &[&str]) -> Output {
        let create = ["repository", "create", "main", "--on", "vault", "--address", &self.address];
        self.manager.run(&[&create, lies].concat())
    }

    /// Both hosts, and no repository.
    #[track_caller]
    pub fn hosts() -> Self {
        let manager = Manager::start();
        let vault = running(&manager, "vault", "media-agent", "media");
        let web = running(&manager, "web", "data-agent", "data");
        let address = free_address();
        Self { manager, vault, web, address }
    }

    /// Writes what lets the host in to a storage, as its administrator does.
    #[track_caller]
    pub fn lets_in(&self, storage: &str) {
        let file = self.vault.path("state/storage.toml");
        fs::write(&file, storage).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Where the repository lies.
    pub fn repository(&self) -> PathBuf {
        self.vault.path("repository")
    }

    /// The password, with the agent that serves it.
    pub fn password_file(&self) -> PathBuf {
        self.vault.path("state/repositories/main.password")
    }

    /// A job's end.
    #[track_caller]
    pub fn job(&self, kind: &str, host: &str, more: &[&str], code: i32) -> Value {
        let args = ["job", kind, "--host", host, "--repository", "main", "--json"];
        self.manager.run(&[&args, more].concat()).expect(code).json_lines().pop().unwrap()
    }

    /// Debian's restic, in the directory itself.
    #[track_caller]
    pub fn restic(&self, arguments: &[&str]) -> String {
        let output = Command::new("restic")
            .args(["--no-cache", "--repo"])
            .arg(self.repository())
            .arg("--password-file")
            .arg(self.password_file())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "restic {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Debian's restic from elsewhere, with a token; whether it succeeds, and what it says.
    pub fn restic_by(&self, user: &str, arguments: &[&str]) -> (bool, String) {
        let certificate = self.manager.path("main.pem");
        fs::write(&certificate, self.manager.run(&["repository", "certificate", "main"]).expect(0).stdout).unwrap();
        let output = Command::new("restic")
            .args(["--no-cache", "--cacert", &text(&certificate)])
            .args(["--repo", &format!("rest:https://{user}@{}/main/", self.address)])
            .arg("--password-file")
            .arg(self.password_file())
            .args(arguments)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The status that `curl` gets.
    #[track_caller]
    pub fn curl(&self, method: &str, path: &str, user: Option<&str>) -> String {
        self.ask(method, path, user, &[]).0
    }

    /// The same with more arguments; also what came of it.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, user: Option<&str>, more: &[&str]) -> (String, Vec<u8>) {
        let body = self.manager.path("answer");
        let mut command = Command::new("curl");
        command.args(["--silent", "--insecure", "--path-as-is", "--max-time", "60", "--write-out", "%{http_code}"]);
        command.arg("--output").arg(&body).args(["--request", method]).args(more);
        command.arg(format!("https://{}{path}", self.address));
        if let Some(user) = user {
            command.args(["--user", user]);
        }
        let status = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let answer = fs::read(&body).unwrap_or_default();
        drop(fs::remove_file(&body));
        (status, answer)
    }

    /// What lets somebody in, as `curl` takes it.
    #[track_caller]
    pub fn token(&self, more: &[&str]) -> String {
        format!("me:{}", self.manager.run(&[&["repository", "token", "add", "main"], more].concat()).text())
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A source of a large file that cannot be compressed, and a small one below it.
pub fn fill(source: &Path) {
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("noise"), noise(1, 20 << 20)).unwrap();
    fs::write(source.join("below/small"), "small\n").unwrap();
}
