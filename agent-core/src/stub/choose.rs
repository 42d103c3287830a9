//! Which version is started: what the journal says if that can be had, and otherwise, loudly, the next best of what this
//! host has. A host without its manager must not be without its agent because one file of many cannot be read.

use proto::agent::ChangeId;

use super::Observer;
use crate::journal::{Copies, Entry, Journal, Phase, Staged};
use crate::records::{self, RecordError, Verified};
use crate::report::unix_ms;
use crate::{AgentPaths, bad, swap};

/// A probation that a stub finds undecided is started this often in all.
const ATTEMPTS_MAX: u32 = 2;

/// Until more is known of it.
const JUST_NOW: &str = "it cannot be started here just now";

/// One way to start.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) verified: Verified,
    /// As it is to be once this is started.
    pub(super) journal: Journal,
    /// The change-over that ends with this start, and the version that it does not end with.
    pub(super) ends: Option<Ends>,
}

impl Choice {
    /// The first version of the product on this host.
    pub(super) fn first(verified: Verified) -> Self {
        Self { journal: Journal::first(verified.entry()), verified, ends: None }
    }

    /// Why it was taken instead of a better one.
    pub(super) fn because(&mut self, why: &str) {
        self.journal.reason = self.journal.reason.replace(JUST_NOW, why);
        if let Some(ends) = &mut self.ends {
            ends.reason = ends.reason.replace(JUST_NOW, why);
        }
    }
}

/// A change-over that is over before anything is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) change: ChangeId,
    pub(super) bad: Entry,
    pub(super) reason: String,
    /// The version had its chances.
    pub(super) at_fault: bool,
}

/// All ways to start, best first, and what was staged when the last agent ended.
#[derive(Debug)]
pub(super) struct Choices {
    pub(super) ways: Vec<Choice>,
    /// Why the first of them is not what the journal says.
    pub(super) fault: Option<RecordError>,
    pub(super) staged: Option<Staged>,
}

/// Looks at the disk. Nothing is written but for what has to be moved out of the way.
pub(super) fn look(paths: &AgentPaths, observer: &mut dyn Observer) -> Choices {
    let copies = Copies::read(&paths.journal());
    for said in copies.set_aside(unix_ms()) {
        observer.say(&said);
    }
    let mut choices = Choices { ways: Vec::new(), fault: None, staged: None };
    match copies.newest {
        Some(mut journal) => {
            choices.staged = journal.staged.take();
            let is_doubtful = !copies.faults.is_empty();
            by_journal(paths, journal, is_doubtful, &mut choices, observer);
        }
        None if !copies.faults.is_empty() => {
            observer.say("no copy of the journal can be read; looking at the saved metadata");
            choices.ways = by_records(paths, &[]);
        }
        None => {}
    }
    choices
}

/// `is_doubtful`: a newer copy may have been damaged, and may have said that the version had confirmed.
fn by_journal(
    paths: &AgentPaths,
    mut journal: Journal,
    is_doubtful: bool,
    choices: &mut Choices,
    observer: &mut dyn Observer,
) {
    if let Phase::Probation { attempts, .. } = &mut journal.phase {
        *attempts += 1;
        if is_doubtful {
            // Not held to be spent on the word of a copy that may be out of date.
            *attempts = (*attempts).min(ATTEMPTS_MAX);
        }
    }
    let spent = matches!(&journal.phase, Phase::Probation { attempts, .. } if *attempts > ATTEMPTS_MAX);
    let mut faults = Vec::new();
    let mut load = |entry: &Entry| match records::load_vouched(paths, entry) {
        Ok((verified, doubt)) => {
            let mended = records::mend(paths, &entry.version, unix_ms());
            mended.iter().chain(&doubt).for_each(|said| observer.say(said));
            Some(verified)
        }
        Err(fault) => {
            faults.push(fault);
            None
        }
    };
    let current = load(&journal.current);
    let good = journal.last_good.as_ref().and_then(&mut load);
    let mut why = faults.first().map(ToString::to_string);
    if let Some(verified) = current
        && !(spent && good.is_some())
    {
        correct(&mut journal, &verified, observer);
        choices.ways.push(Choice { verified, journal: journal.clone(), ends: None });
    } else if spent {
        why = Some("ended twice before it could confirm".to_owned());
    }
    if let Some(verified) = good {
        choices.ways.push(instead(&journal, verified, why.as_deref(), spent));
    }
    let known: Vec<_> = choices.ways.iter().map(|way| way.verified.entry()).collect();
    let others = by_records(paths, &known).into_iter();
    choices.ways.extend(others.map(|other| instead(&journal, other.verified, why.as_deref(), false)));
    choices.fault = faults.into_iter().next();
}

