//! A restore over what is there: what becomes of each entry, and how it comes into its place without a moment in which
//! half a file stands under its name.
//!
//! Everything is made under a *draft's* name in the directory that it belongs into, is given its metadata, and is renamed
//! over what was there. A draft's name begins with 64 random bits that stand in the record of the restore, so that one
//! that goes on after a kill knows its own drafts and removes them, and nobody else's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::restore::Overwrite;
use rustix::fs::OFlags;

use super::super::beneath::{Looked, change_mode, names_in};
use super::super::facts::Facts;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::{drop_attributes, set_metadata, set_metadata_of_special, time};
use super::super::selection::Selection;
use super::super::wanted::Wanted;
use super::{FileTask, Folder, Restore, RestoreFault, exchanged, lock};

/// How a restore goes over what is there.
pub(in super::super) struct Over<'a> {
    pub(in super::super) policy: Overwrite,
    /// What drafts' names begin with.
    pub(in super::super) draft: &'a str,
    /// An earlier run may have left drafts.
    pub(in super::super) sweep: bool,
    /// The target was made for this restore: it takes its metadata whatever the policy is.
    pub(in super::super) made: bool,
    /// What is removed, if anything is.
    pub(in super::super) delete: Option<Delete<'a>>,
}

/// What lies in a restored directory and is not in the snapshot.
pub(in super::super) struct Delete<'a> {
    /// Of the snapshot: above them nothing is removed, since nobody backed up what else lies there.
    pub(in super::super) sources: &'a [PathBuf],
    /// What was never to be in the snapshot is not missed in it, and stays.
    pub(in super::super) selection: &'a Selection,
}

/// What becomes of an entry that is there, and that is in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Fate {
    /// It stays as it is.
    Kept,
    /// Its content stays; its metadata becomes the snapshot's.
    Same,
    /// The snapshot's takes its place.
    Replaced,
}

/// What a policy says of an entry that is there.
pub(in super::super) fn fate(policy: Overwrite, node: &Node, found: &Facts) -> Fate {
    let at = time(found.mtime);
    let is_newer = node.mtime.is_some_and(|kept| at.is_none_or(|at| kept > at));
    let same_size = node.kind != NodeKind::File || node.size == found.size;
    let looks_same = node.kind == found.kind && same_size && node.mtime.is_some() && node.mtime == at;
    match policy {
        Overwrite::Never => Fate::Kept,
        Overwrite::IfNewer if is_newer => Fate::Replaced,
        Overwrite::IfNewer => Fate::Kept,
        Overwrite::IfChanged if looks_same => Fate::Same,
        Overwrite::IfChanged | Overwrite::Always => Fate::Replaced,
    }
}

impl Delete<'_> {
    /// Of the names in a directory of the target those that go: not in the snapshot, wanted, and not left out of backups.
    pub(in super::super) fn extra(
        &self,
        directory: impl AsFd,
        below: &Path,
        wanted: &Wanted,
        is_kept: impl Fn(&OsStr) -> bool,
    ) -> io::Result<Vec<OsString>> {
        let path = wanted.path(below);
        if !self.sources.iter().any(|source| path.starts_with(source)) {
            return Ok(Vec::new());
        }
        let device = Facts::of(&directory)?.identity.0;
        let mut names = self.selection.unmarked(&directory, names_in(&directory)?);
        names.retain(|name| {
            !is_kept(name)
                && Facts::of_entry(&directory, name).is_ok_and(|facts| {
                    wanted.takes(&below.join(name), facts.kind == NodeKind::Dir)
                        && !self.selection.leaves_out(&path.join(name), &facts, device)
                        && !self.selection.is_beyond(&facts, device)
                })
        });
        Ok(names)
    }
}

impl Over<'_> {
    fn is_draft(&self, name: &OsStr) -> bool {
        name.as_bytes().starts_with(self.draft.as_bytes())
    }
}

