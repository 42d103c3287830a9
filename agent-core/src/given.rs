//! What an agent *is* it learns from whoever started it: from the version before, through the handoff, or from the
//! stub, which gives it what it decided. Never from a record on disk: that may be what somebody failed to write.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::durable::FileFault;
use crate::handoff::{self, Handoff};
use crate::journal::{Journal, Phase};
use crate::paths::AgentPaths;

/// What this program was started as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// As the journal should say.
    pub(crate) journal: Journal,
    /// The journal on disk says otherwise, or nothing: whoever decided could not write.
    pub(crate) unwritten: bool,
}

/// Nobody said what this program is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GivenFault {
    /// Nothing was given, and there is no journal.
    #[error("{}: the journal is not there", .0.display())]
    NoJournal(PathBuf),
    /// What was given, or the journal, cannot be used.
    #[error(transparent)]
    File(#[from] FileFault),
}

impl Given {
    /// Of what the environment named.
    pub(crate) fn read(
        paths: &AgentPaths,
        start: Option<OwnedFd>,
        handoff: Option<&Handoff>,
    ) -> Result<Self, GivenFault> {
        let path = paths.journal();
        let on_disk = Journal::read(&path);
        let journal = match (handoff, start) {
            (Some(handoff), _) => intended(handoff, on_disk.as_ref().ok().and_then(Option::as_ref)),
            (None, Some(memory)) => from_stub(memory)?,
            // A stub of an earlier version of this library: the journal is all there is.
            (None, None) => match on_disk {
                Ok(Some(journal)) => return Ok(Self { journal, unwritten: false }),
                Ok(None) => return Err(GivenFault::NoJournal(path)),
                Err(fault) => return Err(fault.into()),
            },
        };
        let unwritten = !on_disk.is_ok_and(|found| found.is_some_and(|found| found.says_as(&journal)));
        Ok(Self { journal, unwritten })
    }
}

fn from_stub(memory: OwnedFd) -> Result<Journal, FileFault> {
    let bytes = handoff::read_sealed(memory, "what the stub decided")?;
    Journal::from_bytes(&bytes, Path::new("what the stub decided"))
}

/// What the version before wrote down before it executed this one.
fn intended(handoff: &Handoff, on_disk: Option<&Journal>) -> Journal {
    let is_of_it = |found: &&Journal| {
        let is_change = matches!(&found.phase, Phase::Probation { change, .. } if *change == handoff.change);
        is_change && found.current == handoff.to
    };
    if let Some(found) = on_disk.filter(is_of_it) {
        return found.clone();
    }
    // How long the probation is says the record, to those whom it concerns: this version and the stub, which has been told.
    let phase = Phase::Probation { change: handoff.change, attempts: 1, probation_ms: 0 };
    Journal {
        sequence: on_disk.map_or(0, |found| found.sequence),
        last_good: Some(handoff.from.clone()),
        phase,
        reason: format!("changed over from {}", handoff.from.version),
        ..Journal::first(handoff.to.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;
    use proto::TreeId;
    use proto::agent::ChangeId;

    fn entry(n: u8) -> Entry {
        Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
    }

    fn handoff() -> Handoff {
        Handoff {
            change: ChangeId(7),
            from: entry(1),
            to: entry(2),
            schema: 1,
            state: Vec::new(),
            kept_bytes: None,
            unfinished: Vec::new(),
            timeline: Vec::new(),
            drained_us: 0,
            exec_us: 0,
        }
    }

    fn on_probation(change: u64, current: Entry) -> Journal {
        let phase = Phase::Probation { change: ChangeId(change), attempts: 1, probation_ms: 9_000 };
        Journal { sequence: 5, phase, ..Journal::first(current) }
    }

    #[test]
    fn the_intent_is_what_is_on_disk_where_that_is_of_this_change_over() {
        let written = on_probation(7, entry(2));
        assert_eq!(intended(&handoff(), Some(&written)), written);
        let want = |sequence| Journal {
            sequence,
            current: entry(2),
            last_good: Some(entry(1)),
            staged: None,
            phase: Phase::Probation { change: ChangeId(7), attempts: 1, probation_ms: 0 },
            reason: "changed over from 1.0".to_owned(),
        };
        assert_eq!(intended(&handoff(), None), want(0));
        let confirmed = Journal { sequence: 5, phase: Phase::Confirmed, ..Journal::first(entry(2)) };
        for other in [on_probation(6, entry(2)), on_probation(7, entry(1)), confirmed] {
            assert_eq!(intended(&handoff(), Some(&other)), want(5), "{other:?}");
        }
    }

    #[test]
    fn whoever_was_started_without_a_word_is_what_the_journal_says() {
        let state = tempfile::tempdir().unwrap();
        let paths = AgentPaths::new(state.path(), state.path(), "a".parse().unwrap());
        let fault = Given::read(&paths, None, None).unwrap_err();
        assert!(matches!(fault, GivenFault::NoJournal(_)), "{fault}");
        // What the handoff says holds without a journal, too, and is known not to be written.
        let given = Given::read(&paths, None, Some(&handoff())).unwrap();
        assert_eq!((given.journal, given.unwritten), (intended(&handoff(), None), true));

        std::fs::create_dir_all(paths.directory()).unwrap();
        let mut journal = on_probation(7, entry(2));
        journal.write(&paths.journal()).unwrap();
        for handoff in [None, Some(&handoff())] {
            let given = Given::read(&paths, None, handoff).unwrap();
            assert!(given.journal.says_as(&journal) && !given.unwritten, "{given:?}");
        }
    }
}
