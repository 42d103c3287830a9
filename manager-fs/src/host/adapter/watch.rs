//! The adapter at work: starts the program, asks for its health, lets the version before drain, and starts the program
//! again when it ends.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use agent_core::internal::health::{self, Answering};
use agent_core::{Inherited, NotHealthy, Remark};
use proto::adapter::Handover;
use proto::health::{HealthCheck, HealthProbe};

use super::event::Event;
use super::kept::Kept;
use super::{AdapterError, Fitness, Version, io_error, sockets};

/// A program that is not asked for its health is held to be well when it has run for so long.
const STAYS: Duration = Duration::from_millis(500);
/// A program that ends after it was healthy is started again so soon, and ever more slowly.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
/// One that ends so often in a row without having worked for long is for the stub to judge.
const FAILURES_MAX: u32 = 3;
/// A program that was healthy for so long has not failed in a row with those before it.
const WORKED: Duration = Duration::from_secs(60);
/// A version on trial that is not well by this part of its probation drains while there is time for that.
const GIVE_UP: f64 = 0.75;
/// By then it is over: the stub kills what is there at the end of the probation.
const GIVEN_UP: f64 = 0.95;
/// For the end of the version before, past its own deadline (`restart`).
const GRACE: Duration = Duration::from_secs(5);

/// The adapter at work.
pub(super) struct Watch {
    version: Version,
    handover: Handover,
    check: Option<HealthCheck>,
    sockets: Vec<(String, OwnedFd)>,
    inherited: Inherited,
    remark: Remark,
    fitness: Fitness,
    events: Sender<Event>,
    /// The program of this version.
    program: Option<Kept>,
    since: Instant,
    /// It was healthy once since it was started; since when.
    healthy_since: Option<Instant>,
    was_healthy: bool,
    failures: u32,
    /// Programs of other versions, and those that drain.
    others: Vec<Kept>,
    is_believed: bool,
    /// When this version, on trial, is given up, and when that is over.
    give_up: Option<(Instant, Instant)>,
    next: Next,
}

/// What is due, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To ask for the health of the program.
    Check(Instant),
    /// To start it again.
    Start(Instant),
    /// Nothing: something is under way that will be told.
    Nothing,
}

impl Watch {
    /// Takes over what the version before left, and starts the program.
    pub(super) fn begin(
        version: Version,
        trial: Option<Duration>,
        inherited: Inherited,
        remark: Remark,
        fitness: Fitness,
        events: Sender<Event>,
    ) -> Result<Self, AdapterError> {
        let metadata = &version.verified.record.metadata;
        let record = || version.verified.record.name();
        let adapter = metadata.adapter.as_ref().ok_or_else(|| AdapterError::NoAdapter(record()))?;
        let (handover, sockets) = (adapter.handover, sockets::all(adapter, &inherited)?);
        let mut check = metadata.health.check.clone();
        if let Some(HealthCheck { probe: HealthProbe::Command(command), .. }) = &mut check {
            command.iter_mut().for_each(|text| *text = version.resolve(text));
        }
        let name = version.name();
        let others = Kept::others(&name, &inherited);
        let program = Kept::take(&name, &inherited);
        let now = Instant::now();
        let mut watch = Self {
            version,
            handover,
            check,
            sockets,
            inherited,
            remark,
            fitness,
            events,
            program: None,
            since: now,
            healthy_since: None,
            was_healthy: false,
            failures: 0,
            others,
            is_believed: false,
            give_up: trial.map(|probation| (now + probation.mul_f64(GIVE_UP), now + probation.mul_f64(GIVEN_UP))),
            next: Next::Check(now),
        };
        watch.take_up(program)?;
        Ok(watch)
    }

