//! What follows when a program ended, or did not prove itself in time. Pure: the journal and the cause decide.

use std::time::Duration;

use proto::agent::ChangeId;

use crate::journal::{Entry, Journal, Phase};

/// What happened to the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It ended by itself.
    Ended {
        /// `exit status 1`, `SIGSEGV`.
        how: String,
    },
    /// The version before it ended with the intent on disk, and never became it.
    EndedBefore {
        /// As above.
        how: String,
    },
    /// Its probation is over, and it has not confirmed. It has been killed.
    Overdue {
        /// How long it had, milliseconds.
        probation_ms: u64,
    },
    /// It could not be started at all.
    NotStarted {
        /// Why.
        fault: String,
        /// Another try must end in the same way.
        of_the_version: bool,
    },
    /// The stub starts and finds a probation that was never decided, and that has had its second chance.
    Undecided,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Return to the last good version.
    Return {
        /// Of which change-over.
        change: ChangeId,
        /// What failed.
        bad: Entry,
        /// What runs next.
        good: Entry,
        /// Why, for people.
        reason: String,
        /// Whether the version is to blame, so that it is remembered as bad.
        at_fault: bool,
    },
    /// Start the same version again after a while.
    Again {
        /// After how long.
        after: Duration,
        /// Why, for people.
        reason: String,
    },
}

const AGAIN_MIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(30);

impl Cause {
    /// For people.
    pub fn reason(&self) -> String {
        match self {
            Cause::Ended { how } => how.clone(),
            Cause::EndedBefore { how } => format!("the version before it ended on the way to it: {how}"),
            Cause::Overdue { probation_ms } => format!("did not confirm within {probation_ms} ms"),
            Cause::NotStarted { fault, .. } => format!("cannot be started: {fault}"),
            Cause::Undecided => "ended twice before it could confirm".to_owned(),
        }
    }
}

/// Decides. `failures`: how often the current version has ended in a row without having worked for a while.
///
/// Only a version on probation can be bad. One that could not be started for a reason that is not its own (no memory, an
/// unreadable disk) is tried again, for as long as its second chance lasts.
pub fn judge(journal: &Journal, cause: &Cause, failures: u32) -> Verdict {
    let reason = cause.reason();
    let again = |reason: String| {
        let factor = 2u32.saturating_pow(failures.min(16));
        Verdict::Again { after: AGAIN_MIN.saturating_mul(factor).min(AGAIN_MAX), reason }
    };
    let (change, good) = match (&journal.phase, &journal.last_good) {
        (Phase::Probation { change, .. }, Some(good)) => (*change, good),
        // Confirmed once: it is started again and not judged. Launching: there is nothing to return to.
        (Phase::Probation { .. } | Phase::Launching | Phase::Confirmed, _) => return again(reason),
    };
    match cause {
        Cause::NotStarted { of_the_version: false, .. } if failures == 0 => again(reason),
        Cause::Ended { .. }
        | Cause::EndedBefore { .. }
        | Cause::Overdue { .. }
        | Cause::NotStarted { .. }
        | Cause::Undecided => Verdict::Return {
            change,
            bad: journal.current.clone(),
            good: good.clone(),
            reason,
            at_fault: !matches!(cause, Cause::EndedBefore { .. }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::TreeId;

    fn entry(n: u8) -> Entry {
        Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
    }

    fn journal(phase: Phase) -> Journal {
        Journal { last_good: Some(entry(1)), phase, ..Journal::first(entry(2)) }
    }

    #[test]
    fn only_a_version_on_probation_is_returned_from() {
        let probation = Phase::Probation { change: ChangeId(7), attempts: 1, probation_ms: 10 };
        let ended = Cause::Ended { how: "exit status 1".to_owned() };
        let reason = "exit status 1".to_owned();
        let (change, bad, good) = (ChangeId(7), entry(2), entry(1));
        let want = Verdict::Return { change, bad, good, reason, at_fault: true };
        assert_eq!(judge(&journal(probation.clone()), &ended, 0), want);
        let before = Cause::EndedBefore { how: "ended by SIGKILL".to_owned() };
        let verdict = judge(&journal(probation.clone()), &before, 0);
        assert!(matches!(verdict, Verdict::Return { at_fault: false, .. }), "it never ran: {verdict:?}");
        for phase in [Phase::Confirmed, Phase::Launching] {
            assert!(matches!(judge(&journal(phase), &ended, 0), Verdict::Again { .. }));
        }
        for cause in [Cause::Overdue { probation_ms: 10 }, Cause::Undecided] {
            assert!(matches!(judge(&journal(probation.clone()), &cause, 0), Verdict::Return { .. }));
        }
    }

    #[test]
    fn a_bad_day_of_the_host_is_not_held_against_the_version_at_once() {
        let probation = Phase::Probation { change: ChangeId(7), attempts: 2, probation_ms: 10 };
        let world = Cause::NotStarted { fault: "EIO".to_owned(), of_the_version: false };
        let version = Cause::NotStarted { fault: "ENOEXEC".to_owned(), of_the_version: true };
        assert!(matches!(judge(&journal(probation.clone()), &world, 0), Verdict::Again { .. }));
        assert!(matches!(judge(&journal(probation.clone()), &world, 1), Verdict::Return { .. }));
        assert!(matches!(judge(&journal(probation), &version, 0), Verdict::Return { .. }));
    }

    #[test]
    fn tries_come_ever_more_slowly_but_never_stop() {
        let ended = Cause::Ended { how: "SIGSEGV".to_owned() };
        let after = |failures| match judge(&journal(Phase::Confirmed), &ended, failures) {
            Verdict::Again { after, .. } => after,
            Verdict::Return { .. } => panic!("nothing to return from"),
        };
        assert_eq!(after(0), AGAIN_MIN);
        assert!(after(3) > after(2));
        assert_eq!(after(u32::MAX), AGAIN_MAX);
    }
}
