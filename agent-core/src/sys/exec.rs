//! Becoming another program, and starting one.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr;

/// What a program is started with.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// `argv[1]` and after; `argv[0]` is the path itself.
    pub arguments: Vec<OsString>,
    /// All of its environment: nothing of this process's is added.
    pub environment: BTreeMap<OsString, OsString>,
}

/// `execve(2)` in this process. All other threads end; what is not close-on-exec stays open. Comes back only with the
/// reason why it failed, and then nothing has changed.
pub(crate) fn execve(program: &Path, invocation: &Invocation) -> io::Error {
    let path = program.as_os_str().to_owned();
    let arguments = std::iter::once(path.clone()).chain(invocation.arguments.iter().cloned());
    let environment = invocation.environment.iter().map(|(name, value)| {
        let mut entry = name.clone();
        entry.push("=");
        entry.push(value);
        entry
    });
    let strings = |strings: &mut dyn Iterator<Item = OsString>| {
        strings.map(|s| CString::new(s.into_vec())).collect::<Result<Vec<_>, _>>()
    };
    let (mut arguments, mut environment) = (arguments, environment);
    let made = (CString::new(path.as_bytes()), strings(&mut arguments), strings(&mut environment));
    let (Ok(path), Ok(arguments), Ok(environment)) = made else {
        return io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in path, arguments or environment");
    };
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(ptr::null())).collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: path is a C string; argv and envp are arrays of C strings that end in NULL; all of them live until the
    // call is over, and if it succeeds nothing of this program is left.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Starts a program in a process group of its own, with `/dev/null` as its input, `stderr` as given, `/` as its working
/// directory and these descriptors, whose numbers stay, open in it.
///
/// # Errors
/// Whatever `fork` or `execve` says.
pub fn spawn(
    program: &Path,
    invocation: &Invocation,
    stderr: OwnedFd,
    inherited: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(program);
    command.args(&invocation.arguments).env_clear().envs(&invocation.environment);
    command.stdin(Stdio::null()).stderr(Stdio::from(stderr)).current_dir("/").process_group(0);
    // SAFETY: the closure runs in the child between fork and exec and calls only fcntl, sigemptyset and sigprocmask,
    // which are async-signal-safe; it allocates nothing, and the zeroed set is a valid place to write to.
    unsafe {
        command.pre_exec(move || {
            // What the caller blocks in order to read it from a descriptor would stay blocked in the program.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            for number in &numbers {
                if libc::fcntl(*number, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Starts a program that listens on `sockets`, which it finds as descriptors 3, 4, …, with `LISTEN_PID` naming it
/// (`sd_listen_fds(3)`). Both its outputs go where this process's errors go; it is killed when this process ends, is in a
/// process group of its own, and has `/dev/null` as its input.
///
/// To be called by a process with a single thread: between `fork` and `execve` the program's environment is made.
///
/// # Errors
/// Whatever `fork` or `execve` says, or no descriptor is left.
pub fn spawn_listening(
    program: &Path,
    mut invocation: Invocation,
    sockets: &[BorrowedFd<'_>],
    directory: &Path,
) -> io::Result<Child> {
    let first = libc::STDERR_FILENO + 1;
    let count = RawFd::try_from(sockets.len()).map_err(io::Error::other)?;
    // Out of the way of the numbers that they are to have.
    let aside = |socket: &BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(socket, first + count);
    let aside = sockets.iter().map(aside).collect::<Result<Vec<OwnedFd>, _>>()?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(io::stderr()).stderr(Stdio::inherit()).current_dir(directory);
    command.process_group(0);
    let program = program.to_owned();
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread (see above), so the child may allocate; the calls change only the child's own
    // signal mask and descriptors. A number from `first` on that is replaced here belongs to nothing that the child
    // uses before it becomes the program: what the standard library has opened meanwhile is closed by `execve`, and it
    // learns of a failure by the return of this closure.
    unsafe {
        command.pre_exec(move || {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::other("whoever started it has ended"));
            }
            for (number, socket) in (first..).zip(&aside) {
                if libc::dup2(socket.as_raw_fd(), number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if !aside.is_empty() {
                let pid = std::process::id().to_string();
                invocation.environment.insert("LISTEN_PID".into(), pid.into());
            }
            Err(execve(&program, &invocation))
        });
    }
    command.spawn()
}

/// Makes orphaned descendants children of this process, so that it can reap them.
///
/// # Errors
/// Never since Linux 3.4.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Kills and reaps every child process of this one but for these.
pub fn end_children(but: &[rustix::process::Pid]) {
    let others = || children().into_iter().filter(|child| !but.contains(child)).collect::<Vec<_>>();
    for child in others() {
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
    }
    // A killed child ends soon; one in a system call that cannot be interrupted would hold the change-over up, so the
    // wait is bounded.
    for _ in 0..200 {
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        if others().is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Every process that descends from this one, and it itself.
pub fn descendants(of: rustix::process::Pid) -> Vec<rustix::process::Pid> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        next += 1;
        let children = children_of(&pid.as_raw_nonzero().to_string());
        found.extend(children.into_iter().filter(|child| !found.contains(child)).collect::<Vec<_>>());
    }
    found
}

/// The children of this process, zombies among them.
pub fn children() -> Vec<rustix::process::Pid> {
    children_of("self")
}

fn children_of(process: &str) -> Vec<rustix::process::Pid> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let numbers: Vec<i32> =
        lists.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    numbers.into_iter().filter_map(rustix::process::Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_failed_exec_comes_back_with_the_reason() {
        let nothing = Invocation { arguments: vec![], environment: BTreeMap::new() };
        assert_eq!(execve(Path::new("/nowhere"), &nothing).raw_os_error(), Some(libc::ENOENT));
        let bad = Invocation { arguments: vec!["a\0b".into()], environment: BTreeMap::new() };
        assert_eq!(execve(Path::new("/bin/true"), &bad).kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_child_has_the_descriptors_that_it_was_given_and_no_other() {
        let (given, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let (given_number, other) = (given.as_raw_fd(), theirs.as_raw_fd());
        let script = format!("cd /proc/self/fd && test -e {given_number} && test ! -e {other} && echo $A >&2");
        let invocation = Invocation {
            arguments: vec!["-c".into(), script.into()],
            environment: [("A".into(), "value".into()), ("PATH".into(), "/usr/bin:/bin".into())].into(),
        };
        let fds = [std::os::fd::AsFd::as_fd(&given)];
        let mut child = spawn(Path::new("/bin/sh"), &invocation, write.into(), &fds).unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(text, "value\n");
    }
}
