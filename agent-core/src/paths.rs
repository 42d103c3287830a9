//! Where an agent's files are, below the host's STATE and RUN directories.

use std::path::{Path, PathBuf};

use proto::agent::JobId;
use proto::{Product, TreeId, Version};

/// The paths of one product on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPaths {
    state: PathBuf,
    run: PathBuf,
    product: Product,
}

impl AgentPaths {
    /// Of `product`, on the host with these directories.
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>, product: Product) -> Self {
        Self { state: state.into(), run: run.into(), product }
    }

    /// The host's STATE directory: what outlives a boot.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The host's RUN directory: sockets, links and mounts.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The product whose files these are.
    pub fn product(&self) -> &Product {
        &self.product
    }

    /// Where all that an agent keeps on disk lies: `STATE/agents/<product>`.
    pub fn directory(&self) -> PathBuf {
        self.state.join("agents").join(self.product.as_str())
    }

    /// The first copy of the journal; the second is beside it.
    pub fn journal(&self) -> PathBuf {
        self.directory().join("journal")
    }

    /// Held by the stub and by the agent that it started: one of each for a product.
    pub fn lock(&self) -> PathBuf {
        self.directory().join("lock")
    }

    /// `STATE/agents/PRODUCT/records/`: the signed records of the versions that may be started here.
    pub fn records(&self) -> PathBuf {
        self.directory().join("records")
    }

    /// The saved record of a version.
    pub fn record(&self, version: &Version) -> PathBuf {
        self.records().join(format!("{version}.record"))
    }

    /// The second copy of the saved record of a version.
    pub fn record_copy(&self, version: &Version) -> PathBuf {
        self.records().join(format!("{version}.record.2"))
    }

    /// The record of the last order, until that is carried out.
    pub fn ordered(&self) -> PathBuf {
        self.directory().join("ordered")
    }

    /// Evidence against versions that failed here.
    pub fn bad(&self) -> PathBuf {
        self.directory().join("bad")
    }

    /// Jobs under way, and the newest finished ones.
    pub fn jobs(&self) -> PathBuf {
        self.directory().join("jobs")
    }

    /// The file of one job.
    pub fn job(&self, job: JobId) -> PathBuf {
        self.jobs().join(job.0.to_string())
    }

    /// Reports that the mount daemon has not taken yet.
    pub fn events(&self) -> PathBuf {
        self.directory().join("events")
    }

    /// The keys whose records are believed: `STATE/identity/publishers`.
    pub fn publishers(&self) -> PathBuf {
        self.state.join("identity").join("publishers")
    }

    /// The operations API: `RUN/agents/<product>.sock`.
    pub fn socket(&self) -> PathBuf {
        self.run.join("agents").join(format!("{}.sock", self.product))
    }

    /// The stub's own socket, for orders while no agent runs: `RUN/agents/<product>/stub.sock`.
    pub fn stub_socket(&self) -> PathBuf {
        Self::stub_socket_in(&self.run.join("agents"), &self.product)
    }

    /// As [`AgentPaths::stub_socket`], below the directory `RUN/agents`.
    pub fn stub_socket_in(agents: &Path, product: &Product) -> PathBuf {
        agents.join(product.as_str()).join("stub.sock")
    }

    /// `RUN/agents/PRODUCT/current`: a symlink to the tree of the version that runs, swapped in one step.
    pub fn link(&self) -> PathBuf {
        self.run.join("agents").join(self.product.as_str()).join("current")
    }

    /// A mark for each job that the manager has asked for since the stub's start: `RUN/agents/PRODUCT/asked/`.
    pub fn asked(&self) -> PathBuf {
        self.run.join("agents").join(self.product.as_str()).join("asked")
    }

    /// Where the mount daemon mounts a tree.
    pub fn generation(&self, tree: &TreeId) -> PathBuf {
        self.run.join("gens").join(tree.to_hex())
    }

    /// The mount daemon's socket.
    pub fn daemon_socket(&self) -> PathBuf {
        self.run.join("mount.sock")
    }
}
