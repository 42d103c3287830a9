//! `profile GENERATION [-- CMD…]`: records on this host what a start touches first, for the start-up bundle.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::bundle::{TOUCHES_MAX, Touch};
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::BundleFacts;
use proto::{GenerationRef, TreeId, codec};
use serde_json::{Value, json};

use super::client::{self, ask_once};
use super::exec::program;
use super::out::{self, note, say};
use super::progress::{Progress, ProgressLine};
use super::started::{self, Over};
use super::units::{bytes, bytes_of, duration};
use super::{Done, Here, Json, daemon, interrupt};
use crate::config::Dirs;
use crate::host::mount::{HoldOptions, Layout, NamespaceChoice, hold};
use crate::host::profile::{self, ProfileOptions, READY};
use crate::manager::admin::{AdminReply, Quick};

const LOCAL_PAUSE: Duration = Duration::from_millis(100);
/// How long the background fetch may get nothing, and hear nothing of a manager that makes a delta for it, before the command
/// gives up.
const LOCAL_STILL: Duration = Duration::from_secs(60);
const TOUCHES_BYTES_MAX: usize = 16 + 12 * TOUCHES_MAX;

/// `profile`.
#[derive(Debug, Args)]
pub(super) struct ProfileArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    /// How long its start may take: it is over when the program ends, prints something, or waits for something. A start
    /// that is cut is not recorded
    #[arg(long, alias = "for", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    limit: Duration,
    /// Forget what was recorded of its starts, on the manager's machine; the next start gets a guess again
    #[arg(long, conflicts_with_all = ["command", "json"])]
    reset: bool,
    #[command(flatten)]
    output: Json,
    /// The program, as for exec; several profiles of a generation add up. Without it the entry point runs
    #[arg(last = true, value_name = "CMD [ARG]")]
    command: Vec<OsString>,
}

/// The hidden commands: holder and worker of the mount on which the program runs.
#[derive(Debug, Args)]
pub(super) struct ProfileMountArgs {
    work: PathBuf,
    tree: TreeId,
}

pub(super) fn run(args: &ProfileArgs, here: &Here) -> Result<Done> {
    if args.reset {
        ask_once(here, &Quick::ResetProfile(args.generation.clone()))?;
        note!("what was recorded of the starts of {} is forgotten", args.generation);
        return Ok(Done::Clean);
    }
    let recorded = record(&args.generation, &args.command, args.limit, here)?;
    if args.output.json {
        out::json(&recorded.json());
    } else {
        say!("{}", recorded.text());
    }
    Ok(recorded.done())
}

/// What was recorded, and what became of it.
pub(super) struct Recorded {
    generation: GenerationRef,
    tree: TreeId,
    pages: u64,
    over: Over,
    became: Became,
}

/// What became of a recording.
enum Became {
    /// Hosts get it from now on.
    Bundle(BundleFacts),
    /// It counts when another host tells the same.
    Noted,
    /// It says too little.
    Cut,
}

impl Recorded {
    pub(super) fn done(&self) -> Done {
        if matches!(self.became, Became::Bundle(_)) { Done::Clean } else { Done::WithProblems }
    }

    pub(super) fn json(&self) -> Value {
        let (became, bundle) = match &self.became {
            Became::Bundle(facts) => ("bundle", Some(facts)),
            Became::Noted => ("noted", None),
            Became::Cut => ("cut", None),
        };
        json!({
            "generation": self.generation.to_string(),
            "tree_id": self.tree,
            "touched_pages": self.pages,
            "program": self.over.text(),
            "became": became,
            "bundle": bundle.map(|bundle| json!({
                "objects": bundle.objects,
                "plain_bytes": bundle.plain_bytes,
                "bundle_bytes": bundle.bundle_bytes,
            })),
        })
    }

    pub(super) fn text(&self) -> String {
        let became = match &self.became {
            Became::Bundle(bundle) => format!(
                "the start-up bundle has {} of {} objects, {} with the manifest until the manager has compressed it well",
                bytes(bundle.plain_bytes),
                bundle.objects,
                bytes(bundle.bundle_bytes)
            ),
            Became::Noted => String::from(
                "it counts when a second host records or starts the same, or where the manager's operator believes this \
                 host (`manager-fs host group add recorders HOST`)",
            ),
            Became::Cut => String::from(
                "nothing is recorded, and what was recorded before stays; a larger --limit gives it more time",
            ),
        };
        format!("{}: the program touched {} pages ({}); {became}", self.generation, self.pages, self.over.text())
    }
}

