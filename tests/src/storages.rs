//! Storage servers that are none of ours, each started for one test with an empty place in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::command::Service;
use crate::needs::{Lack, demand};
use crate::vault::{free_address, text};

/// A storage, and how a repository in it is reached.
#[derive(Debug)]
pub struct Storage {
    service: Service,
    dir: TempDir,
    /// `HOST:PORT`, where it listens.
    pub address: String,
    /// Flag and URL of `repository create`.
    pub lies: [String; 2],
    /// What `storage.toml` has to say.
    pub access: String,
    /// As restic calls the repository.
    pub restic: String,
    environment: Vec<(&'static str, String)>,
    /// What restic is told beside.
    options: Vec<String>,
    /// Whether it has all that restic asks for.
    pub suits_restic: bool,
}

/// OpenSSH's server, which wants to be called by its whole path.
fn sshd(config: &str) -> Service {
    let mut sshd = Command::new(
        ["/usr/sbin/sshd", "/usr/bin/sshd"].into_iter().find(|at| Path::new(at).exists()).unwrap_or_default(),
    );
    demand(if sshd.get_program().is_empty() { Err(Lack::Program("sshd")) } else { Ok(()) });
    sshd.args(["-D", "-e", "-f", config]);
    Service::spawn("sshd", &mut sshd, "Server listening").unwrap()
}

impl Storage {
    /// Amazon's S3 as moto has it, which knows one user and believes nobody else.
    #[track_caller]
    pub fn moto() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
        let mut command = Command::new(crate::tools::find("moto_server"));
        let (host, port) = address.rsplit_once(':').unwrap();
        command.args(["--host", host, "--port", port]);
        let service = Service::spawn("moto", &mut command, "Running on").unwrap();
        let base = format!("http://{address}");
        let ask = |service: &str, more: &[&str]| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "60", "--user", "first:first"]);
            curl.args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")]).args(more);
            let output = curl.output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{more:?}: {said}");
            said
        };
        let iam = |form: &[&str]| {
            let fields = form.iter().flat_map(|field| ["--data-urlencode", field]).collect::<Vec<_>>();
            ask("iam", &[&["--data", "Version=2010-05-08"][..], &fields, &[&base]].concat())
        };
        iam(&["Action=CreateUser", "UserName=backup"]);
        let key = iam(&["Action=CreateAccessKey", "UserName=backup"]);
        let all = r#"PolicyDocument={"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;
        iam(&["Action=PutUserPolicy", "UserName=backup", "PolicyName=all", all]);
        let part = |name: &str| {
            let (_, rest) = key.split_once(&format!("<{name}>")).unwrap();
            rest.split('<').next().unwrap().replace("&amp;", "&")
        };
        let (id, secret) = (part("AccessKeyId"), part("SecretAccessKey"));
        ask("s3", &["--request", "PUT", &format!("{base}/backups")]);
        // From now on every request is authenticated.
        ask("s3", &["--header", "Content-Type: text/plain", "--data", "0", &format!("{base}/moto-api/reset-auth")]);
        Self::s3(service, dir, address, &id, &secret)
    }

    /// Another server of S3's protocol: localbucket, which keeps buckets as directories.
    #[track_caller]
    pub fn localbucket() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
        let (host, port) = address.rsplit_once(':').unwrap();
        fs::create_dir(dir.path().join("backups")).unwrap();
        let mut command = Command::new(crate::tools::find("localbucket"));
        command.args(["--host", host, "--port", port]).arg(dir.path());
        let service = Service::spawn("localbucket", &mut command, " serving ").unwrap();
        // restic wants to know who owns an object, which this one refuses to say.
        Self { suits_restic: false, ..Self::s3(service, dir, address, "any", "thing") }
    }

    fn s3(service: Service, dir: TempDir, address: String, id: &str, secret: &str) -> Self {
        let url = format!("http://{address}/backups/deep/main");
        Self {
            service,
            dir,
            lies: ["--s3".to_owned(), url.clone()],
            access: format!(
                "[[storage]]\nurl = \"s3:http://{address}/backups\"\naccess-key-id = \"{id}\"\n\
                 secret-access-key = \"{secret}\"\n"
            ),
            restic: format!("s3:{url}"),
            environment: vec![
                ("AWS_ACCESS_KEY_ID", id.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
                // Not every server can be asked.
                ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ],
            options: vec!["s3.region=us-east-1".to_owned()],
            suits_restic: true,
            address,
        }
    }

    /// A server of restic's REST protocol that rclone is, with a user and a password.
    #[track_caller]
    pub fn rest() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
        let mut command = Command::new(crate::tools::find("rclone"));
        command.args(["serve", "restic", "--addr", &address, "--user", "me", "--pass", "pass-word"]).arg(dir.path());
        command.args(["--verbose", "--config"]).arg(dir.path().join("none.conf"));
        let service = Service::spawn("rclone", &mut command, "Serving restic").unwrap();
        Self {
            service,
            dir,
            lies: ["--rest".to_owned(), format!("http://{address}/deep/main")],
            access: format!(
                "[[storage]]\nurl = \"rest:http://{address}/\"\nuser = \"me\"\npassword = \"pass-word\"\n"
            ),
            restic: format!("rest:http://me:pass-word@{address}/deep/main/"),
            environment: Vec::new(),
            options: Vec::new(),
            suits_restic: true,
            address,
        }
    }

    /// OpenSSH's server, which lets one key in.
    #[track_caller]
    pub fn sftp() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
        let path = |name: &str| text(&dir.path().join(name));
        for key in ["host", "key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &path(key)]);
            assert!(keygen.status().unwrap().success());
        }
        fs::copy(path("key.pub"), path("authorized")).unwrap();
        // Whatever its address is, also behind a line that can be cut.
        let host = fs::read_to_string(path("host.pub")).unwrap();
        fs::write(path("known"), format!("* {host}")).unwrap();
        let (host, port) = address.rsplit_once(':').unwrap();
        let config = format!(
            "ListenAddress {host}\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPidFile none\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n",
            path("host"),
            path("authorized"),
        );
        fs::write(path("config"), config).unwrap();
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let user = user.trim();
        if user == "root" {
            // Where its services have not made it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let service = sshd(&path("config"));
        let (key, known) = (path("key"), path("known"));
        let place = path("deep/main");
        let ssh = format!(
            "ssh -F none -i {key} -o UserKnownHostsFile={known} -o BatchMode=yes -p {port} {user}@{host} -s sftp"
        );
        Self {
            service,
            lies: ["--sftp".to_owned(), format!("sftp://{user}@{address}/{place}")],
            access: format!(
                "[[storage]]\nurl = \"sftp://{user}@{address}/{}\"\nidentity-file = \"{key}\"\n\
                 known-hosts-file = \"{known}\"\n",
                text(dir.path()),
            ),
            restic: format!("sftp:{user}@{host}:{place}"),
            environment: Vec::new(),
            options: vec![format!("sftp.command={ssh}")],
            suits_restic: true,
            address,
            dir,
        }
    }

    /// Ends it, and begins it anew.
    #[track_caller]
    pub fn sshd_again(&mut self) {
        self.service.kill();
        self.service = sshd(&text(&self.dir.path().join("config")));
    }

    /// Debian's restic, at the storage itself; whether it succeeds, and what it says.
    pub fn restic(&self, password_file: &Path, arguments: &[&str]) -> (bool, String) {
        let mut restic = Command::new("restic");
        restic
            .args(["--no-cache", "--repo", &self.restic, "--password-file", &text(password_file)])
            .args(self.options.iter().flat_map(|option| ["--option", option]))
            .args(arguments);
        restic.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = restic.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// Its own directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
