//! Generations.

use proto::GenerationRecord;
use proto::message::Unix;
use proto::record::Metadata;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{each, json, texts};
use crate::manager::admin::{ArchitectureDiff, DiffReport, GenerationView};

/// Some generations.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GenerationsDocument {
    /// By product and version.
    pub(crate) generations: Vec<GenerationDocument>,
}

impl GenerationsDocument {
    /// All that were asked for.
    pub(crate) fn of(views: &[GenerationView]) -> Self {
        Self { generations: each(views) }
    }
}

/// A generation, in short.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GenerationDocument {
    /// The product's name.
    pub(crate) product: String,
    /// Its version.
    pub(crate) version: String,
    /// The publisher's number of its record.
    pub(crate) sequence: u64,
    /// BLAKE3 of the manifest.
    pub(crate) tree_id: String,
    /// When it was published.
    pub(crate) published_unix_ms: Unix,
    /// Paths in the tree.
    pub(crate) entry_count: u64,
    /// Bytes of all files.
    pub(crate) content_bytes: u64,
    /// Hosts and groups that may see it.
    pub(crate) exported_to: Vec<String>,
    /// Hosts on which it is attached.
    pub(crate) attached_on: Vec<String>,
    /// Of a version for several architectures, each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) architectures: Vec<ArchitectureDocument>,
}

/// A version for one architecture.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ArchitectureDocument {
    /// Which; null: any.
    architecture: Option<String>,
    /// Its tree.
    tree_id: String,
    /// Bytes of all its files.
    content_bytes: u64,
    /// When it was published.
    published_unix_ms: Unix,
}

impl From<&GenerationView> for GenerationDocument {
    fn from(view: &GenerationView) -> Self {
        let record = &view.record;
        Self {
            product: record.product.to_string(),
            version: record.version.to_string(),
            sequence: record.sequence,
            tree_id: record.tree.to_string(),
            published_unix_ms: record.published_unix_ms,
            entry_count: record.metadata.entry_count,
            content_bytes: record.metadata.content_bytes,
            exported_to: targets(view),
            attached_on: texts(&view.attached),
            architectures: architectures(view),
        }
    }
}

/// A record as its publisher signed it: flat, with `tree_id`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RecordDocument {
    /// The product's name.
    product: String,
    /// Its version.
    version: String,
    /// The publisher's number of this record.
    sequence: u64,
    /// BLAKE3 of the manifest.
    tree_id: String,
    /// Size of the manifest.
    manifest_bytes: u64,
    /// When.
    published_unix_ms: Unix,
    /// Such as x86_64; null: any.
    architecture: Option<String>,
    /// The program to start, as a path in the tree.
    entry_point: Option<String>,
    /// Its arguments.
    arguments: Vec<String>,
    /// Paths in the tree.
    entry_count: u64,
    /// Regular files among them.
    file_count: u64,
    /// Bytes of all files.
    content_bytes: u64,
    /// Bytes of distinct contents.
    object_bytes: u64,
    /// The oldest agent state that it reads (`min`), and the newest, which it writes (`max`).
    state_schemas: Value,
    /// How long operations may take to finish.
    drain_deadline_ms: u64,
    /// How a start proves itself.
    health: Value,
    /// Its programs and libraries.
    elf_files: Value,
    /// Its executable scripts.
    scripts: Value,
}

impl From<&GenerationRecord> for RecordDocument {
    fn from(record: &GenerationRecord) -> Self {
        let metadata: &Metadata = &record.metadata;
        Self {
            product: record.product.to_string(),
            version: record.version.to_string(),
            sequence: record.sequence,
            tree_id: record.tree.to_string(),
            manifest_bytes: record.manifest_bytes,
            published_unix_ms: record.published_unix_ms,
            architecture: metadata.architecture.clone(),
            entry_point: metadata.entry_point.as_ref().map(ToString::to_string),
            arguments: metadata.arguments.clone(),
            entry_count: metadata.entry_count,
            file_count: metadata.file_count,
            content_bytes: metadata.content_bytes,
            object_bytes: metadata.object_bytes,
            state_schemas: json(&metadata.state_schemas),
            drain_deadline_ms: metadata.drain_deadline_ms,
            health: json(&metadata.health),
            elf_files: json(&metadata.elf_files),
            scripts: json(&metadata.scripts),
        }
    }
}

