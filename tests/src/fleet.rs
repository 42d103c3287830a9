//! The manager and the hosts, each with its own directories below one temporary directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::command::{Output, Service, on_a_small_disk, program, until, until_at_rest};
use crate::faults::{self, Faults};
use crate::needs;
use crate::tree::files_below;

/// A loopback port that is chosen when the service starts.
const NOWHERE_YET: &str = "127.0.0.1:0";

/// A manager with its own store.
#[derive(Debug)]
pub struct Manager {
    service: Option<Service>,
    faults: Option<Faults>,
    /// Where this process sees the store, when it lies on a disk in a namespace.
    seen_below: Option<PathBuf>,
    environment: Vec<(&'static str, PathBuf)>,
    dir: TempDir,
}

impl Manager {
    /// Starts a manager on an empty store that goes by this clock.
    #[track_caller]
    pub fn by(clock: &Clock) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        let environment = clock.environment();
        let mut manager = Self { service: None, faults: None, seen_below: None, environment, dir };
        manager.serve_at(NOWHERE_YET);
        manager
    }

    /// Starts a manager on an empty store.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_at(NOWHERE_YET)
    }

    /// Starts a manager on an empty store that listens on this address.
    #[track_caller]
    pub fn start_at(listen: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        let mut manager = Self { service: None, faults: None, seen_below: None, environment: Vec::new(), dir };
        manager.serve_at(listen);
        manager
    }

    /// Starts a manager on an empty store with further flags of `serve`.
    #[track_caller]
    pub fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        let mut manager = Self { service: None, faults: None, seen_below: None, environment: Vec::new(), dir };
        let line = [&["serve", "--listen", NOWHERE_YET], flags].concat();
        manager.service = Some(Service::start("serve", &mut manager.command(&line)));
        manager
    }

    /// Makes a manager's directories; nothing runs yet. Its moments go as `faults` says.
    pub fn with_faults(faults: &Faults) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        Self { service: None, faults: Some(faults.clone()), seen_below: None, environment: Vec::new(), dir }
    }

    /// Starts a manager whose store is a disk of its own, of `bytes`. It cannot be started again.
    #[track_caller]
    pub fn on_a_small_disk(bytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        let mut manager = Self { service: None, faults: None, seen_below: None, environment: Vec::new(), dir };
        std::fs::create_dir(manager.store()).expect("the disk's directory");
        let serve = manager.command(&["serve", "--listen", "127.0.0.1:0"]);
        let service = Service::start("serve", &mut on_a_small_disk(&serve, &manager.store(), bytes));
        manager.seen_below = Some(PathBuf::from(format!("/proc/{}/root", service.pid())));
        manager.service = Some(service);
        manager
    }

    /// Starts a manager whose host certificates are valid for a time such as `4s`.
    #[track_caller]
    pub fn with_certificates_for(lifetime: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("manager").tempdir().expect("a temporary directory");
        let mut manager = Self { service: None, faults: None, seen_below: None, environment: Vec::new(), dir };
        let args = ["serve", "--listen", "127.0.0.1:0", "--host-certificate-lifetime", lifetime];
        manager.service = Some(Service::start("serve", &mut manager.command(&args)));
        manager
    }

    /// Starts the service again, on the same address if it had one.
    #[track_caller]
    pub fn serve(&mut self) {
        self.serve_at(&self.listens_at());
    }

    /// What starts the service, on the same address if it had one.
    pub fn serve_command(&self) -> Command {
        self.command(&["serve", "--listen", &self.listens_at()])
    }

    fn listens_at(&self) -> String {
        let listen = std::fs::read_to_string(self.store().join("address"));
        listen.map_or_else(|_| NOWHERE_YET.to_owned(), |text| text.trim().to_owned())
    }

    #[track_caller]
    fn serve_at(&mut self, listen: &str) {
        self.service = Some(Service::start("serve", &mut self.command(&["serve", "--listen", listen])));
    }

    /// Ends the service.
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(mut service) = self.service.take() {
            assert_eq!(service.end(), Some(0), "serve did not end cleanly:\n{}", service.log());
        }
    }

    /// Kills the service.
    pub fn kill(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill();
        }
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        let store = self.dir.path().join("store");
        match &self.seen_below {
            Some(root) => root.join(store.strip_prefix("/").expect("an absolute path")),
            None => store,
        }
    }

    /// Waits until every pack has been compressed anew, which its header tells (`docs/tree-format.md`, "Pack").
    #[track_caller]
    pub fn wait_until_repacked(&self) {
        until_at_rest("every pack is compressed anew", || {
            let packs = files_below(&self.store().join("packs"));
            // A pack that is gone by now has been replaced: look again.
            let best = |pack: &PathBuf| std::fs::read(pack).is_ok_and(|bytes| bytes[10] & 1 == 1);
            (packs.iter().all(best) && files_below(&self.store().join("tmp")).is_empty()).then_some(())
        });
    }

    /// Waits until every start-up bundle has been compressed well (`docs/bundle-format.md`, bit 1).
    #[track_caller]
    pub fn wait_until_bundled(&self) {
        until_at_rest("every start-up bundle is compressed well", || {
            let bundles = files_below(&self.store().join("bundles"));
            let best = |bundle: &PathBuf| std::fs::read(bundle).is_ok_and(|bytes| bytes[10] & 2 == 0);
            bundles.iter().all(best).then_some(())
        });
    }

    /// A path beside the store that the test may use.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where hosts dial.
    pub fn address(&self) -> String {
        std::fs::read_to_string(self.store().join("address")).expect("the manager's address").trim().to_owned()
    }

    /// What the service has printed.
    pub fn log(&self) -> String {
        self.service.as_ref().map(Service::log).unwrap_or_default()
    }

    /// Its process.
    ///
    /// # Panics
    /// It does not run.
    pub fn pid(&self) -> u32 {
        self.service.as_ref().expect("a manager that runs").pid()
    }

    /// A command of this manager, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = manager_fs(self.faults.as_ref());
        command.args(args).env("MANAGER_FS_STORE", self.store()).env("MANAGER_FS_RUN", self.dir.path().join("run"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of this manager.
    pub fn run(&self, args: &[&str]) -> Output {
        Output::of(&mut self.command(args))
    }

    /// Publishes a source and returns its tree id.
    #[track_caller]
    pub fn publish(&self, product: &str, version: &str, source: &Path) -> String {
        let source = source.to_string_lossy();
        let published = self.run(&["publish", product, version, &source, "--json"]).expect(0).json();
        published["tree_id"].as_str().expect("tree_id").to_owned()
    }

    /// Exports a generation.
    #[track_caller]
    pub fn export(&self, generation: &str, to: &str) {
        self.run(&["export", generation, "--to", to]).expect(0);
    }

    /// What `agents --json` says of a product on a host.
    #[track_caller]
    pub fn agent(&self, host: &str, product: &str) -> Option<Value> {
        let document = self.run(&["agents", "--json"]).expect(0).json();
        let agents = document["agents"].as_array().expect("agents");
        agents.iter().find(|agent| agent["host"] == host && agent["product"] == product).cloned()
    }

    /// Waits until the manager knows that this version of the product serves on the host.
    #[track_caller]
    pub fn wait_for_version(&self, host: &str, product: &str, version: &str) -> Value {
        until(&format!("{product} {version} serves on {host}"), || {
            self.agent(host, product).filter(|agent| agent["version"] == version && agent["state"] == "serving")
        })
    }
}

/// The program, or the one that differs in nothing but that its moments go as a test says.
fn manager_fs(faults: Option<&Faults>) -> Command {
    let Some(faults) = faults else { return Command::new(program("manager-fs")) };
    let mut command = Command::new(program("examples/manager_fs_with_faults"));
    command.env(faults::FILE, faults.file());
    command
}

/// A client host.
#[derive(Debug)]
pub struct Host {
    /// The name in its certificate.
    pub name: String,
    agents: Vec<(String, Service)>,
    faults: Option<Faults>,
    mount: Option<Service>,
    /// What the kernel says to its programs that the machine is, where that is not what it is (setarch(8)).
    machine: Option<String>,
    /// Where this process sees the daemon's mounts, when they are in a namespace of their own (without root).
    seen_below: Option<PathBuf>,
    environment: Vec<(&'static str, PathBuf)>,
    dir: TempDir,
}

impl Host {
    /// Makes a host's directories; nothing runs yet.
    pub fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(name).tempdir().expect("a temporary directory");
        let (agents, environment) = (Vec::new(), Vec::new());
        let (faults, mount, machine, seen_below) = (None, None, None, None);
        Self { name: name.to_owned(), agents, faults, mount, machine, seen_below, environment, dir }
    }

    /// A host that is another machine, as far as programs are told (`setarch MACHINE`).
    pub fn of_machine(name: &str, machine: &str) -> Self {
        let mut host = Self::new(name);
        host.machine = Some(machine.to_owned());
        host
    }

    /// Makes a host's directories; nothing runs yet. Everything on it goes by this clock.
    pub fn by(name: &str, clock: &Clock) -> Self {
        let mut host = Self::new(name);
        host.environment = clock.environment();
        host
    }

    /// Makes a host's directories; nothing runs yet. Its moments, and those of its agents, go as `faults` says.
    pub fn with_faults(name: &str, faults: &Faults) -> Self {
        let mut host = Self::new(name);
        host.faults = Some(faults.clone());
        host
    }

    /// An enrolled and mounted host.
    #[track_caller]
    pub fn mounted(name: &str, manager: &Manager) -> Self {
        let mut host = Self::new(name);
        host.enroll(manager, &manager.address());
        host.mount(&[]);
        host
    }

    /// Enrols with a fresh token, dialling `address` (the manager's own, or a proxy's).
    #[track_caller]
    pub fn enroll(&self, manager: &Manager, address: &str) {
        let token = self.path("token");
        std::fs::write(&token, manager.run(&["token", &self.name]).text()).expect("the token's file");
        self.run(&["enroll", "--manager", address, "--token-file", &token.to_string_lossy()]).expect(0);
    }

    /// Starts the mount daemon.
    #[track_caller]
    pub fn mount(&mut self, more: &[&str]) {
        needs::demand(needs::mounts());
        let mut args = vec!["mount"];
        args.extend(more);
        self.mount = Some(Service::start(&format!("mount of {}", self.name), &mut self.command(&args)));
        let namespace = self.status()["daemon"]["namespace_pid"].as_u64();
        self.seen_below = namespace.map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    }

    /// Starts the mount daemon with a cache that is a disk of its own, of `bytes`.
    #[track_caller]
    pub fn mount_with_a_small_cache(&mut self, bytes: u64) {
        needs::demand(needs::mounts());
        let cache = self.path("cache");
        std::fs::create_dir_all(&cache).expect("the disk's directory");
        let mount = self.command(&["mount"]);
        let service = Service::start(&format!("mount of {}", self.name), &mut on_a_small_disk(&mount, &cache, bytes));
        self.seen_below = Some(PathBuf::from(format!("/proc/{}/root", service.pid())));
        self.mount = Some(service);
    }

    /// The directory below which this process sees the daemon's paths: `/`, or the root of its namespace.
    pub fn seen_below(&self) -> &Path {
        self.seen_below.as_deref().unwrap_or(Path::new("/"))
    }

    /// Where this process sees a path of the daemon.
    pub fn seen(&self, path: impl Into<PathBuf>) -> PathBuf {
        let path = path.into();
        self.seen_below().join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// What the daemon, and a program that it holds a generation for, call a path that this process sees.
    pub fn told(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(self.seen_below()).expect("a path of this host"))
    }

    /// Ends the mount daemon; returns its exit code.
    #[track_caller]
    pub fn unmount(&mut self) -> Option<i32> {
        self.mount.take().and_then(|mut service| service.end())
    }

    /// Kills the mount daemon's holder.
    pub fn kill_mount(&mut self) {
        if let Some(mut service) = self.mount.take() {
            service.kill();
        }
    }

    /// The process id of the mount daemon's holder.
    pub fn holder_pid(&self) -> u32 {
        self.mount.as_ref().expect("a mounted host").pid()
    }

    /// Starts the agent of a product and waits until it serves.
    #[track_caller]
    pub fn launch(&mut self, product: &str) {
        self.launch_by(product, self.command(&["launch", product]));
    }

    /// The same by a command of the test's own, which comes to that.
    #[track_caller]
    pub fn launch_by(&mut self, product: &str, mut command: Command) {
        let service = Service::start(&format!("launch on {}", self.name), &mut command);
        self.agents.push((product.to_owned(), service));
    }

    /// Ends the agent of a product; returns the stub's exit code.
    #[track_caller]
    pub fn stop(&mut self, product: &str) -> Option<i32> {
        let at = self.agents.iter().position(|(name, _)| name == product).expect("a launched product");
        self.agents.remove(at).1.end()
    }

    /// The stub of a product.
    pub fn stub(&mut self, product: &str) -> &mut Service {
        let found = self.agents.iter_mut().find(|(name, _)| name == product);
        &mut found.expect("a launched product").1
    }

    /// The processes of its services: the mount daemon's holder and the stubs.
    pub fn pids(&self) -> Vec<u32> {
        self.mount.iter().chain(self.agents.iter().map(|(_, stub)| stub)).map(Service::pid).collect()
    }

    /// What the mount daemon has printed.
    pub fn log(&self) -> String {
        self.mount.as_ref().map(Service::log).unwrap_or_default()
    }

    /// A path in the host's directory: `state`, `cache` and `run` are the host's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The default mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        self.seen(self.path("run/mnt"))
    }

    /// A command of this host, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = manager_fs(self.faults.as_ref());
        if let Some(machine) = &self.machine {
            let mut on = Command::new("setarch");
            on.arg(machine).arg(command.get_program());
            command = on;
        }
        command.args(args);
        for (variable, name) in
            [("MANAGER_FS_STATE", "state"), ("MANAGER_FS_CACHE", "cache"), ("MANAGER_FS_RUN", "run")]
        {
            command.env(variable, self.path(name));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of this host.
    pub fn run(&self, args: &[&str]) -> Output {
        Output::of(&mut self.command(args))
    }

    /// Attaches a generation once it is visible here; returns the path of its tree.
    #[track_caller]
    pub fn attach(&self, generation: &str) -> PathBuf {
        let output = until(&format!("{generation} attaches on {}", self.name), || {
            let output = self.run(&["attach", generation]);
            (output.code == Some(0)).then_some(output)
        });
        self.seen(PathBuf::from(output.text()))
    }

    /// Waits until every object of every attached generation is on the host.
    #[track_caller]
    pub fn wait_until_local(&self) {
        until("everything attached is local", || {
            let status = self.status();
            let generations = status["generations"].as_array().cloned().unwrap_or_default();
            let mounted: Vec<_> = generations.iter().filter(|generation| generation["mounted"] == true).collect();
            let local = |generation: &&Value| generation["local_bytes"] == generation["object_bytes"];
            (!mounted.is_empty() && mounted.iter().all(local)).then_some(())
        });
    }

    /// The document of `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.run(&["status", "--json"]).expect(0).json()
    }

    /// All FUSE requests so far.
    #[track_caller]
    pub fn fuse_requests(&self) -> u64 {
        let status = self.status();
        let counts = status["fuse"]["requests"].as_object().expect("fuse.requests");
        counts.values().filter_map(Value::as_u64).sum()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.agents.clear();
        self.mount.take();
        // What a killed daemon left mounted would keep the temporary directory; the deepest mounts go first.
        let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut mounts: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        mounts.retain(|mount| Path::new(mount).starts_with(self.dir.path()));
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
        for mount in mounts {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
