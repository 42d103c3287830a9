//! The part of a snapshot that a restore takes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::Gitignore;
use proto::restore::RestoreOptions;

use super::format::blobs::Blobs;
use super::format::tree::{Node, NodeKind};
use super::selection::{SelectionFault, matcher};

/// What is restored of a directory of a snapshot.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Path of that directory in the snapshot.
    root: PathBuf,
    /// `None`: everything.
    include: Option<Gitignore>,
    exclude: Gitignore,
    /// Directories that lead to something, below the root.
    leading: HashSet<PathBuf>,
    /// Just these entries and what leads to them, whatever the patterns say.
    only: Option<HashSet<PathBuf>>,
}

impl Wanted {
    /// # Errors
    /// A pattern is none.
    pub(super) fn new(options: &RestoreOptions, root: PathBuf) -> Result<Self, SelectionFault> {
        let include = (!options.include.is_empty()).then(|| matcher(&options.include)).transpose()?;
        Ok(Self { root, include, exclude: matcher(&options.exclude)?, leading: HashSet::new(), only: None })
    }

    /// Just some entries, named by where they lie below the root.
    pub(super) fn only(root: PathBuf, entries: impl Iterator<Item = PathBuf>) -> Self {
        let only: HashSet<PathBuf> = entries.collect();
        let above = only.iter().flat_map(|below| below.ancestors().skip(1)).map(Path::to_owned);
        let leading = above.collect();
        Self { root, include: None, exclude: Gitignore::empty(), leading, only: Some(only) }
    }

    /// Looks in a directory for what its own path does not say: whether something in it is wanted. One that cannot be read
    /// leads nowhere.
    pub(super) fn lead(&mut self, blobs: &Blobs<'_>, directory: &Node) {
        if self.include.is_some() {
            self.leads(blobs, directory, Path::new(""));
        }
    }

    fn leads(&mut self, blobs: &Blobs<'_>, directory: &Node, below: &Path) -> bool {
        let Some(Ok(tree)) = directory.subtree.map(|tree| blobs.tree(&tree)) else { return false };
        let mut any = false;
        for node in tree.nodes {
            let (path, is_dir) = (below.join(node.file_name()), node.kind == NodeKind::Dir);
            let within = self.takes(&path, is_dir)
                || (is_dir && !self.excludes(&path, true) && self.leads(blobs, &node, &path));
            any |= within;
        }
        if any {
            self.leading.insert(below.to_owned());
        }
        any
    }

    /// Where it lies in the snapshot.
    pub(super) fn path(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() { self.root.clone() } else { self.root.join(below) }
    }

    fn excludes(&self, below: &Path, is_dir: bool) -> bool {
        // Not what lies above: in `/tmp/data` a pattern `tmp` is about what is in it.
        for (place, path) in below.ancestors().take_while(|path| !path.as_os_str().is_empty()).enumerate() {
            match self.exclude.matched(self.root.join(path), is_dir || place > 0) {
                Match::None => {}
                found => return found.is_ignore(),
            }
        }
        false
    }

    /// Whether what lies at a path below the root is restored.
    pub(super) fn takes(&self, below: &Path, is_dir: bool) -> bool {
        if let Some(only) = &self.only {
            return only.contains(below) || (is_dir && self.leading.contains(below));
        }
        if self.excludes(below, is_dir) {
            return false;
        }
        let Some(include) = &self.include else { return true };
        self.leading.contains(below) || include.matched_path_or_any_parents(self.root.join(below), is_dir).is_ignore()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_included_is_taken_with_all_that_is_in_it_unless_it_is_excluded() {
        let of = |include: &[&str], exclude: &[&str]| {
            let list = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            let options = RestoreOptions { include: list(include), exclude: list(exclude), dry_run: false };
            Wanted::new(&options, PathBuf::from("/srv/data")).unwrap()
        };
        let takes = |wanted: &Wanted, path: &str| wanted.takes(Path::new(path), false);
        assert!(takes(&of(&[], &[]), "a/b"));
        assert!(!takes(&of(&[], &["a"]), "a/b") && takes(&of(&[], &["a"]), "b"));
        assert!(takes(&of(&[], &["data", "/srv"]), "b") && takes(&of(&[], &["a", "!a/b"]), "a/b"));
        let some = of(&["/srv/data/etc", "*.conf"], &["secret"]);
        for (path, expected) in [
            ("etc", true),
            ("etc/deep/file", true),
            ("x/a.conf", true),
            ("x/a.txt", false),
            ("etc/secret/file", false),
            ("secret/a.conf", false),
        ] {
            assert_eq!(takes(&some, path), expected, "{path}");
        }
        assert!(
            Wanted::new(&RestoreOptions { include: vec!["a[".into()], ..RestoreOptions::default() }, "/".into())
                .is_err()
        );
    }
    #[test]
    fn some_entries_come_with_what_leads_to_them_and_nothing_else() {
        let wanted = Wanted::only("/srv".into(), ["a/b/c", "d"].into_iter().map(PathBuf::from));
        let takes = |path: &str, is_dir| wanted.takes(Path::new(path), is_dir);
        assert!(takes("a", true) && takes("a/b", true) && takes("a/b/c", false) && takes("d", false));
        assert!(!takes("a/x", false) && !takes("a/b/x", true) && !takes("a", false));
    }
}
