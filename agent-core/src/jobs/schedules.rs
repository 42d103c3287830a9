//! One job, its thread, a cancel and a drain, in **every** order in which their steps can come. The steps are the very
//! methods that [`Jobs`] calls, one lock or one word at a time, so what holds here holds for threads.

use std::path::PathBuf;

use ::tests::choices::explore;
use proto::agent::{Outcome, Repository, Summary};

use super::job::DrainStage;
use super::*;
use crate::operations::{Demand, Underlying};

const ID: JobId = JobId(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Admit,
    RecordWritten,
    RecordFailed,
    Cancel,
    BeginDrain,
    LookIdle,
    DemandCheckpoint,
    GraceIsOver,
    Exec,
    EndDrain,
    ThreadGoesOn,
    ThreadFinishes,
    ThreadIsBack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Before,
    Writing,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    Serving,
    /// `true`: operations have been told to stop.
    Draining(bool),
    Suspended,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Thread {
    None,
    Working(u8),
    Returning,
}

struct World {
    table: Table,
    job: Option<Arc<Job>>,
    asker: Asker,
    driver: Driver,
    thread: Thread,
    cancel_is_to_come: bool,
    cancelled: bool,
    executed: bool,
}

impl World {
    fn new() -> Self {
        Self {
            table: Table::default(),
            job: None,
            asker: Asker::Before,
            driver: Driver::Serving,
            thread: Thread::None,
            cancel_is_to_come: true,
            cancelled: false,
            executed: false,
        }
    }

    fn possible(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.executed {
            return acts;
        }
        match self.asker {
            Asker::Before => acts.push(Act::Admit),
            Asker::Writing => acts.extend([Act::RecordWritten, Act::RecordFailed]),
            Asker::Done => {}
        }
        if self.cancel_is_to_come {
            acts.push(Act::Cancel);
        }
        match self.driver {
            Driver::Serving => acts.push(Act::BeginDrain),
            Driver::Draining(false) => acts.extend([Act::LookIdle, Act::DemandCheckpoint]),
            Driver::Draining(true) => acts.extend([Act::LookIdle, Act::GraceIsOver]),
            Driver::Suspended => acts.extend([Act::Exec, Act::EndDrain]),
            Driver::Over => {}
        }
        match self.thread {
            Thread::None => {}
            Thread::Working(units) => {
                if units < 2 {
                    acts.push(Act::ThreadGoesOn);
                }
                acts.push(Act::ThreadFinishes);
            }
            Thread::Returning => acts.push(Act::ThreadIsBack),
        }
        acts
    }

    fn take(&mut self, act: Act) {
        match act {
            Act::Admit => self.admit(),
            Act::RecordWritten => {
                self.asker = Asker::Done;
                self.spawn();
            }
            Act::RecordFailed => {
                self.asker = Asker::Done;
                self.table.withdraw(ID, "disk full");
                self.job = None;
            }
            Act::Cancel => {
                self.cancel_is_to_come = false;
                if let Some(job) = self.table.get(ID) {
                    job.ask_to_cancel();
                    self.cancelled = true;
                }
            }
            Act::BeginDrain => {
                self.table.begin_drain();
                self.driver = Driver::Draining(false);
            }
            Act::LookIdle => {
                if self.table.is_idle() {
                    assert_eq!(self.thread, Thread::None, "idle, while a thread works");
                    assert_ne!(self.asker, Asker::Writing, "idle, while a job is about to begin");
                    self.suspend();
                }
            }
            Act::DemandCheckpoint => {
                self.table.demand_checkpoint();
                self.driver = Driver::Draining(true);
            }
            Act::GraceIsOver => self.suspend(),
            Act::Exec => self.executed = true,
            Act::EndDrain => {
                self.driver = Driver::Over;
                if !self.table.end_drain().is_empty() {
                    self.spawn();
                }
            }
            Act::ThreadGoesOn => self.look_at_demand(),
            Act::ThreadFinishes => {
                self.job.as_ref().unwrap().tell_outcome(Outcome::Done(Summary::default()));
                self.thread = Thread::Returning;
            }
            Act::ThreadIsBack => {
                self.thread = Thread::None;
                if self.table.came_back(ID) == CameBack::Again {
                    self.spawn();
                }
            }
        }
    }

    fn admit(&mut self) {
        let operation = Operation::Check {
            repository: Repository { path: "/r".to_owned(), password_file: None },
            read_data: false,
        };
        let make = |drain: DrainStage| {
            let record = JobRecord::new(ID, operation.clone());
            Job::new(record, PathBuf::from("/nowhere"), "1.0".parse().unwrap(), 1, drain)
        };
        self.asker = match self.table.admit(ID, &operation, make) {
            Ok(Admitted::New(job)) => {
                assert!(matches!(self.driver, Driver::Serving | Driver::Over), "taken while it drains");
                self.job = Some(job);
                Asker::Writing
            }
            Ok(Admitted::Joined(_) | Admitted::Confirmed(_)) => panic!("nobody has asked before"),
            Err(_) => Asker::Done,
        };
    }

    fn spawn(&mut self) {
        assert_eq!(self.thread, Thread::None, "two threads for one job");
        self.thread = Thread::Working(0);
    }

    fn suspend(&mut self) {
        self.table.suspend();
        self.driver = Driver::Suspended;
    }

    fn look_at_demand(&mut self) {
        let job = self.job.clone().unwrap();
        let demand = job.demand();
        assert!(!self.cancelled || demand == Demand::Cancel, "a cancel was forgotten: {demand:?}");
        self.thread = match (demand, &self.thread) {
            (Demand::Cancel, _) => {
                job.tell_outcome(Outcome::Cancelled(Summary::default()));
                Thread::Returning
            }
            (Demand::Checkpoint, _) => Thread::Returning,
            (Demand::None | Demand::Finish, Thread::Working(units)) => Thread::Working(units + 1),
            (Demand::None | Demand::Finish, _) => panic!("no thread"),
        };
    }

    /// Nothing can happen any more.
    fn check_end(&self) {
        if let (false, Some(job)) = (self.executed, &self.job) {
            assert!(job.has_outcome(), "a job waits for a start that never comes");
            assert!(self.table.is_idle() && self.table.under_way().is_empty());
        }
    }
}

#[test]
fn in_every_order_a_cancel_stands_and_idle_is_idle() {
    let schedules = explore(|choices| {
        let mut world = World::new();
        loop {
            let possible = world.possible();
            if possible.is_empty() {
                return world.check_end();
            }
            // A look that finds work changes nothing; taking it for ever is no schedule.
            let act = choices.pick(&possible);
            if act == Act::LookIdle && !world.table.is_idle() {
                return;
            }
            world.take(act);
        }
    });
    println!("{schedules} schedules");
    assert!(schedules > 1000, "{schedules}");
}
