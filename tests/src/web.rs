//! A manager that is answered by HTTP, as programs ask it.

use std::process::Command;

use serde_json::Value;

use crate::Manager;
use crate::command::until;

/// The name in the manager's own certificate.
pub const NAME: &str = "manager.manager-fs.internal";
/// The roles, the least first.
pub const ROLES: [&str; 4] = ["viewer", "operator", "publisher", "admin"];

/// A manager that is answered by HTTP, and the tokens of each role.
pub struct Lab {
    /// The manager.
    pub manager: Manager,
    /// Where it is answered, `HOST:PORT`.
    pub address: String,
    tokens: Vec<(&'static str, String)>,
}

/// An answer.
pub struct Answer {
    /// Its number.
    pub status: u16,
    /// Its head, lower case.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The document that it is.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Itself, if it has this number.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        self
    }
}

impl Lab {
    /// One that has just begun, with a token of each role.
    pub fn open() -> Self {
        let manager = Manager::start_with(&["--http", "127.0.0.1:0"]);
        let log = manager.log();
        let address = log.split("https://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        let token = |role: &str| manager.run(&["api-token", "add", role, "--role", role]).expect(0).text();
        let tokens = ROLES.iter().map(|role| (*role, token(role).trim().to_owned())).collect();
        Self { manager, address, tokens }
    }

    /// What was sent to be published lies nowhere any more.
    #[track_caller]
    pub fn nothing_sent_stays(&self) {
        until("what was sent is gone", || {
            let names = std::fs::read_dir(self.manager.store().join("tmp")).unwrap();
            let mut names = names.map(|found| found.unwrap().file_name());
            names.all(|name| !name.to_string_lossy().starts_with("upload-")).then_some(())
        });
    }

    /// The token of a role.
    pub fn token(&self, role: &str) -> &str {
        &self.tokens.iter().find(|(name, _)| *name == role).unwrap().1
    }

    /// curl, which believes the manager.
    pub fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        let port = self.address.rsplit_once(':').unwrap().1;
        curl.args(["-sS", "-i", "--max-time", "60", "--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
        curl.arg("--cacert").arg(self.manager.store().join("keys/ca.pem"));
        curl
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.address.rsplit_once(':').unwrap().1)
    }

    /// Asks with further arguments of curl.
    #[track_caller]
    pub fn ask(&self, path: &str, more: &[&str]) -> Answer {
        let output = self.curl().args(more).arg(self.url(path)).output().expect("curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Asks with a token of this role.
    #[track_caller]
    pub fn ask_as(&self, role: &str, path: &str, more: &[&str]) -> Answer {
        let bearer = format!("Authorization: Bearer {}", self.token(role));
        self.ask(path, &[&["-H", &bearer], more].concat())
    }

    /// What a viewer sees there.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.ask_as("viewer", path, &[]).expect(200).json()
    }
}
