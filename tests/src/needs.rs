//! What a test needs of the machine beyond programs: `/dev/fuse`, user namespaces, root.
//!
//! A test that cannot run says so with one call, and fails at once instead of in a way of its own. `tests/run` names a
//! file in [`LIST`], gathers there which tests these were, and prints them as one list.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Names the file to which a test that cannot run adds `WHAT<tab>BINARY<tab>TEST`.
pub const LIST: &str = "MANAGER_FS_TESTS_LIST";

/// What a machine may lack, as it stands on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// `/dev/fuse` cannot be opened by this user.
    Fuse,
    /// This user may not make a user and a mount namespace.
    UserNamespaces,
    /// This user is not root, or root of a namespace that maps few users.
    Root,
    /// The kernel has no fs-verity, or this user cannot mount a file system with it.
    Verity,
    /// This user may not trace processes that run.
    Tracing,
    /// A program is not installed.
    Program(&'static str),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match *self {
            Lack::Fuse => "/dev/fuse",
            Lack::UserNamespaces => "user namespaces",
            Lack::Root => "root",
            Lack::Verity => "fs-verity",
            Lack::Tracing => "tracing (ptrace)",
            Lack::Program(name) => name,
        })
    }
}

/// Whether this user can open `/dev/fuse`.
pub fn fuse() -> Result<(), Lack> {
    std::fs::File::options().read(true).write(true).open("/dev/fuse").map(drop).map_err(|_| Lack::Fuse)
}

/// Whether this user may make a user and a mount namespace.
pub fn user_namespaces() -> Result<(), Lack> {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let allowed = ALLOWED.get_or_init(|| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "true"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if *allowed { Ok(()) } else { Err(Lack::UserNamespaces) }
}

/// Whether there is what a mount daemon needs for its fastest path: FUSE, and without root a namespace to mount in.
pub fn mounts() -> Result<(), Lack> {
    fuse()?;
    if rustix::process::geteuid().is_root() { Ok(()) } else { user_namespaces() }
}

/// Whether this user may trace processes that run and are no children of the tracer.
pub fn tracing() -> Result<(), Lack> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let allowed = match scope.trim() {
        "" | "0" => true,
        "1" | "2" => rustix::process::geteuid().is_root(),
        _ => false,
    };
    if allowed { Ok(()) } else { Err(Lack::Tracing) }
}

/// Whether a program is on the PATH.
pub fn program(name: &'static str) -> Result<(), Lack> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if is_there { Ok(()) } else { Err(Lack::Program(name)) }
}

/// Whether there is a Python that makes environments with `pip` in them.
pub fn python() -> Result<(), Lack> {
    let mut python = Command::new("python3");
    let status = python.args(["-c", "import ctypes, ensurepip, venv"]).stderr(Stdio::null()).status();
    let is_there = status.is_ok_and(|status| status.success());
    if is_there { Ok(()) } else { Err(Lack::Program("python3 with venv")) }
}

/// Whether the C compiler has its sanitizers for addresses and undefined behaviour.
pub fn sanitizers() -> Result<(), Lack> {
    let mut cc = Command::new("sh");
    let script = "echo 'int main(void) { return 0; }' | cc -fsanitize=address,undefined -x c -o /dev/null -";
    let status = cc.args(["-c", script]).stderr(Stdio::null()).status();
    let is_there = status.is_ok_and(|status| status.success());
    if is_there { Ok(()) } else { Err(Lack::Program("cc -fsanitize=address,undefined")) }
}

/// Demands one of these for the test that calls it.
///
/// # Panics
/// The machine lacks it.
#[track_caller]
pub fn demand(there: Result<(), Lack>) {
    if let Err(lack) = there {
        list(lack, &this_test());
        panic!("cannot run here, for want of {lack}");
    }
}

/// Whether this is root. Where it is not, the check that only root can make is put on the list, and the test goes on
/// without it.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        list(Lack::Root, &this_test());
    }
    root
}

/// A file system with fs-verity of so many bytes at `dir`, which is unmounted by whoever asks. `false`: this machine cannot,
/// which is put on the list, and the test goes on without it.
pub fn verity(dir: &Path, bytes: u64) -> bool {
    let image = dir.with_extension("image");
    // The kernel says so only where it was built with it; mounting works without.
    let is_there = Path::new("/sys/fs/ext4/features/verity").exists() && rustix::process::geteuid().is_root();
    let made = is_there && {
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).is_ok();
        std::fs::create_dir_all(dir).is_ok() && made && {
            let run = |program: &str, args: &[&std::ffi::OsStr]| {
                Command::new(program).args(args).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
            };
            let (image, dir) = (image.as_os_str(), dir.as_os_str());
            run(
                "mkfs.ext4",
                &["-q".as_ref(), "-O".as_ref(), "verity".as_ref(), "-b".as_ref(), "4096".as_ref(), image],
            ) && run("mount", &["-o".as_ref(), "loop".as_ref(), image, dir])
        }
    };
    if !made {
        list(Lack::Verity, &this_test());
    }
    made
}

/// Puts a test on the list under what it lacks; for harnesses that name their tests themselves.
pub fn list(lack: Lack, test: &str) {
    let line = format!("{lack}\t{}\t{test}\n", this_binary());
    let Some(path) = std::env::var_os(LIST) else {
        eprint!("not run here, for want of {line}");
        return;
    };
    let file = std::fs::File::options().append(true).create(true).open(path);
    // One write a line: several tests and binaries add to the file at the same time.
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of tests that cannot run");
}

/// The harness names a test's thread after the test.
fn this_test() -> String {
    std::thread::current().name().unwrap_or("main").to_owned()
}

/// The test binary without the hash that cargo appends.
fn this_binary() -> String {
    let file = std::env::current_exe().expect("the test's own file");
    let name = file.file_name().unwrap_or(Path::new("test").as_os_str()).to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.clone(), |(stem, _)| stem.to_owned())
}
