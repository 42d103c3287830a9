//! A snapshot's tree beside a directory of the host: what differs, entry by entry.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustic_core::jiff::Timestamp;
use rustix::fs::OFlags;

use super::SharedMeter;
use super::beneath::{Beneath, Looked, READ, names_in};
use super::facts::Facts;
use super::format::blobs::{BlobFault, Blobs};
use super::format::index::BlobKind;
use super::format::tree::{Attribute, Node, NodeKind};
use super::live::{attribute, attribute_names, time};
use super::selection::Selection;
use super::source::Source;
use super::wanted::Wanted;

/// How much is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth {
    /// Every byte: read back out of the repository and held against the live file. Otherwise sizes.
    pub(super) contents: bool,
    /// User and group.
    pub(super) ownership: bool,
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Compared {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Compared {
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// The comparison was stopped.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub(super) struct Stopped;

/// What is compared with what.
pub(super) struct Comparison<'a> {
    pub(super) blobs: &'a Blobs<'a>,
    pub(super) live: &'a Beneath,
    pub(super) depth: Depth,
    /// What is known to be missing, below `live`, and told already.
    pub(super) known: &'a HashSet<PathBuf>,
    /// What a restore left as it was, below `live`; of directories only what they are, not what is in them.
    pub(super) kept: &'a HashSet<PathBuf>,
    /// More may lie beside what was restored.
    pub(super) beside: bool,
    /// What has changed in the live directory since then is no difference; that the repository can give it is looked at.
    pub(super) since: Option<Timestamp>,
    /// Only this part of the node was restored.
    pub(super) wanted: Option<&'a Wanted>,
    /// What was never to be in the snapshot.
    pub(super) left_out: Option<LeftOut<'a>>,
    pub(super) meter: &'a SharedMeter,
}

/// Rules by which a snapshot was made, and its source.
pub(super) struct LeftOut<'a> {
    pub(super) selection: &'a Selection,
    pub(super) source: &'a Source,
}

impl LeftOut<'_> {
    /// Of the names in a directory those that can be missed.
    fn rest(&self, live: &Beneath, below: &Path, names: BTreeSet<OsString>) -> io::Result<BTreeSet<OsString>> {
        let directory = live.open(below, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let unmarked: BTreeSet<_> = self.selection.unmarked(&directory, names_in(&directory)?).into_iter().collect();
        let (path, device) = (self.source.path().join(below), self.source.device());
        let is_wanted = |name: &OsString| {
            Facts::of_entry(&directory, name).is_ok_and(|facts| {
                !self.selection.leaves_out(&path.join(name), &facts, device)
                    && !self.selection.is_beyond(&facts, device)
            })
        };
        Ok(names.into_iter().filter(|name| unmarked.contains(name) && is_wanted(name)).collect())
    }
}

/// Two contents are not the same, or cannot be compared.
#[derive(Debug, thiserror::Error)]
enum ContentFault {
    #[error("cannot be read from the repository: {0}")]
    Repository(#[from] BlobFault),
    #[error("{0} at byte {1}")]
    Live(io::Error, u64),
    #[error("differs from the snapshot from byte {0} on")]
    Differs(u64),
    #[error("is longer than in the snapshot ({0} bytes)")]
    Longer(u64),
}

impl Comparison<'_> {
    /// Compares a node of a snapshot with what lies at `below` the live directory. Differences become the meter's
    /// problems.
    ///
    /// # Errors
    /// It was stopped.
    pub(super) fn run(&self, node: &Node, below: &Path) -> Result<Compared, Stopped> {
        let mut sum = Compared::default();
        self.entry(node, below, &mut sum)?;
        Ok(sum)
    }

