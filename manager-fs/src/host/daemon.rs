//! The worker's main: everything of the mount daemon but its mounts' life, wired together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostReply, HostReport, HostRequest, ManagerReply, ManagerRequest};
use proto::{GenerationRef, HostName, codec};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::cache::{Cache, CacheOptions};
use super::data::{DataOptions, DataPlane};
use super::enroll::{self, Identity};
use super::fetch::{FetchOptions, Fetcher, Upstream};
use super::fuse::ServeOptions;
use super::generations::{Generations, Trees};
use super::known::{Known, KnownRecord, Resolved};
use super::leases::Leases;
use super::local;
use super::mount::{Layout, Worker};
use super::objects::{Objects, ObjectsOptions};
use super::prefetch::Prefetch;
use super::relay::Relay;
use super::spool::Spool;
use super::upstream::{Dial, Manager, unix_ms};
use crate::config::Dirs;
use crate::net::{self, Answer, BoxFuture, Handler, Link, NetError, bind_unix};

/// How long a question to the manager that somebody waits for may take.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// A command that only wants the newest state does not wait longer for it when the manager is away.
const FRESH_DEADLINE: Duration = Duration::from_secs(2);
const REFRESH_PAUSE: Duration = Duration::from_secs(5);
/// A certificate that could not be renewed is tried again after this time.
const RENEW_PAUSE: Duration = Duration::from_secs(60);

/// What `manager-fs mount` was told.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The manager's address; `None`: as at enrolment.
    pub manager: Option<String>,
    /// Largest size of the cache, bytes.
    pub cache_quota_bytes: Option<u64>,
    /// How long one read may wait for the network.
    pub read_deadline: Duration,
    /// Bytes a second of background fetches.
    pub hydrate_bytes_per_second: Option<u64>,
    /// Bytes that one page fault may drag in.
    pub read_ahead_bytes: u32,
    /// Verify local objects again before their first use, also without a boot in between.
    pub verify_cache: bool,
}

