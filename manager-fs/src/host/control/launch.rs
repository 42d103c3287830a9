//! `manager-fs launch PRODUCT`: the stub of [`agent_core::internal::stub`] with this program's directories, its messages on
//! stderr, and its readiness for the service manager.

use agent_core::AgentPaths;
use agent_core::internal::stub::{self, Observer, Outlet, StubError};
use proto::Product;

use crate::config::Dirs;

/// Starts the product's agent and watches it until SIGTERM. Has to be called before this process starts a thread:
/// without root it enters the mount daemon's namespaces, which the kernel allows to a single thread only.
///
/// # Errors
/// See [`stub::run`].
pub fn launch(product: &Product, dirs: &Dirs, stderr: Outlet) -> Result<(), StubError> {
    let paths = AgentPaths::new(&dirs.state, &dirs.run, product.clone());
    // This program is also what runs unchanged programs.
    let adapter = std::env::current_exe().ok();
    stub::run(&paths, adapter.as_deref(), &mut Terminal { product, stderr })
}

/// People and the service manager. Nobody may read what is written for people, and nothing here waits for them.
struct Terminal<'a> {
    product: &'a Product,
    stderr: Outlet,
}

impl Observer for Terminal<'_> {
    fn say(&mut self, line: &str) {
        self.stderr.line(&format!("manager-fs: {}: {line}", self.product));
        // Without a service manager there is nobody to tell, which is no fault.
        drop(sd_notify::notify(&[sd_notify::NotifyState::Status(line)]));
    }

    fn ready(&mut self, line: &str) {
        self.stderr.line(&format!("manager-fs: ready: {line}"));
        drop(sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(line)]));
    }

    fn agent_wrote(&mut self, bytes: &[u8]) {
        self.stderr.pass(bytes);
    }
}
