//! The smallest agent: it counts. A `backup` of N sources counts to N, one a unit, and `--unit-ms` says how long a unit
//! takes. It is what this crate's tests put into trees, once as a good version and once for each way of being bad.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use agent_core::internal::{moments, sys};
use agent_core::{Agent, AgentConfig, Demand, Ended, NotHealthy, OperationContext, Operations, StateRefused};
use proto::agent::{Operation, Outcome, Progress, Summary};

/// Counts, and remembers how often it has been asked to since its very first version began.
struct Counter {
    unit: Duration,
    /// What crosses a change-over in memory.
    operations: Mutex<u32>,
    healthy: bool,
    stubborn: bool,
    saves_for_ever: bool,
    /// The state has at least so many bytes.
    state_bytes: u64,
    /// Where it is noted what was restored: schema, operations, bytes, process.
    restored: Option<String>,
    /// The callback that panics.
    panics: Option<String>,
    /// The callback that closes every descriptor.
    closes: Option<String>,
    /// What quiescing does that it should not.
    bad_quiesce: Option<BadQuiesce>,
}

enum BadQuiesce {
    /// Starts a child that never ends, and leaves its number in a file.
    Forks(String),
    Exits,
}

impl Counter {
    /// A callback that panics, if this is the one.
    fn panic_in(&self, name: &str) {
        assert!(self.panics.as_deref() != Some(name), "told to panic");
    }

    /// A callback that closes every descriptor, whosever it is, if this is the one.
    fn close_in(&self, name: &str) {
        if self.closes.as_deref() == Some(name) {
            (3..1024).for_each(|number| drop(sys::fd::take_inherited(number)));
        }
    }
}

impl Operations for Counter {
    fn resume(&self) {
        self.panic_in("resume");
    }

    fn confirmed(&self) {
        self.panic_in("confirmed");
    }

    fn quiesce(&self, _until: Instant) {
        self.panic_in("quiesce");
        self.close_in("quiesce");
        match &self.bad_quiesce {
            Some(BadQuiesce::Forks(note)) => {
                if let Ok(child) = std::process::Command::new("/bin/sleep").arg("600").spawn() {
                    drop(std::fs::write(note, child.id().to_string()));
                }
            }
            Some(BadQuiesce::Exits) => std::process::exit(5),
            None => {}
        }
    }

