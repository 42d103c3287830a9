//! Argument list, environment, descriptors, then the point of no return.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::drain::Drained;
use crate::handoff::{Handoff, variable};
use crate::inherited::Table;
use crate::moments::{self, Moment};
use crate::paths::AgentPaths;
use crate::sys;

static CHILDREN: RwLock<()> = RwLock::new(());

/// Hold this while starting a child process. A change-over waits for it and then lets no new one begin, so that no
/// child is left that the new program does not know of.
pub fn child_permit() -> RwLockReadGuard<'static, ()> {
    CHILDREN.read().unwrap_or_else(PoisonError::into_inner)
}

/// The descriptors that cross.
pub(crate) struct Crossing<'a> {
    pub(crate) operations: BorrowedFd<'a>,
    pub(crate) stub: Option<BorrowedFd<'a>>,
    pub(crate) lock: Option<BorrowedFd<'a>>,
    pub(crate) inherited: &'a Table,
}

/// Becomes `program`. Comes back only with the fault, and then everything is as it was, but for the proof that it was
/// drained: another try begins with another drain.
pub(crate) fn become_program(
    program: &Path,
    arguments: Vec<OsString>,
    paths: &AgentPaths,
    handoff: &mut Handoff,
    crossing: &Crossing<'_>,
    _drained: Drained,
) -> io::Error {
    // Children that still live belong to operations that are over or abandoned, unless they are kept.
    let _no_new_children = CHILDREN.write().unwrap_or_else(PoisonError::into_inner);
    if let Err(e) = moments::reach(Moment::ChildrenEnd, program) {
        return e;
    }
    sys::exec::end_children(&crossing.inherited.processes());
    handoff.exec_us = sys::monotonic_us();
    let memory = match handoff.write() {
        Ok(memory) => memory,
        Err(e) => return e,
    };
    let mut fds = vec![(variable::OPERATIONS_FD, crossing.operations), (variable::HANDOFF_FD, memory.as_fd())];
    fds.extend(crossing.stub.map(|fd| (variable::STUB_FD, fd)));
    fds.extend(crossing.lock.map(|fd| (variable::LOCK_FD, fd)));
    let list = match crossing.inherited.to_memory() {
        Ok(list) => list,
        Err(e) => return e,
    };
    fds.push((variable::INHERITED_FD, list.as_fd()));
    let invocation = sys::exec::Invocation { arguments, environment: environment(paths, &fds) };
    let directory = leave_tree(paths);
    let changed = match sys::fd::close_all_on_exec() {
        Ok(changed) => changed,
        Err(e) => return e,
    };
    let signals = sys::signal::reset();
    // Last, so that a child which another thread starts just now does not keep them.
    let crossing: Vec<BorrowedFd<'_>> =
        fds.iter().map(|(_, fd)| *fd).chain(crossing.inherited.descriptors()).collect();
    let opened = crossing.iter().try_for_each(|fd| sys::fd::set_close_on_exec(*fd, false));
    let fault = match opened {
        Ok(()) => match moments::reach(Moment::Exec, program) {
            Ok(()) => sys::exec::execve(program, &invocation),
            Err(e) => e,
        },
        Err(e) => e,
    };
    for fd in &crossing {
        drop(sys::fd::set_close_on_exec(*fd, true));
    }
    signals.restore();
    sys::fd::keep_again(&changed);
    if let Some(directory) = directory {
        drop(std::env::set_current_dir(directory));
    }
    fault
}

/// The environment of an agent: ours, with the variables that name what it inherits.
pub(crate) fn environment(paths: &AgentPaths, fds: &[(&str, BorrowedFd<'_>)]) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    // What the service manager says to the stub is not for the agent.
    let for_the_stub =
        ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    let descriptors = [
        variable::OPERATIONS_FD,
        variable::HANDOFF_FD,
        variable::INHERITED_FD,
        variable::START_FD,
        variable::STUB_FD,
        variable::LOCK_FD,
    ];
    for name in for_the_stub.into_iter().chain(descriptors) {
        environment.remove(&OsString::from(name));
    }
    environment.insert(variable::STATE.into(), paths.state().into());
    environment.insert(variable::RUN.into(), paths.run().into());
    environment.insert(variable::PRODUCT.into(), paths.product().as_str().into());
    for (name, fd) in fds {
        environment.insert(OsString::from(name), fd.as_raw_fd().to_string().into());
    }
    environment
}

/// Whether another try of the same program must fail in the same way: its file is not there or not a program for this
/// machine. Everything else (no memory, no descriptors, an I/O error) may be the host's bad day.
pub(crate) fn is_of_the_version(fault: &io::Error) -> bool {
    matches!(
        fault.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::ENOTDIR
                | libc::EACCES
                | libc::ENOEXEC
                | libc::ELOOP
                | libc::EISDIR
                | libc::ELIBBAD
                | libc::EINVAL
        )
    )
}

/// A working directory inside a tree would keep its mount busy for ever. Returns it when it was left.
fn leave_tree(paths: &AgentPaths) -> Option<std::path::PathBuf> {
    let directory = std::env::current_dir().ok()?;
    let trees = paths.run().join("gens");
    if directory.starts_with(&trees) && std::env::set_current_dir("/").is_ok() { Some(directory) } else { None }
}
