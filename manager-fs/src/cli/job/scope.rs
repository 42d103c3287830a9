//! Whose snapshots an order means.

use clap::Args;
use proto::HostName;
use proto::agent::{HostScope, SnapshotRef};

/// Whose snapshots are meant; by default those of the host itself.
#[derive(Debug, Args)]
pub(in crate::cli) struct Scope {
    /// Only snapshots of this source
    #[arg(long, value_name = "DIR")]
    source: Option<String>,
    /// Snapshots of another host
    #[arg(long, value_name = "HOST", conflicts_with = "any_host")]
    of_host: Option<HostName>,
    /// Snapshots of any host
    #[arg(long)]
    any_host: bool,
}

impl Scope {
    /// A snapshot of these hosts, by what was typed.
    pub(super) fn reference(&self, snapshot: &str) -> SnapshotRef {
        SnapshotRef { snapshot: snapshot.to_owned(), of: self.hosts(), source: self.source.clone() }
    }

    pub(super) fn source(&self) -> Option<String> {
        self.source.clone()
    }

    pub(super) fn hosts(&self) -> HostScope {
        match (&self.of_host, self.any_host) {
            (Some(host), _) => HostScope::Host(host.clone()),
            (None, true) => HostScope::Any,
            (None, false) => HostScope::Own,
        }
    }
}
