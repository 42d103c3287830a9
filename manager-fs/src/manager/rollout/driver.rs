//! Does what the machine of one rollout says, and tells it what happens.
//!
//! What the machine says is done in this order, so that a manager that dies anywhere goes on: what its rings' hosts may
//! see and should run is set, which can be done twice; how far the rollout is becomes durable; then the orders, a hundred
//! in one commit; then hosts are told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use proto::agent::{ChangeId, Step};
use proto::message::Unix;
use proto::{GenerationRef, HostName, TreeId, Version};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::asked::{Ask, Asked, Declined};
use super::machine::NotForced;
use super::machine::vocabulary::{Command, End, Event, HostNo, HostState, Wish};
use super::run::{Here, Run, end_of};
use super::view::{RolloutView, lines};
use super::way_back;
use crate::manager::control::ControlError;
use crate::manager::control::changes::{ChangeOrder, ChangeRecord};
use crate::manager::control::contract::CHANGES_MAX;
use crate::manager::control::generations::Generation;
use crate::manager::control::rollouts::RolloutRecord;
use crate::manager::news::News;
use crate::manager::now;
use crate::manager::upgrade::{Manner, Told};

/// How often it is looked who is in the rings.
const LOOK_FOR_HOSTS: Duration = Duration::from_secs(5);
/// Pause after the control state failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long a host that has just come may take to report what it did while it was away.
const REPORTS_COME: Duration = Duration::from_secs(2);

/// How long the first order waits for others, unless they make a whole commit before: where each host that is done makes
/// room for one more, each order would be a commit of its own.
const GATHER: Duration = Duration::from_millis(200);

/// One rollout, at work.
pub(super) struct Driver {
    pub(super) here: Arc<Here>,
    pub(super) run: Run,
    /// `None`: it was taken back, or its record cannot be read. Hosts can leave it all the same.
    pub(super) generation: Option<Arc<Generation>>,
    news: broadcast::Receiver<(HostName, News)>,
    asked: mpsc::UnboundedReceiver<Ask>,
    told: mpsc::UnboundedReceiver<(HostNo, Told)>,
    tell: mpsc::UnboundedSender<(HostNo, Told)>,
    /// Hosts on which it is tried also where it has failed before.
    forced: HashSet<HostNo>,
    /// Hosts whose orders are gathered, and until when.
    gathered: Vec<HostNo>,
    gather_until: Option<Instant>,
    shown: watch::Sender<Arc<RolloutView>>,
}

impl Driver {
    /// `news` is from before the run was assembled.
    pub(super) fn new(
        here: Arc<Here>,
        run: Run,
        generation: Option<Arc<Generation>>,
        news: broadcast::Receiver<(HostName, News)>,
        asked: mpsc::UnboundedReceiver<Ask>,
        shown: watch::Sender<Arc<RolloutView>>,
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (forced, gathered) = (HashSet::new(), Vec::new());
        Self { here, run, generation, news, asked, told, tell, forced, gathered, gather_until: None, shown }
    }

    /// Sees the rollout to its end.
    pub(super) async fn drive(mut self) {
        self.claim();
        self.say_open_again();
        let mut look = tokio::time::interval(LOOK_FOR_HOSTS);
        loop {
            let wake = self
                .run
                .machine
                .wake()
                .map_or(Duration::from_secs(3600), |due| Duration::from_millis(due.saturating_sub(now())));
            let done = tokio::select! {
                news = self.news.recv() => match news {
                    Ok((host, news)) => self.heard(&host, news).await,
                    Err(RecvError::Lagged(_)) => self.again().await,
                    Err(RecvError::Closed) => return,
                },
                Some((no, told)) = self.told.recv() => self.answered(no, told).await,
                asked = self.asked.recv() => match asked {
                    Some((Asked::Wish(wish), answer)) => self.wished(wish, answer).await,
                    Some((Asked::Force(host, why), answer)) => self.force(&host, &why, answer).await,
                    None => return,
                },
                _ = look.tick() => self.look().await,
                () = tokio::time::sleep(wake) => self.on(Event::Tick).await,
                () = sleep_until(self.gather_until) => self.order_gathered().await,
            };
            if let Err(error) = done {
                tracing::error!(rollout = %self.run.id, %error, "a rollout waits for the control state");
                tokio::time::sleep(AFTER_FAILURE).await;
                // What was lost on the way is found again in the records.
                if let Err(error) = self.again().await {
                    tracing::error!(rollout = %self.run.id, %error, "it still waits");
                }
            }
            self.shown.send_replace(Arc::new(self.run.view()));
            if self.run.machine.progress().is_over() && self.run.machine.wake().is_none() {
                self.here.targets.claim(&self.run.record.plan.product, HashSet::new());
                return;
            }
        }
    }

