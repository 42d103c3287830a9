//! The smallest that known tools make of an upgrade, file by file: what is changed as a patch, what is new compressed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tool;
use crate::trees::Tree;

/// bsdiff wants seventeen times the size of a file in memory, and more than linear time.
const BSDIFF_BYTES_MAX: u64 = 40 << 20;

/// A tool that makes a patch of two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patcher {
    /// `zstd --patch-from -19`.
    Zstd,
    /// `bsdiff`, which compresses with bzip2.
    Bsdiff,
    /// `xdelta3 -9` with its secondary compression.
    Xdelta3,
}

/// All of them.
pub const PATCHERS: [Patcher; 3] = [Patcher::Zstd, Patcher::Bsdiff, Patcher::Xdelta3];

/// What one tool makes of an upgrade.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    /// Patches and new files together.
    pub bytes: u64,
    /// Files that changed.
    pub changed: usize,
    /// Files that are new.
    pub new: usize,
}

impl Patcher {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Patcher::Zstd => "zstd --patch-from -19",
            Patcher::Bsdiff => "bsdiff",
            Patcher::Xdelta3 => "xdelta3 -9",
        }
    }

    /// The bytes of all patches from the version before the newest.
    ///
    /// # Errors
    /// The tool is not installed, fails, or would take too much for one of the files.
    pub fn measure(self, tree: &Tree, scratch: &Path) -> Result<Sizes> {
        let old = &tree.versions[tree.versions.len().saturating_sub(2)];
        let new = tree.newest()?;
        let patch = scratch.join("patch");
        let mut sizes = Sizes::default();
        for path in files(new)? {
            let (from, to) = (old.join(&path), new.join(&path));
            let bytes = fs::read(&to).with_context(|| format!("reading {}", to.display()))?;
            if !from.is_file() {
                sizes.new += 1;
                sizes.bytes += zstd::bulk::compress(&bytes, 19)?.len() as u64;
            } else if fs::read(&from)? != bytes {
                sizes.changed += 1;
                self.patch(&from, &to, &patch).with_context(|| path.display().to_string())?;
                sizes.bytes += patch.metadata()?.len();
            }
        }
        Ok(sizes)
    }

    fn patch(self, from: &Path, to: &Path, patch: &Path) -> Result<()> {
        let mut command;
        match self {
            Patcher::Zstd => {
                command = Command::new(tool::need("zstd")?);
                command.arg("--patch-from").arg(from).args(["-19", "-f", "-q", "-o"]).arg(patch).arg(to);
            }
            Patcher::Bsdiff => {
                let bytes = to.metadata()?.len();
                anyhow::ensure!(bytes <= BSDIFF_BYTES_MAX, "{} MB are too much for bsdiff", bytes / 1_000_000);
                command = Command::new(tool::need("bsdiff")?);
                command.arg(from).arg(to).arg(patch);
            }
            Patcher::Xdelta3 => {
                command = Command::new(tool::need("xdelta3")?);
                // Its window over the old file has to cover it.
                let window = from.metadata()?.len().next_power_of_two().max(1 << 20).to_string();
                command.args(["-e", "-9", "-S", "djw", "-f", "-B", &window, "-s"]).arg(from).arg(to).arg(patch);
            }
        }
        tool::finish(&mut command)
    }
}

/// The regular files below a directory, relative to it.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path().strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
