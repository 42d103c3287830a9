//! The embedding program, as the change-over calls it: every call has an end, whatever the program does in it.

use std::any::Any;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use proto::health::HealthCheck;

use crate::health::{self, Answering};
use crate::intake::Gate;
use crate::operations::{NotHealthy, Operations};
use crate::state;

/// How long saving the state may take: nobody is served meanwhile.
const SAVE_PATIENCE: Duration = Duration::from_secs(5);
/// How long resuming may take before the library goes on without it.
const RESUME_PATIENCE: Duration = Duration::from_secs(10);
/// How long the program may take to say whether it is fit to work.
const HEALTH_PATIENCE: Duration = Duration::from_secs(10);
/// Past the deadline of the drain, the program has this long to come back.
const QUIESCE_GRACE: Duration = Duration::from_secs(2);

/// A call of the embedding program that did not come back as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallFault {
    #[error("the program's {0} has not come back within {1:?}")]
    Late(&'static str, Duration),
    #[error("the program's {0} was called before and has not come back since")]
    StillOut(&'static str),
    #[error("the program's {0} panicked: {1}")]
    Panicked(&'static str, String),
    #[error("no thread can be started for the program's {0}")]
    NoThread(&'static str),
    #[error("the program's {0} failed: {1}")]
    Failed(&'static str, String),
}

/// One kind of call. A program that does not come back from it is not called again until it has.
#[derive(Debug)]
struct Call {
    name: &'static str,
    out: Arc<AtomicBool>,
}

impl Call {
    fn new(name: &'static str) -> Self {
        Self { name, out: Arc::default() }
    }

    fn within<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallFault> {
        if self.out.swap(true, Ordering::AcqRel) {
            return Err(CallFault::StillOut(self.name));
        }
        let (send, result) = mpsc::sync_channel(1);
        let out = self.out.clone();
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        // A thread of its own: one that blocks is left behind, and ends with the `execve` or the process.
        let spawned = thread.spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            out.store(false, Ordering::Release);
            drop(send.send(result));
        });
        if spawned.is_err() {
            self.out.store(false, Ordering::Release);
            return Err(CallFault::NoThread(self.name));
        }
        match result.recv_timeout(patience) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(CallFault::Panicked(self.name, text_of(&*panic))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(CallFault::Late(self.name, patience))
            }
        }
    }
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no text)".to_owned())
}

/// The embedding program.
pub(crate) struct Program {
    operations: Arc<dyn Operations>,
    gates: Vec<Gate>,
    check: Option<HealthCheck>,
    quiesce: Call,
    resume: Call,
    save_state: Call,
    healthy: Call,
}

impl Program {
    pub(crate) fn new(operations: Arc<dyn Operations>, gates: Vec<Gate>, check: Option<HealthCheck>) -> Self {
        Self {
            operations,
            gates,
            check,
            quiesce: Call::new("quiesce"),
            resume: Call::new("resume"),
            save_state: Call::new("save_state"),
            healthy: Call::new("health check"),
        }
    }

    /// Has the program stop work of its own, in which it has until the deadline to finish what it has begun. Returns
    /// what was left undone, for people; empty when nothing was.
    pub(crate) fn quiesce(&self, deadline: Duration) -> String {
        let until = Instant::now() + deadline;
        let operations = self.operations.clone();
        let call = self.quiesce.within(deadline + QUIESCE_GRACE, move || operations.quiesce(until));
        let mut left: Vec<String> = call.err().map(|fault| fault.to_string()).into_iter().collect();
        let under_way: usize =
            self.gates.iter().map(|gate| gate.close(until.saturating_duration_since(Instant::now()))).sum();
        if under_way > 0 {
            left.push(format!("{under_way} of the program's requests were still under way at the deadline"));
        }
        left.join("; ")
    }

    /// The change-over did not come about: the program goes on.
    pub(crate) fn resume(&self) {
        self.gates.iter().for_each(Gate::open);
        let operations = self.operations.clone();
        if let Err(fault) = self.resume.within(RESUME_PATIENCE, move || operations.resume()) {
            tracing::error!("{fault}");
        }
    }

    /// The state in this schema, sealed, and how long it is.
    pub(crate) fn save_state(&self, schema: u32) -> Result<(File, u64), CallFault> {
        let operations = self.operations.clone();
        let save = move || {
            let mut file = state::memory()?;
            operations.save_state_to(schema, &mut file)?;
            state::seal(&file).map(|bytes| (file, bytes))
        };
        let saved: io::Result<(File, u64)> = self.save_state.within(SAVE_PATIENCE, save)?;
        saved.map_err(|e| CallFault::Failed("save_state", e.to_string()))
    }

