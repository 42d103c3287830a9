//! What was published, and what it cost the store.

use schemars::JsonSchema;
use serde::Serialize;

use super::{RecordDocument, each};
use crate::manager::admin::PublishReport;

/// What was published.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PublishedDocument {
    /// The records that were signed; of an image for several architectures one for each.
    records: Vec<RecordDocument>,
    /// The same was published before, and nothing changed.
    already_published: bool,
    /// Bytes of content that were read.
    read_bytes: u64,
    /// Chunks that the store did not have.
    new_chunks: u64,
    /// Their bytes in the store.
    stored_bytes: u64,
}

impl From<&PublishReport> for PublishedDocument {
    fn from(report: &PublishReport) -> Self {
        Self {
            records: each(&report.records),
            already_published: report.already,
            read_bytes: report.read_bytes,
            new_chunks: report.new_chunks,
            stored_bytes: report.stored_bytes,
        }
    }
}
