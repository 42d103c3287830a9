//! `profile GENERATION [-- CMD…]`: records on this host what a start touches first, for the start-up bundle.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::bundle::{TOUCHES_MAX, Touch};
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::BundleFacts;
use proto::{GenerationRef, TreeId, codec};
use serde_json::{Value, json};

use super::client::ask_once;
use super::exec::program;
use super::out::{self, note, say};
use super::progress::{Progress, ProgressLine};
use super::units::{bytes, bytes_of, duration};
use super::{Done, Here, Json, daemon, interrupt};
use crate::config::Dirs;
use crate::host::mount::{HoldOptions, Layout, NamespaceChoice, hold};
use crate::host::profile::{self, ProfileOptions, READY};
use crate::manager::admin::Quick;

const LOCAL_PAUSE: Duration = Duration::from_millis(100);
/// How long the background fetch may get nothing before the command gives up.
const LOCAL_STILL: Duration = Duration::from_secs(60);
/// How long a program may take to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(2);
const END_PAUSE: Duration = Duration::from_millis(10);
const TOUCHES_BYTES_MAX: usize = 16 + 12 * TOUCHES_MAX;

/// `profile`.
#[derive(Debug, Args)]
pub(super) struct ProfileArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    /// End the program after this time; what it has touched by then counts
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    at_most: Duration,
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
    let recorded = record(&args.generation, &args.command, args.at_most, here)?;
    if args.output.json {
        out::json(&recorded.json());
    } else {
        say!("{}", recorded.text());
    }
    Ok(Done::Clean)
}

/// What was recorded, and what became of it.
pub(super) struct Recorded {
    generation: GenerationRef,
    tree: TreeId,
    pages: u64,
    exit: String,
    bundle: BundleFacts,
}

impl Recorded {
    pub(super) fn json(&self) -> Value {
        json!({
            "generation": self.generation.to_string(),
            "tree_id": self.tree,
            "touched_pages": self.pages,
            "program": self.exit,
            "bundle": {
                "objects": self.bundle.objects,
                "plain_bytes": self.bundle.plain_bytes,
                "bundle_bytes": self.bundle.bundle_bytes,
            },
        })
    }

    pub(super) fn text(&self) -> String {
        format!(
            "{}: the program touched {} pages ({}); the start-up bundle has {} of {} objects, {} with the manifest",
            self.generation,
            self.pages,
            self.exit,
            bytes(self.bundle.plain_bytes),
            self.bundle.objects,
            bytes(self.bundle.bundle_bytes)
        )
    }
}

/// Makes the generation local, runs the program once on a mount of its own, and gives the manager what it touched.
pub(super) fn record(
    generation: &GenerationRef,
    command: &[OsString],
    at_most: Duration,
    here: &Here,
) -> Result<Recorded> {
    // There are processes and a mount to take away.
    interrupt::note_from_now_on()?;
    // The connection is the lease.
    let (_lease, tree) = daemon::hold(here, generation)?;
    wait_until_local(&tree, here)?;
    let work = Work::make(&here.dirs)?;
    let (exit, touches) = work.run(generation, command, &tree, at_most, &here.dirs)?;
    let order = DaemonRequest::Profile { tree: tree.tree, touches: touches.clone() };
    let bundle = match daemon::request(here, &order)? {
        DaemonReply::Bundle(facts) => facts,
        other => bail!("the mount daemon answered with {other:?}"),
    };
    let pages = touches.iter().map(|touch| u64::from(touch.count)).sum();
    Ok(Recorded { generation: generation.clone(), tree: tree.tree, pages, exit, bundle })
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
        if before != Some(local) {
            if before.is_none() {
                note!("waiting until every object of the generation is local");
            }
            (before, moved) = (Some(local), Instant::now());
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
        at_most: Duration,
        dirs: &Dirs,
    ) -> Result<(String, Vec<Touch>)> {
        let mut mount = Mount::start(&self.dir, &tree.tree, tree.namespace_pid.is_some(), dirs)?;
        let (pid, root) = mount.wait_until_ready()?;
        if let Some(pid) = pid {
            agent_core::sys::namespace::enter(pid).context("entering the profile mount's namespaces")?;
        }
        let (path, arguments) = program(generation, tree, &root, command, dirs)?;
        let mut child = Command::new(&path);
        // Into pipes, as a service manager and most callers do: programs take other paths for files and terminals.
        child.args(arguments).env("MANAGER_FS_TREE", &root).stdin(Stdio::null()).process_group(0);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().with_context(|| format!("start {}", path.display()))?;
        pass_on(child.stdout.take());
        pass_on(child.stderr.take());
        let exit = end_in_time(child, at_most)?;
        mount.end()?;
        let touches = std::fs::read(self.dir.join("touches")).context("reading what was touched")?;
        Ok((exit, codec::decode::<Vec<Touch>, TOUCHES_BYTES_MAX>(&touches)?))
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
    signal(child, rustix::process::Signal::TERM, false);
}

fn signal(child: &Child, signal: rustix::process::Signal, group: bool) {
    let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) else { return };
    // It may have ended by itself.
    let _ = if group {
        rustix::process::kill_process_group(pid, signal)
    } else {
        rustix::process::kill_process(pid, signal)
    };
}

/// What the program prints is for people: standard output may be a JSON document of ours.
fn pass_on(output: Option<impl std::io::Read + Send + 'static>) {
    if let Some(mut output) = output {
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::stderr()));
    }
}

/// Waits for the program, or ends it with everything that it started; says how it ended.
fn end_in_time(mut child: Child, at_most: Duration) -> Result<String> {
    let mut until = Instant::now() + at_most;
    let mut signals = [rustix::process::Signal::TERM, rustix::process::Signal::KILL].into_iter();
    let mut ended_by_us = false;
    loop {
        if let Some(status) = child.try_wait()? {
            let why = if ended_by_us { format!("ended after {}", duration(at_most)) } else { status.to_string() };
            return Ok(why);
        }
        if let Err(interrupted) = interrupt::check("nothing was recorded") {
            signal(&child, rustix::process::Signal::KILL, true);
            child.wait()?;
            return Err(interrupted.into());
        }
        if Instant::now() >= until
            && let Some(next) = signals.next()
        {
            ended_by_us = true;
            signal(&child, next, true);
            until = Instant::now() + END_PATIENCE;
        }
        std::thread::sleep(END_PAUSE);
    }
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
