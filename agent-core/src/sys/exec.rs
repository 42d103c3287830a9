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
    /// The whole environment.
    pub environment: BTreeMap<OsString, OsString>,
}

/// `execve(2)` in this process. All other threads end; what is not close-on-exec stays open. Comes back only with the
/// reason why it failed, and then nothing has changed.
pub fn execve(program: &Path, invocation: &Invocation) -> io::Error {
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

/// Makes orphaned descendants children of this process, so that it can reap them.
///
/// # Errors
/// Never since Linux 3.4.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Kills and reaps every child process of this one.
pub fn end_children() {
    for child in children() {
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
    }
    // A killed child ends soon, and ECHILD ends the loop; one in a system call that cannot be interrupted would hold
    // the change-over up, so the wait is bounded.
    for _ in 0..200 {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

/// The children of this process, zombies among them.
pub fn children() -> Vec<rustix::process::Pid> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
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