    async fn wished(
        &mut self,
        wish: Wish,
        answer: oneshot::Sender<Result<(), Declined>>,
    ) -> Result<(), ControlError> {
        // What it has decided so far is done before it decides otherwise.
        let mut done = self.order_gathered().await;
        let mut may = match &done {
            Ok(()) => self.run.machine.may(wish).map_err(Declined::from),
            Err(error) => Err(Declined::NotRecorded(error.to_string())),
        };
        if may.is_ok() && wish == Wish::Rollback {
            may = way_back::check(&self.here, &self.run).await?.map_err(Declined::from);
        }
        if may.is_ok() {
            if wish == Wish::Start {
                self.run.record.before = self.run.before(&self.here).await?;
                let baseline = self.run.baseline(&self.here, now()).await?;
                self.run.machine.compare_with(baseline);
            }
            done = self.on(Event::Wish(wish)).await;
            may = done.as_ref().map_err(|error| Declined::NotRecorded(error.to_string())).copied();
        }
        self.shown.send_replace(Arc::new(self.run.view()));
        let _ = answer.send(may);
        done
    }

    /// Orders a host out of its turn.
    async fn force(
        &mut self,
        host: &HostName,
        why: &str,
        answer: oneshot::Sender<Result<(), Declined>>,
    ) -> Result<(), ControlError> {
        let no = self.run.number(host).ok_or(NotForced::NotOfIt);
        let mut may = no.and_then(|no| self.run.machine.may_force(no).map(|()| no)).map_err(Declined::from);
        let mut done = Ok(());
        if let Ok(no) = may {
            self.forced.insert(no);
            self.run.why.remove(&no);
            let line = format!("{host} was forced: {why}");
            tracing::warn!(rollout = %self.run.id, "{line}");
            self.run.record.line(now(), line);
            done = match self.here.state.save_rollout(self.run.id, &self.run.record).await {
                Ok(()) => self.on(Event::Forced(no)).await,
                failed => failed,
            };
            may = done.as_ref().map(|()| no).map_err(|error| Declined::NotRecorded(error.to_string()));
        }
        self.shown.send_replace(Arc::new(self.run.view()));
        let _ = answer.send(may.map(drop));
        done
    }

    /// Everything anew, out of what is durable.
    async fn again(&mut self) -> Result<(), ControlError> {
        self.news = self.here.news.of_all();
        let Some(record) = self.here.state.rollout(self.run.id).await? else { return Ok(()) };
        self.run = Run::assemble(&self.here, self.run.id, record).await?;
        // Who was not ordered is ordered anew.
        (self.gathered, self.gather_until) = (Vec::new(), None);
        self.claim();
        self.say_open_again();
        self.on(Event::Tick).await
    }

    async fn look(&mut self) -> Result<(), ControlError> {
        for gone in self.run.members(&self.here).await? {
            self.on(Event::Left(gone)).await?;
        }
        self.on(Event::Tick).await
    }

    /// Gives the machine an event, and does what it says.
    async fn on(&mut self, event: Event) -> Result<(), ControlError> {
        let before = self.run.machine.progress().clone();
        let commands = self.run.machine.apply(now(), event);
        // Once the progress says that it was done, nobody would do it again.
        for command in &commands {
            match command {
                Command::Begun(ring) => self.export(*ring).await?,
                Command::Done(ring) => self.ring_done(*ring).await?,
                Command::Back(ring) => self.ring_back(*ring).await?,
                Command::Order(_) | Command::Return(_) => {}
            }
        }
        let progress = self.run.machine.progress();
        if *progress != before {
            let lines = lines(&before, progress, &self.run.view());
            self.run.record.progress = progress.clone();
            for line in lines {
                tracing::info!(rollout = %self.run.id, "{line}");
                self.run.record.line(now(), line);
            }
            self.here.state.save_rollout(self.run.id, &self.run.record).await?;
            self.claim();
        }
        self.carry_out(commands).await
    }

