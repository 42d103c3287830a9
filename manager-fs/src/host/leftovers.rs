//! What killed processes have left: files under names that only their makers meant to keep, for as long as they wrote them.

use std::path::Path;

use crate::config::Dirs;

/// What a maker that is killed leaves for longer than this is of no use to anyone.
const OLD: std::time::Duration = std::time::Duration::from_secs(10 * 60);

/// Removes the temporary files below STATE and CACHE whose process is gone.
pub(super) fn clear(dirs: &Dirs) {
    clear_dir(&dirs.state);
    clear_dir(&dirs.cache.join("records"));
    for parent in [dirs.state.join("agents"), dirs.cache.join("manifests")] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            clear_dir(&entry.path());
        }
    }
}

fn clear_dir(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(maker) = name.to_str().and_then(maker) else { continue };
        let old = || {
            let changed = entry.metadata().and_then(|found| found.modified());
            changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > OLD))
        };
        // Numbers are given again: a living process of that number may be another one.
        if Path::new("/proc").join(maker.to_string()).exists() && !old() {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        tracing::info!(path = %path.display(), ?removed, "left by a process that was killed");
    }
}

/// The process or thread whose temporary file has this name: `.NAME.THREAD.tmp` of [`agent_core::internal::durable`], `identity.PROCESS`
/// of an enrolment, `.PROCESS.TREE` of a manifest.
fn maker(name: &str) -> Option<u32> {
    if let Some(process) = name.strip_prefix("identity.") {
        return process.parse().ok();
    }
    let rest = name.strip_prefix('.')?;
    match rest.strip_suffix(".tmp") {
        Some(rest) => rest.rsplit('.').next()?.parse().ok(),
        None => {
            let (process, tree) = rest.split_once('.')?;
            let is_tree = tree.len() == 62 && tree.bytes().all(|byte| byte.is_ascii_hexdigit());
            process.parse().ok().filter(|_| is_tree)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let here = std::process::id();
        let tree = "0".repeat(62);
        let left = [format!("identity.{gone}"), format!(".journal.{gone}.tmp"), format!(".{gone}.{tree}")];
        let stays = [
            "identity".to_owned(),
            "journal".to_owned(),
            format!("identity.{here}"),
            format!(".journal.{here}.tmp"),
            format!(".{gone}.txt"),
            ".tmp".to_owned(),
            "identity.old".to_owned(),
        ];
        for name in left.iter().chain(&stays) {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        clear_dir(dir.path());
        let found =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let (mut found, mut stays) = (found.collect::<Vec<_>>(), stays.to_vec());
        found.sort();
        stays.sort();
        assert_eq!(found, stays);
    }
}