/// Makes the generation local, runs the program once on a mount of its own, and gives the manager what it touched.
pub(super) fn record(
    generation: &GenerationRef,
    command: &[OsString],
    limit: Duration,
    here: &Here,
) -> Result<Recorded> {
    // There are processes and a mount to take away.
    interrupt::note_from_now_on()?;
    // The connection is the lease.
    let (_lease, tree) = daemon::hold(here, generation, None)?;
    wait_until_local(&tree, here)?;
    let work = Work::make(&here.dirs)?;
    let (over, touches) = work.run(generation, command, &tree, limit, &here.dirs)?;
    let pages = touches.iter().map(|touch| u64::from(touch.count)).sum();
    let became = if matches!(over, Over::Cut(_)) { Became::Cut } else { tell(tree.tree, touches, here)? };
    Ok(Recorded { generation: generation.clone(), tree: tree.tree, pages, over, became })
}

/// Gives what was touched to the manager: as its operator where its own socket is here, otherwise as this host.
fn tell(tree: TreeId, touches: Vec<Touch>, here: &Here) -> Result<Became> {
    if here.remote.is_meant() || client::sockets(here).iter().any(|socket| socket.exists()) {
        let order = Quick::Record { tree, touches: touches.clone() };
        match ask_once(here, &order) {
            Ok(AdminReply::Recorded(facts)) => return Ok(Became::Bundle(facts)),
            Ok(_) => return client::unexpected(),
            // The manager of this machine need not be the one of this host.
            Err(error) => tracing::debug!(%error, "the manager on this machine does not take it"),
        }
    }
    match daemon::request(here, &DaemonRequest::Profile { tree, touches })? {
        DaemonReply::Bundle(facts) => Ok(Became::Bundle(facts)),
        DaemonReply::Done => Ok(Became::Noted),
        other => bail!("the mount daemon answered with {other:?}"),
    }
}

/// The background fetch makes it local; a profile of half a tree would record the network.
fn wait_until_local(tree: &Attached, here: &Here) -> Result<()> {
    let mut line = ProgressLine::new();
    let (mut before, mut moved) = (None, Instant::now());
    loop {
        interrupt::check("nothing was recorded")?;
        let status = daemon::status(here, here.silence)?;
        let generations = status["generations"].as_array().cloned().unwrap_or_default();
        let this = generations.iter().find(|known| known["tree_id"] == json!(tree.tree));
        let this = this.context("the generation is no longer attached")?;
        let (local, all) = (this["local_bytes"].as_u64(), this["object_bytes"].as_u64());
        if local >= all && local.is_some() {
            return Ok(());
        }
        // Objects become local as wholes: what comes of them before, and that it comes, shows in the counters.
        let now = (local, status["fetch"].clone());
        if before.as_ref() != Some(&now) {
            if before.is_none() {
                note!("waiting until every object of the generation is local");
            }
            (before, moved) = (Some(now), Instant::now());
        }
        let (done, total) = (local.unwrap_or(0), all.unwrap_or(0));
        line.update(Progress { task: "fetching", done, total, bytes: true });
        if moved.elapsed() > LOCAL_STILL {
            let why = status["manager"]["last_error"].as_str().map_or_else(String::new, |why| format!(": {why}"));
            let (still, amount) = (duration(LOCAL_STILL), bytes_of(done, total));
            bail!("{amount} are local, and for {still} nothing more has come{why}");
        }
        std::thread::sleep(LOCAL_PAUSE);
    }
}

/// A directory below RUN for one recording; gone when it is over.
struct Work {
    dir: PathBuf,
}

