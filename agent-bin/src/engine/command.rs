//! Commands of the host's own that are run for a backup: named by its permits, bounded in time, and of what they say the
//! last lines are kept.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::limits::{OUTPUT_LINES_MAX, PROBLEM_BYTES_MAX};
use proto::means::{Commands, Ran};
use proto::{CommandName, width};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::fault::{CommandFault, EngineError};
use super::{Mark, SharedMeter, Work};

/// What is kept of the end of what a command prints.
const SAID_BYTES: usize = OUTPUT_LINES_MAX * PROBLEM_BYTES_MAX;
/// How often a command that runs is asked whether it shall go on.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Where programs are looked for by those that the commands are. What the agent has is its own affair.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// When a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    /// A backup that ended so.
    After(&'static str),
    /// Its output is what is backed up.
    Output,
}

impl Moment {
    fn word(self) -> &'static str {
        match self {
            Moment::Before => "before",
            Moment::After(_) => "after",
            Moment::Output => "output",
        }
    }
}

/// Which command is run for what.
struct Order<'a> {
    name: &'a CommandName,
    moment: Moment,
    deadline: Duration,
    sources: &'a [&'a Path],
    mark: &'a Mark,
}

/// Backs up, with what runs before and after it. What runs after does so however the backup ended, also without being
/// waited for.
pub(crate) fn around(
    commands: &Commands,
    sources: &[&Path],
    mark: &Mark,
    meter: &SharedMeter,
    back_up: impl FnOnce() -> Result<Work, EngineError>,
) -> Result<Work, EngineError> {
    let deadline = Duration::from_secs(commands.seconds.into());
    let order = |name, moment| Order { name, moment, deadline, sources, mark };
    let backed_up = catch_unwind(AssertUnwindSafe(|| {
        let before = commands.before.as_ref().map(|name| {
            meter.say(&format!("running {name} before it"));
            order(name, Moment::Before).run(&|| meter.is_stopped())
        });
        let before = before.transpose()?;
        let mut work = back_up()?;
        work.ran.splice(0..0, before);
        Ok(work)
    }));
    let after = commands.after.as_ref().map(|name| {
        meter.say(&format!("running {name} after it"));
        let ended = match &backed_up {
            Ok(Ok(_)) => "done",
            Ok(Err(EngineError::Stopped)) => "stopped",
            Ok(Err(_)) | Err(_) => "failed",
        };
        order(name, Moment::After(ended)).run(&|| false)
    });
    let mut work = backed_up.unwrap_or_else(|panic| resume_unwind(panic))?;
    match after.transpose() {
        Ok(after) => work.ran.extend(after),
        Err(fault) => meter.problem(fault.to_string()),
    }
    Ok(work)
}

/// Runs a command and lets `take` have what it prints. Nothing counts that was taken of one that does not end well.
pub(super) fn output_of<T>(
    commands: &Commands,
    name: &CommandName,
    path: &Path,
    mark: &Mark,
    meter: &SharedMeter,
    take: impl FnOnce(ChildStdout) -> Result<T, EngineError>,
) -> Result<(T, Ran), EngineError> {
    let (deadline, sources) = (Duration::from_secs(commands.seconds.into()), &[path]);
    let order = Order { name, moment: Moment::Output, deadline, sources, mark };
    let began = Instant::now();
    let (said, write) = io::pipe().map_err(|error| order.fault(error.into()))?;
    let mut child = order.spawn(Stdio::piped(), write.into())?;
    let Some(stdout) = child.stdout.take() else { return Err(order.fault(CommandFault::Unread)) };
    let (over, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (over, failed, is) = (&over, &failed, |flag: &AtomicBool| flag.load(Ordering::Acquire));
    std::thread::scope(|scope| {
        // Whoever reads waits for bytes; only the end of the command, by itself or not, is sure to end that. What it has
        // begun and left behind may still write, so its own end is not enough.
        let stop = || meter.is_stopped() || is(failed);
        let watch = scope.spawn(move || wait(child, said, began + deadline, &stop, &|| is(over)));
        let taken = catch_unwind(AssertUnwindSafe(|| take(stdout)));
        failed.store(!matches!(taken, Ok(Ok(_))), Ordering::Release);
        over.store(true, Ordering::Release);
        let waited = watch.join().unwrap_or(Err(CommandFault::Unread));
        let taken = taken.unwrap_or_else(|panic| resume_unwind(panic))?;
        if meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        let ran = order.ended(waited, began)?;
        Ok((taken, ran))
    })
}

impl Order<'_> {
    fn fault(&self, fault: CommandFault) -> EngineError {
        EngineError::Command { name: self.name.clone(), moment: self.moment.word(), fault: Box::new(fault) }
    }

    fn run(&self, stop: &dyn Fn() -> bool) -> Result<Ran, EngineError> {
        let began = Instant::now();
        let (said, write) = io::pipe().map_err(|error| self.fault(error.into()))?;
        let also = write.try_clone().map_err(|error| self.fault(error.into()))?;
        let child = self.spawn(also.into(), write.into())?;
        let waited = wait(child, said, began + self.deadline, stop, &|| true);
        if stop() {
            return Err(EngineError::Stopped);
        }
        self.ended(waited, began)
    }

    fn ended(&self, waited: Result<Waited, CommandFault>, began: Instant) -> Result<Ran, EngineError> {
        let Waited { status, said, late } = waited.map_err(|fault| self.fault(fault))?;
        if late {
            return Err(self.fault(CommandFault::Late { after: self.deadline, said }));
        }
        if !status.success() {
            return Err(self.fault(CommandFault::Failed { status, said }));
        }
        let (moment, ended) = (self.moment.word().to_owned(), status.to_string());
        Ok(Ran {
            command: self.name.clone(),
            moment,
            ended,
            output: said,
            duration_ms: width::millis(began.elapsed()),
        })
    }

    fn spawn(&self, stdout: Stdio, stderr: Stdio) -> Result<Child, EngineError> {
        let words = self.mark.permits.command(self.name)?;
        let [program, arguments @ ..] = words else { return Err(self.fault(CommandFault::Unread)) };
        must_be_trusted(Path::new(program)).map_err(|fault| self.fault(fault))?;
        let sources: Vec<_> = self.sources.iter().map(|source| source.display().to_string()).collect();
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        command.env_clear().env("PATH", SEARCHED).env("LANG", "C.UTF-8");
        command.envs(std::env::var_os("HOME").map(|home| ("HOME", home)));
        command.env("MANAGER_FS_JOB", self.mark.job.to_string());
        command.env("MANAGER_FS_HOST", self.mark.origin.host.as_str());
        command.env("MANAGER_FS_MOMENT", self.moment.word());
        command.env("MANAGER_FS_SOURCES", sources.join("\n"));
        if let Moment::After(ended) = self.moment {
            command.env("MANAGER_FS_ENDED", ended);
        }
        let _permit = agent_core::exec::child_permit();
        let program = program.into();
        command.spawn().map_err(|error| self.fault(CommandFault::NotRun { program, error }))
    }
}

