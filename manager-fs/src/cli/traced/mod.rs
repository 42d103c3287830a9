//! `exec --trace FILE.svg`: one start as a timeline, so that a person sees where its time went.

mod drawing;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::exec::{ExecArgs, explain, program};
use super::out::note;
use super::started::{self, Over};
use super::{Done, Here, daemon, interrupt};
use drawing::{Marks, draw, summary};

/// A start that takes longer is drawn as far as it came.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// How long what an ended program has said may take to be passed on; what it has left running may go on saying things.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the program, draws its start once that is over, and waits for the program's end.
pub(super) fn run(args: &ExecArgs, image: &Path, here: &Here) -> Result<Done> {
    // Before anything is started, and in the namespace in which the command was typed.
    let mut file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    interrupt::note_from_now_on()?;
    let mut start = Start::begin(args, here)?;
    let over = started::until_over(&mut start.child, &start.output.printed, LIMIT);
    // An interrupted program has heard nothing: it is in a group of its own.
    let over = over.inspect_err(|_| drop(started::end(&mut start.child)))?;
    // What cannot be drawn is not left to run for nobody.
    let drawn = start.draw(&title(args), image, &mut file, here);
    drawn.inspect_err(|_| drop(started::end(&mut start.child)))?;
    let done = match over {
        Over::Ended(status) => code(status),
        _ => wait(&mut start.child)?,
    };
    start.said_all();
    Ok(done)
}

fn title(args: &ExecArgs) -> String {
    let typed = args.command.iter().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(args.generation.to_string()).chain(typed).collect::<Vec<_>>().join(" ")
}

/// As a shell tells of a program that a signal has ended.
fn code(status: ExitStatus) -> Done {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Done::Code(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// For as long as the program runs; an interrupt is passed on to it.
fn wait(child: &mut Child) -> Result<Done> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(code(status));
        }
        if let Err(interrupted) = interrupt::check("") {
            started::end(child)?;
            return Err(interrupted.into());
        }
        std::thread::sleep(LOOK);
    }
}

/// A program that has been started, and what has been seen of it so far.
struct Start {
    trace: daemon::Tracing,
    /// Held for as long as the program runs.
    _lease: agent_core::internal::control::Client,
    child: Child,
    output: Arc<Output>,
    /// Ends when everything of the program's output, and of its errors, has been passed on.
    passed: [Receiver<()>; 2],
    attached: Instant,
    started: Instant,
}

impl Start {
    fn begin(args: &ExecArgs, here: &Here) -> Result<Self> {
        let trace = daemon::Tracing::begin(here)?;
        let typed = args.command.first().and_then(|program| program.to_str());
        let (lease, tree) = daemon::hold(here, &args.generation, typed)?;
        let attached = Instant::now();
        let root = PathBuf::from(&tree.path);
        if let Some(pid) = tree.namespace_pid {
            agent_core::internal::sys::namespace::enter(pid).context("entering the mount daemon's namespaces")?;
        }
        let (path, arguments) = program(&args.generation, &tree, &root, &args.command, &here.dirs)?;
        let mut command = Command::new(&path);
        // Into pipes, so that its first output is seen; in a group of its own, so that its end is that of all of it.
        command.args(arguments).env("MANAGER_FS_TREE", &root).stdin(Stdio::null()).process_group(0);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| explain(&path, &error))?;
        let output = Arc::new(Output::default());
        let passed = [
            pass_on(child.stdout.take(), std::io::stdout(), &output),
            pass_on(child.stderr.take(), std::io::stderr(), &output),
        ];
        Ok(Self { trace, _lease: lease, child, output, passed, attached, started })
    }

    fn draw(&mut self, title: &str, image: &Path, file: &mut File, here: &Here) -> Result<()> {
        let marks = self.marks();
        let trace = self.trace.end(here)?;
        file.write_all(draw(title, &trace, marks).as_bytes())
            .with_context(|| format!("write {}", image.display()))?;
        note!("{title}: {}; drawn in {}", summary(&trace, marks), image.display());
        Ok(())
    }

    /// Waits until what an ended program has said is passed on.
    fn said_all(&self) {
        for passed in &self.passed {
            // Nothing is ever sent: the end is what is waited for. Whoever reads slowly is waited for, too.
            while passed.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout)
                && self.output.writing.load(Ordering::Relaxed) > 0
                && interrupt::check("").is_ok()
            {}
        }
    }

    /// Of now, at which its start is over.
    fn marks(&self) -> Marks {
        let since = |at: Instant| proto::width::micros(at.saturating_duration_since(self.trace.begun()));
        Marks {
            attached_us: since(self.attached),
            started_us: since(self.started),
            printed_us: self.output.first.get().map(|at| since(*at)),
            over_us: since(Instant::now()),
        }
    }
}

/// What a program has said.
#[derive(Debug, Default)]
struct Output {
    printed: AtomicBool,
    first: OnceLock<Instant>,
    /// How many of its two streams are just being passed on to somebody.
    writing: AtomicUsize,
}

/// Passes on what comes, and notes when the first of it came. What is returned ends with it.
fn pass_on(
    from: Option<impl Read + Send + 'static>,
    mut to: impl Write + Send + 'static,
    output: &Arc<Output>,
) -> Receiver<()> {
    let ((ends, end), output) = (channel(), Arc::clone(output));
    let Some(mut from) = from else { return end };
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            output.first.get_or_init(Instant::now);
            output.printed.store(true, Ordering::Relaxed);
            // Nobody need listen.
            output.writing.fetch_add(1, Ordering::Relaxed);
            drop(to.write_all(&buffer[..count]).and_then(|()| to.flush()));
            output.writing.fetch_sub(1, Ordering::Relaxed);
        }
        drop(ends);
    });
    end
}
