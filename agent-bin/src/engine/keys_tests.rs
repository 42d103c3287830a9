use std::fs;
use std::process::Command;
use std::sync::Arc;

use agent_core::Permits;
use proto::agent::JobOrigin;
use proto::door::DoorKey;
use proto::recovery::RecoverySecret;
use tempfile::TempDir;

use super::super::library;
use super::*;

struct Bench {
    dir: TempDir,
    kept: Kept,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repository");
        let kept = Kept::new("main".parse().unwrap(), "vault".parse().unwrap(), path, "v:1".into(), DoorKey([0; 32]));
        let own = password(&Kept::password_file(dir.path(), &kept.name), true).unwrap();
        library::make(&kept.path, &own, &SharedMeter::default()).unwrap();
        Self { dir, kept }
    }

    fn order(&self, order: &Keeping) -> Result<Vec<Said>, EngineError> {
        let origin = JobOrigin::new("vault".parse().unwrap(), "media-agent".parse().unwrap());
        let permits = Arc::new(Permits::read(Path::new("/nowhere"), Path::new("/nowhere")).unwrap());
        let mark =
            Mark { job: 1, origin, since_unix_ms: 0, look: false, permits, pace: proto::means::Pace::default() };
        keeping(self.dir.path(), &self.kept, order, &mark, &SharedMeter::default())
    }

    /// Debian's restic, by a password.
    fn restic(&self, password: &str, arguments: &[&str]) -> Option<String> {
        let file = self.dir.path().join("typed");
        fs::write(&file, password).unwrap();
        let mut restic = Command::new("restic");
        restic.args(["--no-cache", "--repo"]).arg(&self.kept.path).arg("--password-file").arg(&file);
        let output = restic.args(arguments).output().expect("restic is not installed: apt-get install restic");
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

fn text_of<'a>(all: &'a [Said], name: &str) -> &'a str {
    &all.iter().find(|(known, _)| known == name).unwrap().1
}

#[test]
fn a_further_key_opens_the_repository_until_it_is_removed() {
    let bench = Bench::new();
    let secret = RecoverySecret::derive(&[7; 32]);
    let made = bench.order(&Keeping::AddKey(secret.key().unwrap())).unwrap();
    let sealed: Sealed = text_of(&made, "sealed").parse().unwrap();
    assert_eq!((sealed.repository.as_str(), &*sealed.key), ("main", text_of(&made, "key")));
    let password = sealed.open(&secret).unwrap();
    let listed = bench.restic(&password, &["key", "list", "--json"]).unwrap();
    assert_eq!(listed.matches("\"hostName\":\"vault\"").count(), 1, "{listed}");
    assert!(listed.contains(&sealed.key[..8]), "{listed}");

    let keys = bench.order(&Keeping::Keys).unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys[0].1.contains(" own ") && keys[1].1.starts_with(&format!("{} - manager-fs@vault", sealed.key)));
    let own = keys[0].1[..64].to_owned();
    for (wrong, why) in [(own, "itself"), ("00".repeat(32), "no key"), ("zz".into(), "no id")] {
        let refused = bench.order(&Keeping::RemoveKey(wrong)).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    bench.order(&Keeping::RemoveKey(sealed.key.clone())).unwrap();
    assert_eq!(bench.restic(&password, &["snapshots"]), None, "it opens nothing any more");
    assert_eq!(bench.order(&Keeping::Keys).unwrap().len(), 1);
}

#[test]
fn what_the_agent_opens_it_by_is_sealed_for_whoever_has_the_secret() {
    let bench = Bench::new();
    let secret = RecoverySecret::derive(&[7; 32]);
    let sealed = bench.order(&Keeping::Escrow(secret.key().unwrap())).unwrap();
    let sealed: Sealed = text_of(&sealed, "sealed").parse().unwrap();
    let password = sealed.open(&secret).unwrap();
    assert_eq!(
        format!("{password}\n"),
        fs::read_to_string(Kept::password_file(bench.dir.path(), &bench.kept.name)).unwrap()
    );
    let config = bench.restic(&password, &["cat", "config"]).unwrap();
    assert!(config.contains(&sealed.id), "{config}");
    assert!(bench.order(&Keeping::Escrow(RecoveryKey([0; 32]))).is_err());
    assert_eq!(bench.order(&Keeping::Keys).unwrap().len(), 1, "nothing was added");
    assert!(bench.order(&Keeping::AddKey(RecoveryKey([0; 32]))).is_err());
    assert_eq!(bench.order(&Keeping::Keys).unwrap().len(), 1, "no key that nobody knows the password of");
}
