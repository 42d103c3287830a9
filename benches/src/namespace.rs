//! Network namespaces, and threads that move between them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tool;

/// A network namespace. A thread that [`enter`](Namespace::enter)s it opens its sockets there, and so do the programs
/// and threads that it starts.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes one with this name, its loopback up. It stays until [`crate::warden`] removes it.
    ///
    /// # Errors
    /// Not root, or the name is taken.
    pub fn make(name: &str) -> Result<Self> {
        tool::run("ip", ["netns", "add", name]).context("making a network namespace: run this benchmark as root")?;
        tool::run("ip", ["-n", name, "link", "set", "lo", "up"])?;
        let path = Path::new("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// The one in which the calling thread is.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("opening this thread's network namespace")?;
        Ok(Self { name: String::new(), file })
    }

    /// Its name; empty for one that was not made here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// Not root.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering the network namespace '{}'", self.name))
    }

    /// Does some work in it, on a thread of its own, so that the caller stays where it is.
    ///
    /// # Errors
    /// It cannot be entered, or the work fails or panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            self.enter()?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(entered).join())
            .unwrap_or_else(|_| Err(anyhow!("the work in namespace '{}' panicked", self.name)))
    }
}
