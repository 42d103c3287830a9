//! One product on one host: where a change of its version is tried, usually while somebody asks its program.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use serde_json::Value;

use crate::command::{Output, Service, until};
use crate::fleet::{Host, Manager};
use crate::load::{Seen, get, under_load};

const HOST: &str = "host-1";

/// A manager, its one host `host-1`, and an address that the program of the product listens on.
#[derive(Debug)]
pub struct Site {
    /// The manager.
    pub manager: Manager,
    /// The host, enrolled and mounted.
    pub host: Host,
    /// The product that everything here is about.
    pub product: &'static str,
    /// Nobody listens there before the program does.
    pub address: SocketAddr,
}

impl Site {
    /// Starts manager and host; of the product nothing is there yet.
    ///
    /// # Panics
    /// The programs are not built, or this machine mounts nothing.
    #[track_caller]
    pub fn new(product: &'static str) -> Self {
        let manager = Manager::start();
        let host = Host::mounted(HOST, &manager);
        Self { manager, host, product, address: free_address() }
    }

    /// Publishes a version of the product and exports it to the host.
    #[track_caller]
    pub fn publish(&self, version: &str, tree: &Path) {
        self.manager.publish(self.product, version, tree);
        self.manager.export(&self.generation(version), HOST);
    }

    /// Starts the agent, and waits until the manager knows that this version serves.
    #[track_caller]
    pub fn launch(&mut self, version: &str) {
        self.start();
        self.serves(version);
    }

    /// Starts the agent.
    #[track_caller]
    pub fn start(&mut self) {
        self.host.launch(self.product);
    }

    /// Ends the agent; returns the stub's exit code.
    #[track_caller]
    pub fn stop(&mut self) -> Option<i32> {
        self.host.stop(self.product)
    }

    /// The agent's stub.
    pub fn stub(&mut self) -> &mut Service {
        self.host.stub(self.product)
    }

    /// Waits until the manager knows that this version serves.
    #[track_caller]
    pub fn serves(&self, version: &str) {
        self.manager.wait_for_version(HOST, self.product, version);
    }

    /// Orders a version and waits for the end of that.
    pub fn upgrade(&self, version: &str) -> Output {
        self.manager.run(&["upgrade", self.product, &self.generation(version), "--to", HOST])
    }

    /// The same while so many clients ask; with what they saw.
    pub fn upgrade_under(&self, clients: usize, version: &str) -> (Seen, Output) {
        under_load(clients, || self.ask(), || self.upgrade(version))
    }

    /// Asks the program over HTTP: the status and the first line of its answer.
    ///
    /// # Errors
    /// As [`get`].
    pub fn ask(&self) -> io::Result<String> {
        get(self.address, "/")
    }

    /// Has the agent perform an operation of a kind of its own; `more` are arguments of `job run`.
    pub fn job(&self, kind: &str, more: &[&str]) -> Output {
        self.manager.run(&[&["job", "run", self.product, kind, "--host", HOST], more].concat())
    }

    /// The agent as the manager sees it (`agents --json`).
    ///
    /// # Panics
    /// The manager has not heard of it.
    #[track_caller]
    pub fn agent(&self) -> Value {
        self.manager.agent(HOST, self.product).expect("an agent that the manager knows")
    }

    /// The agent as its host sees it (`status --json`), of which the manager may hear a while later; null without one.
    #[track_caller]
    pub fn agent_on_host(&self) -> Value {
        let status = self.host.status();
        let agents = status["agents"].as_array().expect("agents");
        agents.iter().find(|agent| agent["product"] == self.product).cloned().unwrap_or_default()
    }

    /// Waits until stub and agent have printed all of these.
    #[track_caller]
    pub fn log_says(&mut self, words: &[&str]) {
        let stub = self.stub();
        until(&format!("the log says {words:?}"), || {
            let log = stub.log();
            words.iter().all(|word| log.contains(word)).then_some(())
        });
    }

    fn generation(&self, version: &str) -> String {
        format!("{}@{version}", self.product)
    }
}

/// An address of this machine that nobody listens on.
///
/// # Panics
/// All of its ports are taken.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