    fn run(&self, operation: &Operation, context: &OperationContext) -> Ended {
        let (Operation::Backup { sources, .. } | Operation::BackupWith { sources, .. }) = operation else {
            return Ended::Outcome(Outcome::Failed(format!("a counter knows no {}", operation.kind())));
        };
        *lock(&self.operations) += 1;
        let units = proto::width::count(sources.len());
        let first =
            context.resume().and_then(|state| state.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        for done in first..units {
            if self.stubborn {
                // An operation that looks at no demand is abandoned by the exec.
                std::thread::sleep(self.unit);
            } else {
                let until = Instant::now() + self.unit;
                while Instant::now() < until && context.demand() != Demand::Cancel {
                    std::thread::sleep(Duration::from_millis(1).min(self.unit));
                }
                if context.demand() == Demand::Cancel {
                    return Ended::Outcome(Outcome::Cancelled(summary(done)));
                }
            }
            if let Err(e) = context.checkpoint(&(done + 1).to_le_bytes()) {
                return Ended::Outcome(Outcome::Failed(e.to_string()));
            }
            let activity = sources[done as usize].clone();
            let version = String::new();
            context.progress(Progress { units_done: done + 1, units, bytes_done: 0, bytes: 0, activity, version });
            if !self.stubborn && context.should_stop() && done + 1 < units {
                return Ended::Checkpointed;
            }
        }
        Ended::Outcome(Outcome::Done(Summary { bytes: lock(&self.operations).to_owned().into(), ..summary(units) }))
    }

    fn save_state(&self, _schema: u32) -> Vec<u8> {
        self.panic_in("save_state");
        self.close_in("save_state");
        if self.saves_for_ever {
            loop {
                std::thread::park();
            }
        }
        lock(&self.operations).to_le_bytes().to_vec()
    }

    fn save_state_to(&self, schema: u32, file: &mut File) -> std::io::Result<()> {
        file.write_all(&self.save_state(schema))?;
        // As a program does that maps its memory: what was never written is read as zeros.
        let long = file.metadata()?.len().max(self.state_bytes);
        file.set_len(long)
    }

    fn restore_state_from(&self, schema: u32, mut file: &File) -> Result<(), StateRefused> {
        self.panic_in("restore_state");
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).map_err(|e| format!("want four bytes: {e}"))?;
        *lock(&self.operations) = u32::from_le_bytes(bytes);
        if let Some(note) = &self.restored {
            let length = file.metadata().map_err(|e| e.to_string())?.len();
            let text = format!("{schema} {} {length} {}", u32::from_le_bytes(bytes), std::process::id());
            std::fs::write(note, text).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn healthy(&self) -> Result<(), NotHealthy> {
        self.panic_in("healthy");
        if self.healthy { Ok(()) } else { Err("told to be sick".into()) }
    }
}

fn summary(units: u32) -> Summary {
    Summary { files: units.into(), ..Summary::default() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `--note FILE`: what was inherited and can be used. `--keep N`: so many more names from now on, or with
/// `--keep-when FILE` as soon as it exists. `--open N`, `--threads N`: a program that is busy.
fn own_work(inherited: &agent_core::Inherited, text: &impl Fn(&str) -> Option<String>) {
    surroundings(text);
    let number = |name: &str| text(name).and_then(|value| value.parse::<u32>().ok()).unwrap_or(0);
    let null = || std::fs::File::open("/dev/null");
    let note = text("--note");
    let write_note = move |inherited: &agent_core::Inherited| {
        let names = inherited.names();
        let usable = names.iter().filter(|name| inherited.take(name.as_ref()).is_some()).count();
        if let Some(note) = &note {
            let new = format!("{note}.new");
            drop(std::fs::write(&new, format!("{} {usable} {}", names.len(), std::process::id())));
            drop(std::fs::rename(new, note));
        }
    };
    write_note(inherited);
    let keep = {
        let (inherited, count) = (inherited.clone(), number("--keep"));
        move || (0..count).try_for_each(|n| inherited.keep(&format!("n{n}"), null()?).map_err(std::io::Error::other))
    };
    match text("--keep-when") {
        Some(file) => {
            let inherited = inherited.clone();
            std::thread::spawn(move || {
                while !std::path::Path::new(&file).exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                if keep().is_ok() {
                    write_note(&inherited);
                }
            });
        }
        None => {
            if let Err(e) = keep() {
                eprintln!("tiny agent: {e}");
                std::process::exit(8);
            }
        }
    }
    for _ in 0..number("--open") {
        std::mem::forget(null());
    }
    for _ in 0..number("--threads") {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
    }
}

/// `--directory DIR`, `--user NUMBER`, `--blocks SIGNAL`: what a process has around it, as it may not wish it for the
/// next program. As many files may be open as the host allows.
fn surroundings(text: &impl Fn(&str) -> Option<String>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let mut failed = rustix::process::setrlimit(rustix::process::Resource::Nofile, most).is_err();
    failed |= text("--directory").is_some_and(|path| std::env::set_current_dir(path).is_err());
    if let Some(user) = text("--user").and_then(|number| number.parse().ok()) {
        // Of the threads that are started from here on, too.
        failed |= rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).is_err();
    }
    if let Some(signal) = text("--blocks").and_then(|number| number.parse().ok()) {
        failed |= sys::signal::SignalFd::new(&[signal]).map(std::mem::forget).is_err();
    }
    if failed {
        std::process::exit(6);
    }
}

/// `--later handoff`, `--later inherited`: what this version is given is of a format that is not known yet, as if a version
/// of years from now had left it.
fn take_later(text: &impl Fn(&str) -> Option<String>) -> std::io::Result<()> {
    use agent_core::internal::handoff::variable;
    use rustix::fs::{MemfdFlags, SealFlags};
    let variable = match text("--later").as_deref() {
        Some("handoff") => variable::HANDOFF_FD,
        Some("inherited") => variable::INHERITED_FD,
        _ => return Ok(()),
    };
    let Some(number) = std::env::var(variable).ok().and_then(|number| number.parse().ok()) else { return Ok(()) };
    let mut given = File::from(sys::fd::take_inherited(number)?);
    let mut bytes = Vec::new();
    // Whoever wrote it left it at its end.
    std::io::Seek::rewind(&mut given)?;
    given.read_to_end(&mut bytes)?;
    // The last byte of the magic.
    bytes[7] = 200;
    let mut later = File::from(rustix::fs::memfd_create("later", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    later.write_all(&bytes)?;
    rustix::fs::fcntl_add_seals(&later, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    let mut there = std::os::fd::OwnedFd::from(given);
    rustix::io::dup2(&later, &mut there)?;
    std::mem::forget(there);
    Ok(())
}

/// The program as its arguments describe it.
fn counter(text: &impl Fn(&str) -> Option<String>, has: &impl Fn(&str) -> bool) -> Counter {
    let value = |name: &str| text(name)?.parse::<u64>().ok();
    Counter {
        unit: Duration::from_millis(value("--unit-ms").unwrap_or(1)),
        operations: Mutex::new(0),
        healthy: !has("--sick"),
        stubborn: has("--stubborn"),
        saves_for_ever: has("--saves-for-ever"),
        state_bytes: value("--state-bytes").unwrap_or(0),
        restored: text("--restored"),
        panics: text("--panics"),
        closes: text("--closes"),
        bad_quiesce: text("--quiesce-forks")
            .map(BadQuiesce::Forks)
            .or(has("--quiesce-exits").then_some(BadQuiesce::Exits)),
    }
}

fn main() {
    moments::watch(|moment, _| tests::faults::at(moment));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let value = |name: &str| text(name)?.parse::<u64>().ok();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let Some(code) = value("--exit-at-once") {
        eprintln!("tiny agent: boom");
        std::process::exit(i32::try_from(code).unwrap_or(1));
    }
    let file = arguments.iter().position(|a| a == "--exit-if").and_then(|at| arguments.get(at + 1));
    if file.is_some_and(|file| std::path::Path::new(file).exists()) {
        eprintln!("tiny agent: the world is bad");
        std::process::exit(9);
    }
    if has("--hang") {
        // Not an agent at all.
        std::thread::sleep(Duration::from_secs(600));
    }
    if has("--only-handed-over") && std::env::var_os("MANAGER_FS_HANDOFF_FD").is_none() {
        eprintln!("tiny agent: nothing was handed over");
        std::process::exit(7);
    }
    if let Err(e) = take_later(&text) {
        eprintln!("tiny agent: {e}");
        std::process::exit(6);
    }
    let child = arguments.iter().position(|a| a == "--child").and_then(|at| arguments.get(at + 1)).cloned();
    let counter = counter(&text, &has);
    let forgotten = arguments.iter().position(|a| a == "--forget").and_then(|at| arguments.get(at + 1));
    let agent = AgentConfig::from_env().and_then(|config| {
        if let Some(name) = forgotten {
            config.inherited().forget(name);
        }
        own_work(config.inherited(), &text);
        Agent::start(config, counter)
    });
    let agent = match agent {
        Ok(agent) => agent,
        Err(e) => {
            eprintln!("tiny agent: {e}");
            std::process::exit(1);
        }
    };
    if let Some(note) = child {
        // What a child of the agent, and a child of that one, has open.
        let script = format!("ls -l /proc/self/fd > {note}.new && mv {note}.new {note}");
        let _permit = agent_core::exec::child_permit();
        drop(std::process::Command::new("/bin/sh").args(["-c", &script]).status());
    }
    if has("--flood") {
        std::thread::spawn(|| {
            loop {
                eprintln!("tiny agent: {}", "words that nobody reads ".repeat(40));
            }
        });
    }
    if let Some(after) = value("--crash-after-ms") {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(after));
            eprintln!("tiny agent: crashing as told");
            std::process::abort();
        });
    }
    agent.wait();
}
