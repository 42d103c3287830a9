//! Which processes run from a tree: found by looking at `/proc`, so that nothing depends on their having told anyone.
//!
//! Only names are read, never the files that they lead to: a worker that touched its own mounts could wait for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proto::TreeId;

/// Mappings of one process that are read, bytes; programs with more map the same few trees again and again.
const MAPS_BYTES_MAX: u64 = 1 << 20;

/// The processes whose program, root, working directory or mappings lie below `generations`, by tree.
pub(crate) fn scan(generations: &Path) -> BTreeMap<TreeId, BTreeSet<u32>> {
    let mut users: BTreeMap<TreeId, BTreeSet<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that waits for a FUSE answer may hold what its /proc files are read under: asking would wait with it.
        let waits = fs::read(entry.path().join("wchan")).is_ok_and(|wchan| wchan.starts_with(b"request_wait_answer"));
        if waits {
            continue;
        }
        for tree in trees_of(&entry.path(), generations) {
            users.entry(tree).or_default().insert(pid);
        }
    }
    users
}

fn trees_of(process: &Path, generations: &Path) -> BTreeSet<TreeId> {
    let links = ["exe", "root", "cwd"].into_iter().filter_map(|name| fs::read_link(process.join(name)).ok());
    let mut trees: BTreeSet<_> = links.filter_map(|path| tree_of(path.as_os_str().as_bytes(), generations)).collect();
    let mut maps = Vec::new();
    if let Ok(file) = File::open(process.join("maps")) {
        // A process that ends meanwhile has no mappings.
        let _ = file.take(MAPS_BYTES_MAX).read_to_end(&mut maps);
    }
    for line in maps.split(|byte| *byte == b'\n') {
        if let Some(slash) = line.iter().position(|byte| *byte == b'/') {
            trees.extend(tree_of(&line[slash..], generations));
        }
    }
    trees
}

/// The tree in `GENERATIONS/<tree>/…`.
fn tree_of(path: &[u8], generations: &Path) -> Option<TreeId> {
    let below = path.strip_prefix(generations.as_os_str().as_bytes())?.strip_prefix(b"/")?;
    std::str::from_utf8(below.get(..64)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_a_tree_is_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let generations = dir.path().canonicalize().unwrap();
        let (one, two) = (TreeId::of(b"1"), TreeId::of(b"2"));
        let inside = generations.join(one.to_hex());
        fs::create_dir(&inside).unwrap();
        fs::create_dir(generations.join(two.to_hex())).unwrap();
        fs::copy("/bin/sleep", inside.join("program")).unwrap();
        let mut child = std::process::Command::new(inside.join("program")).arg("60").spawn().unwrap();
        let users = scan(&generations);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users.get(&one), Some(&BTreeSet::from([child.id()])));
        assert_eq!(users.get(&two), None);
    }
}