    /// Orders what hosts are to be told; what concerns rings has been done.
    async fn carry_out(&mut self, commands: Vec<Command>) -> Result<(), ControlError> {
        let mut back = Vec::new();
        for command in commands {
            match command {
                Command::Order(no) => self.gathered.push(no),
                Command::Return(no) => back.push(no),
                Command::Begun(_) | Command::Done(_) | Command::Back(_) => {}
            }
        }
        if self.gathered.len() >= CHANGES_MAX {
            self.order_gathered().await?;
        } else if !self.gathered.is_empty() {
            self.gather_until.get_or_insert_with(|| Instant::now() + GATHER);
        }
        let mut to = Vec::new();
        for no in back {
            match way_back::of(&self.here, &self.run, no).await? {
                Ok((version, tree)) => to.push((no, version, tree)),
                Err(why) => drop(self.tell.send((no, Told::Refused(why.to_string())))),
            }
        }
        self.order(to).await
    }

    /// Orders what was gathered, of hosts that are still meant.
    async fn order_gathered(&mut self) -> Result<(), ControlError> {
        self.gather_until = None;
        let (version, tree) = (self.run.record.version.clone(), self.run.record.tree);
        let is_meant = |no: &HostNo| matches!(self.run.machine.host(*no), Some(HostState::InFlight(_)));
        let to: Vec<_> = std::mem::take(&mut self.gathered).into_iter().filter(is_meant).collect();
        if to.is_empty() {
            return Ok(());
        }
        self.order(to.into_iter().map(|no| (no, version.clone(), tree)).collect()).await
    }

    /// Records change-overs, and tells the hosts.
    async fn order(&mut self, to: Vec<(HostNo, Version, TreeId)>) -> Result<(), ControlError> {
        self.run.look_at_trees(&self.here);
        let product = &self.run.record.plan.product;
        let mut orders = Vec::with_capacity(to.len());
        let mut numbers = Vec::with_capacity(to.len());
        for (no, version, to) in to {
            if let Some(host) = self.run.name(no) {
                // Of a version for several architectures its own.
                let own = self.here.exports.generation_for(host, product, &version);
                let to = own.map_or(to, |generation| generation.record.tree);
                orders.push(ChangeOrder { host: host.clone(), product: product.clone(), version, to });
                numbers.push(no);
            }
        }
        let changes = self.here.state.add_changes(orders, now()).await?;
        for (no, change) in numbers.into_iter().zip(changes) {
            self.say(no, change, true);
        }
        Ok(())
    }

    /// Tells a host of a change-over that is recorded.
    fn say(&self, no: HostNo, change: ChangeRecord, first: bool) {
        let (here, tell, plan) = (Arc::clone(&self.here), self.tell.clone(), &self.run.record.plan);
        let retry_bad = self.forced.contains(&no);
        let manner = Manner { lazy: plan.lazy, drain_deadline_ms: plan.drain_deadline_ms, retry_bad };
        tokio::spawn(async move {
            let (host, product) = (&change.order.host, &change.order.product);
            let _turn = here.upgrades.telling.begin(host, product);
            let told = match here.state.generation_of(product, &change.order.version, &change.order.to) {
                None => Told::Refused(format!("{product}@{} is no longer published", change.order.version)),
                Some(generation) if first => here.upgrades.tell_first(&change, &generation, &manner).await,
                Some(generation) => {
                    // It reports first what it has done meanwhile.
                    tokio::time::sleep(REPORTS_COME).await;
                    match here.state.last_change(host, product).filter(|last| last.id == change.id) {
                        Some(last) if last.ended.is_none() => {
                            here.upgrades.tell_again(&change, &generation, &manner).await
                        }
                        _ => Told::Accepted,
                    }
                }
            };
            let _ = tell.send((no, told));
        });
    }

    /// Hosts that are there and may not have heard what they were ordered hear it once more.
    fn say_open_again(&self) {
        for ring in 0..self.run.record.plan.rings.len() {
            let ring = u16::try_from(ring).unwrap_or(u16::MAX);
            self.run.hosts_of(ring).iter().for_each(|(no, host)| self.say_again(*no, host));
        }
    }

    fn say_again(&self, no: HostNo, host: &HostName) {
        let open = matches!(
            self.run.machine.host(no),
            Some(HostState::InFlight(_) | HostState::Returning(_) | HostState::Silent)
        );
        let last = self.here.state.last_change(host, &self.run.record.plan.product);
        if let Some(change) = last.filter(|last| open && last.ended.is_none())
            && self.here.connections.control_link(host).is_some()
        {
            self.say(no, change, false);
        }
    }

