//! What makes a media agent of this program: repositories of this host, served to agents of other hosts and to people
//! who were given a token.
//!
//! ```text
//! listener (crosses `execve`) ──> connection.rs: TLS, who is it ──> request.rs: may it ──> shelf.rs: files of this host
//!                                                                                        └─> far.rs: files elsewhere
//! ```
//! A change-over closes the gate: no further connection is taken, what was asked is answered, and whoever comes meanwhile
//! waits in the listener's backlog for the next version.

mod connection;
mod far;
mod fault;
mod newcomers;
mod request;
mod shelf;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agent_core::{AgentConfig, Gate, Inherited, Pass};
use proto::RepositoryName;
use proto::keeping::Refused;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::engine::{Desk, DeskFault, EngineError};
use crate::kept::{Kept, KeptFault};
use crate::wire::front::{Front, FrontFault};
use crate::wire::timed::Patience;
use crate::wire::tls::Accepted;
use newcomers::{Newcomer, Newcomers};
use shelf::Shelf;

/// Connections at once, in all. Each has a thread and some 100 KiB.
const CONNECTIONS_MAX: usize = 256;
/// How often a listener looks whether it is still wanted.
const BEAT_MS: i64 = 200;
/// After a failure to accept: out of descriptors, most likely, and connections that end will help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often drafts that were left behind are looked for.
const SWEPT_EVERY: Duration = Duration::from_secs(3600);
const STACK_BYTES: usize = 1 << 20;

/// One connection, after the handshake.
type Stream = BufReader<Accepted>;