/// The record is signed and the journal is not: where they differ the record is right.
fn correct(journal: &mut Journal, verified: &Verified, observer: &mut dyn Observer) {
    let (tree, name) = (verified.record.tree, verified.record.name());
    if journal.current.tree != tree {
        let file = &journal.current.version;
        observer.say(&format!("the saved metadata {file}.record is {name}: starting its tree {tree}"));
        journal.current.tree = tree;
    }
}

/// Another version than the journal says. In a probation that is a return, and ends the change-over.
fn instead(journal: &Journal, verified: Verified, why: Option<&str>, at_fault: bool) -> Choice {
    let bad = journal.current.clone();
    let why = why.unwrap_or(JUST_NOW);
    let ends = match &journal.phase {
        Phase::Probation { change, .. } => {
            Some(Ends { change: *change, bad: bad.clone(), reason: why.to_owned(), at_fault })
        }
        Phase::Launching | Phase::Confirmed => None,
    };
    let word = if ends.is_some() { "returned" } else { "fell back" };
    let journal = Journal {
        current: verified.entry(),
        last_good: None,
        staged: None,
        phase: Phase::Confirmed,
        reason: format!("{word} from {}: {why}", bad.version),
        ..journal.clone()
    };
    Choice { verified, journal, ends }
}

/// Where to return to from the version that the journal names: the last good one, or the next best if its record cannot
/// be believed. `None`: this host has nothing else.
pub(super) fn to_return(paths: &AgentPaths, journal: &Journal, reason: &str, at_fault: bool) -> Option<Choice> {
    let good = journal.last_good.as_ref().and_then(|good| records::load_vouched(paths, good).ok());
    let good = good.map(|(verified, _)| verified);
    let good = good.or_else(|| {
        let others = by_records(paths, std::slice::from_ref(&journal.current));
        others.into_iter().next().map(|other| other.verified)
    })?;
    let mut choice = instead(journal, good, Some(reason), at_fault);
    choice.journal.reason = format!("returned from {}: {reason}", journal.current.version);
    Some(choice)
}

/// What else can be started while the tree of the version that the journal names cannot be had, best first.
pub(super) fn others(paths: &AgentPaths, journal: &Journal, why: &str) -> Vec<Choice> {
    let good = journal.last_good.as_ref().and_then(|good| records::load_vouched(paths, good).ok());
    let good: Vec<_> = good.map(|(verified, _)| verified).into_iter().collect();
    let known: Vec<_> = good.iter().map(Verified::entry).chain([journal.current.clone()]).collect();
    let others = by_records(paths, &known).into_iter().map(|other| other.verified);
    good.into_iter().chain(others).map(|verified| instead(journal, verified, Some(why), false)).collect()
}

/// Versions whose records can be believed and that are not known to be bad: first the one that was attached last, then
/// those that were saved last.
fn by_records(paths: &AgentPaths, but: &[Entry]) -> Vec<Choice> {
    let attached = swap::current(paths);
    let mut found = Vec::new();
    for (version, saved) in records::saved(paths) {
        let Ok(verified) = records::load(paths, &version) else { continue };
        let entry = verified.entry();
        if but.contains(&entry) || bad::evidence(paths, &entry.tree).is_some() {
            continue;
        }
        found.push((Some(entry.tree) == attached, saved, verified));
    }
    found.sort_by_key(|(is_attached, saved, _)| std::cmp::Reverse((*is_attached, *saved)));
    let entries: Vec<_> = found.iter().map(|(_, _, verified)| verified.entry()).collect();
    let ways = found.into_iter().enumerate().map(|(i, (_, _, verified))| {
        // Whether it is good nobody knows any more: it has to prove itself where there is something to return to.
        let probation_ms = verified.record.metadata.health.probation_ms;
        let last_good = entries.get(i + 1).cloned();
        let phase = match &last_good {
            Some(_) => Phase::Probation { change: ChangeId(0), attempts: 1, probation_ms },
            None => Phase::Launching,
        };
        let reason = "started from its saved metadata: the journal cannot be read".to_owned();
        let journal = Journal { last_good, phase, reason, ..Journal::first(verified.entry()) };
        Choice { verified, journal, ends: None }
    });
    ways.collect()
}