    async fn answered(&mut self, no: HostNo, told: Told) -> Result<(), ControlError> {
        let back = matches!(self.run.machine.host(no), Some(HostState::Returning(_)));
        let event = match told {
            // Its steps will tell; of one that is away, once it is there.
            Told::Accepted | Told::Away => return Ok(()),
            Told::Already if back => Event::Back(no, true),
            Told::Already => Event::Ended(no, End::Already),
            Told::Refused(why) => {
                self.run.why.insert(no, why);
                if back { Event::Back(no, false) } else { Event::Ended(no, End::Refused) }
            }
        };
        self.on(event).await
    }

    async fn heard(&mut self, host: &HostName, news: News) -> Result<(), ControlError> {
        let Some(no) = self.run.number(host) else { return Ok(()) };
        match news {
            News::Connected => {
                self.on(Event::Connected(no)).await?;
                self.say_again(no, host);
                Ok(())
            }
            News::Disconnected => {
                let connected = self.here.connections.control_link(host).is_some();
                self.on(if connected { Event::Connected(no) } else { Event::Disconnected(no) }).await
            }
            News::Step(ChangeId(0)) => self.started(host, no).await,
            News::Step(_) | News::Ordered => self.changed(host, no).await,
            News::Agents => self.departed(host, no).await,
            News::Job(id) => match self.here.state.job(id).await {
                Ok(job) => match self.run.judged(&job) {
                    Some((no, done)) => self.on(Event::Job(no, done)).await,
                    None => Ok(()),
                },
                // It was forgotten.
                Err(_) => Ok(()),
            },
        }
    }

    /// A change-over of the host has taken a step.
    async fn changed(&mut self, host: &HostName, no: HostNo) -> Result<(), ControlError> {
        let last = self.here.state.last_change(host, &self.run.record.plan.product);
        let started = self.run.machine.progress().started.unwrap_or(Unix::MAX);
        let Some(last) = last.filter(|last| self.run.is_since(last, started)) else { return Ok(()) };
        let state = self.run.machine.host(no);
        if let Some(end) = &last.ended {
            self.run.why.insert(no, end.reason.clone());
        }
        let new = self.run.is_new(last.order.to, &last.order.version);
        match state {
            Some(HostState::Returning(_) | HostState::Stuck) if !new => match last.ended {
                Some(end) => self.on(Event::Back(no, end.confirmed)).await,
                None => Ok(()),
            },
            Some(HostState::Returning(_) | HostState::Returned | HostState::Stuck) => Ok(()),
            // Somebody ordered something else there.
            Some(_) if !new => self.on(Event::Left(no)).await,
            Some(_) => {
                if state == Some(HostState::Pending) {
                    self.on(Event::Ordered(no)).await?;
                }
                match end_of(&self.here, &last).await? {
                    Some(end) => self.on(Event::Ended(no, end)).await,
                    None => Ok(()),
                }
            }
            None => Ok(()),
        }
    }

    /// The stub has started an agent, or returned to the version before, by itself.
    async fn started(&mut self, host: &HostName, no: HostNo) -> Result<(), ControlError> {
        let steps = self.here.state.observations().steps(host, &self.run.record.plan.product).await?;
        match steps.last() {
            Some(step) if step.step == Step::Launched && self.run.is_of_it(step.to) => {
                self.on(Event::Restarted(no)).await
            }
            _ => self.departed(host, no).await,
        }
    }

    /// Whether a host on which the new version had proved itself runs another one by now.
    async fn departed(&mut self, host: &HostName, no: HostNo) -> Result<(), ControlError> {
        if self.run.machine.host(no) != Some(HostState::Good) {
            return Ok(());
        }
        let status = self.here.state.observations().status(host).await?;
        let Some(agent) = self.run.agent(&status) else { return Ok(()) };
        // What is ordered otherwise is seen by its steps.
        let last = self.here.state.last_change(host, &self.run.record.plan.product);
        let ours = last.filter(|last| self.run.is_new(last.order.to, &last.order.version));
        if ours.is_some_and(|last| self.run.has_departed(agent, &last)) {
            self.run.why.insert(no, agent.reason.clone());
            return self.on(Event::Ended(no, End::Failed)).await;
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The generation that a record means, if it is still published.
pub(super) fn generation_of(here: &Here, record: &RolloutRecord) -> Option<Arc<Generation>> {
    let named = GenerationRef::Named(record.plan.product.clone(), record.version.clone());
    here.state.resolve(&named).ok().filter(|found| found.record.tree == record.tree)
}
