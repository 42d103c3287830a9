//! `serve`: the manager.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::Done;
use super::log::LogArgs;
use super::out::note;
use crate::config::Dirs;
use crate::manager::admin::serve_admin;
use crate::manager::http::{self, HttpOptions};
use crate::manager::identity::HOST_CERTIFICATE_LIFETIME;
use crate::manager::whole::{Manager, ManagerOptions};
use crate::moments::{self, Moment};
use crate::net;

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Address for hosts; port 0 takes a free one (STORE/address says which)
    #[arg(long, env = "MANAGER_FS_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:7420")]
    listen: String,
    /// Where monitoring is answered: /metrics, /healthz and /readyz by HTTP; without it nowhere
    #[arg(long, env = "MANAGER_FS_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Where programs and browsers are answered, over TLS (docs/api.md, docs/console.md); without it nowhere
    #[arg(long, env = "MANAGER_FS_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// The certificate chain shown there, PEM [default: the manager's own, which hosts know]
    #[arg(long, env = "MANAGER_FS_HTTP_CERTIFICATE", value_name = "FILE", requires_all = ["http", "http_key"])]
    http_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "MANAGER_FS_HTTP_KEY", value_name = "FILE", requires = "http_certificate")]
    http_key: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
    /// How long the certificates of hosts are valid
    #[arg(long, env = "MANAGER_FS_HOST_CERTIFICATE_LIFETIME", value_name = "DURATION", hide = true)]
    host_certificate_lifetime: Option<humantime::Duration>,
}

pub(super) fn run(args: &ServeArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    agent_core::internal::memory::be_frugal(1 << 20);
    args.log.start();
    net::allow_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(args, dirs));
    // Threads that still read or publish for commands that are gone are not waited for.
    runtime.shutdown_timeout(Duration::from_secs(2));
    served.map(|()| Done::Clean)
}

async fn serve(args: &ServeArgs, dirs: &Dirs) -> anyhow::Result<()> {
    // Before anything else: a signal that comes early must not kill us halfway.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let options = ManagerOptions {
        store: dirs.store.clone(),
        host_certificate_lifetime: args.host_certificate_lifetime.map_or(HOST_CERTIFICATE_LIFETIME, |given| *given),
    };
    let manager = Manager::open(&options).await?;
    for notice in manager.notices() {
        note!("{notice}");
    }
    let address = manager.listen(&args.listen).await?;
    write_address(&dirs.store, &address.to_string())?;
    if let Some(metrics) = args.metrics {
        let metrics = manager.answer_monitoring(metrics).await?;
        note!("monitoring is answered at http://{metrics}/metrics");
    }
    if let Some(address) = args.http {
        let certificate = match (&args.http_certificate, &args.http_key) {
            (Some(certificate), Some(key)) => Some((text_of(certificate)?, text_of(key)?)),
            _ => None,
        };
        let address = http::serve(&manager, &HttpOptions { address, certificate }).await?;
        note!("the console and the API are answered at https://{address}/");
    }
    let in_store = listen_locally(&manager, &dirs.manager_socket_in_store())?;
    // A second way in, for commands that name no store. Another manager may have it; ours is then found by its store.
    let in_run = listen_locally(&manager, &dirs.manager_socket_in_run());
    if let Err(error) = &in_run {
        note!("{error:#}; commands reach this manager with --store {}", dirs.store.display());
    }
    note!("ready: serving {} to hosts on {address}", dirs.store.display());
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot notify the service manager")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    note!("ending");
    manager.close();
    for socket in [Some(in_store), in_run.ok()].into_iter().flatten() {
        socket.end();
    }
    Ok(())
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A local socket while it is served.
struct LocalSocket {
    path: std::path::PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl LocalSocket {
    fn end(self) {
        self.task.abort();
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen_locally(manager: &Arc<Manager>, path: &Path) -> anyhow::Result<LocalSocket> {
    let listener = net::bind_unix(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let task = tokio::spawn(serve_admin(Arc::clone(manager), listener));
    Ok(LocalSocket { path: path.to_path_buf(), task })
}

fn write_address(store: &Path, address: &str) -> anyhow::Result<()> {
    let (path, draft) = (store.join("address"), store.join("tmp").join("address"));
    let written = moments::reach(Moment::AddressPut, &path);
    let written =
        written.and_then(|()| std::fs::File::create(&draft)).and_then(|mut file| writeln!(file, "{address}"));
    written.and_then(|()| std::fs::rename(&draft, &path)).with_context(|| format!("cannot write {}", path.display()))
}
