//! `exec GENERATION -- CMD [ARG…]`: runs a program straight from a generation.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use proto::daemon::Attached;
use proto::start_up::PROGRAM_DIRS;
use proto::{GenerationRecord, GenerationRef, SignedRecord};

use super::{Done, Here, daemon};
use crate::config::Dirs;
use crate::host::enroll;

/// `exec GENERATION -- CMD [ARG…]`.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// product@version, a tree id, or the start of one
    pub(super) generation: GenerationRef,
    /// Draw where the time of this start goes, as an SVG image: what was read, waited for, asked for and computed. The
    /// program then runs as a child, with pipes and an empty standard input, and its exit code is this command's
    #[arg(long, value_name = "FILE.svg")]
    pub(super) trace: Option<PathBuf>,
    /// The program: a path in the tree (bin/node), a name to look for in its bin directories (node), or an absolute path of
    /// this host; then its arguments. Without it the generation's entry point runs
    #[arg(last = true, value_name = "CMD [ARG]")]
    pub(super) command: Vec<OsString>,
}

/// Becomes the program. Returns only when that fails.
pub(super) fn exec(args: &ExecArgs, here: &Here) -> Result<Done> {
    let (lease, tree) =
        daemon::hold(here, &args.generation, args.command.first().and_then(|program| program.to_str()))?;
    let root = PathBuf::from(&tree.path);
    if let Some(pid) = tree.namespace_pid {
        agent_core::internal::sys::namespace::enter(pid).context("entering the mount daemon's namespaces")?;
    }
    let (program, arguments) = program(&args.generation, &tree, &root, &args.command, &here.dirs)?;
    // The connection is the lease: it stays open in the program, and ends with it.
    lease.keep_across_exec().context("keeping the lease")?;
    let error = Command::new(&program).args(arguments).env("MANAGER_FS_TREE", &root).exec();
    Err(explain(&program, &error))
}

/// The program and its arguments: those that were typed, else the entry point's. `root` is the tree to run it from.
pub(super) fn program(
    generation: &GenerationRef,
    tree: &Attached,
    root: &Path,
    command: &[OsString],
    dirs: &Dirs,
) -> Result<(PathBuf, Vec<OsString>)> {
    match command.split_first() {
        Some((command, arguments)) => Ok((find(root, Path::new(command))?, arguments.to_vec())),
        None => entry_point(generation, tree, root, dirs),
    }
}

/// The program that a command names.
fn find(root: &Path, command: &Path) -> Result<PathBuf> {
    if command.is_absolute() {
        return Ok(command.to_owned());
    }
    if command.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        bail!("'{}' leads out of the tree", command.display());
    }
    if command.components().count() > 1 {
        return Ok(root.join(command));
    }
    let places = PROGRAM_DIRS.iter().map(|dir| root.join(dir).join(command));
    let found = places.clone().find(|path| path.symlink_metadata().is_ok_and(|found| !found.is_dir()));
    found.with_context(|| {
        format!("there is no '{}' in {} of the tree", command.display(), PROGRAM_DIRS[..5].join(", "))
    })
}

fn entry_point(typed: &GenerationRef, tree: &Attached, root: &Path, dirs: &Dirs) -> Result<(PathBuf, Vec<OsString>)> {
    let record = tree.record.as_deref().with_context(|| {
        format!("tree {} stands under several versions: name one as product@version, or name the program", tree.tree)
    })?;
    let record = verified(record, dirs)?;
    let entry =
        record.metadata.entry_point.with_context(|| format!("{typed} has no entry point: name the program"))?;
    let arguments = record.metadata.arguments.iter().map(OsString::from).collect();
    Ok((root.join(entry.as_path()), arguments))
}

fn verified(record: &[u8], dirs: &Dirs) -> Result<GenerationRecord> {
    Ok(SignedRecord::from_bytes(record)?.verify(&enroll::publishers(&dirs.state)?)?)
}

/// Why a program of a tree did not start. ENOENT has two meanings, and the second is the common one.
pub(super) fn explain(program: &Path, error: &std::io::Error) -> anyhow::Error {
    let path = program.display();
    match error.kind() {
        std::io::ErrorKind::NotFound if program.is_symlink() && !program.exists() => {
            let target = std::fs::read_link(program).unwrap_or_default();
            anyhow!("{path}: a link to '{}', which is not there", target.display())
        }
        std::io::ErrorKind::NotFound if program.symlink_metadata().is_ok() => {
            anyhow!("{path}: its interpreter or loader is not on this host ({error})")
        }
        std::io::ErrorKind::NotFound => anyhow!("{path}: no such file in the tree"),
        std::io::ErrorKind::PermissionDenied => anyhow!("{path}: not executable ({error})"),
        _ => anyhow!("{path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_program_did_not_start_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let why = |name: &str| {
            explain(&dir.path().join(name), &std::io::Error::from(std::io::ErrorKind::NotFound)).to_string()
        };
        std::os::unix::fs::symlink("other", dir.path().join("link")).unwrap();
        assert!(why("link").contains("a link to 'other'"), "{}", why("link"));
        std::fs::write(dir.path().join("other"), "").unwrap();
        assert!(why("link").contains("interpreter or loader"));
        assert!(why("nothing").contains("no such file in the tree"));
    }

    #[test]
    fn a_name_is_looked_up_in_the_tree_and_a_path_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::fs::write(dir.path().join("usr/bin/tool"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("bin/tool")).unwrap();
        assert_eq!(find(dir.path(), Path::new("tool")).unwrap(), dir.path().join("usr/bin/tool"));
        assert_eq!(find(dir.path(), Path::new("bin/x")).unwrap(), dir.path().join("bin/x"));
        assert_eq!(find(dir.path(), Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        assert!(find(dir.path(), Path::new("../x")).is_err());
        assert!(find(dir.path(), Path::new("nothing")).unwrap_err().to_string().contains("no 'nothing'"));
    }
}
