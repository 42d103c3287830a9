//! Every moment at which an agent or its stub makes something durable, or does what cannot be undone: one list, and one
//! function that is called right before each of them.
//!
//! In a program that sets no hook, this costs one load. The hook is for proving what the documents promise: examples set
//! one that kills the process, stops it, or lets the disk fail at a moment that a test names, so that a test can go
//! through all of [`Moment::ALL`] and none is forgotten. The programs themselves set none, whatever they inherit.
//!
//! Programs around an agent list their moments with [`moments!`](crate::moments!) and come to them by [`at`].

use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// Makes `enum Moment`: `/// What happens next.` `Name = "as-it-is-spelled" by Process,` ..., where `Process` is an enum that
/// the caller has.
#[doc(hidden)]
#[macro_export]
macro_rules! moments {
    ($($(#[doc = $text:literal])+ $name:ident = $spelled:literal by $who:ident,)+) => {
        /// A moment right before something becomes durable, or cannot be undone any more.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Moment {
            $($(#[doc = $text])+ $name,)+
        }

        impl Moment {
            /// All of them, in the order of a change-over.
            pub const ALL: &[Moment] = &[$(Moment::$name),+];

            /// As tests and documents spell it.
            pub fn name(self) -> &'static str {
                match self { $(Moment::$name => $spelled,)+ }
            }

            /// What happens next, for people.
            pub fn text(self) -> &'static str {
                match self { $(Moment::$name => concat!($($text),+).trim_ascii(),)+ }
            }

            /// Which process comes to it.
            pub fn who(self) -> Process {
                match self { $(Moment::$name => Process::$who,)+ }
            }
        }
    };
}

/// Whose moment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// The agent that leaves, or that came.
    Agent,
    /// The stub, its parent, which starts it and returns to the version before.
    Stub,
}

moments! {
    /// The signed record of message A is written.
    RecordSave = "record-save" by Agent,
    /// The journal names what is staged.
    JournalStaged = "journal-staged" by Agent,
    /// The new link is made beside the old one.
    LinkPrepare = "link-prepare" by Agent,
    /// The journal forgets what was staged.
    JournalUnstaged = "journal-unstaged" by Agent,
    /// The record of message A takes its place among those that versions are started from.
    RecordPlace = "record-place" by Agent,
    /// The intent to change over is written.
    JournalIntent = "journal-intent" by Agent,
    /// The link is renamed.
    LinkSwap = "link-swap" by Agent,
    /// Children of the old program are killed.
    ChildrenEnd = "children-end" by Agent,
    /// The process becomes the new program.
    Exec = "exec" by Agent,
    /// The link is renamed back.
    LinkBack = "link-back" by Agent,
    /// The intent is taken back.
    JournalBack = "journal-back" by Agent,
    /// The confirmation is written.
    JournalConfirmed = "journal-confirmed" by Agent,
    /// The evidence against a version that was refused is written.
    AgentBad = "agent-bad" by Agent,
    /// A report is put where it waits for the mount daemon.
    Report = "report" by Agent,
    /// The record of a new job, or of its next start, is written.
    JobStart = "job-start" by Agent,
    /// A job's checkpoint is written.
    JobCheckpoint = "job-checkpoint" by Agent,
    /// A job's cancel is written.
    JobCancel = "job-cancel" by Agent,
    /// A job's outcome is written.
    JobEnd = "job-end" by Agent,
    /// What is to be started is written.
    StubJournal = "stub-journal" by Stub,
    /// The link is pointed at what is to be started.
    StubLink = "stub-link" by Stub,
    /// The program is started.
    StubSpawn = "stub-spawn" by Stub,
    /// The evidence against a version that failed is written.
    StubBad = "stub-bad" by Stub,
    /// The signed record of an order is written.
    StubRecord = "stub-record" by Stub,
    /// The journal names what is made ready for an order.
    StubStaged = "stub-staged" by Stub,
    /// The record of an order takes its place among those that versions are started from.
    StubPlace = "stub-place" by Stub,
    /// The intent to change over, as an order says, is written.
    StubIntent = "stub-intent" by Stub,
    /// The return is written.
    StubReturn = "stub-return" by Stub,
}

type Hook = Box<dyn Fn(&'static str, &Path) -> io::Result<()> + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// From now on this is called right before each moment, with its name and the file that is about to change; an error
/// takes the place of what the operating system would have said. Only the first hook of a process counts.
pub fn watch(hook: impl Fn(&'static str, &Path) -> io::Result<()> + Send + Sync + 'static) {
    drop(HOOK.set(Box::new(hook)));
}

/// Called right before the moment of this name: here by [`Moment`]'s, elsewhere by those of another list.
///
/// # Errors
/// What the hook says; without one there are none.
pub fn at(name: &'static str, path: &Path) -> io::Result<()> {
    match HOOK.get() {
        Some(hook) => hook(name, path),
        None => Ok(()),
    }
}

/// Called right before the moment.
pub(crate) fn reach(moment: Moment, path: &Path) -> io::Result<()> {
    at(moment.name(), path)
}

/// Hooks of unit tests, which share one process: each is for the files below a directory of its own.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    type Below = (PathBuf, Arc<dyn Fn(Moment) -> io::Result<()> + Send + Sync>);

    static BELOW: Mutex<Vec<Below>> = Mutex::new(Vec::new());

    /// Calls `hook` at every moment that changes a file below `dir`.
    pub(crate) fn below(dir: &Path, hook: impl Fn(Moment) -> io::Result<()> + Send + Sync + 'static) {
        BELOW.lock().unwrap().push((dir.to_owned(), Arc::new(hook)));
        watch(|name, path| {
            let moment = Moment::ALL.iter().copied().find(|moment| moment.name() == name).unwrap();
            let hooks = BELOW.lock().unwrap().clone();
            hooks.iter().filter(|(dir, _)| path.starts_with(dir)).try_for_each(|(_, hook)| hook(moment))
        });
    }

    #[test]
    fn names_are_distinct_and_every_moment_has_its_text() {
        let names: std::collections::BTreeSet<_> = Moment::ALL.iter().map(|moment| moment.name()).collect();
        assert_eq!(names.len(), Moment::ALL.len());
        assert!(Moment::ALL.iter().all(|moment| moment.text().ends_with('.')));
    }
}