    /// It is believed, which it is told without anybody waiting for what it makes of that.
    pub(crate) fn confirmed(&self) {
        let operations = self.operations.clone();
        let thread = std::thread::Builder::new().name("confirmed".to_owned());
        if let Err(e) = thread.spawn(move || operations.confirmed()) {
            tracing::error!("the program cannot be told that it is believed: {e}");
        }
    }

    pub(crate) fn healthy(&self) -> Result<(), NotHealthy> {
        let (operations, check) = (self.operations.clone(), self.check.clone());
        let patience = HEALTH_PATIENCE + Duration::from_millis(check.as_ref().map_or(0, |check| check.timeout_ms));
        let ask = move || {
            operations.healthy()?;
            check.map_or(Ok(()), |check| health::ask(&check, &Answering::Anyone))
        };
        match self.healthy.within(patience, ask) {
            Ok(answer) => answer,
            Err(fault) => Err(NotHealthy(fault.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_come_back_has_an_end_and_is_not_repeated_beside_itself() {
        let call = Call::new("sleep");
        let (release, wait) = mpsc::channel::<()>();
        let late = call.within(Duration::from_millis(5), move || wait.recv());
        assert!(matches!(late, Err(CallFault::Late("sleep", _))), "{late:?}");
        assert_eq!(call.within(Duration::from_secs(30), || 1), Err(CallFault::StillOut("sleep")));
        release.send(()).unwrap();
        while call.out.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert_eq!(call.within(Duration::from_secs(30), || 2), Ok(2));
    }

    #[test]
    fn a_panic_is_an_answer() {
        let call = Call::new("boom");
        let fault = call.within(Duration::from_secs(30), || panic!("no {}", "luck")).unwrap_err();
        assert_eq!(fault.to_string(), "the program's boom panicked: no luck");
        assert_eq!(call.within(Duration::from_secs(30), || 3), Ok(3));
    }

    #[derive(Default)]
    struct Calls {
        until: std::sync::Mutex<Option<Instant>>,
        told: AtomicBool,
        sick: AtomicBool,
    }

    impl Operations for Calls {
        fn quiesce(&self, until: Instant) {
            *self.until.lock().unwrap() = Some(until);
        }

        fn confirmed(&self) {
            self.told.store(true, Ordering::Release);
        }

        fn healthy(&self) -> Result<(), NotHealthy> {
            if self.sick.load(Ordering::Acquire) { Err(NotHealthy("sick".into())) } else { Ok(()) }
        }
    }

    #[test]
    fn a_program_has_until_the_deadline_and_what_it_finishes_is_not_named() {
        let calls = Arc::new(Calls::default());
        let program = Program::new(calls.clone(), vec![Gate::new().unwrap()], None);
        assert_eq!(program.quiesce(Duration::from_secs(1000)), "");
        assert!(calls.until.lock().unwrap().unwrap() > Instant::now());
        program.confirmed();
        while !calls.told.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_is_well_when_it_and_its_check_say_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let probe = proto::health::HealthProbe::Socket(listener.local_addr().unwrap());
        let check = HealthCheck { probe, interval_ms: 1, timeout_ms: 60_000 };
        let calls = Arc::new(Calls::default());
        let program = Program::new(calls.clone(), Vec::new(), Some(check));
        program.healthy().unwrap();
        drop(listener);
        assert!(program.healthy().unwrap_err().0.contains("refused"));
        calls.sick.store(true, Ordering::Release);
        assert_eq!(program.healthy().unwrap_err().0, "sick");
    }

    struct Own;

    impl Operations for Own {
        fn quiesce(&self, _until: Instant) {
            panic!("cannot")
        }
    }

    #[test]
    fn what_is_left_undone_is_named() {
        let gate = Gate::new().unwrap();
        let program = Program::new(Arc::new(Own), vec![gate.clone()], None);
        let pass = gate.enter();
        let left = program.quiesce(Duration::from_millis(1));
        assert!(left.contains("quiesce panicked: cannot") && left.contains("1 of the program's requests"), "{left}");
        drop(pass);
        assert!(gate.try_enter().is_none());
        program.resume();
        assert!(gate.try_enter().is_some());
    }
}
