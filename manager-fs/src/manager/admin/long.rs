//! Commands that take their time, with what they tell on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use proto::agent::JobId;
use proto::number::RolloutId;
use tokio::sync::mpsc;

use super::catalog::Catalog;
use super::crossing;
use super::message::{AdminEvent, AdminReply, Long, path_of};
use super::progress::Reporter;
use super::verify;
use crate::manager::error::ManagerError;
use crate::manager::news::News;
use crate::manager::upkeep;
use crate::manager::whole::Manager;
use crate::manager::worker::command;
use crate::net::{Answer, NetError};

/// Pause between two pictures of a rollout.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Whoever asked, while the work goes on.
pub(crate) trait Asker: Sync {
    /// Tells what happens meanwhile; fails when nobody is there any more.
    fn event(&self, event: &AdminEvent) -> impl Future<Output = Result<(), NetError>> + Send;

    /// Resolves when the asker has gone away.
    fn cancelled(&self) -> impl Future<Output = ()> + Send;
}

impl Asker for Answer {
    async fn event(&self, event: &AdminEvent) -> Result<(), NetError> {
        Answer::event(self, event).await
    }

    async fn cancelled(&self) {
        Answer::cancelled(self).await;
    }
}

/// Answers one; events go before the answer.
pub(crate) async fn answer(
    manager: &Arc<Manager>,
    request: Long,
    answer: &impl Asker,
) -> Result<AdminReply, ManagerError> {
    let whole = Arc::clone(manager);
    match request {
        Long::Publish(order) => {
            work(answer, move |monitor, cancelled| {
                let published = Catalog(&whole).publish(&order, monitor, cancelled);
                // Also after one that failed: what it has held up goes on.
                whole.idle.work();
                let published = published?;
                published.records.iter().for_each(|record| whole.bundles.published(record.tree));
                Ok(AdminReply::Published(published))
            })
            .await
        }
        Long::Verify { repair } => {
            work(answer, move |monitor, cancelled| {
                Ok(AdminReply::Verified(verify::verify(&whole, repair.as_ref(), monitor, cancelled)?))
            })
            .await
        }
        Long::Gc { dry_run } => {
            work(answer, move |monitor, _| Ok(AdminReply::Collected(Catalog(&whole).gc(dry_run, monitor)?))).await
        }
        Long::Backup(order) => {
            work(answer, move |monitor, cancelled| {
                let (file, decisions) = (path_of(&order.file), whole.decisions());
                let made =
                    upkeep::backup(&whole.store, decisions.as_ref(), (&file, order.packs), monitor, cancelled)?;
                tracing::info!(file = %file.display(), bytes = made.bytes, packs = order.packs, "backed up");
                Ok(AdminReply::BackedUp(made))
            })
            .await
        }
        Long::Save(order) => {
            work(answer, move |monitor, cancelled| {
                Ok(AdminReply::Saved(crossing::save(&whole, &order, monitor, cancelled)?))
            })
            .await
        }
        Long::Load(order) => {
            work(answer, move |monitor, cancelled| {
                let loaded = crossing::load(&whole, &order, monitor, cancelled)?;
                whole.idle.work();
                loaded.generations.iter().for_each(|loaded| whole.bundles.published(loaded.record.tree));
                Ok(AdminReply::Loaded(loaded))
            })
            .await
        }
        Long::Have => work(answer, move |_, _| Ok(AdminReply::Have(crossing::have(&whole)?))).await,
        Long::Upgrade(order) => {
            let (events, received) = mpsc::unbounded_channel();
            let upgrade = async move { Ok(AdminReply::Upgraded(whole.upgrades.upgrade(order, events).await?)) };
            tokio::select! {
                reply = pass_on(answer, received, AdminEvent::Upgrade, upgrade) => reply,
                // The change-overs go on; only nobody watches them any more.
                () = answer.cancelled() => Err(NetError::Cancelled.into()),
            }
        }
        Long::JobWait(id) => wait_for_job(manager, id, answer).await,
        Long::RolloutWatch(id) => watch_rollout(manager, id, answer).await,
    }
}

/// Runs long work on a thread of its own, passes its progress on, and stops it when the asker goes away.
async fn work(
    answer: &impl Asker,
    work: impl FnOnce(&Reporter, &AtomicBool) -> Result<AdminReply, ManagerError> + Send + 'static,
) -> Result<AdminReply, ManagerError> {
    let (events, received) = mpsc::unbounded_channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    let working = command(move || work(&Reporter::new(events), &flag));
    let mut passed = std::pin::pin!(pass_on(answer, received, |event| event, working));
    tokio::select! {
        reply = &mut passed => reply,
        () = answer.cancelled() => {
            cancelled.store(true, Ordering::Relaxed);
            // To its end, so that what it holds is given back before anybody can ask again.
            passed.await
        }
    }
}

async fn wait_for_job(manager: &Manager, id: JobId, answer: &impl Asker) -> Result<AdminReply, ManagerError> {
    let host = manager.jobs.job(id).await?.host;
    let mut news = manager.news.of(&host);
    loop {
        let record = manager.jobs.job(id).await?;
        if record.state.is_final() {
            return Ok(AdminReply::Job(record));
        }
        answer.event(&AdminEvent::Job(Box::new(record))).await?;
        tokio::select! {
            () = news.until(|news| news == News::Job(id)) => {}
            () = answer.cancelled() => return Err(NetError::Cancelled.into()),
        }
    }
}

/// Shows a rollout whenever it has changed, and at most some times a second.
async fn watch_rollout(manager: &Manager, id: RolloutId, answer: &impl Asker) -> Result<AdminReply, ManagerError> {
    let Some(mut shown) = manager.rollouts.watch(id) else {
        return Ok(AdminReply::Rollout(Box::new(manager.rollouts.view(Some(id)).await?)));
    };
    loop {
        let view = shown.borrow_and_update().as_ref().clone();
        if !view.state.is_live() && view.rings.iter().all(|ring| ring.hosts.in_flight == 0) {
            return Ok(AdminReply::Rollout(Box::new(view)));
        }
        answer.event(&AdminEvent::Rollout(Box::new(view))).await?;
        tokio::select! {
            changed = shown.changed() => if changed.is_err() {
                return Ok(AdminReply::Rollout(Box::new(manager.rollouts.view(Some(id)).await?)));
            },
            () = answer.cancelled() => return Err(NetError::Cancelled.into()),
        }
        tokio::time::sleep(SHOW_EVERY).await;
    }
}

/// Sends events on while `work` goes on, and returns its result after the last of them.
async fn pass_on<E>(
    answer: &impl Asker,
    mut received: mpsc::UnboundedReceiver<E>,
    wrap: impl Fn(E) -> AdminEvent,
    work: impl Future<Output = Result<AdminReply, ManagerError>>,
) -> Result<AdminReply, ManagerError> {
    let mut work = std::pin::pin!(work);
    let mut result = None;
    loop {
        tokio::select! {
            biased;
            event = received.recv() => match event {
                // An asker that is gone does not end the work: `work` decides that.
                Some(event) => drop(answer.event(&wrap(event)).await),
                None => match result {
                    Some(result) => return result,
                    None => return work.await,
                },
            },
            done = &mut work, if result.is_none() => result = Some(done),
        }
    }
}
