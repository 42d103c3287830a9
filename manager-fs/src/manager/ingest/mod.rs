//! Received files into one checked tree. What they are is told by their first bytes, never by their name.
//!
//! ```text
//! directory ─┐
//! archive   ─┼─> TreeBuilder ──(service pack: laid over an earlier tree)──> Manifest
//! deb       ─┘        └ contents ──> ContentWriter
//! ```

mod directory;
mod tree;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use proto::TreePath;
use proto::limits::{FILE_BYTES_MAX, TREE_BYTES_MAX};
use proto::manifest::NodeKind;
use proto::path::printable;

pub(crate) use tree::{Attributes, TreeBuilder};

use super::store::{AddError, ContentWriter, StoreError};

/// Why received files do not become a tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// Something in the source does not belong into a tree.
    #[error("'{place}' in {from}: {fault}")]
    Refused {
        /// The directory or archive.
        from: String,
        /// The path in it.
        place: String,
        /// What is wrong, and what to do.
        fault: String,
    },
    /// Reading failed.
    #[error("reading '{place}' in {from}: {source}")]
    Read {
        /// The directory or archive.
        from: String,
        /// The path in it.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The source as a whole cannot be taken in.
    #[error("{from}: {fault}")]
    Source {
        /// The directory or archive.
        from: String,
        /// What is wrong, and what to do.
        fault: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller gave up.
    #[error("cancelled; nothing was published")]
    Cancelled,
}

/// A source on its way into a tree: names what is wrong, and counts what comes in.
pub(crate) struct Intake<'a, 'b> {
    from: PathBuf,
    writer: &'a mut ContentWriter<'b>,
    tree: TreeBuilder,
    bytes: u64,
}

impl Intake<'_, '_> {
    fn refused(&self, place: &[u8], fault: impl Into<String>) -> IngestError {
        IngestError::Refused { from: self.from_text(), place: printable(place), fault: fault.into() }
    }

    fn unread(&self, place: &[u8], source: impl Into<io::Error>) -> IngestError {
        IngestError::Read { from: self.from_text(), place: printable(place), source: source.into() }
    }

    fn from_text(&self) -> String {
        self.from.display().to_string()
    }

    /// Takes one file's content in.
    fn content(&mut self, path: &TreePath, source: &mut dyn Read) -> Result<(NodeKind, u64), IngestError> {
        let bytes_max = FILE_BYTES_MAX.min(TREE_BYTES_MAX - self.bytes);
        let content = self.writer.add(source, bytes_max).map_err(|error| match error {
            AddError::Source(source) => self.unread(path.as_bytes(), source),
            AddError::TooLarge => {
                self.refused(path.as_bytes(), "the file is larger than 64 GiB, or the tree than 256 GiB")
            }
            AddError::Cancelled => IngestError::Cancelled,
            AddError::Broken => IngestError::Store(StoreError::io("the new pack", io::ErrorKind::BrokenPipe.into())),
        })?;
        self.bytes += content.bytes;
        Ok((content.kind, content.bytes))
    }

    /// Enters a node at a path.
    fn enter(&mut self, path: TreePath, kind: NodeKind, attributes: Attributes) -> Result<u32, IngestError> {
        let place = path.clone();
        self.tree.add(path, kind, attributes).map_err(|fault| self.refused(place.as_bytes(), fault))
    }

    /// Enters a further name of a node.
    fn link(&mut self, path: TreePath, node: u32) -> Result<(), IngestError> {
        let place = path.clone();
        self.tree.link(path, node).map_err(|fault| self.refused(place.as_bytes(), fault))
    }
}

/// Reads a source into a tree; its contents go to `writer`.
///
/// # Errors
/// See [`IngestError`]. Nothing is visible in the store.
pub(crate) fn read_source(source: &Path, writer: &mut ContentWriter<'_>) -> Result<TreeBuilder, IngestError> {
    let from = source.to_path_buf();
    let failed = |fault: String| IngestError::Source { from: source.display().to_string(), fault };
    let metadata = std::fs::metadata(source).map_err(|error| failed(error.to_string()))?;
    let mut intake = Intake { from, writer, tree: TreeBuilder::new(), bytes: 0 };
    if metadata.is_dir() {
        directory::read(&mut intake)?;
    } else {
        return Err(failed("it is neither a directory nor a known archive".into()));
    }
    Ok(intake.tree)
}
