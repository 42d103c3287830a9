//! The sources of one snapshot as a tree, from the root of the file system down.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// What lies at one name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Branch {
    /// A source: all of it.
    Source,
    /// A directory above sources, of which only these entries are wanted.
    Above(BTreeMap<OsString, Branch>),
}

impl Branch {
    /// Sources that lie inside of others are part of them.
    pub(super) fn of(sources: &[PathBuf]) -> Self {
        let mut root = Branch::Above(BTreeMap::new());
        for source in sources {
            root.add(source);
        }
        root
    }

    fn add(&mut self, source: &Path) {
        let mut here = self;
        for part in source.components() {
            let Component::Normal(name) = part else { continue };
            match here {
                Branch::Source => return,
                Branch::Above(entries) => {
                    here = entries.entry(name.to_owned()).or_insert_with(|| Branch::Above(BTreeMap::new()));
                }
            }
        }
        *here = Branch::Source;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_inside_of_others_are_part_of_them() {
        let of = |sources: &[&str]| Branch::of(&sources.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/"]), Branch::Source);
        assert_eq!(of(&["/a/b", "/", "/c"]), Branch::Source);
        assert_eq!(of(&["/a/b", "/a"]), of(&["/a"]));
        assert_eq!(of(&["/a", "/a/b"]), of(&["/a"]));
        let Branch::Above(root) = of(&["/a/b", "/c", "/a/d"]) else { panic!("no root") };
        assert_eq!(root.len(), 2);
        assert_eq!(root[OsString::from("c").as_os_str()], Branch::Source);
    }
}