impl Restore<'_> {
    /// The target's own node: what it is given at the end.
    pub(super) fn root_over(&self, over: &Over<'_>, root: &Node, found: &Looked) -> io::Result<Node> {
        if over.made { Ok(root.clone()) } else { self.entered(over, Path::new(""), root, found) }
    }

    /// A directory, whatever lies in its place.
    pub(super) fn directory_over(
        &self,
        over: &Over<'_>,
        above: &Arc<Folder>,
        below: PathBuf,
        node: &Node,
    ) -> Result<(), RestoreFault> {
        match self.enter(over, &below, node) {
            Ok(Some((identity, node))) => self.directory(&Folder::below(above, below, node, identity)),
            Ok(None) => Ok(()),
            Err(error) => self.failed(&below, error),
        }
    }

    /// Makes a directory, or takes the one that is there. `None`: something else stays in its place.
    fn enter(&self, over: &Over<'_>, below: &Path, node: &Node) -> io::Result<Option<((u64, u64), Node)>> {
        let target = self.order.target;
        if let Some(found) = self.found(below)? {
            if found.facts.kind == NodeKind::Dir {
                let node = self.entered(over, below, node, &found)?;
                return Ok(Some((found.facts.identity, node)));
            }
            if fate(over.policy, node, &found.facts) == Fate::Kept {
                self.keep(below);
                return Ok(None);
            }
            target.remove(below)?;
        }
        target.make_directory(below)?;
        let made = target.look(below)?;
        if !self.is_own(&made) {
            return Err(exchanged());
        }
        Ok(Some((made.facts.identity, node.clone())))
    }

    /// What a directory that is there is given at the end: nothing, where it keeps what it has.
    fn entered(&self, over: &Over<'_>, below: &Path, node: &Node, found: &Looked) -> io::Result<Node> {
        let mode = found.facts.mode & 0o7777;
        // Root needs no permission; anybody else must be able to fill it.
        let opened = !self.privileged && self.is_own(found) && mode & 0o700 != 0o700;
        if opened {
            change_mode(found, mode | 0o700)?;
        }
        let is_newer = || fate(Overwrite::IfNewer, node, &found.facts) == Fate::Replaced;
        let takes = match over.policy {
            Overwrite::Never => false,
            Overwrite::IfNewer => is_newer(),
            Overwrite::IfChanged | Overwrite::Always => true,
        };
        if takes {
            return Ok(node.clone());
        }
        self.keep(below);
        let mut kept = Node::new(&node.file_name(), NodeKind::Dir);
        kept.subtree = node.subtree;
        if opened {
            kept.set_mode(found.facts.mode);
        }
        Ok(kept)
    }

    /// Removes what an earlier run was writing in a directory when it was killed.
    pub(super) fn sweep(&self, over: &Over<'_>, below: &Path) {
        let names = if over.sweep { self.order.target.names(below) } else { Ok(Vec::new()) };
        for name in names.unwrap_or_default().into_iter().filter(|name| over.is_draft(name)) {
            // One that stays is removed by nobody; it is not in the way.
            drop(self.order.target.remove(&below.join(name)));
        }
    }

    /// A file, whatever lies in its place.
    pub(super) fn file_over(&self, over: &Over<'_>, task: &FileTask) -> Result<(), RestoreFault> {
        let FileTask { below, node, .. } = task;
        let content = node.content.as_deref().unwrap_or_default();
        let found = match self.found(below) {
            Ok(found) => found,
            Err(error) => return self.failed(below, error),
        };
        if let Some(found) = &found {
            let same = match fate(over.policy, node, &found.facts) {
                Fate::Kept => {
                    self.keep(below);
                    return Ok(());
                }
                Fate::Same => self.only_name(below),
                Fate::Replaced if found.facts.kind == NodeKind::File => self.whole(task, content)?,
                Fate::Replaced => None,
            };
            if let Some(same) = same {
                let tell = |what: &str, error: io::Error| self.not_set(below, what, &error);
                drop_attributes(&same, node, tell);
                set_metadata(&same, node, self.privileged, tell);
                return Ok(());
            }
            if let Err(error) = self.make_way(over, below, &found.facts) {
                return self.failed(below, error);
            }
        }
        let draft = self.draft(over, below);
        let file = match self.order.target.make_file(&draft) {
            Ok(file) => file,
            Err(error) => return self.failed(below, error),
        };
        let written = self.write(&file, content, node.size);
        if !matches!(&written, Ok(Ok(written)) if written.readable || written.unreadable.is_empty()) {
            drop(self.order.target.remove(&draft));
        }
        let written = match written? {
            Ok(written) => written,
            Err(error) => return self.failed(below, error),
        };
        if !written.unreadable.is_empty() {
            return self.not_whole(task, &file, &draft, &written);
        }
        set_metadata(&file, node, self.privileged, |what, error| self.not_set(below, what, &error));
        // What was there is given up for it: also when the power is cut, one of the two is there.
        let synced = if found.is_some() { file.sync_all() } else { Ok(()) };
        let placed = synced.and_then(|()| self.put_in_place(over, &draft, below, &file, found.is_some()));
        self.placed(&draft, below, placed, written.bytes)
    }

    /// A link, a FIFO, a socket or a device, whatever lies in its place.
    pub(super) fn special_over(&self, over: &Over<'_>, below: &Path, node: &Node) -> Result<(), RestoreFault> {
        let found = match self.found(below) {
            Ok(found) => found,
            Err(error) => return self.failed(below, error),
        };
        if let Some(found) = &found {
            if fate(over.policy, node, &found.facts) == Fate::Kept {
                self.keep(below);
                return Ok(());
            }
            if let Err(error) = self.make_way(over, below, &found.facts) {
                return self.failed(below, error);
            }
        }
        let draft = self.draft(over, below);
        let placed = self.make_special(&draft, node).and_then(|made| {
            let tell = |what: &str, error: io::Error| self.not_set(below, what, &error);
            set_metadata_of_special(&made, node, self.privileged, tell);
            self.put_in_place(over, &draft, below, &made, found.is_some())
        });
        self.special_placed(&draft, below, placed)
    }

    /// A further name of a file whose first one is restored, whatever lies in its place.
    pub(super) fn link_over(&self, over: &Over<'_>, first: &Path, task: &FileTask) -> Result<(), RestoreFault> {
        let (target, below) = (self.order.target, &task.below);
        // The first name leads to what was there: this one is a file of its own.
        if lock(&self.kept).contains(first) {
            return self.file_over(over, task);
        }
        let looked = target.look(first).and_then(|first| Ok((first.facts.identity, self.found(below)?)));
        let found = match looked {
            Ok((identity, Some(found))) if found.facts.identity == identity => return Ok(()),
            Ok((_, found)) => found,
            Err(error) => return self.failed(below, error),
        };
        if let Some(found) = &found {
            if fate(over.policy, &task.node, &found.facts) == Fate::Kept {
                self.keep(below);
                return Ok(());
            }
            if let Err(error) = self.make_way(over, below, &found.facts) {
                return self.failed(below, error);
            }
        }
        let draft = self.draft(over, below);
        if target.hard_link(first, &draft).is_err() {
            // Such as a file system without hard links: then it is a file of its own.
            return self.file_over(over, task);
        }
        let placed =
            target.look(&draft).and_then(|made| self.put_in_place(over, &draft, below, &made, found.is_some()));
        self.placed(&draft, below, placed, 0)
    }

    /// Removes from a directory what the snapshot does not have, once everything in it is restored.
    pub(super) fn remove_extra(&self, over: &Over<'_>, folder: &Folder) {
        let (Some(delete), true) = (&over.delete, folder.is_read()) else { return };
        if self.order.meter.is_stopped() {
            return;
        }
        let is_kept = |name: &OsStr| folder.has(name) || over.is_draft(name);
        let directory = self.reopen(folder);
        let extra = directory.and_then(|open| delete.extra(&open, &folder.below, self.order.wanted, is_kept));
        let extra = match extra {
            Ok(extra) => extra,
            Err(error) => return self.not_set(&folder.below, "further entries", &error),
        };
        for below in extra.into_iter().map(|name| folder.below.join(name)) {
            if let Err(error) = self.order.target.remove_all(&below) {
                let shown = self.order.target.shown(&below);
                self.order.meter.problem(format!("not removed: {}: {error}", shown.display()));
            }
        }
    }

    fn found(&self, below: &Path) -> io::Result<Option<Looked>> {
        match self.order.target.look(below) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What lies there, if it is a file of this one name: another name may be somebody's elsewhere, who would lose it to
    /// the owner that it gets here.
    fn only_name(&self, below: &Path) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.order.target.open(below, flags, 0).map(File::from).ok()?;
        let facts = Facts::of(&file).ok()?;
        (facts.kind == NodeKind::File && facts.links == 1).then_some(file)
    }

    /// A directory gives way to something else only if it is empty, or what is not in the snapshot goes.
    fn make_way(&self, over: &Over<'_>, below: &Path, found: &Facts) -> io::Result<()> {
        if found.kind != NodeKind::Dir {
            return Ok(());
        }
        match self.order.target.remove_directory(below) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && over.delete.is_some() => {
                self.order.target.remove_all(below)
            }
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err(io::Error::other("a directory with something in it is in its place (--delete removes it)"))
            }
            removed => removed,
        }
    }

    fn draft(&self, over: &Over<'_>, below: &Path) -> PathBuf {
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        below.with_file_name(format!("{}{number}", over.draft))
    }

    /// Renames a draft to its own name, if it is still what was made.
    fn put_in_place(
        &self,
        over: &Over<'_>,
        draft: &Path,
        below: &Path,
        made: impl AsFd,
        replaces: bool,
    ) -> io::Result<()> {
        let target = self.order.target;
        let made = Facts::of(made)?.identity;
        let name = below.file_name().unwrap_or_default();
        if replaces && over.policy != Overwrite::Never {
            target.replace(draft, name)?;
        } else {
            target.rename(draft, name)?;
        }
        if target.look(below)?.facts.identity == made { Ok(()) } else { Err(exchanged()) }
    }

    fn placed(&self, draft: &Path, below: &Path, placed: io::Result<()>, bytes: u64) -> Result<(), RestoreFault> {
        if placed.is_ok() {
            self.files.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.special_placed(draft, below, placed)
    }

    fn special_placed(&self, draft: &Path, below: &Path, placed: io::Result<()>) -> Result<(), RestoreFault> {
        match placed {
            Ok(()) => Ok(()),
            Err(error) => {
                drop(self.order.target.remove(draft));
                self.failed(below, error)
            }
        }
    }

    /// Notes that what was there stays.
    fn keep(&self, below: &Path) {
        lock(&self.kept).insert(below.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn each_policy_says_what_becomes_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        let found = Facts::of_entry(CWD, path.as_os_str()).unwrap();
        let at = time(found.mtime).unwrap();
        let node = |kind: NodeKind, size: u64, seconds: i64| {
            let mut node = Node::new(OsStr::new("file"), kind);
            (node.size, node.mtime) =
                (size, at.checked_add(rustic_core::jiff::SignedDuration::from_secs(seconds)).ok());
            node
        };
        use Fate::{Kept, Replaced, Same};
        for (node, expected) in [
            (node(NodeKind::File, 4, 0), [Kept, Kept, Same, Replaced]),
            (node(NodeKind::File, 5, 0), [Kept, Kept, Replaced, Replaced]),
            (node(NodeKind::File, 4, 1), [Kept, Replaced, Replaced, Replaced]),
            (node(NodeKind::File, 4, -1), [Kept, Kept, Replaced, Replaced]),
            (node(NodeKind::Symlink, 4, 0), [Kept, Kept, Replaced, Replaced]),
            (node(NodeKind::Dir, 0, 9), [Kept, Replaced, Replaced, Replaced]),
        ] {
            let fates = Overwrite::ALL.map(|policy| fate(policy, &node, &found));
            assert_eq!(fates, expected, "{node:?}");
        }
        let timeless = Node::new(OsStr::new("file"), NodeKind::File);
        assert_eq!(fate(Overwrite::IfNewer, &timeless, &found), Kept);
        assert_eq!(fate(Overwrite::IfChanged, &timeless, &found), Replaced);
    }
}
