//! What follows when a program ended, or did not prove itself in time. Pure: the journal and the cause decide.

use std::time::Duration;

use proto::agent::ChangeId;

use crate::journal::{Entry, Journal, Phase};

/// What happened to the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It ended by itself.
    Ended {
        /// `exit status 1`, `SIGSEGV`.
        how: String,
        /// Why it had not proved itself until then, if it said so.
        unwell: Option<String>,
    },
    /// The version before it ended with the intent on disk, and never became it.
    EndedBefore {
        /// As a wait status says it: `ended by SIGKILL`.
        how: String,
    },
    /// Its probation is over, and it has not confirmed. It has been killed.
    Overdue {
        /// How long it had, milliseconds.
        probation_ms: u64,
        /// What kept it from that, if it said so.
        unwell: Option<String>,
    },
    /// It could not be started at all.
    NotStarted {
        /// What was tried, and what the operating system said.
        fault: String,
        /// Another try must end in the same way.
        of_the_version: bool,
    },
    /// It was started, and did not serve in time. It has been killed.
    Silent {
        /// How long it had, milliseconds.
        serving_ms: u64,
    },
    /// It runs, and has closed the channel to the stub. It has been killed.
    Mute,
    /// Its tree cannot be had just now.
    NoTree {
        /// What the mount daemon said, if it has said anything yet.
        why: Option<String>,
    },
}

/// What follows from an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Return to the last good version.
    Return {
        /// The manager's number of the change-over that fails by it; 0 if nobody ordered one.
        change: ChangeId,
        /// The version that failed.
        bad: Entry,
        /// The version that runs next.
        good: Entry,
        /// Why, for people.
        reason: String,
        /// Whether the version is to blame, so that it is remembered as bad.
        at_fault: bool,
    },
    /// Start the same version again after a while.
    Again {
        /// How long to wait before.
        after: Duration,
        /// Why, for people.
        reason: String,
    },
}

const AGAIN_MIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(30);

impl Cause {
    /// Whether it is held against the version when there is no other chance for it.
    fn is_of_the_version(&self) -> bool {
        !matches!(self, Cause::EndedBefore { .. } | Cause::NoTree { .. })
    }

    /// The cause in words, for people.
    pub(crate) fn reason(&self) -> String {
        match self {
            Cause::Ended { how, unwell: None } => how.clone(),
            Cause::Ended { how, unwell: Some(why) } => format!("{how}; before that: {why}"),
            Cause::EndedBefore { how } => format!("the version before it ended on the way to it: {how}"),
            Cause::Overdue { probation_ms, unwell: None } => format!("did not confirm within {probation_ms} ms"),
            Cause::Overdue { probation_ms, unwell: Some(why) } => {
                format!("did not confirm within {probation_ms} ms: {why}")
            }
            Cause::NotStarted { fault, .. } => format!("cannot be started: {fault}"),
            Cause::Silent { serving_ms } => format!("did not serve within {serving_ms} ms"),
            Cause::Mute => "it closed the channel to its stub, which could not watch it any more".to_owned(),
            Cause::NoTree { why } => format!("its tree cannot be had: {}", why.as_deref().unwrap_or("no answer yet")),
        }
    }
}

/// A version that was believed and that this often in a row came to its end without having proved that it works is
/// not believed any more: it works only when it is handed over to, or the host has changed.
pub(super) const COLD_MAX: u32 = 3;

/// How it went before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// How often the current version has ended in a row without having worked for a while.
    pub failures: u32,
    /// How often of these it had not even confirmed, this time included.
    pub cold: u32,
}

