//! A manager and a host with its agent, a line between them, and a service manager that keeps all three.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::command::{Output, program};
use tests::{Faults, Host, Manager, Proxy, TreeFixture, noise};

use crate::unit::Unit;

pub(crate) const PRODUCT: &str = "data-agent";
pub(crate) const HOST: &str = "host-1";
/// No command takes longer, whatever happens: the longest wait of one is for a host to accept an order (60 s).
const COMMAND_MAX: Duration = Duration::from_secs(100);
/// How long a condition may take to come true. What a replaced worker found mounted stays for a minute, and keeps a
/// generation from being taken back for as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);
/// Probation and drain short enough for some hundred cells.
const DESCRIPTOR: &str = "drain_deadline = \"300ms\"\nprobation = \"2500ms\"\n";

pub(crate) struct World {
    pub(crate) faults: Faults,
    pub(crate) proxy: Proxy,
    pub(crate) host: Host,
    pub(crate) manager: Manager,
    pub(crate) serve: Option<Unit>,
    pub(crate) mount: Option<Unit>,
    pub(crate) launch: Option<Unit>,
    /// The number of the version that runs, and of those that were published since.
    pub(crate) version: u32,
    pub(crate) published: u32,
    /// Nothing may be mounted on the host.
    copies: bool,
    pub(crate) dir: TempDir,
}

impl World {
    /// An empty store with a manager that is being started, and nothing else.
    pub(crate) fn begin(arm: impl FnOnce(&Faults)) -> Self {
        let dir = tempfile::Builder::new().prefix("every-moment").tempdir().unwrap();
        let faults = Faults::new(&dir.path().join("faults"));
        faults.disarm();
        arm(&faults);
        let manager = Manager::with_faults(&faults);
        let mut world = Self {
            host: Host::with_faults(HOST, &faults),
            proxy: Proxy::start("127.0.0.1:1"),
            serve: None,
            mount: None,
            launch: None,
            version: 0,
            published: 0,
            copies: false,
            manager,
            faults,
            dir,
        };
        world.start_serve();
        world
    }

    /// On a host where nothing may be mounted.
    pub(crate) fn with_copies(mut self) -> Self {
        self.copies = true;
        self
    }

    /// Everything runs: version 1 serves.
    pub(crate) fn complete(mut self) -> Self {
        self.until("the manager answers", |world| world.manager.run(&["hosts"]).code == Some(0));
        self.proxy = Proxy::start(&self.manager.address());
        self.host.enroll(&self.manager, &self.proxy.address());
        let command = |host: &Host, args: &[&str]| {
            let mut command = host.command(args);
            // Short enough that a stopped peer is noticed within a cell.
            command.env("MANAGER_FS_SILENCE", "3s");
            move || copy(&command)
        };
        let logs = self.dir.path();
        let mount = command(&self.host, &["mount", "--read-deadline", "2s"]);
        let copies = self.copies;
        let mount = move || if copies { without_mounts(&mount()) } else { mount() };
        self.mount = Some(Unit::start("mount", logs, mount));
        self.until("the mount daemon answers", |world| world.host.run(&["status"]).code == Some(0));
        let tree = self.tree(&self.good().each_ref().map(String::as_str));
        self.published = 1;
        self.manager.publish(PRODUCT, "1", tree.path());
        self.manager.export(&generation(1), HOST);
        // What it records counts at once, so that there are bundles of it.
        self.manager.run(&["host", "group", "add", "recorders", HOST]);
        let launch = command(&self.host, &["launch", PRODUCT]);
        self.launch = Some(Unit::start("launch", self.dir.path(), launch));
        self.version = 1;
        self.until("the first version serves", |world| world.serves(1));
        self
    }

    pub(crate) fn start_serve(&mut self) {
        // The address is known after the first start.
        let (fresh, store) = (self.manager.serve_command(), self.manager.store());
        let make = move || {
            let address = fs::read_to_string(store.join("address")).ok();
            let mut command = Command::new(fresh.get_program());
            command.args(["serve", "--listen", address.as_deref().map_or("127.0.0.1:0", str::trim)]);
            environment(&fresh, &mut command);
            command
        };
        self.serve = Some(Unit::start("serve", self.dir.path(), make));
    }

    /// The example agent as a tree, with contents that no other tree has.
    pub(crate) fn tree(&self, arguments: &[&str]) -> TreeFixture {
        let seed =
            u64::from(self.published) + 1 + self.serve.as_ref().map_or(0, |unit| unit.pid().unsigned_abs().into());
        let tree = TreeFixture::new();
        let mut bytes = fs::read(program("examples/tiny_agent")).unwrap();
        bytes.extend(noise(seed, 1_000));
        tree.file("bin/agent", 0o755, bytes).file("share/data", 0o644, noise(seed, 300_000));
        tree.file("bin/hello", 0o755, "#!/bin/sh\nexit 0\n");
        tree.file(
            "manager-fs.toml",
            0o644,
            format!("entrypoint = \"bin/agent\"\narguments = {arguments:?}\n{DESCRIPTOR}"),
        );
        tree
    }

