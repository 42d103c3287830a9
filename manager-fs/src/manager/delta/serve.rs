//! Deltas for hosts: made when they are first wanted, or ahead of that at a publication, and sent as they lie.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use proto::delta::Header;
use proto::limits::BULK_BYTES_MAX;
use proto::message::{Fault, ManagerReply};
use proto::{GenerationRecord, HostName, TreeId};

use super::{DeltaError, DeltaOptions, LEVEL_BEST, LEVEL_FAST, make};
use crate::manager::server::{Manager, blocking};
use crate::net::Answer;

impl Manager {
    /// Streams the delta between two trees that are both exported to the host, without its trailer. Makes it first if
    /// there is none; hosts that ask meanwhile wait for the same one.
    pub(crate) async fn send_delta(
        self: &Arc<Self>,
        host: &HostName,
        (from, to): (TreeId, TreeId),
        answer: &Answer,
    ) -> anyhow::Result<ManagerReply> {
        for tree in [&from, &to] {
            self.exported_tree(host, tree).await?;
        }
        if from == to {
            return Err(Fault::BadRequest(format!("a delta from tree {to} to itself")).into());
        }
        let header = match self.stored_delta(from, to).await? {
            Some(header) => header,
            None => {
                let _one_at_a_time = self.delta_making.wanted.lock().await;
                match self.stored_delta(from, to).await? {
                    Some(header) => header,
                    None => {
                        let manager = Arc::clone(self);
                        blocking(move || Ok(manager.make_delta(&from, &to, LEVEL_FAST)?)).await?;
                        let made = self.stored_delta(from, to).await?;
                        made.ok_or_else(|| Fault::Failed(format!("the delta from {from} to {to} did not stay")))?
                    }
                }
            }
        };
        let end = header.front_bytes() + header.frames_bytes;
        let (mut at, mut frames) = (0, 0);
        while at < end {
            let range = at..(at + BULK_BYTES_MAX as u64).min(end);
            at = range.end;
            let manager = Arc::clone(self);
            let bytes = blocking(move || Ok(manager.store.delta_bytes(&from, &to, range)?)).await?;
            answer.bulk(&[], bytes).await?;
            frames += 1;
        }
        Ok(ManagerReply::Sent(frames))
    }

    /// Makes the delta from the generation that was published before this one, so that the first host that upgrades need
    /// not wait. A host that asks before it is done gets one made fast; the first to be done stays.
    pub(crate) fn make_delta_ahead(&self, published: &GenerationRecord) {
        let generations = match self.state.generations() {
            Ok(generations) => generations,
            Err(error) => return tracing::warn!(%error, "no delta is made ahead"),
        };
        let earlier = generations.iter().map(|generation| &generation.record).filter(|record| {
            record.product == published.product
                && record.sequence < published.sequence
                && record.tree != published.tree
        });
        let Some(from) = earlier.max_by_key(|record| record.sequence).map(|record| record.tree) else { return };
        let to = published.tree;
        if matches!(self.store.delta(&from, &to), Ok(None))
            && let Err(error) = self.make_delta(&from, &to, LEVEL_BEST)
        {
            tracing::warn!(%from, %to, %error, "no delta was made ahead; it is made when a host asks");
        }
    }

    async fn stored_delta(self: &Arc<Self>, from: TreeId, to: TreeId) -> anyhow::Result<Option<Header>> {
        let manager = Arc::clone(self);
        blocking(move || Ok(manager.store.delta(&from, &to)?)).await
    }

    fn make_delta(&self, from: &TreeId, to: &TreeId, level: i32) -> Result<(), DeltaError> {
        // Half of the cores: the manager serves hosts meanwhile.
        let threads = thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let stats = make(&self.store, from, to, DeltaOptions { level, threads }, &AtomicBool::new(false))?;
        tracing::info!(%from, %to, bytes = stats.delta_bytes, instead_of = stats.replaced_stored_bytes, "delta made");
        Ok(())
    }
}
