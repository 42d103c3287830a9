//! Operations that a program brings itself, registered by name with typed arguments.

use std::collections::BTreeMap;
use std::fmt;

use proto::agent::{Operation, Outcome, Summary};
use proto::limits::{OWN_RESULTS_MAX, PROBLEM_BYTES_MAX, PROBLEMS_MAX, RESULT_BYTES_MAX};
use proto::name::NameError;
use proto::own::{Arguments, Finding, OwnSummary};
use proto::{ArgumentName, OperationKind, text};
use serde::de::DeserializeOwned;

use crate::near::near;
use crate::operations::{Demand, Ended, OperationContext};
use crate::typed::typed;

/// Kinds of operations that a manager can order by their names, `manager-fs job run PRODUCT KIND --arg NAME=VALUE`,
/// beside backup, restore and the others of [`crate::Operations::run`]. They are jobs like those: durable, with
/// progress, a cancel, and checkpoints from which the next version goes on.
///
/// ```
/// use agent_core::{Kinds, Results};
///
/// #[derive(serde::Deserialize)]
/// struct Rotate {
///     log: String,
///     #[serde(default)]
///     keep: u8,
/// }
///
/// let kinds = Kinds::new().on("rotate", |rotate: Rotate, context| {
///     for number in 0..rotate.keep {
///         context.go_on()?; // ends here for a cancel, or to go on under the next version
///         // … rotate `rotate.log` …
///         context.units(number.into(), rotate.keep.into(), &rotate.log);
///     }
///     Ok(Results::new().with("rotated", rotate.keep))
/// });
/// ```
#[derive(Default)]
pub struct Kinds {
    by_name: BTreeMap<OperationKind, Box<Run>>,
    fault: Option<KindFault>,
}

type Run = dyn Fn(&Arguments, &OperationContext) -> Result<Results, Halt> + Send + Sync;

/// A kind that cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KindFault {
    /// No operation can have this name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is one of those that every program means the same by.
    #[error("'{0}' is no kind of a program's own: `Operations::run` performs it")]
    Taken(OperationKind),
    /// It is registered already.
    #[error("operations of the kind '{0}' are registered twice")]
    Twice(OperationKind),
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

impl Kinds {
    /// A program without operations of its own; [`Kinds::on`] adds them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. `run` performs an operation of this kind to its end, on a thread of its own, several of them at a
    /// time; after a change-over or a crash it is called again with the same arguments.
    ///
    /// The arguments come as text and become the fields of `A`, a struct of texts, numbers, booleans, options and
    /// enums without fields (or a map of texts). One that `A` does not have, or that does not become what it
    /// should, fails the operation and is named.
    ///
    /// A name that no kind can have makes [`crate::Agent::start`] fail.
    #[must_use]
    pub fn on<A: DeserializeOwned>(
        mut self,
        kind: &str,
        run: impl Fn(A, &OperationContext) -> Result<Results, Halt> + Send + Sync + 'static,
    ) -> Self {
        match self.free(kind) {
            Ok(kind) => {
                let typed_run =
                    move |arguments: &Arguments, context: &OperationContext| run(typed(arguments)?, context);
                self.by_name.insert(kind, Box::new(typed_run));
            }
            // The first one is said: what follows may follow from it.
            Err(fault) => drop(self.fault.get_or_insert(fault)),
        }
        self
    }

    fn free(&self, kind: &str) -> Result<OperationKind, KindFault> {
        let kind: OperationKind = kind.parse()?;
        match () {
            () if Operation::KINDS.contains(&kind.as_str()) => Err(KindFault::Taken(kind)),
            () if self.by_name.contains_key(&kind) => Err(KindFault::Twice(kind)),
            () => Ok(kind),
        }
    }

    pub(crate) fn check(&self) -> Result<(), KindFault> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Performs one operation.
    pub(crate) fn run(&self, kind: &OperationKind, arguments: &Arguments, context: &OperationContext) -> Ended {
        let Some(run) = self.by_name.get(kind) else {
            return Ended::Outcome(Outcome::Failed(self.unknown(kind)));
        };
        match run(arguments, context) {
            Ok(Results(summary)) => Ended::Outcome(Outcome::OwnDone(summary)),
            Err(Halt(Why::Checkpointed)) => Ended::Checkpointed,
            Err(Halt(Why::Cancelled)) => Ended::Outcome(Outcome::Cancelled(Summary::default())),
            Err(Halt(Why::Failed(why))) => Ended::Outcome(Outcome::Failed(why)),
        }
    }

    fn unknown(&self, kind: &OperationKind) -> String {
        let mut text = format!("this agent performs no {kind}");
        let all: Vec<&str> = self.by_name.keys().map(OperationKind::as_str).collect();
        if let Some(near) = near(kind.as_str(), all.iter().copied()) {
            text.push_str(&format!("; did you mean {near}?"));
        }
        if all.is_empty() {
            text.push_str("; its program brings no operations of its own");
        } else {
            text.push_str(&format!("; it performs {}", all.join(", ")));
        }
        text
    }
}

/// What an operation of a program's own kind did, for people: `Results::new().with("rotated", 3)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Results(OwnSummary);

impl Results {
    /// No lines and no problems: an operation that just did what it should.
    pub fn new() -> Self {
        Self::default()
    }

