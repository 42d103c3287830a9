//! What an operator may not do with a generation.

use std::path::PathBuf;

use proto::limits::RECORD_BYTES_MAX;
use proto::name::Target;
use proto::{HostName, TreeId};

/// Why a generation was not published or taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The path would depend on where the manager stands.
    #[error("{} is not absolute", .0.display())]
    RelativeSource(PathBuf),
    /// Whoever asked is gone.
    #[error("cancelled; nothing was published")]
    Cancelled,
    /// No token is good for so long.
    #[error("a token is good for a year at most (--ttl 366d)")]
    TokenTooLong,
    /// The record is too large.
    #[error("the record has {0} bytes, and may have {RECORD_BYTES_MAX}: the tree has too many executables")]
    RecordTooLarge(usize),
    /// Its version stands for another tree.
    #[error(
        "{name} is published already, as tree {existing}; this source is tree {source_tree}. A version never changes: \
         choose another"
    )]
    OtherTree {
        /// Product and version.
        name: String,
        /// The tree that is published.
        existing: TreeId,
        /// That of the source.
        source_tree: TreeId,
    },
    /// Its version stands for the same tree with other metadata.
    #[error(
        "{0} is published already with the same tree but other metadata (entry point?). A version never changes: \
         choose another"
    )]
    OtherMetadata(String),
    /// Nobody could say that he is one.
    #[error("this source is for {0}, which has no name yet: a version can be for it alone, and not beside others")]
    UnknownMachine(String),
    /// An image says what is not so.
    #[error(
        "the image's files for {said} start a program for {found}, so no host could be given what is its own: have the \
         image built anew, or name a program with --entrypoint PATH"
    )]
    OtherMachine {
        /// The platform as the image names it.
        said: String,
        /// What the program is for.
        found: String,
    },
    /// What a record needs is not known, so nothing may be removed.
    #[error(
        "the record '{0}' cannot be read, so what it needs is not known: remove it with \
         `manager-fs record remove {0}`, and publish its files again if they are wanted"
    )]
    NeedsUnknown(String),
    /// One that can be read is never removed so.
    #[error("there is no damaged record '{0}'; `manager-fs record list` lists those that there are")]
    NotDamaged(String),
    /// Hosts may still see it.
    #[error("{name} is exported to {target}: `manager-fs unexport {name} --from {target}` first")]
    Exported {
        /// Product and version.
        name: String,
        /// The host or group that was named.
        target: Target,
    },
    /// A host still has it.
    #[error("{name} is attached on {host}")]
    Attached {
        /// Product and version.
        name: String,
        /// The host on which it is attached.
        host: HostName,
    },
}
