//! What the machine wants to have written, in the journal's words.

use std::time::Instant;

use super::{Driver, EffectFault, micros, reach};
use crate::journal::{Journal, Phase, Staged};
use crate::machine::{Event, JournalWrite, Saved};
use crate::moments::Moment;

impl Driver {
    pub(super) fn write_journal(&mut self, write: JournalWrite) -> Result<Option<Event>, EffectFault> {
        let begun = Instant::now();
        let mut next = self.journal.clone();
        let (moment, must, event) = match write {
            JournalWrite::Staged(change, entry) => {
                next.staged = Some(Staged { change, entry });
                (Moment::JournalStaged, true, false)
            }
            JournalWrite::NothingStaged => {
                next.staged = None;
                (Moment::JournalUnstaged, false, false)
            }
            JournalWrite::Intent(target) => {
                self.work.journal_before = Some(Journal { staged: None, ..next.clone() });
                intend(&mut next, &target);
                (Moment::JournalIntent, true, true)
            }
            JournalWrite::Back => {
                match self.work.journal_before.take() {
                    Some(before) => next = Journal { sequence: next.sequence, ..before },
                    // The intent was never written.
                    None => next.staged = None,
                }
                (Moment::JournalBack, false, false)
            }
            JournalWrite::Confirmed => {
                // A version that was believed when it was started need not be written down to be believed.
                let must = matches!(next.phase, Phase::Probation { .. });
                next.phase = Phase::Confirmed;
                next.staged = None;
                (Moment::JournalConfirmed, must, true)
            }
        };
        // A restart of a believed version has nothing new to say.
        if self.unwritten || !next.says_as(&self.journal) {
            let path = self.paths.journal();
            match reach(moment, &path).and_then(|()| next.write(&path)) {
                Ok(()) => {
                    self.unwritten = false;
                    if moment == Moment::JournalConfirmed {
                        // Once more, over the other copy: whichever is damaged later, the one that is left says this, too.
                        drop(next.write(&path));
                    }
                }
                Err(e) if must => return Err(e.into()),
                Err(e) => {
                    tracing::warn!("the journal cannot be written: {e}");
                    self.unwritten = true;
                }
            }
            self.journal = next;
        }
        if self.journal.phase == Phase::Confirmed {
            self.reporter.changed();
        }
        Ok(event.then(|| Event::Journaled { took_us: micros(begun) }))
    }
}

/// The journal's words for the intent to change over.
fn intend(journal: &mut Journal, target: &Saved) {
    let from = std::mem::replace(&mut journal.current, target.candidate.entry.clone());
    journal.reason = format!("changed over from {}", from.version);
    journal.last_good = Some(from);
    journal.staged = None;
    let probation_ms = target.candidate.probation_ms;
    journal.phase = Phase::Probation { change: target.change, attempts: 1, probation_ms };
}