impl Drop for Work {
    fn drop(&mut self) {
        // What is left of one that was killed is found by its name.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Work {
    fn make(dirs: &Dirs) -> Result<Self> {
        let dir = dirs.run.join(format!("profile-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn run(
        &self,
        generation: &GenerationRef,
        command: &[OsString],
        tree: &Attached,
        limit: Duration,
        dirs: &Dirs,
    ) -> Result<(Over, Vec<Touch>)> {
        let mut mount = Mount::start(&self.dir, &tree.tree, tree.namespace_pid.is_some(), dirs)?;
        let (pid, root) = mount.wait_until_ready()?;
        if let Some(pid) = pid {
            agent_core::internal::sys::namespace::enter(pid).context("entering the profile mount's namespaces")?;
        }
        let (path, arguments) = program(generation, tree, &root, command, dirs)?;
        let mut child = Command::new(&path);
        // Into pipes, as a service manager and most callers do: programs take other paths for files and terminals.
        child.args(arguments).env("MANAGER_FS_TREE", &root).stdin(Stdio::null()).process_group(0);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().with_context(|| format!("start {}", path.display()))?;
        let printed = Arc::new(AtomicBool::new(false));
        pass_on(child.stdout.take(), &printed);
        pass_on(child.stderr.take(), &printed);
        let over = started::watch(&mut child, &printed, limit)?;
        mount.end()?;
        let touches = std::fs::read(self.dir.join("touches")).context("reading what was touched")?;
        Ok((over, codec::decode::<Vec<Touch>, TOUCHES_BYTES_MAX>(&touches)?))
    }
}

/// The holder of the mount, a child of ours.
struct Mount {
    holder: Child,
}

impl Drop for Mount {
    fn drop(&mut self) {
        terminate(&self.holder);
        let _ = self.holder.wait();
    }
}

impl Mount {
    fn start(work: &Path, tree: &TreeId, in_namespace: bool, dirs: &Dirs) -> Result<Self> {
        let own = std::env::current_exe().context("finding this program's own file")?;
        let mut holder = Command::new(own);
        holder.arg("--cache").arg(&dirs.cache).arg("__profile-mount").arg(work).arg(tree.to_hex());
        holder.env(IN_NAMESPACE, if in_namespace { "1" } else { "" });
        let holder = holder.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn()?;
        Ok(Self { holder })
    }

    /// The process whose namespaces hold the mount, if they are not ours, and the tree's path.
    fn wait_until_ready(&mut self) -> Result<(Option<u32>, PathBuf)> {
        let stderr = self.holder.stderr.take().context("the profile mount's messages")?;
        let mut lines = BufReader::new(stderr).lines();
        while let Some(Ok(line)) = lines.next() {
            let Some(ready) = line.strip_prefix(READY) else {
                out::aside(&line);
                continue;
            };
            let (pid, path) = ready.split_once(' ').context("the profile mount's ready line")?;
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| out::aside(&line)));
            return Ok((pid.parse().ok(), PathBuf::from(path)));
        }
        bail!("the mount for the profile did not come up; see its message above")
    }

    fn end(&mut self) -> Result<()> {
        terminate(&self.holder);
        let status = self.holder.wait()?;
        anyhow::ensure!(status.success(), "the mount for the profile ended with {status}");
        Ok(())
    }
}

fn terminate(child: &Child) {
    let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) else { return };
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
}

/// What the program prints is for people: standard output may be a JSON document of ours. Notes that it does.
fn pass_on(output: Option<impl Read + Send + 'static>, printed: &Arc<AtomicBool>) {
    let (Some(mut output), printed) = (output, Arc::clone(printed)) else { return };
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            printed.store(true, Ordering::Relaxed);
            // Nobody need listen.
            drop(std::io::stderr().write_all(&buffer[..count]));
        }
    });
}

/// Tells the holder that it must not mount in this process's own namespace.
const IN_NAMESPACE: &str = "MANAGER_FS_PROFILE_NAMESPACE";

fn layout(work: &Path) -> Layout {
    Layout { run: work.join("run"), cache: work.join("cache"), mountpoint: work.join("run/mnt") }
}

/// The hidden command `__profile-mount`.
pub(super) fn mount(args: &ProfileMountArgs, dirs: &Dirs) -> Result<Done> {
    super::log::start();
    let layout = layout(&args.work);
    let in_namespace = std::env::var_os(IN_NAMESPACE).is_some_and(|value| !value.is_empty());
    let worker_args: Vec<OsString> = vec![
        "--cache".into(),
        dirs.cache.clone().into(),
        "__profile-worker".into(),
        args.work.clone().into(),
        args.tree.to_hex().into(),
    ];
    let helper_args: Vec<OsString> = vec![
        "--cache".into(),
        layout.cache.clone().into(),
        "--run".into(),
        layout.run.clone().into(),
        "__helper".into(),
        "--".into(),
        layout.mountpoint.clone().into(),
    ];
    hold(&HoldOptions {
        program: std::env::current_exe().context("finding this program's own file")?,
        worker_args,
        helper_args,
        layout,
        namespace: if in_namespace { NamespaceChoice::New } else { NamespaceChoice::Auto },
        state: None,
        fuse_device: "/dev/fuse".into(),
    })?;
    Ok(Done::Clean)
}

/// The hidden command `__profile-worker`.
pub(super) fn worker(args: &ProfileMountArgs, dirs: &Dirs) -> Result<Done> {
    super::log::start();
    let touches = args.work.join("touches");
    profile::run(&ProfileOptions {
        layout: layout(&args.work),
        source: dirs.cache.clone(),
        tree: args.tree,
        touches,
    })?;
    Ok(Done::Clean)
}
