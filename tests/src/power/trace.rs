//! What running programs do to some directories, by way of `strace`.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use super::disk::{Disk, Operation};
use super::recording::Recording;
use crate::needs;

/// Every system call that our programs change a directory with. One that is missing here shows in
/// [`Recording::accounts_for`].
const CALLS: &str = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,fsync,\
                     fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat";

/// A recording under way.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    log: PathBuf,
    roots: Vec<PathBuf>,
    base: Disk,
    since: f64,
}

impl Trace {
    /// Records what these processes, their children and those to come do to `roots`. They must be at rest now.
    ///
    /// # Panics
    /// They cannot be traced.
    #[track_caller]
    pub fn of(processes: &[u32], roots: &[PathBuf], log: PathBuf) -> Self {
        needs::demand(needs::tracing());
        let mut processes = processes.to_vec();
        let mut at = 0;
        while at < processes.len() {
            processes.extend(children(processes[at]));
            at += 1;
        }
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-xx", "-ttt", "-s", "16777216", "-e", "signal=none", "-e"]);
        strace.arg(format!("trace={CALLS}")).arg("-o").arg(&log);
        for process in &processes {
            strace.arg("-p").arg(process.to_string());
        }
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace");
        let mut missing: BTreeSet<String> = processes.iter().map(u32::to_string).collect();
        let mut said = BufReader::new(strace.stderr.take().expect("a piped stderr")).lines();
        while !missing.is_empty() {
            let line = said.next().expect("strace ended").expect("a line of strace's");
            // strace: Process 4711 attached with 6 threads
            let mut words = line.split(' ').skip_while(|word| *word != "Process");
            missing.remove(words.nth(1).unwrap_or_default());
        }
        // It would wait for a reader, and the programs for it.
        std::thread::spawn(move || said.for_each(drop));
        let since = now();
        Self { strace, log, base: Disk::of(roots), roots: roots.to_vec(), since }
    }

    /// What was recorded, once all the processes have ended.
    ///
    /// # Panics
    /// strace failed, or said what cannot be read.
    #[track_caller]
    pub fn end(mut self) -> Recording {
        self.strace.wait().expect("strace");
        let log = fs::read_to_string(&self.log).expect("strace's log");
        let recording = Recording::new(self.base, read(&log, &self.roots, self.since));
        recording.accounts_for(&self.roots);
        recording
    }
}

/// Seconds since 1970, as the trace counts.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock past 1970").as_secs_f64()
}

fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .flat_map(|task| of(task).split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn read(log: &str, roots: &[PathBuf], since: f64) -> Vec<(f64, Operation)> {
    let mut operations = Vec::new();
    // What a thread is in the middle of, and how many operations there were when it began.
    let mut begun: HashMap<&str, (String, usize)> = HashMap::new();
    for line in log.lines() {
        // Short numbers of threads are filled up with spaces.
        let parts =
            line.split_once(' ').and_then(|(thread, rest)| Some((thread, rest.trim_start().split_once(' ')?)));
        let Some((thread, (time, call))) = parts else { continue };
        let time: f64 = time.parse().expect("strace's time");
        if time < since {
            continue;
        }
        let begins = call.starts_with("fsync(") || call.starts_with("fdatasync(");
        if begins {
            operations.push((time, Operation::Syncs));
        }
        let (call, at) = if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (begin.to_owned(), operations.len()));
            continue;
        } else if call.starts_with("<... ") {
            let Some((begin, at)) = begun.remove(thread) else { continue };
            (begin + call.split_once("resumed>").map_or("", |(_, rest)| rest), at)
        } else {
            (call.to_owned(), operations.len())
        };
        let since = (operations.len() - at) as u64;
        let operation =
            operation(&call, since).filter(|operation| operation.paths().iter().any(|path| is_below(path, roots)));
        operations.extend(operation.map(|operation| (time, operation)));
    }
    operations
}

fn is_below(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

/// What a finished call did: `name(argument, ..) = result`.
fn operation(call: &str, since: u64) -> Option<Operation> {
    let (name, rest) = call.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ").map(|(a, r)| (a, r.trim_start().strip_prefix("= ")))?;
    let result = result.filter(|result| !result.starts_with(['-', '?']))?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let argument = |n: usize| arguments.get(n).copied().unwrap_or_default();
    let number = |n: usize| argument(n).parse::<usize>().ok();
    let octal = |n: usize| u32::from_str_radix(argument(n), 8).ok().map(|mode| mode & !0o022);
    let file = || inside(argument(0), '<', '>');
    // A name beside the directory that it is in.
    let name_in =
        |n: usize| inside(argument(n), '<', '>').zip(text(argument(n + 1))).map(|(dir, name)| dir.join(name));
    Some(match name {
        "openat" => {
            let flags = argument(2);
            let has = |flag: &str| flags.split('|').any(|given| given == flag);
            if !has("O_WRONLY") && !has("O_RDWR") {
                return None;
            }
            let create = has("O_CREAT").then(|| octal(3).unwrap_or(0o600));
            let path = inside(result, '<', '>')?;
            Operation::Open { path, create, truncate: has("O_TRUNC"), append: has("O_APPEND") }
        }
        "write" | "pwrite64" | "writev" => {
            let mut bytes: Vec<u8> = call.split('"').skip(1).step_by(2).flat_map(unescape).collect();
            bytes.truncate(result.parse().ok()?);
            let at = if name == "pwrite64" { Some(number(3)?) } else { None };
            Operation::Write { path: file()?, at, bytes }
        }
        "lseek" => Operation::Seek { path: file()?, to: result.parse().ok()? },
        "ftruncate" => Operation::Length { path: file()?, bytes: number(1)? },
        "fsync" | "fdatasync" => Operation::Synced { path: file()?, since },
        "rename" => Operation::Rename { from: text(argument(0))?, to: text(argument(1))? },
        "renameat" | "renameat2" => Operation::Rename { from: name_in(0)?, to: name_in(2)? },
        "link" => Operation::Link { from: text(argument(0))?, to: text(argument(1))? },
        "linkat" => Operation::Link { from: name_in(0)?, to: name_in(2)? },
        "symlink" => Operation::Symlink { target: text(argument(0))?, path: text(argument(1))? },
        "symlinkat" => Operation::Symlink { target: text(argument(0))?, path: name_in(1)? },
        "unlink" | "rmdir" => Operation::Remove { path: text(argument(0))? },
        "unlinkat" => Operation::Remove { path: name_in(0)? },
        "mkdir" => Operation::Mkdir { path: text(argument(0))?, mode: octal(1)? },
        "mkdirat" => Operation::Mkdir { path: name_in(0)?, mode: octal(2)? },
        _ => return None,
    })
}

/// The path in `5<\x2f..>` or `"\x2f.."`.
fn inside(argument: &str, open: char, close: char) -> Option<PathBuf> {
    let (_, rest) = argument.split_once(open)?;
    let (text, _) = rest.split_once(close)?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(text))))
}

fn text(argument: &str) -> Option<PathBuf> {
    inside(argument, '"', '"')
}

/// `\x61\x62` as bytes.
fn unescape(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).filter_map(|pair| u8::from_str_radix(pair.get(..2)?, 16).ok()).collect()
}
