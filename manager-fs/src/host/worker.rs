//! The worker's main: both paths put together, and the end of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::HostName;
use proto::message::HostReport;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::cache::{Cache, CacheError, CacheOptions};
use super::control::daemon::{Daemon, DaemonParts};
use super::control::relay::{AgentDirs, Relay};
use super::control::socket;
use super::control::spool::Spool;
use super::data::dial::{TlsDial, renew_for_ever};
use super::data::link::ManagerLink;
use super::data::plane::{DataOptions, DataParts, DataPlane};
use super::data::prefetch::Prefetch;
use super::enroll::{EnrollError, Known};
use super::fetch::{FetchOptions, Fetcher, Upstream, Watched};
use super::files::{Doing, IoFault};
use super::fuse::ServeOptions;
use super::generations::leases::Leases;
use super::generations::records::Records;
use super::generations::{Generations, Trees};
use super::leftovers;
use super::mount::{Layout, MountError, Worker};
use super::objects::{Objects, ObjectsOptions};
use super::panics;
use super::timeline::Timeline;
use crate::clock::Clock;
use crate::config::Dirs;
use crate::metrics;
use crate::net::bind_unix;

/// How long until an address that cannot be listened on is tried again.
const MONITORING_RETRY: Duration = Duration::from_secs(10);

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
    /// Where monitoring is answered.
    pub metrics: Option<SocketAddr>,
    /// Verify local objects again before their first use, also without a boot in between.
    pub verify_cache: bool,
}

/// The worker could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The mount cannot be taken over.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The host has no usable identity.
    #[error(transparent)]
    Identity(#[from] EnrollError),
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A directory, a socket or a thread.
    #[error(transparent)]
    Io(#[from] IoFault),
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Someone asked for the end of the whole mount.
    Unmount,
    /// It got SIGTERM: of the holder, which ends, or of somebody else, and then another worker follows.
    Terminated,
}

/// The body of the hidden command `__worker`: returns when the worker has ended in good order.
///
/// # Errors
/// It was not started by a holder, the host is not enrolled, or a directory or socket cannot be used.
pub fn run(dirs: &Dirs, layout: Layout, options: &WorkerOptions) -> Result<Ended, WorkerError> {
    panics::end_the_process();
    let worker = Worker::bootstrap(layout.clone())?;
    worker.end_with_holder()?;
    let known = Known::of(&dirs.state)?;
    leftovers::clear(dirs);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(1 << 20)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .doing(|| "start the runtime".to_owned())?;
    let spool = Spool::open(&dirs.state.join("events"));
    let parts = open_parts(
        dirs,
        &layout,
        options,
        Opened { runtime: runtime.handle(), worker: &worker, known: &known, spool: Arc::new(spool) },
    )?;
    let ended = runtime.block_on(serve(dirs, &layout, &worker, parts, options.metrics))?;
    // The process ends now, and the runtime with it and no sooner: threads that fetch in the background use it to the last,
    // and would panic in one that is shut down; nor must one that waits for the network or a disk hold up the end.
    std::mem::forget(runtime);
    Ok(ended)
}

/// What is open before the parts are.
struct Opened<'a> {
    runtime: &'a tokio::runtime::Handle,
    worker: &'a Worker,
    known: &'a Known,
    spool: Arc<Spool>,
}

fn open_parts(
    dirs: &Dirs,
    layout: &Layout,
    options: &WorkerOptions,
    opened: Opened<'_>,
) -> Result<DaemonParts, WorkerError> {
    let Opened { runtime, worker, known, spool } = opened;
    let clock = Clock::system();
    let manager =
        ManagerLink::new(runtime, clock.clone(), TlsDial::new(&dirs.state, options.manager.clone(), &known.manager));
    let prefetch =
        Prefetch::start(worker.mounts()).doing(|| "start the thread that fills the page cache".to_owned())?;
    let fetch = fetch_options(options, &spool, &prefetch);
    let timeline = Arc::<Timeline>::default();
    let upstream = Arc::new(Watched::new(Arc::clone(&manager) as Arc<dyn Upstream>, Arc::clone(&timeline)));
    let objects = open_objects(layout, options, upstream, fetch, worker)?;
    // From here on the kernel is answered; programs that an earlier worker left waiting go on.
    let server = worker.serve(
        Arc::clone(&objects),
        Arc::clone(&timeline),
        ServeOptions { read_ahead_bytes: options.read_ahead_bytes },
    )?;
    let records = Arc::new(Records::open(&dirs.cache, &dirs.state, known.publishers.clone()));
    let reported = Arc::clone(&spool);
    let data = DataPlane::new(DataParts {
        objects,
        mounts: worker.mounts(),
        server,
        layout: layout.clone(),
        options: DataOptions {
            hydrate_bytes_per_second: options.hydrate_bytes_per_second,
            read_deadline: options.read_deadline,
        },
        namespace_pid: worker.namespace_pid(),
        records: Arc::clone(&records),
        prefetch,
        report: Box::new(move |report| reported.push(report)),
    });
    let leases = Leases::open(&dirs.state, dirs.agents(), clock.clone());
    let agents = AgentDirs { state_dir: dirs.state.clone(), agents_dir: dirs.agents() };
    let relay = Relay::new(agents, clock, Arc::clone(&records), spool);
    let telling = Arc::clone(&relay);
    let tell = Box::new(move |trees| telling.set_attached(trees));
    let generations = Generations::new(Arc::clone(&data) as Arc<dyn Trees>, Arc::clone(&records), leases, tell);
    Ok(DaemonParts { host: known.host.clone(), data, records, generations, relay, manager, timeline })
}