/// The body of the hidden command `__worker`: returns when someone asked for the end of the whole mount.
///
/// # Errors
/// It was not started by a holder, the host is not enrolled, or a directory or socket cannot be used.
pub fn run(dirs: &Dirs, layout: Layout, options: &WorkerOptions) -> anyhow::Result<()> {
    let worker = Worker::bootstrap(layout.clone())?;
    worker.end_with_holder()?;
    let identity = Identity::load(&dirs.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(1 << 20)
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    let spool = Arc::new(Spool::open(&dirs.state.join("events")).context("opening the spool of reports")?);
    let manager = Manager::new(runtime.handle(), TlsDial::new(&dirs.state, options.manager.clone(), &identity));
    let prefetch = Prefetch::start(worker.mounts())?;
    let keep_owners = worker.namespace_pid().is_none();
    let objects = open_objects(&layout, options, &manager, &spool, (keep_owners, Arc::clone(&prefetch)))?;
    // From here on the kernel is answered; programs that an earlier worker left waiting go on.
    let server = worker.serve(Arc::clone(&objects), ServeOptions { read_ahead_bytes: options.read_ahead_bytes })?;
    let data_options = DataOptions {
        hydrate_bytes_per_second: options.hydrate_bytes_per_second,
        read_deadline: options.read_deadline,
        verify_again: options.verify_cache,
    };
    let namespace_pid = worker.namespace_pid();
    let known = Arc::new(Known::open(&dirs.cache, identity.publishers));
    let shared = (Arc::clone(&known), prefetch, Arc::clone(&spool));
    let data = DataPlane::new(objects, worker.mounts(), server, layout.clone(), data_options, namespace_pid, shared);
    let shown = Arc::clone(&data) as Arc<dyn Data>;
    let daemon = Daemon::new(dirs, identity.host.clone(), Arc::clone(&known), shown, Arc::clone(&manager), spool)?;
    runtime.block_on(async {
        let socket = dirs.daemon_socket();
        let listener = bind_unix(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        daemon.start()?;
        tokio::spawn(local::serve(listener, Arc::clone(&daemon)));
        tokio::spawn(renew_for_ever(dirs.state.clone(), Arc::clone(&manager), known));
        tokio::task::spawn_blocking(move || data.probe().inspect_err(|fault| tracing::warn!(%fault, "probing")));
        if worker.restarts() > 0 {
            tracing::warn!(restarts = worker.restarts(), "the last worker died; this one goes on where it was");
        }
        worker.ready(&ready_line(&identity.host, &layout, &worker))?;
        wait_for_end(&daemon).await?;
        daemon.generations.end();
        manager.end();
        let _ = std::fs::remove_file(&socket);
        anyhow::Ok(())
    })?;
    // The process ends now, and the runtime with it and no sooner: threads that fetch in the background use it to the last,
    // and would panic in one that is shut down; nor must one that waits for the network or a disk hold up the end.
    std::mem::forget(runtime);
    Ok(())
}

fn open_objects(
    layout: &Layout,
    options: &WorkerOptions,
    manager: &Arc<Manager>,
    spool: &Arc<Spool>,
    (keep_owners, prefetch): (bool, Arc<Prefetch>),
) -> anyhow::Result<Arc<Objects>> {
    let cache = Cache::open(&layout.cache, CacheOptions { quota_bytes: options.cache_quota_bytes })
        .with_context(|| format!("opening the cache {}", layout.cache.display()))?;
    let spool = Arc::clone(spool);
    let fetch = FetchOptions {
        read_deadline: options.read_deadline,
        on_wrong_hash: Arc::new(move |what| {
            tracing::error!(what, "wrong hash: not served, not kept");
            spool.push(&HostReport::WrongHash { what });
        }),
        on_arrived: Arc::new(move |tree, ranges| prefetch.arrived(tree, ranges)),
        ..FetchOptions::default()
    };
    let fetcher = Fetcher::new(Arc::clone(manager) as Arc<dyn Upstream>, cache, fetch);
    Ok(Objects::open(fetcher, ObjectsOptions { numbers_path: layout.numbers(), keep_owners }))
}

fn ready_line(host: &HostName, layout: &Layout, worker: &Worker) -> String {
    let view = layout.mountpoint.display();
    let fuse = worker.fuse().err().map(|why| format!("; no FUSE here ({why})")).unwrap_or_default();
    match worker.namespace_pid() {
        None => format!("manager-fs mount: ready as {host}; generations at {view}{fuse}"),
        Some(pid) => format!(
            "manager-fs mount: ready as {host}; generations at {view} inside the namespaces of process {pid}{fuse}"
        ),
    }
}

/// Until SIGTERM or `unmount`. SIGINT from a terminal reaches the holder too, and the holder decides.
async fn wait_for_end(daemon: &Daemon) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            () = daemon.unmount_wanted() => return Ok(()),
            _ = interrupt.recv() => {}
        }
    }
}

/// What `status` shows of the data path.
#[derive(Debug, Default)]
pub(crate) struct DataFacts {
    /// Where the browsing view is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Which of the data paths the probe chose, for people.
    pub(crate) data_path: String,
    /// FUSE requests by opcode.
    pub(crate) fuse_requests: BTreeMap<String, u64>,
    /// Counters of the fetcher.
    pub(crate) fetch: Value,
    /// What the cache holds.
    pub(crate) cache: Value,
}

/// The data half: objects, cache, mounts.
pub(crate) trait Data: Trees {
    /// Shows these generations in the browsing view, and no others.
    fn set_view(&self, records: &[Arc<KnownRecord>]);
    /// What `status` shows. Must not block.
    fn facts(&self) -> DataFacts;
}

/// The mount daemon's worker.
pub(crate) struct Daemon {
    pub(crate) host: HostName,
    pub(crate) started_unix_ms: u64,
    pub(crate) data: Arc<dyn Data>,
    pub(crate) known: Arc<Known>,
    pub(crate) generations: Arc<Generations>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) manager: Arc<Manager>,
    refreshing: tokio::sync::Mutex<()>,
    /// Becomes true when someone asked for the end of the daemon.
    unmount: watch::Sender<bool>,
}