/// A repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServingFault {
    #[error("this host cannot listen for {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("{0:?} has no port")]
    Address(String),
    #[error("port {port} is that of {name} already, at {address}: take the same address, or another port")]
    OtherAddress { port: u16, name: RepositoryName, address: String },
    #[error("this host serves no repository {0}; order `repository create` again")]
    NotServed(RepositoryName),
    #[error(transparent)]
    Kept(#[from] KeptFault),
    #[error(transparent)]
    Store(#[from] EngineError),
    #[error(transparent)]
    Front(#[from] FrontFault),
}

/// The repositories that are served.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) state: PathBuf,
    pub(crate) run: PathBuf,
    inherited: Inherited,
    gate: Gate,
    shelves: Mutex<BTreeMap<RepositoryName, Arc<Shelf>>>,
    /// By port; `false` ends its thread.
    listeners: Mutex<BTreeMap<u16, Arc<AtomicBool>>>,
    connections: AtomicUsize,
    newcomers: Arc<Newcomers>,
    patience: Patience,
}

impl Serving {
    /// Begins to serve what was served before. What cannot be is said, and tried again at the next start: an agent must
    /// not be without its operations for want of a port.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn start(config: &AgentConfig) -> io::Result<Arc<Self>> {
        let (state, run) = (config.paths().state().to_owned(), config.paths().run().to_owned());
        let serving = Arc::new(Self {
            state,
            run,
            inherited: config.inherited().clone(),
            gate: Gate::new()?,
            shelves: Mutex::default(),
            listeners: Mutex::default(),
            connections: AtomicUsize::new(0),
            newcomers: Arc::default(),
            patience: connection::PATIENCE,
        });
        let (all, faults) = Kept::all(&serving.state);
        faults.iter().for_each(|fault| tracing::error!("{fault}"));
        for kept in all {
            if let Err(fault) = serving.open(&kept) {
                tracing::error!("repository {} is not served: {fault}", kept.name);
            }
        }
        Ok(serving)
    }

    /// What a change-over closes.
    pub(crate) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Returns the certificate for programs that are no agents, as one line.
    fn begin(self: &Arc<Self>, kept: &Kept) -> Result<String, ServingFault> {
        let mut kept = kept.clone();
        // Whoever was refused stays so: the same key would let them in again.
        if let Ok(Some(before)) = Kept::read(&self.state, &kept.name)
            && before.key == kept.key
        {
            kept.refused = before.refused;
        }
        let kept = &kept;
        self.open(kept)?;
        kept.write(&self.state)?;
        tracing::info!("repository {} ({}) is served at {}", kept.name, kept.path.display(), kept.address);
        Ok(Front::of(&self.state, &kept.address, port_of(&kept.address)?)?.certificate())
    }

    /// Serves it no longer.
    fn end(&self, name: &RepositoryName) -> Result<(), ServingFault> {
        Kept::remove(&self.state, name)?;
        let mut shelves = lock(&self.shelves);
        let ports = |shelves: &BTreeMap<RepositoryName, Arc<Shelf>>| {
            shelves.values().filter_map(|shelf| port_of(&shelf.kept.address).ok()).collect::<Vec<_>>()
        };
        shelves.remove(name);
        let wanted = ports(&shelves);
        lock(&self.listeners).retain(|port, goes_on| {
            let stays = wanted.contains(port);
            if !stays {
                goes_on.store(false, Ordering::Relaxed);
                self.inherited.forget(&listener_name(*port));
            }
            stays
        });
        Ok(())
    }

    /// Lets in nobody by these grants, nor by those that were refused before: from the next request on, and for good.
    fn refuse(&self, name: &RepositoryName, grants: &[Refused]) -> Result<(), ServingFault> {
        let Some(mut kept) = Kept::read(&self.state, name)? else {
            return Err(ServingFault::NotServed(name.clone()));
        };
        kept.refuse(grants, now());
        kept.write(&self.state)?;
        tracing::info!("repository {name}: {} grants are refused", kept.refused.len());
        let mut shelves = lock(&self.shelves);
        if let Some(shelf) = shelves.get_mut(name) {
            *shelf = Arc::new(shelf.kept_as(kept));
        }
        Ok(())
    }

    fn open(self: &Arc<Self>, kept: &Kept) -> Result<(), ServingFault> {
        let port = port_of(&kept.address)?;
        // There is one certificate at a port, for one name.
        let other = lock(&self.shelves).values().map(|shelf| shelf.kept.clone()).find(|known| {
            known.name != kept.name && known.address != kept.address && port_of(&known.address).ok() == Some(port)
        });
        if let Some(Kept { name, address, .. }) = other {
            return Err(ServingFault::OtherAddress { port, name, address });
        }
        Front::of(&self.state, &kept.address, port)?;
        let shelf = Arc::new(Shelf::new(&self.state, kept.clone())?);
        let mut listeners = lock(&self.listeners);
        if let Entry::Vacant(free) = listeners.entry(port) {
            let goes_on = Arc::new(AtomicBool::new(true));
            self.listen(kept, port, goes_on.clone())
                .map_err(|source| ServingFault::Listen { address: kept.address.clone(), source })?;
            free.insert(goes_on);
        }
        drop(listeners);
        lock(&self.shelves).insert(kept.name.clone(), shelf);
        Ok(())
    }

    /// The repository of this name.
    fn shelf(&self, name: &str) -> Option<Arc<Shelf>> {
        lock(&self.shelves).get(&name.parse().ok()?).cloned()
    }

    fn listen(self: &Arc<Self>, kept: &Kept, port: u16, goes_on: Arc<AtomicBool>) -> io::Result<()> {
        let bind = || bound(&kept.address, port);
        let listener: TcpListener = self
            .inherited
            .take_or(&listener_name(port), bind)
            .map_err(|fault| io::Error::other(fault.to_string()))?;
        listener.set_nonblocking(true)?;
        let serving = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("listens at {port}"));
        thread.spawn(move || serving.accept(&listener, &goes_on)).map(drop)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener, goes_on: &AtomicBool) {
        let mut swept: Option<Instant> = None;
        while goes_on.load(Ordering::Relaxed) {
            if swept.is_none_or(|at| at.elapsed() >= SWEPT_EVERY) {
                swept = Some(Instant::now());
                self.sweep();
            }
            // Before there is a connection: whoever closes the gate knows then that none is taken.
            let pass = self.gate.enter();
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            let beat = Timespec { tv_sec: 0, tv_nsec: BEAT_MS * 1_000_000 };
            let _ = rustix::event::poll(&mut fds, Some(&beat));
            if pass.is_wanted_back() {
                continue;
            }
            match listener.accept() {
                Ok((stream, from)) => match self.newcomers.enter(from.ip()) {
                    Some(newcomer) => self.take(stream, newcomer, pass),
                    None => tracing::debug!("{from} has too many connections that were not let in yet"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Removes what uploads have left behind that were cut by a kill.
    fn sweep(&self) {
        let shelves: Vec<_> = lock(&self.shelves).values().cloned().collect();
        let sweep = move || shelves.iter().for_each(|shelf| shelf.sweep(SystemTime::now()));
        let thread = std::thread::Builder::new().name("sweeps".to_owned());
        if let Err(error) = thread.spawn(sweep) {
            tracing::warn!("drafts are not swept: {error}");
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, newcomer: Newcomer, pass: Pass) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!("a connection too many is closed");
            return;
        }
        let serving = Arc::clone(self);
        let run = move || {
            let held = Held(&serving.connections);
            if let Err(fault) = connection::serve(&serving, stream, newcomer, &pass) {
                tracing::debug!("a connection ended: {fault}");
            }
            drop(held);
        };
        let thread = std::thread::Builder::new().name("serves".to_owned()).stack_size(STACK_BYTES);
        if thread.spawn(run).is_err() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Desk for Arc<Serving> {
    fn begin(&self, kept: &Kept) -> Result<String, DeskFault> {
        Serving::begin(self, kept).map_err(|fault| DeskFault(fault.to_string()))
    }

    fn end(&self, name: &RepositoryName) -> Result<(), DeskFault> {
        Serving::end(self, name).map_err(|fault| DeskFault(fault.to_string()))
    }

    fn refuse(&self, name: &RepositoryName, grants: &[Refused]) -> Result<(), DeskFault> {
        Serving::refuse(self, name, grants).map_err(|fault| DeskFault(fault.to_string()))
    }
}

/// A place among the connections; also of one whose thread panics.
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn listener_name(port: u16) -> String {
    format!("repositories-{port}")
}

fn port_of(address: &str) -> Result<u16, ServingFault> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.ok_or_else(|| ServingFault::Address(address.to_owned()))
}

/// At an address of this host just there; otherwise the name, or a translated address, is others' way to this host, and
/// every address of it is listened at.
fn bound(address: &str, port: u16) -> io::Result<TcpListener> {
    let is_number = address.rsplit_once(':').is_some_and(|(host, _)| {
        host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok()
    });
    let named = address.to_socket_addrs().ok().and_then(|mut found| found.next()).filter(|_| is_number);
    let own = named.map(TcpListener::bind);
    match own {
        Some(Err(error)) if error.kind() != io::ErrorKind::AddrNotAvailable => Err(error),
        Some(Ok(listener)) => Ok(listener),
        // Of both versions, where the kernel has the sixth.
        Some(Err(_)) | None => TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    agent_core::internal::report::unix_ms()
}

#[cfg(test)]
mod tests;
