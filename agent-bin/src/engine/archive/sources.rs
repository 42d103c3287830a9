//! The sources of one snapshot as a tree, from the root of the file system down.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path};

/// What lies at one name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Branch<S> {
    /// A source: all of it.
    Source(S),
    /// A directory above sources, of which only these entries are wanted.
    Above(BTreeMap<OsString, Branch<S>>),
}

impl<S> Branch<S> {
    /// Of sources and where they lie. Those inside of others are part of them.
    pub(super) fn of<'a>(sources: impl IntoIterator<Item = (&'a Path, S)>) -> Self {
        let mut root = Branch::Above(BTreeMap::new());
        for (path, source) in sources {
            root.add(path, source);
        }
        root
    }

    fn add(&mut self, path: &Path, source: S) {
        let mut here = self;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            match here {
                Branch::Source(_) => return,
                Branch::Above(entries) => {
                    here = entries.entry(name.to_owned()).or_insert_with(|| Branch::Above(BTreeMap::new()));
                }
            }
        }
        *here = Branch::Source(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_inside_of_others_are_part_of_them() {
        let of = |sources: &[&str]| Branch::of(sources.iter().map(|source| (Path::new(*source), ())));
        assert_eq!(of(&["/"]), Branch::Source(()));
        assert_eq!(of(&["/a/b", "/", "/c"]), Branch::Source(()));
        assert_eq!(of(&["/a/b", "/a"]), of(&["/a"]));
        assert_eq!(of(&["/a", "/a/b"]), of(&["/a"]));
        let Branch::Above(root) = of(&["/a/b", "/c", "/a/d"]) else { panic!("no root") };
        assert_eq!(root.len(), 2);
        assert_eq!(root[OsString::from("c").as_os_str()], Branch::Source(()));
    }
}
