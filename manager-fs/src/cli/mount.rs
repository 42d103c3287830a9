//! `mount [MOUNTPOINT]`: the mount daemon of a host, in the foreground. The hidden commands are its two children.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::Done;
use super::log::LogArgs;
use super::out::note;
use super::units::byte_count;
use crate::config::Dirs;
use crate::host::enroll;
use crate::host::mount::{HelperOptions, HoldOptions, Layout, NamespaceChoice, hold, serve_helper, still_mounted};
use crate::host::worker::{self, Ended, WorkerOptions};

/// Kernel memory of the metadata of all attached generations: half a million entries.
const META_BYTES_MAX: u64 = 640 << 20;

/// `mount`.
#[derive(Debug, Clone, Args)]
pub(super) struct MountArgs {
    /// Where the generations exported to this host are shown, as PRODUCT/VERSION [default: RUN/mnt]
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,
    /// The manager's address [default: as at enrolment]
    #[arg(long, env = "MANAGER_FS_MANAGER", value_name = "HOST:PORT")]
    manager: Option<String>,
    /// Largest size of the cache (2000000000, 2G, 2GiB); without it the disk's free space is the limit
    #[arg(long, env = "MANAGER_FS_CACHE_QUOTA", value_name = "BYTES", value_parser = byte_count)]
    cache_quota: Option<u64>,
    /// How long a read of something that is not cached may wait for the manager before it fails
    #[arg(long, env = "MANAGER_FS_READ_DEADLINE", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    read_deadline: Duration,
    /// Bytes a second of fetches in the background; without it as fast as it goes
    #[arg(long, env = "MANAGER_FS_HYDRATE_RATE", value_name = "BYTES", value_parser = byte_count)]
    hydrate_rate: Option<u64>,
    /// Bytes that one page fault may drag in
    #[arg(long, env = "MANAGER_FS_READ_AHEAD", value_name = "BYTES", default_value = "128KiB", value_parser = byte_count)]
    read_ahead: u64,
    /// Where monitoring is answered: /metrics, /healthz and /readyz by HTTP; without it nowhere
    #[arg(long, env = "MANAGER_FS_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
    /// Verify every cached object again before its first use; otherwise once after each boot
    #[arg(long)]
    verify_cache: bool,
    /// Mount in a new user namespace also as root
    #[arg(long)]
    user_namespace: bool,
}

/// Holds the mount until it is told to end.
pub(super) fn mount(args: &MountArgs, dirs: &Dirs) -> Result<Done> {
    args.log.start();
    // Before anything is mounted: a host that is not enrolled has nothing to show.
    enroll::is_enrolled(&dirs.state)?;
    let layout = layout(args, dirs)?;
    let namespace = if args.user_namespace { NamespaceChoice::New } else { NamespaceChoice::Auto };
    let options = HoldOptions {
        program: std::env::current_exe().context("finding this program's own file")?,
        worker_args: child_args("__worker", args, &layout, dirs),
        helper_args: child_args("__helper", args, &layout, dirs),
        layout,
        namespace,
        state: Some(dirs.state.clone()),
        fuse_device: "/dev/fuse".into(),
    };
    hold(&options)?;
    let left = still_mounted(&options.layout)?;
    for path in &left {
        let path = path.display();
        note!("{path} is in use and stays mounted until its programs end: find them with `fuser -vm {path}`");
    }
    Ok(if left.is_empty() { Done::Clean } else { Done::WithProblems })
}

/// The hidden command `__worker`.
pub(super) fn worker(args: MountArgs, dirs: &Dirs) -> Result<Done> {
    args.log.start();
    let layout = layout(&args, dirs)?;
    let options = WorkerOptions {
        manager: args.manager,
        cache_quota_bytes: args.cache_quota,
        read_deadline: args.read_deadline,
        hydrate_bytes_per_second: args.hydrate_rate,
        read_ahead_bytes: u32::try_from(args.read_ahead).context("--read-ahead")?,
        metrics: args.metrics,
        verify_cache: args.verify_cache,
    };
    Ok(match worker::run(dirs, layout, &options)? {
        Ended::Unmount => Done::Clean,
        // As the shell says it of a program that SIGTERM ended: the holder starts another worker, unless it ends itself.
        Ended::Terminated => Done::Code(128 + 15),
    })
}

/// The hidden command `__helper`.
pub(super) fn helper(args: &MountArgs, dirs: &Dirs) -> Result<Done> {
    args.log.start();
    serve_helper(HelperOptions { layout: layout(args, dirs)?, meta_bytes_max: META_BYTES_MAX, images: true })?;
    Ok(Done::Clean)
}

fn layout(args: &MountArgs, dirs: &Dirs) -> Result<Layout> {
    let mountpoint = match &args.mountpoint {
        Some(path) => std::path::absolute(path)?,
        None => dirs.default_mountpoint(),
    };
    Ok(Layout { run: dirs.run.clone(), cache: dirs.cache.clone(), mountpoint })
}

/// The command line that gives a child the same options, whatever the environment says by then.
fn child_args(name: &str, args: &MountArgs, layout: &Layout, dirs: &Dirs) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    for (flag, dir) in [("--state", &dirs.state), ("--cache", &dirs.cache), ("--run", &dirs.run)] {
        line.extend([flag.into(), dir.into()]);
    }
    line.push(name.into());
    let mut option = |flag: &str, value: Option<String>| {
        line.extend(value.into_iter().flat_map(|value| [OsString::from(flag), value.into()]));
    };
    option("--manager", args.manager.clone());
    option("--cache-quota", args.cache_quota.map(|bytes| bytes.to_string()));
    option("--read-deadline", Some(humantime::format_duration(args.read_deadline).to_string()));
    option("--hydrate-rate", args.hydrate_rate.map(|bytes| bytes.to_string()));
    option("--read-ahead", Some(args.read_ahead.to_string()));
    option("--metrics", args.metrics.map(|address| address.to_string()));
    option("--log-format", Some(args.log.format()));
    if args.verify_cache {
        line.push("--verify-cache".into());
    }
    line.extend(["--".into(), (&layout.mountpoint).into()]);
    line
}