    /// One line more, under a name of letters, digits, `.`, `_` and `-`. At most 64 lines of 1 KiB are kept; one too
    /// many, or without such a name, is a problem.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        match name.parse::<ArgumentName>() {
            Ok(name) if self.0.results.len() < OWN_RESULTS_MAX => {
                self.0.results.push(Finding { name, text: text::line(&value.to_string(), RESULT_BYTES_MAX) });
                self
            }
            Ok(_) => self.problem(format_args!("more than {OWN_RESULTS_MAX} results: {name} is left out")),
            Err(fault) => self.problem(fault),
        }
    }

    /// An error that was passed over: the job is then *done with problems*. At most 256 lines are kept.
    #[must_use]
    pub fn problem(mut self, problem: impl fmt::Display) -> Self {
        if self.0.problems.len() < PROBLEMS_MAX {
            self.0.problems.push(text::line(&problem.to_string(), PROBLEM_BYTES_MAX));
        }
        self
    }
}

/// Why an operation of a program's own kind ends early. Any error becomes one with `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt(Why);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    Checkpointed,
    Cancelled,
    Failed(String),
}

impl Halt {
    /// The operation ends as failed, for this reason; the first line of it is shown to people.
    pub fn failed(why: impl fmt::Display) -> Self {
        Self(Why::Failed(why.to_string()))
    }
}

impl<E: std::error::Error> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}

impl OperationContext {
    /// For operations of [`Kinds`], at every unit boundary: goes on, or ends the operation with `?`, for a cancel or so
    /// that the next version goes on from the last [`OperationContext::checkpoint`].
    ///
    /// # Errors
    /// It must stop here.
    pub fn go_on(&self) -> Result<(), Halt> {
        match self.demand() {
            Demand::None | Demand::Finish => Ok(()),
            Demand::Checkpoint => Err(Halt(Why::Checkpointed)),
            Demand::Cancel => Err(Halt(Why::Cancelled)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::testing::{Asked, context};

    #[derive(serde::Deserialize)]
    struct Rotate {
        keep: u8,
    }

    fn kinds() -> Kinds {
        Kinds::new()
            .on("rotate", |rotate: Rotate, context| {
                context.go_on()?;
                Ok(Results::new().with("kept", rotate.keep))
            })
            .on("fail", |(): (), _| {
                std::fs::read("/nonexistent/file")?;
                Ok(Results::new())
            })
    }

    fn run(kind: &str, arguments: &[(&str, &str)], demand: Demand) -> Ended {
        let mut given = Arguments::default();
        arguments.iter().for_each(|(name, value)| given.add(name.parse().unwrap(), value).unwrap());
        kinds().run(&kind.parse().unwrap(), &given, &context(Asked(demand)))
    }

    fn failure(ended: Ended) -> String {
        match ended {
            Ended::Outcome(Outcome::Failed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_operation_ends_in_one_of_four_ways() {
        let done = run("rotate", &[("keep", "7")], Demand::Finish);
        assert_eq!(done, Ended::Outcome(Outcome::OwnDone(Results::new().with("kept", 7).0)));
        assert_eq!(run("rotate", &[("keep", "7")], Demand::Checkpoint), Ended::Checkpointed);
        let cancelled = Ended::Outcome(Outcome::Cancelled(Summary::default()));
        assert_eq!(run("rotate", &[("keep", "7")], Demand::Cancel), cancelled);
        assert!(failure(run("fail", &[], Demand::None)).contains("No such file"));
    }

    #[test]
    fn what_the_program_does_not_know_is_named_with_what_it_does() {
        let why = failure(run("rotat", &[], Demand::None));
        assert_eq!(why, "this agent performs no rotat; did you mean rotate?; it performs fail, rotate");
        let why = failure(run("rotate", &[("keep", "many")], Demand::None));
        assert!(why.contains("keep") && why.contains("many"), "{why}");
        let empty = Kinds::new().run(&"x".parse().unwrap(), &Arguments::default(), &context(Asked(Demand::None)));
        assert!(failure(empty).contains("brings no operations of its own"));
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let fault = |kind| Kinds::new().on(kind, |(): (), _| Ok(Results::new())).check().unwrap_err().to_string();
        assert!(fault("backup").contains("Operations::run"));
        assert!(fault("Rotate logs").contains("lowercase"));
        let twice = kinds().on("fail", |(): (), _| Ok(Results::new()));
        assert!(twice.check().unwrap_err().to_string().contains("twice"));
        assert_eq!(kinds().check(), Ok(()));
        let shown = format!("{:?}", kinds());
        assert!(shown.contains("fail") && shown.contains("rotate"), "{shown}");
    }

    #[test]
    fn what_is_said_has_bounds() {
        let mut results = Results::new().with("two words", 1);
        for n in 0..OWN_RESULTS_MAX + 2 {
            results = results.with("n", "x".repeat(2 * RESULT_BYTES_MAX)).problem(n);
        }
        for n in 0..PROBLEMS_MAX {
            results = results.problem(n);
        }
        let Results(OwnSummary { results, problems, .. }) = results;
        assert_eq!((results.len(), problems.len()), (OWN_RESULTS_MAX, PROBLEMS_MAX));
        assert!(results[0].text.len() <= RESULT_BYTES_MAX);
        assert!(problems[0].contains("two words"));
        let most = (0..OWN_RESULTS_MAX).fold(Results::new(), |results, n| results.with("n", n));
        assert_eq!((most.0.results.len(), most.0.problems.len()), (OWN_RESULTS_MAX, 0), "as many as are kept");
        assert!(most.with("last", 1).0.problems[0].contains("last is left out"));
    }
}
