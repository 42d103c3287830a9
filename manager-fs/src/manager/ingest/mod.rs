//! Received files into one checked tree. What they are is told by their first bytes, never by their name.
//!
//! ```text
//! directory ─┐
//! tar, zip  ─┼─> TreeBuilder ──(service pack: laid over an earlier tree)──> Manifest
//! deb, rpm  ─┤        └ contents ──> ContentWriter
//! image     ─┘ layers, each laid over those before
//! ```

mod acl;
mod archive;
mod attributes;
mod budget;
mod deb;
mod directory;
mod fault;
mod gzip;
mod hashed;
mod image;
mod location;
pub(crate) mod rpm;
mod service_pack;
mod stream;
mod tar;
mod tree;
mod xattr;
mod zip;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use proto::limits::{FILE_BYTES_MAX, TREE_BYTES_MAX};
use proto::manifest::NodeKind;
use proto::path::printable;
use proto::{Manifest, TreePath};
use rustix::fs::{FileType, Mode, OFlags};

use attributes::Attributes;
use budget::BombLimit;
pub use fault::EntryFault;
use location::Location;
pub use location::absolute;
pub(crate) use location::is_absolute;
use service_pack::Absent;
use tree::{Repeated, TreeBuilder, TreeFault};

use super::store::{AddError, ContentWriter, Source, StoreError};

/// Why received files do not become a tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// Something in the source does not belong into a tree.
    #[error("{}: {fault}", whereabouts(.place, .from))]
    Refused {
        /// The directory or archive.
        from: String,
        /// The path in it.
        place: String,
        /// What is wrong, and what to do.
        fault: EntryFault,
    },
    /// The source could not be read to its end.
    #[error("reading {}: {cause}", whereabouts(.place, .from))]
    Read {
        /// The directory or archive.
        from: String,
        /// The path in it.
        place: String,
        /// What the system said.
        cause: io::Error,
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

fn whereabouts(place: &str, from: &str) -> String {
    if place.is_empty() { from.to_owned() } else { format!("'{place}' in {from}") }
}

/// Received files, as far as they say what they are.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) tree: TreeBuilder,
    /// What an image starts.
    pub(crate) start: Option<Start>,
    /// Of an image for several architectures: the one that was taken, and those that are left to take.
    pub(crate) architectures: Vec<String>,
}

/// What a container image starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// A path, or a name that is looked for.
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    /// The directories to look in.
    pub(crate) path: Vec<String>,
}

/// What becomes of devices, sockets and pipes, which no tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Devices {
    Refused,
    /// As many have been left out: a container has others over them.
    LeftOut(u64),
}

/// A source on its way into a tree: names what is wrong, and counts what comes in.
pub(crate) struct Intake<'a, 'b> {
    from: PathBuf,
    writer: &'a mut ContentWriter<'b>,
    tree: TreeBuilder,
    /// The earlier tree, where the source is a service pack.
    base: Option<&'a Manifest>,
    /// Nothing is taken in whose meaning is in any doubt.
    strict: bool,
    /// The one that is wanted of an image for several.
    architecture: Option<&'a str>,
    devices: Devices,
    start: Option<Start>,
    bytes: u64,
}

/// What a source is taken for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading<'a> {
    /// The source is a service pack, and the tree is that of both.
    pub(crate) base: Option<&'a Manifest>,
    /// Refuses a tar archive that has a path twice; otherwise the later entry counts, as for tar itself.
    pub(crate) strict: bool,
    /// Of an image for several architectures the one to take; `None`: that of this machine, or else the first.
    pub(crate) architecture: Option<&'a str>,
}

impl Intake<'_, '_> {
    fn refused(&self, place: &[u8], fault: impl Into<EntryFault>) -> IngestError {
        IngestError::Refused { from: self.source_text(), place: printable(place), fault: fault.into() }
    }

    fn unread(&self, place: &[u8], cause: impl Into<io::Error>) -> IngestError {
        IngestError::Read { from: self.source_text(), place: printable(place), cause: cause.into() }
    }

