//! What hosts report: made durable, then told to whoever waits.

use std::sync::Arc;

use proto::HostName;
use proto::message::{Fault, HostReport};

use super::now;
use super::server::{Manager, News};

impl Manager {
    /// Takes a host's reports. Hosts send again what was not answered, so each may come twice.
    ///
    /// # Errors
    /// The control state failed; the host keeps the reports and sends them again.
    pub(crate) fn take_reports(self: &Arc<Self>, host: &HostName, reports: Vec<HostReport>) -> anyhow::Result<()> {
        if reports.is_empty() {
            return Err(Fault::BadRequest(String::from("a report of nothing")).into());
        }
        for report in reports {
            self.take_report(host, report)?;
        }
        Ok(())
    }

    fn take_report(self: &Arc<Self>, host: &HostName, report: HostReport) -> anyhow::Result<()> {
        match report {
            HostReport::Step(event) => {
                // First the change-over's own record, which is idempotent too, then the history that decides "new".
                self.record_step(host, &event)?;
                if self.state.add_step(host, &event)? {
                    tracing::info!(%host, product = %event.product, step = ?event.step, detail = event.detail, "step");
                    self.tell(News::Step(host.clone(), event));
                }
            }
            HostReport::Agents(agents) => {
                self.state.change_status(host, |status| {
                    status.agents.clone_from(&agents);
                    status.last_seen = now();
                })?;
                self.tell(News::Agents(host.clone()));
            }
            HostReport::JobProgress { job, progress } => self.job_progress(host, job, progress)?,
            HostReport::JobOutcome { job, outcome } => self.job_ended(host, job, &outcome)?,
            HostReport::Attached(trees) => self.state.change_status(host, |status| {
                status.attached.clone_from(&trees);
                status.last_seen = now();
            })?,
            HostReport::Touched { tree, touches } => {
                if self.exporter.permits(&self.state, host, &tree)? {
                    self.learn(host, tree, touches);
                }
            }
            HostReport::WrongHash { what } => {
                tracing::error!(%host, what, "the host received bytes with a wrong hash");
                self.state.change_status(host, |status| status.wrong_hashes.push((now(), what.clone())))?;
            }
        }
        Ok(())
    }
}