/// The agent may be root: it runs nothing that somebody else can exchange.
fn must_be_trusted(program: &Path) -> Result<(), CommandFault> {
    let metadata = fs::metadata(program);
    let metadata = metadata.map_err(|error| CommandFault::NotRun { program: program.to_owned(), error })?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let own = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if own && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(CommandFault::NotTrusted { program: program.to_owned(), owner, mode })
}

/// A command that is over.
struct Waited {
    status: ExitStatus,
    said: Vec<String>,
    late: bool,
}

/// Waits until the command has ended and `may_end`. At `until`, or when it is to `stop`, it is killed with everything that
/// stayed in its process group.
fn wait(
    mut child: Child,
    mut said: io::PipeReader,
    until: Instant,
    stop: &dyn Fn() -> bool,
    may_end: &dyn Fn() -> bool,
) -> Result<Waited, CommandFault> {
    let (mut tail, mut late) = (VecDeque::with_capacity(SAID_BYTES), false);
    let ended = watch(&child, &mut said, &mut tail, &mut || {
        late = Instant::now() >= until;
        (late || stop(), may_end())
    });
    if !matches!(ended, Ok(true)) {
        // Before it is reaped, while its number cannot be another's.
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        drop(child.kill());
    }
    let status = child.wait()?;
    ended?;
    let text = String::from_utf8_lossy(tail.make_contiguous()).into_owned();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(OUTPUT_LINES_MAX));
    let said = last.map(|line| proto::text::line(line.trim_end(), PROBLEM_BYTES_MAX)).collect();
    Ok(Waited { status, said, late })
}

/// Reads what a command says until it has ended by itself, or shall not go on. Whether it has is returned. `look` says
/// whether it shall end, and whether its own end is one.
fn watch(
    child: &Child,
    said: &mut io::PipeReader,
    tail: &mut VecDeque<u8>,
    look: &mut dyn FnMut() -> (bool, bool),
) -> Result<bool, CommandFault> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(io::Error::from)?;
    rustix::io::ioctl_fionbio(&*said, true).map_err(io::Error::from)?;
    let tick = Timespec::try_from(LOOK_EVERY).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (mut bytes, mut is_open, mut has_ended) = ([0; 4096], true, false);
    loop {
        let (shall_end, may_end) = look();
        if has_ended && may_end {
            return Ok(true);
        }
        if shall_end {
            return Ok(false);
        }
        let mut fds = Vec::with_capacity(2);
        if !has_ended {
            fds.push(PollFd::new(&pidfd, PollFlags::IN));
        }
        if is_open {
            fds.push(PollFd::from_borrowed_fd(said.as_fd(), PollFlags::IN));
        }
        let _ = rustix::event::poll(&mut fds, Some(&tick));
        has_ended |= !has_ended && fds.first().is_some_and(|fd| !fd.revents().is_empty());
        loop {
            match said.read(&mut bytes) {
                Ok(0) => is_open = false,
                Ok(n) => {
                    tail.extend(&bytes[..n]);
                    tail.drain(..tail.len().saturating_sub(SAID_BYTES));
                    // One that floods is asked as often as others whether it shall go on.
                    if n == bytes.len() && !has_ended {
                        break;
                    }
                    continue;
                }
                Err(_) => {}
            }
            break;
        }
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
