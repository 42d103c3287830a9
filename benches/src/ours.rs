//! Our own starts: a manager on the server's side, hosts on the client's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tests::command::{Service, program};
use tests::{Host, Manager, Output};

use crate::cold::{Contender, Start, Stopwatch};
use crate::lab::Lab;
use crate::trees::Tree;

/// As long as making the best delta of the largest tree may take.
const DELTAS_WITHIN: Duration = Duration::from_secs(600);
/// A rate at which next to nothing is fetched in the background, bytes a second.
const NEXT_TO_NOTHING: &str = "1";

/// The manager, and what it has published.
#[derive(Debug)]
pub struct Ours {
    manager: Manager,
    port: u16,
    /// Tree ids by tree and version, counted from 0.
    published: BTreeMap<(String, usize), String>,
    hosts: usize,
}

/// A published version.
#[derive(Debug, Clone)]
pub struct Generation {
    /// `product@version`.
    pub name: String,
    /// Its tree id.
    pub tree: String,
}

/// A host with its mount daemon. The daemon ends before the host's directories go.
#[derive(Debug)]
pub struct Mounted {
    daemon: Option<Service>,
    /// The host.
    pub host: Host,
}

impl Ours {
    /// Starts a manager on the server's side and publishes the newest version of each tree, or all of them.
    ///
    /// # Errors
    /// The manager's address is none.
    pub fn publish(lab: &Lab, trees: &[Tree], all_versions: bool) -> Result<Self> {
        let manager = lab.on_server(|| Ok(Manager::start_at("0.0.0.0:0")))?;
        let port = manager.address().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("'{}' has no port", manager.address()))?;
        let mut published = BTreeMap::new();
        for tree in trees {
            let first = if all_versions { 0 } else { tree.versions.len().saturating_sub(1) };
            for (at, source) in tree.versions.iter().enumerate().skip(first) {
                let id = manager.publish(&tree.name, &at.to_string(), source);
                published.insert((tree.name.clone(), at), id);
            }
        }
        Ok(Self { manager, port, published, hosts: 0 })
    }

    /// Waits until nothing is being made in the background any more: it would disturb what is measured, and its result
    /// is part of what is measured.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_until_idle(&self, trees: &[Tree], with_deltas: bool) -> Result<()> {
        let wanted: usize = trees.iter().map(|tree| tree.versions.len().saturating_sub(1)).sum();
        let wanted = if with_deltas { wanted } else { 0 };
        let since = std::time::Instant::now();
        loop {
            let made = files_below(&self.manager.store().join("deltas"))?;
            if made >= wanted {
                break;
            }
            ensure!(since.elapsed() < DELTAS_WITHIN, "{made} of {wanted} deltas within {DELTAS_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        self.manager.wait_until_repacked();
        Ok(())
    }

    /// One version of a tree, counted from 0.
    ///
    /// # Errors
    /// It was not published.
    pub fn generation(&self, tree: &Tree, version: usize) -> Result<Generation> {
        let id = self.published.get(&(tree.name.clone(), version));
        let id = id.with_context(|| format!("version {version} of {} is not published", tree.name))?;
        Ok(Generation { name: format!("{}@{version}", tree.name), tree: id.clone() })
    }

    /// The newest version of a tree.
    ///
    /// # Errors
    /// It was not published.
    pub fn newest(&self, tree: &Tree) -> Result<Generation> {
        self.generation(tree, tree.versions.len().saturating_sub(1))
    }

    /// Lets hosts see a generation.
    pub fn export<S: AsRef<str>>(&self, generation: &Generation, hosts: &[S]) {
        let names = hosts.iter().flat_map(|host| ["--to", host.as_ref()]);
        let arguments: Vec<&str> = ["export", &generation.name].into_iter().chain(names).collect();
        self.manager.run(&arguments).expect(0);
    }

    /// The manager's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A token for a host of this name.
    pub fn token(&self, host: &str) -> String {
        self.manager.run(&["token", host]).text()
    }

    /// Enrols a new host, over the wire without added latency.
    pub fn enroll(&mut self, lab: &Lab) -> Host {
        self.hosts += 1;
        let host = Host::new(&format!("host-{}", self.hosts));
        host.enroll(&self.manager, &lab.direct(self.port).to_string());
        host
    }

    /// Starts a host's mount daemon on the present network.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn mount(&self, lab: &Lab, host: Host, more: &[&str]) -> Result<Mounted> {
        let manager = lab.dial(self.port)?.to_string();
        let arguments = [&["mount", "--manager", &manager][..], more].concat();
        let daemon = Service::spawn("mount", &mut host.command(&arguments), "ready");
        let daemon = daemon.map_err(|log| anyhow!("the mount daemon did not become ready:\n{log}"))?;
        Ok(Mounted { daemon: Some(daemon), host })
    }

    /// Lets a host record what starts of the newest version touch, if the program can; `false` if it cannot.
    ///
    /// # Errors
    /// It can, but fails.
    pub fn record_starts(&mut self, lab: &Lab, trees: &[Tree]) -> Result<bool> {
        if !knows("profile") {
            return Ok(false);
        }
        for tree in trees {
            let newest = tree.versions.len().saturating_sub(1);
            for version in 0..=newest {
                let Ok(generation) = self.generation(tree, version) else { continue };
                let host = self.enroll(lab);
                self.export(&generation, &[&host.name]);
                self.manager.run(&["host", "group", "add", "recorders", &host.name]).expect(0);
                let mounted = self.mount(lab, host, &[])?;
                ended(Output::of(&mut recording(&mounted.host, tree, &generation.name)))?;
            }
        }
        self.manager.wait_until_bundled();
        Ok(true)
    }

    /// A start of the newest version on a new host, with more options for its mount daemon.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_with(&mut self, lab: &Lab, tree: &Tree, more: &[&str]) -> Result<Start> {
        let generation = self.newest(tree)?;
        let host = self.enroll(lab);
        self.export(&generation, &[&host.name]);
        let watch = Stopwatch::start(lab)?;
        let mounted = self.mount(lab, host, more)?;
        watch.first_byte(&mut mounted.command(tree, &generation))
    }

    /// A start without the background fetch, for its bytes.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_alone(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        self.start_with(lab, tree, &without_background())
    }
}

