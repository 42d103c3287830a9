//! Which shared libraries a program needs that no loader of a host will find: the closure of `DT_NEEDED` (ld.so(8)) over the
//! tree and over what every host is taken to have. Found when a version is published, so that no host finds it first.

use std::collections::{BTreeSet, HashMap, VecDeque};

use proto::record::ElfFile;
use proto::{Manifest, TreePath};

/// What every host with a C library has: glibc's own libraries, and those of the compiler that come with it everywhere.
const OF_EVERY_HOST: [&str; 12] = [
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
    "libanl.so.1",
    "libnss_files.so.2",
    "libmvec.so.1",
    "libgcc_s.so.1",
    "libstdc++.so.6",
];
/// How the names of glibc's loaders begin.
const LOADER: &str = "ld-linux";

/// A library that a loader will not find.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MissingLibrary {
    /// Its name, or the path of a loader.
    pub(super) name: String,
    /// The first file that needs it.
    pub(super) needed_by: TreePath,
    /// Where the tree has one of this name, though no loader looks there.
    pub(super) elsewhere: Option<TreePath>,
}

impl std::fmt::Display for MissingLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, needed_by, elsewhere } = self;
        match elsewhere {
            Some(at) => {
                write!(f, "'{needed_by}' needs {name}, which the tree has as '{at}', where its loader does not look")
            }
            None => write!(f, "'{needed_by}' needs {name}, which the tree does not have where its loader looks"),
        }
    }
}

