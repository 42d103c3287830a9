//! What killed processes have left: files under names that only their makers meant to keep, for as long as they wrote them.

use std::path::{Path, PathBuf};

use crate::config::Dirs;

/// What a maker that is killed leaves for longer than this is of no use to anyone.
const OLD: std::time::Duration = std::time::Duration::from_secs(10 * 60);

/// Removes the temporary files below STATE and CACHE whose process is gone.
pub(super) fn clear(dirs: &Dirs) {
    for dir in [&dirs.state, &dirs.state.join("identity"), &dirs.cache.join("records")] {
        clear_dir(dir);
    }
    for shard in below(&dirs.cache.join("manifests")) {
        clear_dir(&shard);
    }
    for agent in below(&dirs.state.join("agents")) {
        clear_dir(&agent);
        OF_AN_AGENT.iter().for_each(|name| clear_dir(&agent.join(name)));
    }
}

/// The directories of an agent in which the library writes; what else lies there is its program's.
const OF_AN_AGENT: [&str; 4] = ["bad", "events", "jobs", "records"];

fn below(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
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
/// of an enrolment, `.PROCESS.TREE` of a manifest (the process is that of the thread, which has a number of its own).
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
    fn wherever_the_library_writes_nothing_of_a_killed_process_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (state, cache, run, store) = (at("state"), at("cache"), at("run"), at("store"));
        let dirs = Dirs { store, store_was_named: false, state, cache, run };
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let own = format!("state/agents/p/own/.mine.{gone}.tmp");
        let left = OF_AN_AGENT.map(|of| format!("state/agents/p/{of}/.1.{gone}.tmp"));
        let others =
            ["state", "state/identity", "state/agents/p", "cache/records"].map(|of| format!("{of}/.1.{gone}.tmp"));
        let manifest = format!("cache/manifests/ab/.{gone}.{}", "0".repeat(62));
        let left: Vec<_> = left.into_iter().chain(others).chain([manifest]).collect();
        for name in left.iter().chain([&own]) {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), b"").unwrap();
        }
        clear(&dirs);
        assert_eq!(left.iter().filter(|name| at(name).exists()).collect::<Vec<_>>(), Vec::<&String>::new());
        assert!(at(&own).exists(), "it is the program's");
    }

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
