//! Versions that failed on this host, and the evidence: `STATE/agents/<product>/bad/<tree>`, text for people whose
//! first line is the reason.

use std::fs;
use std::io;
use std::path::PathBuf;

use proto::TreeId;

use crate::durable::{self, Durability, FileFault};
use crate::paths::AgentPaths;

/// Remembers a version as bad. When this returns it survives a power cut.
///
/// # Errors
/// The file system's.
pub fn remember(paths: &AgentPaths, tree: &TreeId, evidence: &str) -> Result<(), FileFault> {
    durable::create_dir(&paths.bad())?;
    durable::write(&file(paths, tree), evidence.as_bytes(), Durability::PowerCut)
}

/// Why a version is remembered as bad; `None` if it is not. A file that cannot be read counts as evidence, too: it is
/// there for a reason.
pub fn evidence(paths: &AgentPaths, tree: &TreeId) -> Option<String> {
    match fs::read(file(paths, tree)) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => Some(format!("the evidence cannot be read: {e}")),
    }
}

/// The first line of the evidence.
pub fn reason(paths: &AgentPaths, tree: &TreeId) -> Option<String> {
    evidence(paths, tree).map(|text| text.lines().next().unwrap_or("no reason was kept").to_owned())
}

/// Takes the mark away and keeps the evidence beside it: the version proved itself after all, or another one failed in
/// the same way, so that it may not have been the version's fault.
///
/// # Errors
/// The file system's.
pub fn withdraw(paths: &AgentPaths, tree: &TreeId, why: &str) -> Result<(), FileFault> {
    let Some(evidence) = evidence(paths, tree) else { return Ok(()) };
    let aside = paths.bad().join(format!("{tree}.withdrawn"));
    durable::write(&aside, format!("withdrawn: {why}\n{evidence}").as_bytes(), Durability::PowerCut)?;
    durable::remove(&file(paths, tree), Durability::PowerCut)
}

fn file(paths: &AgentPaths, tree: &TreeId) -> PathBuf {
    paths.bad().join(tree.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_withdrawn_and_its_evidence_longer() {
        let state = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new(state.path(), "", "agent".parse().unwrap());
        let tree = TreeId::of(b"tree");
        assert_eq!(reason(&paths, &tree), None);
        remember(&paths, &tree, "exit status 1\nlast stderr:\nboom").unwrap();
        assert_eq!(reason(&paths, &tree).unwrap(), "exit status 1");
        withdraw(&paths, &tree, "the other one failed as well").unwrap();
        assert_eq!(evidence(&paths, &tree), None);
        let aside = fs::read_to_string(paths.bad().join(format!("{tree}.withdrawn"))).unwrap();
        assert!(aside.contains("boom"));
    }

    #[test]
    fn evidence_that_cannot_be_read_marks_the_version_all_the_same() {
        let state = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new(state.path(), "", "agent".parse().unwrap());
        let tree = TreeId::of(b"tree");
        fs::create_dir_all(file(&paths, &tree)).unwrap();
        let reason = reason(&paths, &tree).unwrap();
        assert!(reason.contains("the evidence cannot be read"), "{reason}");
    }
}