/// What the program at `entry` needs and neither the tree has, where a loader looks, nor a host: in the order of the names.
pub(super) fn missing(
    tree: &Manifest,
    files: &[ElfFile],
    entry: &TreePath,
    of_the_host: &[String],
) -> Vec<MissingLibrary> {
    let by_path: HashMap<&TreePath, &ElfFile> = files.iter().map(|file| (&file.path, file)).collect();
    let real = |path: &TreePath| tree.resolve(path).ok().map(|index| &tree.entries[index].path);
    let Some(program) = real(entry).and_then(|path| by_path.get(path)) else { return Vec::new() };
    let is_there = |name: &str| OF_EVERY_HOST.contains(&name) || of_the_host.iter().any(|known| known == name);
    let mut missing = Vec::new();
    // The kernel starts the loader by its path, which leads out of the tree.
    if let Some(loader) = &program.interpreter {
        let name = loader.rsplit('/').next().unwrap_or(loader);
        if !name.starts_with(LOADER) && !is_there(name) {
            missing.push(MissingLibrary { name: loader.clone(), needed_by: program.path.clone(), elsewhere: None });
        }
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut todo = VecDeque::from([*program]);
    while let Some(file) = todo.pop_front() {
        for name in &file.needed {
            if !seen.insert(name) {
                continue;
            }
            // What the program's own path leads to serves all that it loads: older linkers wrote no other.
            let places = [file, program].into_iter().flat_map(places);
            let found = places.filter_map(|place| place.join(name.as_bytes()).ok()).find_map(|path| real(&path));
            match found.and_then(|path| by_path.get(path)) {
                Some(library) => todo.push_back(library),
                None if is_there(name) || name.starts_with(LOADER) => {}
                None => {
                    let named =
                        |file: &&ElfFile| file.path.name() == name.as_bytes() || file.soname.as_ref() == Some(name);
                    let elsewhere = files.iter().find(named).map(|file| file.path.clone());
                    missing.push(MissingLibrary { name: name.clone(), needed_by: file.path.clone(), elsewhere });
                }
            }
        }
    }
    missing.sort();
    missing
}

/// The directories of the tree in which a file's loader looks: those of its path that begin with its own place.
fn places(file: &ElfFile) -> Vec<TreePath> {
    let origin = file.path.parent().unwrap_or_default();
    let place = |text: &str| {
        let rest = text.strip_prefix("$ORIGIN").or_else(|| text.strip_prefix("${ORIGIN}"))?;
        let mut at = origin.clone();
        for part in rest.split('/') {
            match part {
                "" | "." => {}
                ".." => at = at.parent()?,
                part => at = at.join(part.as_bytes()).ok()?,
            }
        }
        Some(at)
    };
    file.runpath.as_deref().unwrap_or_default().split(':').filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use proto::manifest::{Entry, Node, NodeKind};

    use super::*;
    use crate::manager::testing::tree_path;

    fn file(path: &str, needed: &[&str], runpath: Option<&str>) -> ElfFile {
        ElfFile {
            path: tree_path(path),
            architecture: "x86_64".into(),
            kind: "shared object".into(),
            interpreter: None,
            needed: needed.iter().map(|name| (*name).to_owned()).collect(),
            soname: None,
            runpath: runpath.map(str::to_owned),
            build_id: None,
            bytes: 1,
        }
    }

    /// A tree with these files and links, and the directories that they are in.
    fn tree(files: &[ElfFile], links: &[(&str, &str)]) -> Manifest {
        let mut kinds: std::collections::BTreeMap<TreePath, NodeKind> = files
            .iter()
            .map(|file| (file.path.clone(), NodeKind::EmptyFile))
            .chain(links.iter().map(|(path, to)| (tree_path(path), NodeKind::Symlink(to.as_bytes().to_vec()))))
            .collect();
        for path in kinds.keys().cloned().collect::<Vec<_>>() {
            let mut at = path.parent();
            while let Some(directory) = at {
                at = directory.parent();
                kinds.entry(directory).or_insert(NodeKind::Directory);
            }
        }
        let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
        let entry = |(number, path)| Entry { path, node: proto::width::count(number) };
        let entries = kinds.keys().cloned().enumerate().map(entry).collect();
        Manifest { chunk_bytes: 4096, objects: vec![], nodes: kinds.into_values().map(node).collect(), entries }
    }

    fn names(files: &[ElfFile], links: &[(&str, &str)], entry: &str, host: &[&str]) -> Vec<String> {
        let host: Vec<String> = host.iter().map(|name| (*name).to_owned()).collect();
        let missing = missing(&tree(files, links), files, &tree_path(entry), &host);
        missing.iter().map(MissingLibrary::to_string).collect()
    }

    #[test]
    fn a_library_is_looked_for_where_the_loader_looks() {
        let files = [
            file("bin/run", &["liba.so.1", "libc.so.6"], Some("/opt/x:$ORIGIN/../lib")),
            file("lib/liba.so.1.2", &["libb.so", "libd.so"], None),
            file("lib/libb.so", &[], None),
            file("other/libd.so", &["libnever.so"], None),
        ];
        let links = [("lib/liba.so.1", "liba.so.1.2"), ("run", "bin/run")];
        let found = names(&files, &links, "run", &[]);
        let want =
            "'lib/liba.so.1.2' needs libd.so, which the tree has as 'other/libd.so', where its loader does not look";
        assert_eq!(found, [want]);
        assert_eq!(names(&files, &links, "bin/run", &["libd.so"]), [""; 0]);
    }

    #[test]
    fn what_the_tree_lacks_is_named_once_with_the_first_that_needs_it() {
        let mut program = file("bin/run", &["libx.so.1", "liby.so.2", "ld-linux-x86-64.so.2"], Some("${ORIGIN}"));
        program.interpreter = Some("/lib/ld-musl-x86_64.so.1".into());
        let files = [program, file("bin/liby.so.2", &["libx.so.1", "liby.so.2"], Some("$ORIGIN/../../..:$ORIGINAL"))];
        let found = names(&files, &[], "bin/run", &[]);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("'bin/run' needs /lib/ld-musl-x86_64.so.1"), "{found:?}");
        assert!(found[1].contains("'bin/run' needs libx.so.1, which the tree does not have"), "{found:?}");
        assert_eq!(names(&files, &[], "bin/none", &[]), [""; 0]);
    }
}
