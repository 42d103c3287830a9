//! What the demo works on: trees of the reference agent, and a real directory to back up.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Libraries beside the program, so that a version has something of the size of real ones: bytes in all, and of each.
const LIBRARIES_BYTES: u64 = 12_000_000;
const LIBRARY_BYTES: std::ops::Range<u64> = 300_000..5_000_000;

/// Writes the tree of one version of the reference data agent: the program, its descriptor, and libraries of this
/// machine. In the `rebuilt` version two of three libraries are as a compiler leaves them after a small change: code has
/// been inserted here and there, and addresses have changed all over.
pub(super) fn agent_tree(dir: &Path, agent: &Path, version: &str, rebuilt: bool) -> Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    fs::create_dir_all(dir.join("lib"))?;
    let program = dir.join("bin/agent");
    fs::copy(agent, &program).with_context(|| format!("copying {}", agent.display()))?;
    // Bytes after the last section are not loaded, but make this version's program another object, as a rebuild would.
    fs::OpenOptions::new().append(true).open(&program)?.write_all(format!("\nversion {version}\n").as_bytes())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for (number, library) in libraries().into_iter().enumerate() {
        let bytes = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
        let bytes = if rebuilt && number % 3 != 2 { as_rebuilt(&bytes) } else { bytes };
        fs::write(dir.join("lib").join(format!("part{number}.so")), bytes)?;
    }
    fs::write(
        dir.join("manager-fs.toml"),
        "entrypoint = \"bin/agent\"\narguments = [\"--role\", \"data\"]\nstate_schemas = [1, 1]\n\
         drain_deadline = \"60s\"\nprobation = \"6s\"\n",
    )?;
    Ok(())
}

/// Real machine code, so that what is saved over the network is what would be saved of a product.
fn libraries() -> Vec<PathBuf> {
    let mut total = 0;
    let shared = |(path, length): &(PathBuf, u64)| {
        LIBRARY_BYTES.contains(length) && path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"))
    };
    let found = files_below(Path::new("/usr/lib")).filter(shared);
    let chosen = found.take_while(|(_, length)| {
        let fits = total < LIBRARIES_BYTES;
        total += length;
        fits
    });
    chosen.map(|(path, _)| path).collect()
}

/// Every kilobyte or so another address, every 60 kB or so a few instructions more: nothing is where it was, and little
/// is new. What is new is noise, so that it cannot be guessed.
fn as_rebuilt(bytes: &[u8]) -> Vec<u8> {
    const ADDRESS_EVERY: usize = 1_000;
    const CODE_EVERY: usize = 60_000;
    let mut noise = blake3::Hasher::new().update(&bytes.len().to_le_bytes()).finalize_xof();
    let mut rebuilt = Vec::with_capacity(bytes.len() + bytes.len() / CODE_EVERY * 64 + 64);
    for piece in bytes.chunks(CODE_EVERY) {
        let begin = rebuilt.len();
        rebuilt.extend_from_slice(piece);
        for part in rebuilt[begin..].chunks_mut(ADDRESS_EVERY) {
            let mut address = [0; 4];
            noise.fill(&mut address);
            // Somewhere in this part, and not at the same place in each.
            let at = usize::from(address[0]) * part.len() / 256;
            part[at..].iter_mut().zip(address).take(3).for_each(|(byte, new)| *byte = new);
        }
        let mut code = [0; 48];
        noise.fill(&mut code);
        rebuilt.extend_from_slice(&code);
    }
    rebuilt
}

/// What the version that crashes says before.
pub(super) const CRASH: &str = "cannot open my configuration: no such option";

/// Writes the tree of a version that starts, says why it is unhappy, and crashes.
pub(super) fn crashing_tree(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    let program = dir.join("bin/agent");
    fs::write(&program, format!("#!/bin/sh\necho '{CRASH}' >&2\nsleep 1\nexit 7\n"))?;
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
/// restored files can be compared with something that does not change meanwhile. Returns the directories, the files and the
/// bytes. Ends early once `stop` is set.
pub(super) fn real_directory(
    dir: &Path,
    parts: usize,
    bytes_max: u64,
    stop: &AtomicBool,
    told: impl Fn(u64),
) -> Result<(Vec<PathBuf>, u64, u64)> {
    let share = bytes_max / parts as u64;
    let mut sources = ORIGINS.iter().flat_map(|origin| files_below(Path::new(origin)));
    let (mut dirs, mut files, mut total) = (Vec::new(), 0, 0);
    for part in 0..parts {
        let part_dir = dir.join(format!("part{}", part + 1));
        let mut bytes = 0;
        for (file, length) in sources.by_ref() {
            anyhow::ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            // Larger ones would make the parts too uneven.
            if length > share / 4 {
                continue;
            }
            let target = part_dir.join(file.strip_prefix("/").unwrap_or(&file));
            fs::create_dir_all(target.parent().unwrap_or(&part_dir))?;
            if fs::copy(&file, &target).is_ok() {
                bytes += length;
                files += 1;
                told(total + bytes);
            }
            if bytes >= share {
                break;
            }
        }
        total += bytes;
        dirs.push(part_dir);
    }
    anyhow::ensure!(total > bytes_max / 10, "found only {total} bytes of files below {ORIGINS:?} to back up");
    Ok((dirs, files, total))
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
/// The first difference, by path; or it was told to `stop`.
pub(super) fn compare(original: &Path, restored: &Path, stop: &AtomicBool) -> Result<u64> {
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
            anyhow::ensure!(!stop.load(Ordering::Relaxed), "interrupted");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_library_is_longer_and_differs_everywhere_in_little() {
        let old: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let new = as_rebuilt(&old);
        assert_eq!(new.len(), old.len() + 1_000_000usize.div_ceil(60_000) * 48);
        let differing = old[..60_000].iter().zip(&new).filter(|(a, b)| a != b).count();
        assert!((60..=180).contains(&differing), "{differing} of 60,000");
        assert_eq!(as_rebuilt(&old), new, "the same each time");
    }

    #[test]
    fn a_difference_in_what_was_restored_is_found() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&a, &b] {
            fs::create_dir(dir.path().join("d")).unwrap();
            fs::write(dir.path().join("d/f"), "same").unwrap();
        }
        assert_eq!(compare(a.path(), b.path(), &AtomicBool::new(false)).unwrap(), 1);
        fs::write(b.path().join("d/f"), "else").unwrap();
        assert!(compare(a.path(), b.path(), &AtomicBool::new(false)).unwrap_err().to_string().contains("d/f"));
        fs::write(b.path().join("d/f"), "same").unwrap();
        fs::write(b.path().join("d/more"), "").unwrap();
        assert!(compare(a.path(), b.path(), &AtomicBool::new(false)).is_err());
    }
}