/// Decides what follows from `cause`.
///
/// A version on probation is bad when it ends. One that could not be started for a reason that is not its own (no
/// memory, an unreadable disk) is tried again, for as long as its second chance lasts. One that was believed is started
/// again and again; after three times without a sign of life the last good one takes its place, if there is one.
pub(crate) fn judge(journal: &Journal, cause: &Cause, history: History) -> Verdict {
    let failures = history.failures;
    let reason = cause.reason();
    let again = |reason: String| {
        let factor = 2u32.saturating_pow(failures.min(16));
        Verdict::Again { after: AGAIN_MIN.saturating_mul(factor).min(AGAIN_MAX), reason }
    };
    let (change, good) = match (&journal.phase, &journal.last_good) {
        (Phase::Probation { change, .. }, Some(good)) => (*change, good),
        (Phase::Confirmed, Some(good)) if history.cold >= COLD_MAX => {
            return Verdict::Return {
                change: ChangeId(0),
                bad: journal.current.clone(),
                good: good.clone(),
                reason: format!("failed {} times in a row at a start, the last time: {reason}", history.cold),
                at_fault: cause.is_of_the_version(),
            };
        }
        // Launching: there is nothing to return to.
        (Phase::Probation { .. } | Phase::Launching | Phase::Confirmed, _) => return again(reason),
    };
    match cause {
        Cause::NotStarted { of_the_version: false, .. } if failures == 0 => again(reason),
        Cause::Ended { .. }
        | Cause::EndedBefore { .. }
        | Cause::Overdue { .. }
        | Cause::NotStarted { .. }
        | Cause::Silent { .. }
        | Cause::Mute
        | Cause::NoTree { .. } => Verdict::Return {
            change,
            bad: journal.current.clone(),
            good: good.clone(),
            reason,
            at_fault: cause.is_of_the_version(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::TreeId;

    const NONE: History = History { failures: 0, cold: 0 };

    fn entry(n: u8) -> Entry {
        Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
    }

    fn journal(phase: Phase) -> Journal {
        Journal { last_good: Some(entry(1)), phase, ..Journal::first(entry(2)) }
    }

    #[test]
    fn only_a_version_on_probation_is_returned_from() {
        let probation = Phase::Probation { change: ChangeId(7), attempts: 1, probation_ms: 10 };
        let ended = Cause::Ended { how: "exit status 1".to_owned(), unwell: None };
        let reason = "exit status 1".to_owned();
        let (change, bad, good) = (ChangeId(7), entry(2), entry(1));
        let want = Verdict::Return { change, bad, good, reason, at_fault: true };
        assert_eq!(judge(&journal(probation.clone()), &ended, NONE), want);
        let before = Cause::EndedBefore { how: "ended by SIGKILL".to_owned() };
        let verdict = judge(&journal(probation.clone()), &before, NONE);
        assert!(matches!(verdict, Verdict::Return { at_fault: false, .. }), "it never ran: {verdict:?}");
        for phase in [Phase::Confirmed, Phase::Launching] {
            assert!(matches!(judge(&journal(phase), &ended, NONE), Verdict::Again { .. }));
        }
        let overdue = Cause::Overdue { probation_ms: 10, unwell: None };
        assert!(matches!(judge(&journal(probation), &overdue, NONE), Verdict::Return { .. }));
    }

    #[test]
    fn what_a_version_said_of_itself_is_part_of_the_reason() {
        let why = || Some("status 503".to_owned());
        let reason = Cause::Overdue { probation_ms: 10, unwell: why() }.reason();
        assert_eq!(reason, "did not confirm within 10 ms: status 503");
        let reason = Cause::Ended { how: "exit status 1".to_owned(), unwell: why() }.reason();
        assert_eq!(reason, "exit status 1; before that: status 503");
    }

    #[test]
    fn a_bad_day_of_the_host_is_not_held_against_the_version_at_once() {
        let probation = Phase::Probation { change: ChangeId(7), attempts: 2, probation_ms: 10 };
        let world = Cause::NotStarted { fault: "EIO".to_owned(), of_the_version: false };
        let version = Cause::NotStarted { fault: "ENOEXEC".to_owned(), of_the_version: true };
        assert!(matches!(judge(&journal(probation.clone()), &world, NONE), Verdict::Again { .. }));
        assert!(matches!(
            judge(&journal(probation.clone()), &world, History { failures: 1, cold: 1 }),
            Verdict::Return { .. }
        ));
        assert!(matches!(judge(&journal(probation), &version, NONE), Verdict::Return { .. }));
    }

    #[test]
    fn a_believed_version_that_never_comes_up_gives_way_to_the_last_good_one() {
        let ended = Cause::Ended { how: "exit status 1".to_owned(), unwell: None };
        let cold = |cold| judge(&journal(Phase::Confirmed), &ended, History { failures: 9, cold });
        assert!(matches!(cold(COLD_MAX - 1), Verdict::Again { .. }));
        let Verdict::Return { change, good, bad, at_fault, .. } = cold(COLD_MAX) else { panic!("not returned") };
        assert_eq!((change, good, bad, at_fault), (ChangeId(0), entry(1), entry(2), true));
        let alone = Journal { last_good: None, ..journal(Phase::Confirmed) };
        assert!(matches!(judge(&alone, &ended, History { failures: 99, cold: 99 }), Verdict::Again { .. }));
    }

    #[test]
    fn tries_come_ever_more_slowly_but_never_stop() {
        let ended = Cause::Ended { how: "SIGSEGV".to_owned(), unwell: None };
        let after = |failures| match judge(&journal(Phase::Confirmed), &ended, History { failures, cold: 0 }) {
            Verdict::Again { after, .. } => after,
            Verdict::Return { .. } => panic!("nothing to return from"),
        };
        assert_eq!(after(0), AGAIN_MIN);
        assert!(after(3) > after(2));
        assert_eq!(after(u32::MAX), AGAIN_MAX);
    }
}