    /// Whether this version ends at its start, and all before it, to which it would give way.
    pub(crate) fn set_bad(&self, version: u32, bad: bool) {
        for file in (1..=version).map(|version| self.bad_world(version)) {
            if bad { fs::write(file, "").unwrap() } else { drop(fs::remove_file(file)) }
        }
    }

    fn bad_world(&self, version: u32) -> PathBuf {
        self.path(&format!("bad-world-{version}"))
    }

    /// Arguments of the next agent, which works as long as the world is not bad for it.
    pub(crate) fn good(&self) -> [String; 4] {
        let file = self.bad_world(self.published + 1).to_string_lossy().into_owned();
        ["--unit-ms", "5", "--exit-if", &file].map(str::to_owned)
    }

    /// Runs a command of the manager's side; it ends, or the test fails.
    pub(crate) fn admin(&self, args: &[&str]) -> Output {
        self.ends(self.manager.command(args))
    }

    /// Runs a command of the host's side; it ends, or the test fails.
    pub(crate) fn local(&self, args: &[&str]) -> Output {
        self.ends(self.host.command(args))
    }

    fn ends(&self, mut command: Command) -> Output {
        command.env("MANAGER_FS_SILENCE", "3s").stdin(Stdio::null());
        let (out, err) = (self.dir.path().join("out"), self.dir.path().join("err"));
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        let line = format!("{command:?}");
        let (mut child, since) = (command.spawn().unwrap(), Instant::now());
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if since.elapsed() > COMMAND_MAX {
                drop(child.kill());
                drop(child.wait());
                panic!("{line} did not end within {COMMAND_MAX:?}{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Output { line, code: status.code(), stdout: text(&out), stderr: text(&err) }
    }

    /// Waits until it is so.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl FnMut(&Self) -> bool) {
        self.until_in(PATIENCE, what, condition);
    }

    /// The same for what is done when nobody else wants the machine: at the lowest priority, on one that has other work.
    pub(crate) fn until_at_rest(&self, what: &str, condition: impl FnMut(&Self) -> bool) {
        self.until_in(8 * PATIENCE, what, condition);
    }

    fn until_in(&self, patience: Duration, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let since = Instant::now();
        while !condition(self) {
            assert!(since.elapsed() < patience, "waited {patience:?} in vain until {what}{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the manager knows that this version serves on the host, which is connected.
    pub(crate) fn serves(&self, version: u32) -> bool {
        let version = version.to_string();
        self.agent().is_some_and(|agent| {
            agent["version"] == *version && agent["state"] == "serving" && agent["connected"] == true
        })
    }

    pub(crate) fn agent(&self) -> Option<Value> {
        let output = self.admin(&["agents", "--json"]);
        let document: Value = serde_json::from_str(&output.stdout).ok()?;
        document["agents"].as_array()?.iter().find(|agent| agent["product"] == PRODUCT).cloned()
    }

    pub(crate) fn is_published(&self, version: &str) -> bool {
        let output = self.admin(&["generations", "--json"]);
        output.code == Some(0) && output.stdout.contains(&format!("\"{version}\""))
    }

    /// The ends of all logs, for a failure.
    pub(crate) fn logs(&self) -> String {
        let units = [&self.serve, &self.mount, &self.launch];
        units.into_iter().flatten().map(|unit| format!("\n{}", unit.log())).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.faults.disarm();
        for unit in [&mut self.launch, &mut self.mount, &mut self.serve] {
            unit.take();
        }
    }
}

pub(crate) fn generation(version: impl std::fmt::Display) -> String {
    format!("{PRODUCT}@{version}")
}

/// Root without the right to mount anything, in a user namespace where this is not root.
fn without_mounts(command: &Command) -> Command {
    let setpriv = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"];
    let unshare = ["unshare", "--user", "--map-root-user"];
    let is_root = rustix::process::geteuid().is_root();
    let words: Vec<&str> = unshare.into_iter().filter(|_| !is_root).chain(setpriv).collect();
    let mut lesser = Command::new(words[0]);
    lesser.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    environment(command, &mut lesser);
    lesser
}

fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    environment(command, &mut copy);
    copy
}

fn environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        if let Some(value) = value {
            to.env(name, value);
        }
    }
}