    fn unfit(&self, fault: &str) -> IngestError {
        IngestError::Source { from: self.source_text(), fault: fault.to_owned() }
    }

    /// Tells the operator what is left out of the source, or taken otherwise than it stands there.
    fn remark(&self, text: &str) {
        self.writer.monitor().problem(text);
    }

    fn is_cancelled(&self) -> bool {
        self.writer.is_cancelled()
    }

    fn source_text(&self) -> String {
        self.from.display().to_string()
    }

    /// Takes one file's content in.
    fn content(&mut self, path: &TreePath, source: &mut dyn Source) -> Result<(NodeKind, u64), IngestError> {
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

    /// Enters a further name of what the source, or the earlier tree, has at `target`.
    fn link_to(&mut self, path: TreePath, target: &TreePath) -> Result<(), IngestError> {
        let place = path.clone();
        let entered = match (self.tree.find(target), self.base.and_then(|base| Some((base, base.entry(target)?)))) {
            (Some(node), _) => self.tree.link(path, node),
            (None, Some((base, entry))) => self.tree.link_base(path, base, entry.node),
            (None, None) => Err(TreeFault::NoTarget(target.clone())),
        };
        entered.map_err(|fault| self.refused(place.as_bytes(), fault))
    }
}

/// Reads a source into a tree; its contents go to `writer`. `source` is a path, or names an image (`location.rs`).
///
/// # Errors
/// See [`IngestError`]. Nothing is visible in the store.
pub(crate) fn read_source(
    source: &Path,
    reading: Reading<'_>,
    writer: &mut ContentWriter<'_>,
) -> Result<Received, IngestError> {
    read_source_within(source, reading, writer, BombLimit::DEFAULT)
}

fn read_source_within(
    source: &Path,
    Reading { base, strict, architecture }: Reading<'_>,
    writer: &mut ContentWriter<'_>,
    limit: BombLimit,
) -> Result<Received, IngestError> {
    let location = Location::parse(source);
    let mut intake = Intake {
        from: location.path().to_path_buf(),
        writer,
        tree: TreeBuilder::new(Repeated::Refused),
        base,
        strict,
        architecture,
        devices: Devices::Refused,
        start: None,
        bytes: 0,
    };
    let architectures = match &location {
        Location::Files(path) => files(&mut intake, path, limit).map(|()| Vec::new())?,
        Location::Image { path, reference } => image::read(&mut intake, path, reference.as_deref(), limit)?,
    };
    let start = intake.start.take();
    let tree = match base {
        None => intake.tree,
        Some(base) => service_pack::lay(base, &intake.tree, Absent::Refused)
            .map_err(|(place, fault)| intake.refused(place.as_bytes(), fault))?,
    };
    Ok(Received { tree, start, architectures })
}

/// Reads a directory or an archive.
fn files(intake: &mut Intake<'_, '_>, source: &Path, limit: BombLimit) -> Result<(), IngestError> {
    // The source itself may be named by a symlink: the operator typed it. NONBLOCK: it may be a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(source, flags, Mode::empty()).map_err(|error| intake.unread(b"", error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| intake.unread(b"", error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => directory::read(intake, &fd),
        FileType::RegularFile => archive::read(intake, File::from(fd), limit),
        _ => Err(intake.unfit("it is neither a directory nor a file")),
    }
}

/// For `tests/fuzz`: as [`read_source`] of an archive that may make little, so that bombs do not hide other faults.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_small_source(
    source: &Path,
    base: Option<&Manifest>,
    writer: &mut ContentWriter<'_>,
) -> Result<TreeBuilder, IngestError> {
    let limit = BombLimit { floor_bytes: 1 << 20, holes_floor_bytes: 1 << 20, ratio: 16 };
    Ok(read_source_within(source, Reading { base, ..Reading::default() }, writer, limit)?.tree)
}

/// For `tests/fuzz`: an access control list in tar's text.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_acl(text: &[u8]) -> bool {
    [&b"SCHILY.acl.access"[..], b"SCHILY.acl.default"].map(|key| acl::from_text(key, text).is_ok()).contains(&true)
}

#[cfg(test)]
mod tests;
