//! Two network namespaces and the wire between them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::profile::Profile;
use crate::relay::Relay;
use crate::tool;
use crate::warden::Warden;

/// The interface on both sides.
const WIRE: &str = "wire";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 2);
/// Second byte of the addresses at which the server is reached by a crowd, and of those from which it comes.
const TOWARDS: u8 = 214;
const FROM: u8 = 215;

fn crowd_address(network: u8, host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, network, high, low)
}

/// Where the benchmark happens: the thread that made it is the client, and so is every program that this thread starts.
/// Dropping it returns the thread, and removes namespaces, processes, mounts and files.
#[derive(Debug)]
pub struct Lab {
    server: Namespace,
    client: Namespace,
    home: Namespace,
    scratch: PathBuf,
    profile: Profile,
    relays: RefCell<BTreeMap<u16, Relay>>,
    _warden: Warden,
}

impl Lab {
    /// Makes the namespaces and moves the calling thread into the client's. `profile` is the network to begin with.
    ///
    /// # Errors
    /// Not root, or `ip` or `tc` is missing.
    pub fn start(profile: Profile) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("network-").tempdir().context("a temporary directory")?.keep();
        let unique = std::process::id();
        let (server, client) = (format!("bench-{unique}-server"), format!("bench-{unique}-client"));
        let warden = Warden::start(&scratch, &[&server, &client])?;
        // Whatever else makes temporary files makes them where the warden finds them; fails only if it is called twice.
        let _ = tempfile::env::override_temp_dir(&scratch);
        let home = Namespace::current()?;
        let (server, client) = (Namespace::make(&server)?, Namespace::make(&client)?);
        let peer = ["peer", "name", WIRE, "netns", client.name()];
        tool::run("ip", [&["link", "add", WIRE, "netns", server.name(), "type", "veth"][..], &peer].concat())?;
        for (namespace, address) in [(&server, SERVER), (&client, CLIENT)] {
            tool::run("ip", ["-n", namespace.name(), "addr", "add", &format!("{address}/30"), "dev", WIRE])?;
            tool::run("ip", ["-n", namespace.name(), "link", "set", WIRE, "up"])?;
        }
        client.enter()?;
        let relays = RefCell::default();
        let mut lab = Self { server, client, home, scratch, profile, relays, _warden: warden };
        lab.shape(profile)?;
        Ok(lab)
    }

    /// Makes the wire this network. Addresses from [`Lab::dial`] are of the network before and no longer valid.
    ///
    /// # Errors
    /// The kernel lacks the token bucket filter.
    pub fn shape(&mut self, profile: Profile) -> Result<()> {
        self.relays.borrow_mut().clear();
        for namespace in [&self.server, &self.client] {
            let at = ["-n", namespace.name(), "qdisc"].map(str::to_owned);
            let words = |verb: &str| [&at[..], &[verb, "dev", WIRE, "root"].map(str::to_owned)].concat();
            // There may be none yet.
            let _ = tool::run("tc", words("del"));
            if let Some(shaper) = profile.shaper() {
                tool::run("tc", [words("add"), shaper].concat()).context("the kernel needs sch_tbf")?;
            }
        }
        self.profile = profile;
        Ok(())
    }

    /// The network as it is.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Where the client reaches a port of the server on this network: through a relay if it has latency.
    ///
    /// # Errors
    /// The relay cannot be started.
    pub fn dial(&self, port: u16) -> Result<SocketAddr> {
        Ok(self.direct(self.port(port)?))
    }

    /// The port at which the server's port is reached on this network.
    fn port(&self, port: u16) -> Result<u16> {
        if self.profile.round_trip.is_zero() {
            return Ok(port);
        }
        if let Some(relay) = self.relays.borrow().get(&port) {
            return Ok(relay.port());
        }
        let profile = self.profile;
        let relay = self.server.run(move || Relay::start(port, &profile))?;
        let reached = relay.port();
        self.relays.borrow_mut().insert(port, relay);
        Ok(reached)
    }

    /// Gives the client `count` addresses: the server, which allows one host only so much, sees as many hosts.
    ///
    /// # Errors
    /// The routes cannot be set.
    pub fn crowd(&self, count: u16) -> Result<()> {
        let (server, client) = (self.server.name(), self.client.name());
        let (towards, from) = (crowd_address(TOWARDS, 0), crowd_address(FROM, 0));
        tool::run("ip", ["-n", server, "route", "add", "local", &format!("{towards}/16"), "dev", "lo"])?;
        tool::run("ip", ["-n", server, "route", "add", &format!("{from}/16"), "via", &CLIENT.to_string()])?;
        tool::run("ip", ["-n", client, "route", "add", "local", &format!("{from}/16"), "dev", "lo"])?;
        // Which of the client's addresses a connection comes from is decided by the one that it goes to.
        let routes = (0..count).map(|host| {
            let (towards, from) = (crowd_address(TOWARDS, host), crowd_address(FROM, host));
            format!("route add {towards}/32 via {SERVER} dev {WIRE} src {from}\n")
        });
        let batch = self.scratch.join("routes");
        std::fs::write(&batch, routes.collect::<String>())?;
        tool::run("ip", ["-n", client, "-batch", &batch.to_string_lossy()])
    }

    /// Like [`Lab::dial`], from the address of one host of the crowd.
    ///
    /// # Errors
    /// The relay cannot be started.
    pub fn dial_as(&self, host: u16, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::from((crowd_address(TOWARDS, host), self.port(port)?)))
    }

    /// Where the client reaches a port of the server without added latency, for what is not measured.
    pub fn direct(&self, port: u16) -> SocketAddr {
        SocketAddr::from((SERVER, port))
    }

    /// Does some work on the server's side; what it starts stays there.
    ///
    /// # Errors
    /// The work fails.
    pub fn on_server<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.server.run(work)
    }

    /// A directory for everything; it goes when the lab goes.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Makes a directory below [`Lab::scratch`].
    ///
    /// # Errors
    /// The disk is full.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.scratch.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// Bytes that the client's interface has received so far, as the kernel counts them: with every header, and what was
    /// sent again.
    ///
    /// # Errors
    /// Called on a thread that is not the client's.
    pub fn received(&self) -> Result<u64> {
        // What /sys shows depends on where it was mounted; this depends on the thread.
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(WIRE)?.strip_prefix(':'));
        let counters = lines.next().with_context(|| format!("this thread sees no interface '{WIRE}'"))?;
        Ok(counters.split_whitespace().next().context("a counter")?.parse()?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Before the warden ends what is left in the namespaces: this process is not to be among it.
        if let Err(error) = self.home.enter() {
            eprintln!("leaving {}: {error:#}", self.client.name());
        }
    }
}