/// `profile` of a generation with the tree's program, not yet run. It runs on a mount of its own, whose path only the
/// program is told: a shell fills it in.
pub fn recording(host: &Host, tree: &Tree, generation: &str) -> Command {
    let mut command = host.command(&["profile", generation, "--", "/bin/sh", "-c"]);
    let variables = tree.variables(Path::new("$MANAGER_FS_TREE"));
    let variables: String =
        variables.iter().map(|(name, value)| format!("{name}=\"{}\" ", value.display())).collect();
    command.arg(format!("exec env {variables}\"$MANAGER_FS_TREE/{}\" \"$@\"", tree.program));
    command.arg("sh").args(&tree.arguments);
    command
}

/// Arguments of a mount daemon that fetches next to nothing in the background.
pub fn without_background() -> [&'static str; 2] {
    ["--hydrate-rate", NEXT_TO_NOTHING]
}

impl Mounted {
    /// `exec` of a generation with the tree's program, not yet run.
    pub fn command(&self, tree: &Tree, generation: &Generation) -> Command {
        let mut command = self.host.command(&["exec", &generation.name, "--", &tree.program]);
        let root = self.host.path("run/gens").join(&generation.tree);
        command.args(&tree.arguments).envs(tree.variables(&root));
        command
    }

    /// Attaches a generation and waits until all of it is local.
    ///
    /// # Errors
    /// It does not become local within a minute.
    pub fn make_local(&self, tree: &Tree, generation: &Generation) -> Result<()> {
        self.host.attach(&generation.name);
        let version = generation.name.rsplit('@').next().unwrap_or_default();
        tests::command::until(&format!("all of {} is local", generation.name), || {
            let status = self.host.status();
            let listed = status["generations"].as_array()?;
            let found = listed.iter().find(|one| one["product"] == *tree.name && one["version"] == *version)?;
            (found["local_bytes"] == found["object_bytes"]).then_some(())
        });
        Ok(())
    }

    /// Ends the daemon; what it has cached stays.
    pub fn unmount(mut self) -> Host {
        drop(self.daemon.take());
        self.host
    }
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn warm(&self, _tree: &Tree) -> Vec<PathBuf> {
        let store = self.manager.store();
        vec![program("manager-fs"), store.join("packs"), store.join("manifests")]
    }

    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start> {
        self.start_with(lab, tree, &[])
    }
}

/// Whether the program has this command.
fn knows(verb: &str) -> bool {
    Output::of(Command::new(program("manager-fs")).args([verb, "--help"])).code == Some(0)
}

fn ended(output: Output) -> Result<()> {
    ensure!(output.code == Some(0), "{} ended with {:?}: {}", output.line, output.code, output.stderr.trim());
    Ok(())
}

fn files_below(dir: &Path) -> Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        files += if path.is_dir() { files_below(&path)? } else { 1 };
    }
    Ok(files)
}
