//! What the demo works on: trees of the reference agent, and a real directory to back up.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The reference agent, which is built beside this program.
///
/// # Errors
/// It is not there; the error says how to build it.
pub(super) fn agent_binary(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("finding this program's own file")?.with_file_name("agent-bin"),
    };
    anyhow::ensure!(
        path.is_file(),
        "the reference agent is not at {}: build it with 'cargo build --release --locked', or name it with --agent",
        path.display()
    );
    Ok(path)
}

/// Writes the tree of one version of the reference data agent: the program, its descriptor, and a note of its version.
pub(super) fn agent_tree(dir: &Path, agent: &Path, version: &str) -> Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    fs::create_dir_all(dir.join("share/doc"))?;
    let program = dir.join("bin/agent");
    fs::copy(agent, &program).with_context(|| format!("copying {}", agent.display()))?;
    // Bytes after the last section are not loaded, but make this version's program another object, as a rebuild would.
    fs::OpenOptions::new().append(true).open(&program)?.write_all(format!("\nversion {version}\n").as_bytes())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(dir.join("share/doc/VERSION"), format!("{version}\n"))?;
    fs::write(
        dir.join("manager-fs.toml"),
        "entrypoint = \"bin/agent\"\narguments = [\"--role\", \"data\"]\nstate_schemas = [1, 1]\n\
         drain_deadline = \"60s\"\nprobation = \"15s\"\n",
    )?;
    Ok(())
}

/// Writes the tree of a version that starts, says why it is unhappy, and crashes.
pub(super) fn crashing_tree(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    let program = dir.join("bin/agent");
    fs::write(&program, "#!/bin/sh\necho 'cannot open my configuration: no such option' >&2\nsleep 1\nexit 7\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(
        dir.join("manager-fs.toml"),
        "entrypoint = \"bin/agent\"\nstate_schemas = [1, 1]\nprobation = \"15s\"\n",
    )?;
    Ok(())
}

/// Where real files are found on any Linux machine.
const ORIGINS: [&str; 4] = ["/usr/lib", "/usr/share", "/usr/bin", "/usr/local/lib"];

/// Copies about `bytes_max` bytes of this machine's own software into `dir`, split over `parts` directories, so that the
/// restored files can be compared with something that does not change meanwhile. Returns the directories and the bytes.
pub(super) fn real_directory(dir: &Path, parts: usize, bytes_max: u64) -> Result<(Vec<PathBuf>, u64)> {
    let share = bytes_max / parts as u64;
    let mut sources = ORIGINS.iter().flat_map(|origin| files_below(Path::new(origin)));
    let (mut dirs, mut total) = (Vec::new(), 0);
    for part in 0..parts {
        let part_dir = dir.join(format!("part{}", part + 1));
        let mut bytes = 0;
        for (file, length) in sources.by_ref() {
            let target = part_dir.join(file.strip_prefix("/").unwrap_or(&file));
            fs::create_dir_all(target.parent().unwrap_or(&part_dir))?;
            if fs::copy(&file, &target).is_ok() {
                bytes += length;
            }
            if bytes >= share {
                break;
            }
        }
        total += bytes;
        dirs.push(part_dir);
    }
    anyhow::ensure!(total > bytes_max / 10, "found only {total} bytes of files below {ORIGINS:?} to back up");
    Ok((dirs, total))
}

/// Regular files, depth first, without following links; what cannot be read is passed over.
fn files_below(dir: &Path) -> impl Iterator<Item = (PathBuf, u64)> + use<> {
    let mut stack = vec![dir.to_owned()];
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    std::iter::from_fn(move || {
        loop {
            if let Some(file) = found.pop() {
                return Some(file);
            }
            let Ok(list) = fs::read_dir(stack.pop()?) else { continue };
            for entry in list.flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => stack.push(entry.path()),
                    Ok(meta) if meta.is_file() && meta.len() < 64 << 20 => found.push((entry.path(), meta.len())),
                    _ => {}
                }
            }
        }
    })
}

/// Compares two directories: names, kinds, modes, link targets, contents. Returns the number of files.
///
/// # Errors
/// The first difference, by path.
pub(super) fn compare(original: &Path, restored: &Path) -> Result<u64> {
    let mut files = 0;
    let mut stack = vec![PathBuf::new()];
    while let Some(dir) = stack.pop() {
        let names = |root: &Path| -> Result<Vec<_>> {
            let list = fs::read_dir(root.join(&dir)).with_context(|| root.join(&dir).display().to_string())?;
            let mut names: Vec<_> = list.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
            names.sort();
            Ok(names)
        };
        let (ours, theirs) = (names(original)?, names(restored)?);
        anyhow::ensure!(ours == theirs, "restored directory '{}' has other entries", dir.display());
        for name in ours {
            let path = dir.join(name);
            let (a, b) = (original.join(&path), restored.join(&path));
            let (meta_a, meta_b) = (a.symlink_metadata()?, b.symlink_metadata()?);
            let same = meta_a.file_type() == meta_b.file_type() && meta_a.mode() == meta_b.mode();
            anyhow::ensure!(same, "restored '{}' has another kind or mode", path.display());
            if meta_a.is_dir() {
                stack.push(path);
            } else if meta_a.is_symlink() {
                anyhow::ensure!(fs::read_link(&a)? == fs::read_link(&b)?, "'{}' links elsewhere", path.display());
            } else {
                anyhow::ensure!(fs::read(&a)? == fs::read(&b)?, "restored '{}' has other bytes", path.display());
                files += 1;
            }
        }
    }
    Ok(files)
}

use std::os::unix::fs::MetadataExt;