/// A generation with all that is known of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ShownDocument {
    #[serde(flatten)]
    record: RecordDocument,
    /// Who signed it.
    publisher: String,
    /// How an unchanged program of it is handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Value>,
    /// How it is asked whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check: Option<String>,
    /// Hosts and groups that may see it.
    exported_to: Vec<String>,
    /// Hosts on which it is attached.
    attached_on: Vec<String>,
    /// Of a version for several architectures, each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<ArchitectureDocument>,
}

impl From<&GenerationView> for ShownDocument {
    fn from(view: &GenerationView) -> Self {
        Self {
            record: RecordDocument::from(&view.record),
            publisher: view.publisher.clone(),
            adapter: view.adapter.as_ref().map(|adapter| json(&adapter.handover)),
            health_check: view.health_check.as_ref().map(|check| check.probe.to_string()),
            exported_to: targets(view),
            attached_on: texts(&view.attached),
            architectures: architectures(view),
        }
    }
}

fn targets(view: &GenerationView) -> Vec<String> {
    texts(view.exports.iter().map(|export| &export.target))
}

/// Of a version that is published for several, all of them.
fn architectures(view: &GenerationView) -> Vec<ArchitectureDocument> {
    if view.others.is_empty() {
        return Vec::new();
    }
    let own = ArchitectureDocument {
        architecture: view.record.metadata.architecture.clone(),
        tree_id: view.record.tree.to_string(),
        content_bytes: view.record.metadata.content_bytes,
        published_unix_ms: view.record.published_unix_ms,
    };
    let others = view.others.iter().map(|other| ArchitectureDocument {
        architecture: Some(other.architecture.clone()),
        tree_id: other.tree.to_string(),
        content_bytes: other.content_bytes,
        published_unix_ms: other.published_unix_ms,
    });
    std::iter::once(own).chain(others).collect()
}

/// What differs between two generations: of one architecture, or of each that both have.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum DiffDocument {
    /// There is but one.
    One(#[schemars(with = "Differences")] DiffReport),
    /// Each that both have.
    Several {
        /// What differs for each.
        architectures: Vec<ArchitectureDiffDocument>,
    },
}

/// What differs for one architecture.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ArchitectureDiffDocument {
    /// Which; null: any.
    architecture: Option<String>,
    #[serde(flatten)]
    #[schemars(with = "Differences")]
    report: DiffReport,
}

/// The form of a [`DiffReport`].
#[derive(JsonSchema)]
#[allow(dead_code)]
struct Differences {
    /// Paths that only the second has.
    added: u64,
    /// Paths that only the first has.
    removed: u64,
    /// Paths of both that differ.
    changed: u64,
    /// Paths of both that are equal.
    equal: u64,
    /// Bytes of contents that only the second has.
    new_object_bytes: u64,
    /// Bytes of chunks that only the second has.
    new_chunk_bytes: u64,
    /// Each difference, by path: `path`, `difference` (added, removed or changed), and `what` of it.
    entries: Vec<Value>,
}

impl From<Vec<ArchitectureDiff>> for DiffDocument {
    fn from(mut found: Vec<ArchitectureDiff>) -> Self {
        if found.len() == 1
            && let Some(only) = found.pop()
        {
            return Self::One(only.report);
        }
        let of = |diff: ArchitectureDiff| ArchitectureDiffDocument {
            architecture: diff.architecture,
            report: diff.report,
        };
        Self::Several { architectures: found.into_iter().map(of).collect() }
    }
}
