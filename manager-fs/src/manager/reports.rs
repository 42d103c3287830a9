//! What hosts report: made durable, then told to whoever waits.

use std::sync::Arc;

use proto::HostName;
use proto::agent::StepEvent;
use proto::message::HostReport;

use super::bundle::Bundles;
use super::control::{ControlError, State};
use super::exports::Exports;
use super::jobs::{JobError, Jobs};
use super::news::{News, NewsBoard};
use super::now;
use super::upgrade::Upgrades;

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
}

/// Takes hosts' reports.
pub(crate) struct Reports {
    pub(crate) state: Arc<State>,
    pub(crate) news: Arc<NewsBoard>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) upgrades: Arc<Upgrades>,
    pub(crate) bundles: Arc<Bundles>,
}

impl Reports {
    /// Takes a host's reports. Hosts send again what was not answered, so each may come twice.
    ///
    /// # Errors
    /// See [`ReportError`]; the host keeps the reports and sends them again.
    pub(crate) fn take(&self, host: &HostName, reports: Vec<HostReport>) -> Result<(), ReportError> {
        if reports.is_empty() {
            return Err(ReportError::Empty);
        }
        reports.into_iter().try_for_each(|report| self.take_one(host, report))
    }

    fn take_one(&self, host: &HostName, report: HostReport) -> Result<(), ReportError> {
        match report {
            HostReport::Step(event) => self.take_step(host, &event)?,
            HostReport::Agents(agents) => {
                self.state.change_status(host, |status| {
                    status.agents.clone_from(&agents);
                    status.last_seen = now();
                })?;
                self.news.tell(host, News::Agents);
            }
            HostReport::JobProgress { job, progress } => self.jobs.progress_of(host, job, progress)?,
            HostReport::JobOutcome { job, outcome } => self.jobs.ended(host, job, &outcome)?,
            HostReport::Attached(trees) => self.state.change_status(host, |status| {
                status.attached.clone_from(&trees);
                status.last_seen = now();
            })?,
            HostReport::Touched { tree, touches } => {
                if self.exports.permits(host, &tree)? {
                    self.bundles.learn(host, tree, touches);
                }
            }
            HostReport::WrongHash { what } => {
                tracing::error!(%host, what, "the host received bytes with a wrong hash");
                self.state.change_status(host, |status| status.wrong_hashes.push((now(), what.clone())))?;
            }
        }
        Ok(())
    }

    fn take_step(&self, host: &HostName, event: &StepEvent) -> Result<(), ControlError> {
        // First the change-over's own record, which is idempotent too, then the history that decides "new".
        self.upgrades.record_step(host, event)?;
        if self.state.add_step(host, event)? {
            tracing::info!(%host, product = %event.product, step = ?event.step, detail = event.detail, "step");
            self.news.tell(host, News::Step(event.change));
        }
        Ok(())
    }
}
