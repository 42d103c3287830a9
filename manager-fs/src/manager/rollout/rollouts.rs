//! All rollouts: planned, started, at work, and over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proto::number::RolloutId;
use proto::{HostName, Product};
use tokio::sync::{mpsc, oneshot, watch};

use super::asked::{Ask, Asked, Declined};
use super::driver::{Driver, generation_of};
use super::machine::vocabulary::{Progress, State, Wish};
use super::machine::{NotForced, NotNow, may};
use super::plan::Plan;
use super::plan_file::NotAPlan;
use super::run::{Here, Run};
use super::view::RolloutView;
use super::way_back::NoWayBack;
use crate::manager::company::CompanyError;
use crate::manager::control::ControlError;
use crate::manager::control::generations::GenerationError;
use crate::manager::control::hosts::HostError;
use crate::manager::control::rollouts::RolloutRecord;
use crate::manager::now;
use crate::sync::lock;

/// Why a rollout was not planned, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RolloutError {
    /// The text is no plan.
    #[error(transparent)]
    Plan(#[from] NotAPlan),
    /// No one generation is meant.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// There is no program to change over to.
    #[error("{0} has no entry point: publish it with --entrypoint PATH")]
    NoEntryPoint(String),
    /// It would not understand other agents.
    #[error("this rollout would part what belongs together: {0}")]
    Company(#[from] CompanyError),
    /// It is meant for a host or group that there is not.
    #[error("ring '{ring}': {cause}")]
    Target {
        /// The ring's name.
        ring: String,
        /// What is wrong.
        cause: HostError,
    },
    /// There is none of this number.
    #[error("rollout {0} is not known; `manager-fs rollout history` lists those that are")]
    Unknown(RolloutId),
    /// There is none at all.
    #[error("there is no rollout; `manager-fs rollout plan FILE` makes one")]
    None,
    /// Two at once would not know of each other's budgets.
    #[error("rollout {id} of {product} is {state:?}: end it first (`manager-fs rollout abort {id}`)")]
    Busy {
        /// Which.
        id: RolloutId,
        /// Of which product.
        product: Product,
        /// What becomes of it.
        state: State,
    },
    /// It makes no sense now.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// The control state failed while it was recorded.
    #[error("rollout {id} may not have taken this: {cause}; `manager-fs rollout status {id}` shows it")]
    NotRecorded {
        /// Which.
        id: RolloutId,
        /// What failed.
        cause: String,
    },
    /// A host is not ordered out of its turn.
    #[error("nothing is ordered there: {0}")]
    NotForced(#[from] NotForced),
    /// Nobody would know why.
    #[error("say why a host is ordered out of its turn: --reason TEXT")]
    NoReason,
    /// Hosts would be left behind.
    #[error("nothing of rollout {id} is taken back: {cause}")]
    NoWayBack {
        /// Which.
        id: RolloutId,
        /// Whom, and why.
        cause: NoWayBack,
    },
    /// The generation was taken back.
    #[error("{0} is no longer published as it was planned: plan it anew")]
    Gone(String),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// All of them.
pub(crate) struct Rollouts {
    here: Arc<Here>,
    live: Mutex<BTreeMap<RolloutId, Live>>,
    /// Starting one, and looking whether another one runs, are one step.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Live {
    asks: mpsc::UnboundedSender<Ask>,
    shown: watch::Receiver<Arc<RolloutView>>,
}

impl Rollouts {
    pub(crate) fn new(here: Here) -> Self {
        Self { here: Arc::new(here), live: Mutex::default(), starting: tokio::sync::Mutex::default() }
    }

    /// After a start of the manager: goes on with those that are not over.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        for (id, record) in self.here.state.rollouts().await? {
            if record.progress.state != State::Planned && !record.progress.is_over() {
                tracing::info!(rollout = %id, "a rollout goes on");
                if let Err(error) = self.drive(id, record).await {
                    tracing::error!(rollout = %id, %error, "a rollout cannot go on");
                }
            }
        }
        Ok(())
    }

    /// Checks a plan and keeps it; without `keep` only shows what it means now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn plan(&self, text: &str, keep: bool) -> Result<RolloutView, RolloutError> {
        self.add(Plan::parse(text)?, keep).await
    }

    /// The same for a plan that is one already.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn add(&self, plan: Plan, keep: bool) -> Result<RolloutView, RolloutError> {
        let state = &self.here.state;
        let generation = state.resolve_of(&plan.product, &plan.generation)?;
        let found = &generation.record;
        if found.metadata.entry_point.is_none() {
            return Err(RolloutError::NoEntryPoint(found.name()));
        }
        if let Some(back) = &plan.rollback_to {
            state.resolve_of(&plan.product, back)?;
        }
        for ring in &plan.rings {
            for target in &ring.to {
                let known = match target {
                    proto::name::Target::Host(host) => state.known_host(host).map(drop),
                    group @ proto::name::Target::Group(_) => state.hosts_of(group).map(drop),
                };
                known.map_err(|cause| RolloutError::Target { ring: ring.name.clone(), cause })?;
            }
        }
        self.here.company.check(found, &self.hosts_of(&plan)).await?;
        let now = now();
        let mut record = RolloutRecord {
            version: found.version.clone(),
            tree: found.tree,
            planned: now,
            progress: Progress::planned(plan.rings.len(), now),
            before: Vec::new(),
            replaced: Vec::new(),
            lines: Vec::new(),
            plan,
        };
        let mut run = Run::assemble(&self.here, RolloutId(0), record.clone()).await?;
        record.before = run.before(&self.here).await?;
        run.record.before.clone_from(&record.before);
        if keep {
            run.id = state.add_rollout(&record, now).await?;
        }
        Ok(run.view())
    }

    /// Every host that is in a ring now. A group that was deleted since it was planned has none.
    fn hosts_of(&self, plan: &Plan) -> BTreeSet<HostName> {
        let targets = plan.rings.iter().flat_map(|ring| &ring.to);
        targets.flat_map(|target| self.here.state.hosts_of(target).unwrap_or_default()).collect()
    }

    /// Tells a rollout something. Without a number the newest that is not over is meant.
    ///
    /// # Errors
    /// There is none, or it makes no sense now.
    pub(crate) async fn wish(&self, id: Option<RolloutId>, wish: Wish) -> Result<RolloutView, RolloutError> {
        let _one = self.starting.lock().await;
        let id = self.which(id).await?;
        let mut live = self.live(id);
        if live.is_none() {
            let record = self.record(id).await?;
            may(record.progress.state, wish)?;
            if wish == Wish::Start {
                self.nothing_else(&record.plan.product).await?;
                let name = format!("{}@{}", record.plan.product, record.version);
                let generation = generation_of(&self.here, &record).ok_or(RolloutError::Gone(name))?;
                // Others may have changed since it was planned.
                self.here.company.check(&generation.record, &self.hosts_of(&record.plan)).await?;
            }
            live = Some(self.drive(id, record).await?);
        }
        let Some(live) = live else { return Err(RolloutError::Unknown(id)) };
        asked(id, &live, Asked::Wish(wish)).await
    }

    /// Orders one host now, before its turn or once more, for a reason that stays with the rollout.
    ///
    /// # Errors
    /// There is no such rollout at work, or the host is not ordered by it now.
    pub(crate) async fn force(&self, order: ForceOrder) -> Result<RolloutView, RolloutError> {
        let ForceOrder { rollout, host, reason } = order;
        let reason = proto::text::line(&reason, REASON_BYTES_MAX);
        if reason.trim().is_empty() {
            return Err(RolloutError::NoReason);
        }
        let _one = self.starting.lock().await;
        let id = self.which(rollout).await?;
        let live = match self.live(id) {
            Some(live) => live,
            None => {
                let record = self.record(id).await?;
                match record.progress.state {
                    State::Running | State::Paused | State::Halted => self.drive(id, record).await?,
                    state => return Err(NotForced::State(state).into()),
                }
            }
        };
        asked(id, &live, Asked::Force(host, reason)).await
    }

    /// One as it is now. Without a number the newest that is not over is meant, or else the newest.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn view(&self, id: Option<RolloutId>) -> Result<RolloutView, RolloutError> {
        let id = self.which(id).await?;
        match self.live(id) {
            Some(live) => Ok(live.shown.borrow().as_ref().clone()),
            None => Ok(Run::assemble(&self.here, id, self.record(id).await?).await?.view()),
        }
    }

    /// What is shown of one that is at work, as it changes.
    pub(crate) fn watch(&self, id: RolloutId) -> Option<watch::Receiver<Arc<RolloutView>>> {
        self.live(id).map(|live| live.shown)
    }

    /// Every rollout that is remembered, newest last.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn all(&self) -> Result<Vec<RolloutView>, RolloutError> {
        let mut views = Vec::new();
        for (id, record) in self.here.state.rollouts().await? {
            let view = match self.live(id) {
                Some(live) => live.shown.borrow().as_ref().clone(),
                None => Run::assemble(&self.here, id, record).await?.view(),
            };
            views.push(view);
        }
        Ok(views)
    }

    async fn which(&self, id: Option<RolloutId>) -> Result<RolloutId, RolloutError> {
        if let Some(id) = id {
            return Ok(id);
        }
        let all = self.here.state.rollouts().await?;
        let open = all.iter().rev().find(|(_, record)| !record.progress.is_over());
        open.or(all.last()).map(|(id, _)| *id).ok_or(RolloutError::None)
    }

    async fn record(&self, id: RolloutId) -> Result<RolloutRecord, RolloutError> {
        self.here.state.rollout(id).await?.ok_or(RolloutError::Unknown(id))
    }

    async fn nothing_else(&self, product: &Product) -> Result<(), RolloutError> {
        let all = self.here.state.rollouts().await?;
        let other = all.into_iter().find(|(_, record)| {
            let progress = &record.progress;
            record.plan.product == *product && progress.state != State::Planned && !progress.is_over()
        });
        match other {
            Some((id, record)) => {
                Err(RolloutError::Busy { id, product: product.clone(), state: record.progress.state })
            }
            None => Ok(()),
        }
    }

    fn live(&self, id: RolloutId) -> Option<Live> {
        let mut live = lock(&self.live);
        live.retain(|_, live| !live.asks.is_closed());
        live.get(&id).cloned()
    }

    async fn drive(&self, id: RolloutId, record: RolloutRecord) -> Result<Live, RolloutError> {
        // From before it is assembled, so that nothing is missed between.
        let news = self.here.news.of_all();
        let run = Run::assemble(&self.here, id, record).await?;
        let generation = generation_of(&self.here, &run.record);
        let (asks, asked) = mpsc::unbounded_channel();
        let (show, shown) = watch::channel(Arc::new(run.view()));
        let driver = Driver::new(Arc::clone(&self.here), run, generation, news, asked, show);
        tokio::spawn(driver.drive());
        let live = Live { asks, shown };
        lock(&self.live).insert(id, live.clone());
        Ok(live)
    }
}

/// What `rollout force` orders.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForceOrder {
    /// Which rollout; without a number, the newest that is not over.
    pub rollout: Option<RolloutId>,
    /// The host.
    pub host: HostName,
    /// Why, for whoever reads it later.
    pub reason: String,
}

/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 400;

/// Asks one that is at work, and shows it as it is then.
async fn asked(id: RolloutId, live: &Live, what: Asked) -> Result<RolloutView, RolloutError> {
    let (answer, answered) = oneshot::channel();
    let _ = live.asks.send((what, answer));
    answered.await.map_err(|_| ControlError::Closed)?.map_err(|declined| match declined {
        Declined::NotNow(not_now) => RolloutError::NotNow(not_now),
        Declined::NoWayBack(cause) => RolloutError::NoWayBack { id, cause },
        Declined::NotForced(cause) => RolloutError::NotForced(cause),
        Declined::NotRecorded(cause) => RolloutError::NotRecorded { id, cause },
    })?;
    let shown = live.shown.borrow().as_ref().clone();
    Ok(shown)
}

#[cfg(test)]
#[path = "rollouts_tests.rs"]
mod tests;
