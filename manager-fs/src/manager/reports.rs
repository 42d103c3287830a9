//! What hosts report: made durable, then told to whoever waits.

use std::sync::Arc;

use proto::agent::StepEvent;
use proto::bundle::Touch;
use proto::message::HostReport;
use proto::{HostName, TreeId};

use super::bundle::Bundles;
use super::control::{ControlError, Noted, Observation, State};
use super::exports::Exports;
use super::jobs::{JobError, Jobs};
use super::news::{News, NewsBoard};
use super::now;
use super::tally::Tally;
use super::upgrade::Upgrades;
use super::worker::{BrokenOff, blocking};

/// Why reports were not taken; the host keeps them and sends them again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// There is none.
    #[error("a report of nothing")]
    Empty,
    /// A job's record cannot be changed.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The work was broken off.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// Takes hosts' reports.
pub(crate) struct Reports {
    pub(crate) state: Arc<State>,
    pub(crate) news: Arc<NewsBoard>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) upgrades: Arc<Upgrades>,
    pub(crate) bundles: Arc<Bundles>,
    pub(crate) tally: Arc<Tally>,
}

impl Reports {
    /// Takes a host's reports: what was seen is written down in one go, then what follows from it is done in order. Hosts
    /// send again what was not answered, so each may come twice.
    ///
    /// # Errors
    /// See [`ReportError`]; the host keeps the reports and sends them again.
    pub(crate) async fn take(&self, host: &HostName, reports: Vec<HostReport>) -> Result<(), ReportError> {
        if reports.is_empty() {
            return Err(ReportError::Empty);
        }
        let seen: Vec<Observation> = reports.iter().filter_map(|report| seen(host, report)).collect();
        let mut noted = if seen.is_empty() {
            Vec::new().into_iter()
        } else {
            self.state.observations().note(host, seen).await?.into_iter()
        };
        for report in reports {
            match report {
                HostReport::Step(event) => self.step_noted(host, &event, noted.next()).await?,
                HostReport::Agents(_) => {
                    noted.next();
                    self.news.tell(host, News::Agents);
                }
                HostReport::Attached(_) => drop(noted.next()),
                HostReport::WrongHash { .. } => {
                    noted.next();
                    self.tally.wrong_hash();
                }
                HostReport::JobProgress { job, progress } => self.jobs.progress_of(host, job, progress).await?,
                HostReport::JobOutcome { job, outcome } => {
                    self.jobs.ended(host, job, &outcome).await?;
                    self.tally.ended(&outcome);
                }
                HostReport::Touched { tree, touches } => self.learn(host, tree, touches).await?,
            }
        }
        Ok(())
    }

    async fn step_noted(&self, host: &HostName, event: &StepEvent, noted: Option<Noted>) -> Result<(), ControlError> {
        // Also when the step came before: its consequence may not have been written then.
        self.upgrades.stepped(host, event).await?;
        if noted == Some(Noted::New) {
            tracing::info!(%host, product = %event.product, step = ?event.step, detail = event.detail, "step");
            self.tally.stepped(event);
            self.news.tell(host, News::Step(event.change));
        }
        Ok(())
    }

    async fn learn(&self, host: &HostName, tree: TreeId, touches: Vec<Touch>) -> Result<(), BrokenOff> {
        if !self.exports.permits(host, &tree) {
            return Ok(());
        }
        let (bundles, host) = (Arc::clone(&self.bundles), host.clone());
        blocking(move || {
            bundles.learn(&host, tree, touches);
            Ok(())
        })
        .await
    }
}

/// What a report says of the host, as it is kept.
fn seen(host: &HostName, report: &HostReport) -> Option<Observation> {
    let at = now();
    match report {
        HostReport::Step(event) => Some(Observation::Step(event.clone())),
        HostReport::Agents(agents) => Some(Observation::Agents { agents: agents.clone(), at }),
        HostReport::Attached(trees) => Some(Observation::Attached { trees: trees.clone(), at }),
        HostReport::WrongHash { what } => {
            tracing::error!(%host, what, "the host received bytes with a wrong hash");
            Some(Observation::WrongHash { what: what.clone(), at })
        }
        HostReport::JobProgress { .. } | HostReport::JobOutcome { .. } | HostReport::Touched { .. } => None,
    }
}
