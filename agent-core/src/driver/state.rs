//! What the next version gets of the program's state, and what stays for the one that leaves.

use std::io;

use super::Driver;
use crate::durable::FileFault;
use crate::handoff::INLINE_MAX;
use crate::machine::{Candidate, Handed, handed};
use crate::program::CallFault;
use crate::report::unix_ms;
use crate::state::{self, Snapshot};

/// The state cannot be handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateFault {
    #[error(transparent)]
    Call(#[from] CallFault),
    #[error("the next version reads no state that there is; this is a fault of the agent")]
    NoSchema,
    #[error("the state cannot be kept for the next version: {0}")]
    NotKept(io::Error),
    #[error("the state cannot be read again: {0}")]
    Unreadable(#[from] io::Error),
    #[error("what an earlier version had saved cannot be handed over: {0}")]
    Lost(#[from] FileFault),
}

/// The state as the handoff says it.
pub(super) struct Handing {
    pub(super) schema: u32,
    /// Itself, as far as that has room in a handoff that every version reads.
    pub(super) state: Vec<u8>,
    /// How long it is where it has not: it lies in the memory file that is kept in its schema.
    pub(super) kept_bytes: Option<u64>,
}

impl Driver {
    pub(super) fn save_state(&mut self, candidate: &Candidate) -> Result<Handing, StateFault> {
        let handed = handed(candidate, &self.facts).ok_or(StateFault::NoSchema)?;
        let own = match handed {
            Handed::Saved(schema) => schema,
            Handed::Kept(_) => *self.facts.writes.end(),
        };
        let (file, bytes) = self.program.save_state(own)?;
        let saved_by = self.facts.running.clone();
        let snapshot = Snapshot { saved_by, schema: own, bytes, saved_unix_ms: unix_ms() };
        let kept = state::keep(&self.inherited, &snapshot, &file);
        self.work.saved_schema = Some(own);
        let (schema, file, bytes) = match handed {
            Handed::Saved(schema) => (schema, file, bytes),
            Handed::Kept(schema) => {
                let mut kept = state::kept(&self.inherited).into_iter();
                let found = kept.find(|kept| kept.schema == schema).ok_or(StateFault::NoSchema)?;
                (schema, state::open(&self.inherited, schema, found.bytes)?, found.bytes)
            }
        };
        if bytes <= INLINE_MAX {
            if let Err(e) = kept {
                tracing::warn!("if the next version fails, what this one has in memory is lost: {e}");
            }
            return Ok(Handing { schema, state: state::bytes(&file)?, kept_bytes: None });
        }
        kept.map_err(StateFault::NotKept)?;
        Ok(Handing { schema, state: Vec::new(), kept_bytes: Some(bytes) })
    }

    /// This version has not left after all.
    pub(super) fn drop_saved_state(&mut self) {
        if let Some(schema) = self.work.saved_schema.take() {
            state::forget(&self.inherited, schema);
        }
    }
}
