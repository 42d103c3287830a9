//! What one host may cost the manager's process, measured: a host at all of its budgets at once.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use manager_fs::host::enroll::{self, Identity};
use manager_fs::net::{Link, NetError};
use proto::limits::CHUNKS_PER_REQUEST_MAX;
use proto::message::{ChunkRange, HostReport, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use proto::{ObjectId, TreeId};

use crate::fixture::{SOON, dial, hello};

/// What docs/control-protocol.md promises.
const GROWTH_MAX: u64 = 64 << 20;
/// How long the host does its worst.
const WORST: Duration = Duration::from_secs(4);

/// A manager in a process of its own.
struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = command(dir.path()).args(["serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::null()).spawn();
        let this = Self { child: child.unwrap(), dir };
        while !this.path("store/manager.sock").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = command(self.dir.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn address(&self) -> String {
        std::fs::read_to_string(self.path("store/address")).unwrap().trim().to_owned()
    }

    async fn enrolled(&self, host: &str) -> Identity {
        let token = self.run(&["token", host]).parse().unwrap();
        enroll::enroll(&self.path(host), &self.address(), &token, false).await.unwrap()
    }

    /// Resident bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// The most that was resident within some time.
    async fn most_resident(&self, within: Duration) -> u64 {
        let mut most = 0;
        for _ in 0..within.as_millis() / 20 {
            most = most.max(self.resident());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manager-fs"));
    for name in ["store", "state", "cache", "run"] {
        command.env(format!("MANAGER_FS_{}", name.to_uppercase()), dir.join(name));
    }
    command.stdin(Stdio::null());
    command
}

/// A connection that has said who it is.
async fn greeted(manager: &Process, identity: &Identity, role: Role) -> Link {
    let (link, ..) = dial(&manager.address(), identity).await.unwrap();
    let reply = link.request(&hello(PROTOCOL, role, Instance([0; 16])), |_| {}, SOON).await;
    assert!(matches!(reply, Ok(ManagerReply::Welcome { .. })), "{reply:?}");
    link
}

type Asked = Pin<Box<dyn Future<Output = Result<ManagerReply, NetError>>>>;

/// Sends a request and reads nothing of its answer, for as long as what is returned lives.
async fn asked(link: &Link, request: HostRequest) -> Asked {
    let link = link.clone();
    let mut asked: Asked = Box::pin(async move { link.request(&request, |_| {}, Duration::MAX).await });
    // Long enough to be sent.
    let _ = tokio::time::timeout(Duration::from_millis(5), &mut asked).await;
    asked
}

/// Every budget at once: twelve connections, of which four have greeted, each with more streams than are answered at once,
/// of the largest chunks, and nobody reads them; and as many bytes of requests as may be open.
async fn at_its_worst(
    manager: &Process,
    identity: &Identity,
    tree: TreeId,
    object: ObjectId,
) -> (Vec<Link>, Vec<Asked>) {
    let (mut links, mut open) = (Vec::new(), Vec::new());
    for at in 0..4 {
        let role = if at == 0 { Role::Control } else { Role::Bulk };
        links.push(greeted(manager, identity, role).await);
    }
    for _ in 4..12 {
        links.extend(dial(&manager.address(), identity).await.ok().map(|(link, ..)| link));
    }
    let all = ChunkRange { object, first: 0, count: 64 };
    for link in &links[..4] {
        let report = HostReport::WrongHash { what: "x".repeat(4000) };
        for _ in 0..4 {
            open.push(asked(link, HostRequest::Report { reports: vec![report.clone(); 250] }).await);
        }
        for _ in 0..16 {
            let wants = vec![all; CHUNKS_PER_REQUEST_MAX / 64];
            open.push(asked(link, HostRequest::Chunks { tree, wants }).await);
        }
    }
    (links, open)
}

#[tokio::test]
async fn a_host_at_all_of_its_budgets_costs_the_manager_no_more_than_is_promised() {
    let manager = Process::start().await;
    let source = manager.path("source");
    std::fs::create_dir(&source).unwrap();
    let content = tests::noise::noise(1, 64 << 20);
    let object = ObjectId::of(&content);
    std::fs::write(source.join("large"), content).unwrap();
    let source = source.to_string_lossy();
    let published = manager.run(&["publish", "p", "1", &source, "--chunk-bytes", "1048576", "--json"]);
    let published: serde_json::Value = serde_json::from_str(&published).unwrap();
    let tree: TreeId = published["tree_id"].as_str().unwrap().parse().unwrap();
    manager.run(&["export", "p@1", "--to", "good"]);
    manager.run(&["export", "p@1", "--to", "evil"]);
    // What every host costs, and what is made once, is there before.
    let good = manager.enrolled("good").await;
    let link = greeted(&manager, &good, Role::Control).await;
    let wants = vec![ChunkRange { object, first: 0, count: 64 }];
    let fetched = link.request::<_, ManagerReply>(&HostRequest::Chunks { tree, wants }, |_| {}, SOON).await;
    assert_eq!(fetched, Ok(ManagerReply::Sent(64)));
    let evil = manager.enrolled("evil").await;
    let before = manager.most_resident(Duration::from_secs(2)).await;

    let worst = at_its_worst(&manager, &evil, tree, object).await;
    let most = manager.most_resident(WORST).await;
    println!("resident before: {} MiB, at its worst: {} MiB more", before >> 20, most.saturating_sub(before) >> 20);
    assert!(most.saturating_sub(before) <= GROWTH_MAX, "{before} bytes before, {most} then");
    assert!(most.saturating_sub(before) >= 8 << 20, "that was not its worst: {before} bytes before, {most} then");
    // And others are answered.
    let exports = link.request::<_, ManagerReply>(&HostRequest::Exports, |_| {}, Duration::from_secs(5)).await;
    assert!(matches!(exports, Ok(ManagerReply::Exports(_))), "{exports:?}");
    drop(worst);
}