impl Daemon {
    /// Puts the parts together; nothing runs yet.
    ///
    /// # Errors
    /// STATE cannot be read or written.
    pub(crate) fn new(
        dirs: &Dirs,
        host: HostName,
        known: Arc<Known>,
        data: Arc<dyn Data>,
        manager: Arc<Manager>,
        spool: Arc<Spool>,
    ) -> anyhow::Result<Arc<Self>> {
        let leases = Leases::open(&dirs.state, dirs.agents())
            .with_context(|| format!("reading the attachments in {}", dirs.state.display()))?;
        let relay = Relay::new(&dirs.state, dirs.agents(), Arc::clone(&known), spool);
        let telling = Arc::clone(&relay);
        let tell = Box::new(move |trees| telling.set_attached(trees));
        let generations = Generations::new(Arc::clone(&data) as Arc<dyn Trees>, Arc::clone(&known), leases, tell);
        data.set_view(&known.records());
        Ok(Arc::new(Self {
            host,
            started_unix_ms: unix_ms(),
            data,
            known,
            generations,
            relay,
            manager,
            refreshing: tokio::sync::Mutex::new(()),
            unmount: watch::Sender::new(false),
        }))
    }

    /// Starts everything that runs by itself. Must be called inside the runtime.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        self.generations.start()?;
        self.manager.start(Arc::new(FromManager(Arc::clone(self))));
        tokio::spawn(Arc::clone(&self.relay).watch_agents());
        tokio::spawn(Arc::clone(&self.relay).report_for_ever(Arc::clone(&self.manager)));
        tokio::spawn(Arc::clone(self).follow_connection());
        Ok(())
    }

    /// Asks the holder to end: `manager-fs unmount`.
    pub(crate) fn unmount(&self) {
        self.unmount.send_replace(true);
    }

    /// Resolves when someone asked for the end.
    pub(crate) async fn unmount_wanted(&self) {
        // The sender is in `self`, so this cannot fail while anyone waits.
        let _ = self.unmount.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// What a reference means; when it means nothing here, the manager is asked whether that has changed.
    pub(crate) async fn resolve(self: &Arc<Self>, reference: &GenerationRef) -> Result<Resolved, Fault> {
        let find =
            |daemon: Arc<Self>, reference: GenerationRef| blocking(move || daemon.generations.resolve(&reference));
        let found = find(Arc::clone(self), reference.clone()).await;
        let Err(Fault::NotFound(_)) = found else { return found };
        match self.refresh_exports(Instant::now() + FRESH_DEADLINE).await {
            Ok(()) => find(Arc::clone(self), reference.clone()).await,
            Err(fault) => Err(Fault::NotFound(format!(
                "this host knows no generation {reference}, and the manager could not be asked: {}",
                fault.reason()
            ))),
        }
    }

    /// Asks the manager what is exported now, if that does not take long.
    pub(crate) async fn refresh_exports_soon(&self) -> Result<(), Fault> {
        self.refresh_exports(Instant::now() + FRESH_DEADLINE).await
    }

    async fn refresh_exports(&self, deadline: Instant) -> Result<(), Fault> {
        let _one_at_a_time = self.refreshing.lock().await;
        let exports = match self.manager.ask(&HostRequest::Exports, deadline).await? {
            ManagerReply::Exports(exports) => exports,
            _ => return Err(Fault::Failed("the manager answered Exports with something else".to_owned())),
        };
        let (known, data) = (Arc::clone(&self.known), Arc::clone(&self.data));
        let changed = blocking(move || {
            let changes = known.set_exports(exports);
            let changed = !changes.added.is_empty() || !changes.removed.is_empty();
            if changed {
                data.set_view(&known.records());
            }
            for (what, records) in
                [("exported to this host", &changes.added), ("no longer exported", &changes.removed)]
            {
                for known in records {
                    tracing::info!(generation = known.record.name(), tree = %known.record.tree, what);
                }
            }
            Ok(changed)
        });
        if changed.await? {
            self.generations.changed();
        }
        Ok(())
    }

    /// For ever: when there is a connection, what is exported is asked, and background work goes on.
    async fn follow_connection(self: Arc<Self>) {
        let mut connections = self.manager.connections();
        loop {
            if connections.wait_for(Option::is_some).await.is_err() {
                return;
            }
            connections.borrow_and_update();
            self.generations.fetchable();
            while let Err(fault) = self.refresh_exports(Instant::now() + ASK_DEADLINE).await {
                tracing::warn!(%fault, "the manager does not say what is exported");
                if matches!(connections.has_changed(), Ok(true) | Err(_)) {
                    break;
                }
                tokio::time::sleep(REFRESH_PAUSE).await;
            }
            if connections.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Answers the manager.
struct FromManager(Arc<Daemon>);

impl Handler for FromManager {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let daemon = Arc::clone(&self.0);
        Box::pin(async move {
            let reply = match codec::decode::<ManagerRequest, MESSAGE_BYTES_MAX>(&body) {
                Err(error) => HostReply::Fault(Fault::BadRequest(error.to_string())),
                Ok(ManagerRequest::ExportsChanged) => {
                    let refreshed = daemon.refresh_exports(Instant::now() + ASK_DEADLINE).await;
                    refreshed.map_or_else(HostReply::Fault, |()| HostReply::Done)
                }
                Ok(ManagerRequest::ChangeOver(order)) => daemon.relay.change_over(order).await,
                Ok(ManagerRequest::Run { product, job, operation }) => {
                    return daemon.relay.jobs.run(product, job, operation, answer).await;
                }
                Ok(ManagerRequest::Cancel { product, job }) => daemon.relay.cancel(&product, job).await,
                Ok(ManagerRequest::Agents) => HostReply::Agents(daemon.relay.look().await),
            };
            if let Err(error) = answer.finish(&reply).await {
                tracing::debug!(%error, "the manager did not wait for an answer");
            }
        })
    }
}

/// Dials with the identity below STATE, which may be renewed in between.
pub(crate) struct TlsDial {
    state: PathBuf,
    /// From the command line; otherwise where the manager was at enrolment.
    address: Option<String>,
    last: Mutex<String>,
}

impl TlsDial {
    pub(crate) fn new(state: &Path, address: Option<String>, enrolled: &Identity) -> Arc<Self> {
        let last = Mutex::new(address.clone().unwrap_or_else(|| enrolled.manager.clone()));
        Arc::new(Self { state: state.to_owned(), address, last })
    }
}

impl Dial for TlsDial {
    fn dial(&self, handler: Arc<dyn Handler>) -> BoxFuture<Result<Link, NetError>> {
        let identity = Identity::load(&self.state);
        let address = self.address.clone();
        if let (None, Ok(identity)) = (&self.address, &identity) {
            self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&identity.manager);
        }
        Box::pin(async move {
            let identity = identity.map_err(|error| NetError::Identity(format!("{error:#}")))?;
            let address = address.unwrap_or_else(|| identity.manager.clone());
            let stream = net::connect(&address, net::client_config(&identity.tls)?).await?;
            Ok(net::start(stream, handler))
        })
    }

    fn address(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TLS says that a certificate has expired, but neither when nor what helps.
    fn explain(&self, reason: String) -> String {
        match Identity::load(&self.state) {
            Ok(identity) if identity.not_after <= unix_ms() => identity.expired(&self.address()),
            _ => reason,
        }
    }
}

/// Renews the host's certificate for ever: after two thirds of its life, again and again until it succeeds.
pub(crate) async fn renew_for_ever(state: PathBuf, manager: Arc<Manager>, known: Arc<Known>) {
    loop {
        let due = Identity::load(&state).map_or(0, |identity| identity.renew_at());
        tokio::time::sleep(Duration::from_millis(due.saturating_sub(unix_ms())).max(Duration::from_secs(1))).await;
        let mut connections = manager.connections();
        let Ok(link) = connections.wait_for(Option::is_some).await.map(|link| link.clone()) else { return };
        let Some(link) = link else { continue };
        match enroll::renew(&link, &state).await {
            Ok(identity) => {
                tracing::info!(host = %identity.host, until_unix_ms = identity.not_after, "certificate renewed");
                // The connection goes on; the next one is made with the new certificate.
                known.set_publishers(identity.publishers);
            }
            Err(error) => {
                tracing::warn!("the certificate could not be renewed: {error:#}");
                tokio::time::sleep(RENEW_PAUSE).await;
            }
        }
    }
}

/// Runs work that may wait for disks and mounts on a thread of its own.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fault::Failed(format!("the mount daemon failed inside: {error}"))),
    }
}
