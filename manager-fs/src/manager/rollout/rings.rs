//! What a rollout does for a whole ring: what its hosts may see when it begins, what they are to run when it is done, and
//! when it goes back.

use std::collections::HashSet;

use proto::name::Target;

use super::driver::Driver;
use super::machine::vocabulary::{HostState, Phase, State};
use super::way_back;
use crate::manager::control::ControlError;
use crate::manager::control::targets::Wanted;
use crate::manager::exports::ExportError;
use crate::manager::now;

impl Driver {
    /// What the control state fails to write is tried again with the ring.
    pub(super) async fn export(&mut self, ring: u16) -> Result<(), ControlError> {
        let Some(planned) = self.run.record.plan.rings.get(usize::from(ring)) else { return Ok(()) };
        // Of one that is gone, hosts hear that when they are told.
        let Some(generation) = self.generation.as_ref().filter(|_| self.run.record.plan.export) else {
            return Ok(());
        };
        let mut lines = Vec::new();
        // One by one: a group that is gone keeps it from nobody else.
        for target in &planned.to {
            match self.here.exports.export(generation, std::slice::from_ref(target)).await {
                Ok(_) => {}
                Err(ExportError::Control(error)) => return Err(error),
                // Hosts that do not see it refuse, and say why.
                Err(why) => {
                    lines.push(format!("ring {}: the generation is not exported to {target}: {why}", planned.name));
                }
            }
        }
        for line in lines {
            tracing::error!(rollout = %self.run.id, "{line}");
            self.run.record.line(now(), line);
        }
        Ok(())
    }

    /// From now on this is what the ring's hosts run.
    pub(super) async fn ring_done(&mut self, ring: u16) -> Result<(), ControlError> {
        let record = &mut self.run.record;
        let Some(planned) = record.plan.rings.get(usize::from(ring)) else { return Ok(()) };
        let (product, to) = (record.plan.product.clone(), planned.to.clone());
        if !record.replaced.iter().any(|(of, ..)| *of == ring) {
            let before = to.iter().map(|target| (ring, target.clone(), self.here.state.target(&product, target)));
            record.replaced.extend(before);
            self.here.state.save_rollout(self.run.id, record).await?;
        }
        let wanted = Wanted {
            version: record.version.clone(),
            tree: record.tree,
            // Whoever was ordered something since the start is not meant.
            set: self.run.machine.progress().started.unwrap_or_else(now),
            lazy: record.plan.lazy,
            drain_deadline_ms: record.plan.drain_deadline_ms,
            hours: planned.hours.clone(),
        };
        self.here.state.set_targets(&product, &to, &wanted).await
    }

    /// The ring's hosts are to run what they ran before, also those that come later.
    pub(super) async fn ring_back(&mut self, ring: u16) -> Result<(), ControlError> {
        let product = self.run.record.plan.product.clone();
        for (of, target, before) in self.run.record.replaced.clone() {
            match before {
                _ if of != ring => {}
                Some(wanted) => self.here.state.set_targets(&product, &[target], &wanted).await?,
                None => self.here.state.clear_targets(&product, &[target]).await?,
            }
        }
        for (no, host) in self.run.hosts_of(ring) {
            let left = matches!(self.run.machine.host(no), Some(HostState::Good | HostState::Silent));
            if left && let Ok((version, tree)) = way_back::of(&self.here, &self.run, no).await? {
                let set = self.here.state.ordered_after_all(now());
                let wanted = Wanted { version, tree, set, lazy: false, drain_deadline_ms: None, hours: None };
                self.here.state.set_targets(&product, &[Target::Host(host)], &wanted).await?;
            }
        }
        Ok(())
    }

    /// Hosts of rings that have begun and are not done are told by nobody else.
    pub(super) fn claim(&self) {
        let progress = self.run.machine.progress();
        let mut hosts = HashSet::new();
        if progress.state.is_live() {
            for (ring, known) in (0..).zip(&progress.rings) {
                if !matches!(known.phase, Phase::Waiting | Phase::Done) || progress.state == State::RollingBack {
                    hosts.extend(self.run.hosts_of(ring).into_iter().map(|(_, host)| host));
                }
            }
        }
        self.here.targets.claim(&self.run.record.plan.product, hosts);
    }
}