    /// Goes on with the program that is there, or starts it.
    fn take_up(&mut self, program: Option<Kept>) -> Result<(), AdapterError> {
        for other in &self.others {
            other.tell_end(&self.events).map_err(io_error("the version before cannot be watched"))?;
        }
        if let Some(program) = program {
            tracing::info!("{} goes on as process {}", self.name(), pid(&program));
            return self.took(program);
        }
        if self.handover == Handover::Restart {
            self.end_others();
        }
        self.start()
    }

    fn name(&self) -> String {
        self.version.verified.record.name()
    }

    fn start(&mut self) -> Result<(), AdapterError> {
        let program = Kept::start(&self.version, &self.sockets, &self.inherited)?;
        self.took(program)
    }

    fn took(&mut self, program: Kept) -> Result<(), AdapterError> {
        program.tell_end(&self.events).map_err(io_error("the program cannot be watched"))?;
        self.program = Some(program);
        self.since = Instant::now();
        self.healthy_since = None;
        self.fitness.set(Err("it has not been asked yet".into()));
        self.next = Next::Check(self.since);
        self.say();
        Ok(())
    }

    /// What does not overlap waits for the end of the version before, which its keeper sees to.
    fn end_others(&mut self) {
        self.others.iter_mut().for_each(Kept::drain);
        let mut until = None;
        while self.others.iter().any(Kept::is_alive) {
            // The deadline is the keeper's, which knows that of its own version; this is for one that is stuck.
            let until = *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(600) + GRACE);
            if until <= Instant::now() {
                self.others.iter().for_each(Kept::kill);
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Until the agent is to end.
    ///
    /// # Errors
    /// The program does not stay; what it listens on cannot be had any more.
    pub(super) fn run(mut self, inbox: &Receiver<Event>) -> Result<(), AdapterError> {
        loop {
            let now = Instant::now();
            let due = match self.next {
                Next::Check(at) | Next::Start(at) => Some(at),
                Next::Nothing => None,
            };
            let due = [due, self.give_up.map(|(at, _)| at)].into_iter().flatten().min();
            let event = match due {
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(now)),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::End { patience, is_last }) => {
                    self.end(patience, is_last, inbox);
                    return Ok(());
                }
                Ok(event) => self.on(event)?,
                Err(RecvTimeoutError::Timeout) if self.is_given_up() => return self.given_up(inbox),
                Err(RecvTimeoutError::Timeout) => match self.next {
                    Next::Check(_) => self.check()?,
                    Next::Start(_) => self.start()?,
                    Next::Nothing => {}
                },
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.give_up.is_some_and(|(at, _)| at <= Instant::now())
    }

    /// What the program has begun it finishes; the version before, which serves beside it, goes on alone.
    fn given_up(mut self, inbox: &Receiver<Event>) -> Result<(), AdapterError> {
        let why = self.fitness.get().err().map_or_else(String::new, |why| why.0);
        let until = self.give_up.map_or(Instant::now(), |(_, until)| until);
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.drain();
        while program.is_alive() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || inbox.recv_timeout(left).is_err_and(|e| e == RecvTimeoutError::Disconnected) {
                break;
            }
        }
        Err(AdapterError::Sick { program: self.name(), why })
    }

    fn on(&mut self, event: Event) -> Result<(), AdapterError> {
        match event {
            Event::Ended { name, how } if self.program.as_ref().is_some_and(|program| program.name == name) => {
                self.ended(how)?;
            }
            Event::Ended { .. } => {
                for other in std::mem::take(&mut self.others) {
                    if other.is_alive() {
                        self.others.push(other);
                    } else {
                        self.inherited.forget(&other.name);
                    }
                }
            }
            Event::Health(result) => self.asked(result),
            Event::Confirmed => {
                self.is_believed = true;
                sockets::forget_others(&self.sockets, &self.inherited);
                self.others.iter_mut().for_each(Kept::drain);
            }
            Event::End { .. } => {}
        }
        self.say();
        Ok(())
    }

    /// The program has ended by itself.
    fn ended(&mut self, how: String) -> Result<(), AdapterError> {
        if let Some(program) = self.program.take() {
            self.inherited.forget(&program.name);
        }
        self.fitness.set(Err(how.clone().into()));
        if self.healthy_since.take().is_some_and(|since| since.elapsed() > WORKED) {
            self.failures = 0;
        }
        self.failures += 1;
        if !self.was_healthy || self.failures >= FAILURES_MAX {
            let often = if self.failures > 1 { format!(", {} times in a row", self.failures) } else { String::new() };
            return Err(AdapterError::Ended { program: self.name(), how, often });
        }
        let after = AGAIN_FIRST * 2_u32.pow(self.failures - 1);
        tracing::warn!("{} {how}; starting it again in {} ms", self.name(), after.as_millis());
        self.next = Next::Start(Instant::now() + after);
        Ok(())
    }

    /// Asks the program, on a thread of its own.
    fn check(&mut self) -> Result<(), AdapterError> {
        let Some(program) = &self.program else { return Ok(()) };
        let Some(check) = self.check.clone() else {
            let stays = self.since + STAYS;
            if stays <= Instant::now() {
                self.asked(Ok(()));
                self.next = Next::Nothing;
            } else {
                self.next = Next::Check(stays);
            }
            return Ok(());
        };
        let processes = program.processes().map_err(io_error("the program cannot be asked"))?;
        let events = self.events.clone();
        let thread = std::thread::Builder::new().name("health".to_owned());
        let spawned = thread.spawn(move || {
            let result = health::ask(&check, &Answering::Only(&processes));
            drop(events.send(Event::Health(result)));
        });
        spawned.map_err(io_error("no thread for the health of the program"))?;
        self.next = Next::Nothing;
        Ok(())
    }

    fn asked(&mut self, result: Result<(), NotHealthy>) {
        if self.program.is_none() {
            return;
        }
        if result.is_ok() && self.healthy_since.is_none() {
            self.healthy_since = Some(Instant::now());
            self.was_healthy = true;
            self.give_up = None;
            tracing::info!("{} is healthy after {} ms", self.name(), self.since.elapsed().as_millis());
        }
        let interval = self.check.as_ref().map_or(STAYS, |check| Duration::from_millis(check.interval_ms));
        // Until it is well somebody waits for it.
        let interval = if self.healthy_since.is_some() { interval } else { interval.min(Duration::from_millis(50)) };
        self.next = Next::Check(Instant::now() + interval);
        self.fitness.set(result);
        self.say();
    }

    /// What `status` and `agents` show.
    fn say(&self) {
        let mut line = match &self.program {
            None => "its program is to be started again".to_owned(),
            Some(program) => {
                let health = match (self.fitness.get(), &self.check) {
                    (Ok(()), Some(_)) => "healthy".to_owned(),
                    (Ok(()), None) => "running".to_owned(),
                    (Err(why), _) => format!("not healthy ({why})"),
                };
                format!("its program is process {}, {health}", pid(program))
            }
        };
        let others: Vec<_> = self.others.iter().filter(|other| other.is_alive()).map(pid).collect();
        if !others.is_empty() {
            let does = if self.is_believed { "drains" } else { "serves beside it" };
            line += &format!("; the version before {does} (process {})", others.join(", "));
        }
        self.remark.set(line);
    }

    /// Every program drains. What has not ended in time is killed, or left to its keeper.
    fn end(mut self, patience: Duration, is_last: bool, inbox: &Receiver<Event>) {
        let until = Instant::now() + patience;
        self.others.extend(self.program.take());
        self.others.iter_mut().for_each(Kept::drain);
        while self.others.iter().any(Kept::is_alive) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if is_last {
                    tracing::warn!("{} has not ended in time; killing it", self.name());
                    self.others.iter().for_each(Kept::kill);
                }
                return;
            }
            drop(inbox.recv_timeout(left));
        }
    }
}

fn pid(program: &Kept) -> String {
    program.pid().map_or_else(|| "-".to_owned(), |pid| pid.as_raw_nonzero().to_string())
}