    fn entry(&self, node: &Node, below: &Path, sum: &mut Compared) -> Result<(), Stopped> {
        if self.meter.is_stopped() {
            return Err(Stopped);
        }
        if self.known.contains(below) && node.kind != NodeKind::Dir {
            return Ok(());
        }
        let looked = match self.live.look(below) {
            Ok(looked) => looked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.has_lost_something(below) {
                    return self.give(node, below, sum);
                }
                self.differs(below, "is in the snapshot and not in the directory");
                return Ok(());
            }
            Err(error) => {
                self.differs(below, &error.to_string());
                return Ok(());
            }
        };
        let facts = &looked.facts;
        let (kept, found) = (node.kind, facts.kind);
        let changed = self.has_changed(facts);
        if changed && (kept != NodeKind::Dir || found != NodeKind::Dir) {
            return self.give(node, below, sum);
        }
        let stays = self.kept.contains(below);
        if stays && (kept != found || kept != NodeKind::Dir) {
            return Ok(());
        }
        if kept != found {
            self.differs(below, &format!("is a {}, in the snapshot a {}", found.word(), kept.word()));
            return Ok(());
        }
        if !stays && !changed {
            self.metadata(node, below, &looked);
        }
        match node.kind {
            NodeKind::Dir => return self.directory(node, below, sum),
            NodeKind::File => self.file(node, below, facts, sum),
            NodeKind::Symlink => match looked.link_target() {
                Ok(target) if target == node.link_target() => {}
                Ok(target) => {
                    let kept = node.link_target();
                    self.differs(
                        below,
                        &format!("leads to {}, in the snapshot to {}", target.display(), kept.display()),
                    );
                }
                Err(error) => self.differs(below, &error.to_string()),
            },
            NodeKind::Dev | NodeKind::Chardev if facts.device != node.device => {
                self.differs(below, &format!("is device {}, in the snapshot {}", facts.device, node.device));
            }
            NodeKind::Dev | NodeKind::Chardev | NodeKind::Fifo | NodeKind::Socket | NodeKind::Other => {}
        }
        Ok(())
    }

    /// Whether it was changed after what it is compared with was made, as far as that counts. Nobody can put this time back
    /// but with the clock.
    fn has_changed(&self, facts: &Facts) -> bool {
        self.since.is_some_and(|since| time(facts.ctime).is_none_or(|changed| changed >= since))
    }

    /// Whether somebody has taken entries out of the directory of one since then.
    fn has_lost_something(&self, below: &Path) -> bool {
        let above = below.ancestors().skip(1).find_map(|above| self.live.look(above).ok());
        self.since.is_some() && above.is_none_or(|above| self.has_changed(&above.facts))
    }

    /// Reads all that a node has out of the repository: with what, nobody can say any more.
    fn give(&self, node: &Node, below: &Path, sum: &mut Compared) -> Result<(), Stopped> {
        if self.meter.is_stopped() {
            return Err(Stopped);
        }
        match node.subtree.filter(|_| node.kind == NodeKind::Dir).map(|tree| self.blobs.tree(&tree)) {
            Some(Ok(tree)) => {
                return tree.nodes.iter().try_for_each(|child| self.give(child, &below.join(child.file_name()), sum));
            }
            Some(Err(fault)) => {
                self.differs(below, &format!("its directory cannot be read from the repository: {fault}"))
            }
            None => {}
        }
        if node.kind == NodeKind::File {
            sum.files += 1;
            sum.bytes += node.size;
        }
        for piece in node.content.iter().flatten() {
            if self.meter.is_stopped() {
                return Err(Stopped);
            }
            match self.blobs.read(BlobKind::Data, piece) {
                Ok(bytes) => self.meter.advance(bytes.len() as u64),
                Err(fault) => {
                    self.differs(below, &ContentFault::Repository(fault).to_string());
                    break;
                }
            }
        }
        Ok(())
    }

    fn metadata(&self, node: &Node, below: &Path, looked: &Looked) {
        let facts = &looked.facts;
        // A symbolic link has no mode of its own, and other programs store only the name of directories above sources.
        if let Some(kept) = node.mode().filter(|_| node.kind != NodeKind::Symlink && node.mtime.is_some()) {
            let found = facts.mode & 0o7777;
            if kept != found {
                self.differs(below, &format!("has mode {found:04o}, in the snapshot {kept:04o}"));
            }
        }
        if let Some(kept) = node.mtime
            && time(facts.mtime) != Some(kept)
        {
            self.differs(below, &format!("was modified at another time than in the snapshot ({kept})"));
        }
        if self.depth.ownership
            && let (Some(user), Some(group)) = (node.uid, node.gid)
            && (user, group) != facts.owner
        {
            let (uid, gid) = facts.owner;
            self.differs(below, &format!("belongs to {uid}:{gid}, in the snapshot to {user}:{group}"));
        }
        if node.mtime.is_some() {
            self.attributes(node, below, looked);
        }
    }

    fn attributes(&self, node: &Node, below: &Path, looked: &Looked) {
        let kept: BTreeSet<_> = node.extended_attributes.iter().map(|kept| kept.name().to_vec()).collect();
        let found = match attribute_names(looked) {
            Ok(names) => names,
            Err(error) => return self.differs(below, &format!("its extended attributes: {error}")),
        };
        let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        for name in kept.symmetric_difference(&found) {
            let side = if kept.contains(name) { "only in the snapshot" } else { "only in the directory" };
            self.differs(below, &format!("has the extended attribute {} {side}", shown(name)));
        }
        let both = |kept: &&Attribute| found.contains(kept.name());
        for kept in node.extended_attributes.iter().filter(both) {
            match attribute(looked, kept.name()) {
                Ok(value) if value == kept.value() => {}
                Ok(_) => {
                    self.differs(
                        below,
                        &format!("has another value of the extended attribute {}", shown(kept.name())),
                    );
                }
                Err(error) => self.differs(below, &format!("its extended attribute {}: {error}", shown(kept.name()))),
            }
        }
    }

    fn directory(&self, node: &Node, below: &Path, sum: &mut Compared) -> Result<(), Stopped> {
        // What was in it is not known; a restore has said so already.
        let unknown = |what: &str| {
            if !self.known.contains(below) {
                self.differs(below, what);
            }
        };
        let tree = match node.subtree.map(|tree| self.blobs.tree(&tree)) {
            Some(Ok(tree)) => tree,
            Some(Err(fault)) => {
                unknown(&format!("its directory cannot be read from the repository: {fault}"));
                return Ok(());
            }
            None => {
                unknown("has no tree in the snapshot");
                return Ok(());
            }
        };
        let mut extra: BTreeSet<OsString> = BTreeSet::new();
        match self.live.names(below) {
            Ok(names) => extra.extend(names),
            Err(error) => self.differs(below, &error.to_string()),
        }
        for child in &tree.nodes {
            let name = child.file_name();
            let is_dir = child.kind == NodeKind::Dir;
            if self.wanted.is_some_and(|wanted| !wanted.takes(&below.join(&name), is_dir)) {
                continue;
            }
            extra.remove(&name);
            self.entry(child, &below.join(name), sum)?;
        }
        // Beside a damaged file lies the part of it that could be read.
        if node.mtime.is_some() && self.known.is_empty() && !self.beside {
            let rest = match &self.left_out {
                Some(left_out) if !extra.is_empty() => {
                    left_out.rest(self.live, below, extra.clone()).unwrap_or(extra)
                }
                _ => extra,
            };
            let is_new = |name: &OsString| {
                self.live.look(&below.join(name)).is_ok_and(|looked| self.has_changed(&looked.facts))
            };
            for name in rest.into_iter().filter(|name| !is_new(name)) {
                self.differs(&below.join(name), "is in the directory and not in the snapshot");
            }
        }
        Ok(())
    }

    fn file(&self, node: &Node, below: &Path, facts: &Facts, sum: &mut Compared) {
        sum.files += 1;
        sum.bytes += node.size;
        let stored = self.stored_size(node);
        if facts.size != stored {
            let found = facts.size;
            return self.differs(below, &format!("has {found} bytes, in the snapshot {stored}"));
        }
        if self.depth.contents
            && let Err(what) = self.contents(node, below)
        {
            self.differs(below, &what.to_string());
        }
    }

    /// What its pieces add up to. Other programs, and agents before they read files themselves, write a size that the
    /// file had at another moment.
    fn stored_size(&self, node: &Node) -> u64 {
        let length = |piece| self.blobs.index().find(BlobKind::Data, piece).next().map(|at| at.plain_length());
        let sum: Option<u64> = node.content.iter().flatten().map(length).sum();
        sum.unwrap_or(node.size)
    }

    fn contents(&self, node: &Node, below: &Path) -> Result<(), ContentFault> {
        let open = self.live.open(below, READ, 0);
        let mut file = File::from(open.map_err(|error| ContentFault::Live(error, 0))?);
        let (mut found, mut offset) = (Vec::new(), 0u64);
        for piece in node.content.iter().flatten() {
            if self.meter.is_stopped() {
                return Ok(());
            }
            let kept = self.blobs.read(BlobKind::Data, piece)?;
            found.resize(kept.len(), 0);
            file.read_exact(&mut found).map_err(|error| ContentFault::Live(error, offset))?;
            if found != kept {
                let at = found.iter().zip(&kept).take_while(|(a, b)| a == b).count() as u64;
                return Err(ContentFault::Differs(offset + at));
            }
            offset += kept.len() as u64;
            self.meter.advance(kept.len() as u64);
        }
        match file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(ContentFault::Longer(offset)),
            Err(error) => Err(ContentFault::Live(error, offset)),
        }
    }

    fn differs(&self, below: &Path, how: &str) {
        self.meter.problem(format!("{}: {how}", self.live.shown(below).display()));
    }
}