fn fetch_options(options: &WorkerOptions, spool: &Arc<Spool>, prefetch: &Arc<Prefetch>) -> FetchOptions {
    let (spool, prefetch) = (Arc::clone(spool), Arc::clone(prefetch));
    FetchOptions {
        read_deadline: options.read_deadline,
        on_wrong_hash: Arc::new(move |what| {
            tracing::error!(what, "wrong hash: not served, not kept");
            spool.push(&HostReport::WrongHash { what });
        }),
        on_arrived: Arc::new(move |tree, ranges| prefetch.arrived(tree, ranges)),
        ..FetchOptions::default()
    }
}

fn open_objects(
    layout: &Layout,
    options: &WorkerOptions,
    upstream: Arc<dyn Upstream>,
    fetch: FetchOptions,
    worker: &Worker,
) -> Result<Arc<Objects>, WorkerError> {
    let epoch = epoch(options.verify_cache);
    let cache = Cache::open(&layout.cache, CacheOptions { quota_bytes: options.cache_quota_bytes, epoch })?;
    // A user namespace knows no other owner than the daemon's user.
    let keep_owners = worker.namespace_pid().is_none();
    let fetcher = Fetcher::new(upstream, cache, fetch);
    Ok(Objects::open(fetcher, ObjectsOptions { numbers_path: layout.numbers(), keep_owners }))
}

/// Since when what was hashed counts: this boot or, where every object is to be hashed again, this mount. The holder lives as
/// long as that: a worker that follows another one does not hash a third time.
fn epoch(verify_again: bool) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let holder = rustix::process::getppid().filter(|_| verify_again);
    let holder = holder.map_or_else(String::new, |pid| format!(" {}", pid.as_raw_nonzero()));
    format!("{}{holder}", boot.trim())
}

/// Answers everyone until the end is wanted.
async fn serve(
    dirs: &Dirs,
    layout: &Layout,
    worker: &Worker,
    parts: DaemonParts,
    metrics: Option<SocketAddr>,
) -> Result<Ended, WorkerError> {
    let daemon = Daemon::new(parts);
    let path = dirs.daemon_socket();
    let listener = bind_unix(&path).doing(|| format!("listen on {}", path.display()))?;
    daemon.start().doing(|| "start the threads of the generations".to_owned())?;
    tokio::spawn(socket::serve(listener, Arc::clone(&daemon)));
    tokio::spawn(renew_for_ever(dirs.state.clone(), Arc::clone(&daemon.manager)));
    if let Some(address) = metrics {
        tokio::spawn(answer_monitoring(address, Arc::clone(&daemon)));
    }
    let probing = Arc::clone(&daemon.data);
    tokio::task::spawn_blocking(move || probing.probe().inspect_err(|fault| tracing::warn!(%fault, "probing")));
    if worker.restarts() > 0 {
        tracing::warn!(restarts = worker.restarts(), "the last worker died; this one goes on where it was");
    }
    worker.ready(&ready_line(&daemon.host, layout, worker))?;
    let ended = wait_for_end(&daemon).await.doing(|| "listen for signals".to_owned())?;
    daemon.generations.end();
    daemon.manager.end();
    let _ = std::fs::remove_file(&path);
    Ok(ended)
}

/// Monitoring is worth less than the mount: an address that cannot be had is tried again, and nothing else waits for it.
async fn answer_monitoring(address: SocketAddr, daemon: Arc<Daemon>) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return metrics::http::serve(listener, daemon).await,
            Err(error) => tracing::warn!(%address, %error, "monitoring cannot be answered there; trying again"),
        }
        tokio::time::sleep(MONITORING_RETRY).await;
    }
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
async fn wait_for_end(daemon: &Daemon) -> std::io::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(Ended::Terminated),
            () = daemon.unmount_wanted() => return Ok(Ended::Unmount),
            _ = interrupt.recv() => {}
        }
    }
}
