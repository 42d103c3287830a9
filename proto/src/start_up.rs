//! Which files of a tree its entry point touches before its first instruction: found in the record alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::manifest::Manifest;
use crate::path::TreePath;
use crate::record::{ElfFile, Metadata};

/// Where the dynamic loader looks by default, inside the tree.
const LIBRARY_DIRS: [&str; 6] =
    ["lib64", "usr/lib64", "lib", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Where a bare command name is looked for in a tree, in this order.
pub const PROGRAM_DIRS: [&str; 6] = ["bin", "usr/bin", "usr/local/bin", "sbin", "usr/sbin", ""];

/// The program of a tree that a command names: a path, or a name to look for in [`PROGRAM_DIRS`]; without its links. `None`
/// when the tree has no such file.
pub fn program(tree: &Manifest, command: &str) -> Option<TreePath> {
    let real = |path: &str| {
        let path = TreePath::parse(path.as_bytes()).ok()?;
        let at = tree.resolve(&path).ok()?;
        let is_file = matches!(tree.node(&tree.entries[at]).kind, crate::manifest::NodeKind::File(_));
        is_file.then(|| tree.entries[at].path.clone())
    };
    if command.contains('/') {
        return real(command);
    }
    let in_dir = |dir: &str| real(&if dir.is_empty() { command.to_owned() } else { format!("{dir}/{command}") });
    PROGRAM_DIRS.into_iter().find_map(in_dir)
}

/// The entry point (and its interpreter, for a script of the tree) and everything it needs that is in the tree, in the
/// order in which the loader opens it. Empty when there is no entry point. `real` follows symlinks of the tree, as far as
/// the caller can.
pub fn start_up_files(metadata: &Metadata, real: &dyn Fn(&TreePath) -> Option<TreePath>) -> Vec<TreePath> {
    let Some(entry) = metadata.entry_point.as_ref().and_then(real) else { return Vec::new() };
    let libraries = Libraries::of(metadata);
    let mut files = vec![entry.clone()];
    let mut seen = BTreeSet::from([entry.clone()]);
    if let Some(script) = metadata.scripts.iter().find(|script| script.path == entry)
        && let Some(interpreter) = libraries.interpreter(&script.interpreter, real)
        && seen.insert(interpreter.clone())
    {
        files.push(interpreter.clone());
    }
    let mut todo = VecDeque::from(files.clone());
    while let Some(path) = todo.pop_front() {
        let Some(elf) = libraries.by_path.get(path.as_bytes()) else { continue };
        for name in &elf.needed {
            if let Some(found) = libraries.find(elf, name)
                && seen.insert(found.clone())
            {
                files.push(found.clone());
                todo.push_back(found.clone());
            }
        }
    }
    files
}

/// The ELF files of a tree by path, and by file name or soname.
struct Libraries<'a> {
    by_path: BTreeMap<&'a [u8], &'a ElfFile>,
    by_name: BTreeMap<&'a [u8], &'a ElfFile>,
}

impl<'a> Libraries<'a> {
    fn of(metadata: &'a Metadata) -> Self {
        let (mut by_path, mut by_name) = (BTreeMap::new(), BTreeMap::new());
        for elf in &metadata.elf_files {
            by_path.insert(elf.path.as_bytes(), elf);
            // Of several with one name the first of the tree counts.
            for name in [Some(elf.path.name()), elf.soname.as_deref().map(str::as_bytes)].into_iter().flatten() {
                by_name.entry(name).or_insert(elf);
            }
        }
        Self { by_path, by_name }
    }

    /// The program that a `#!` line names, when the tree has it: as the tree lies in `/`, else below whatever it lies in.
    fn interpreter(&self, line: &str, real: &dyn Fn(&TreePath) -> Option<TreePath>) -> Option<&'a TreePath> {
        let program = line.split_whitespace().next()?;
        let inside = TreePath::parse(program.trim_start_matches('/').as_bytes()).ok().and_then(|path| real(&path));
        let from_root = inside.and_then(|path| self.by_path.get(path.as_bytes()).copied());
        let below = || {
            let ends = program.match_indices('/').map(|(at, _)| &program[at + 1..]);
            ends.filter_map(|end| self.by_path.get(end.as_bytes()).copied()).next()
        };
        from_root.or_else(below).map(|elf| &elf.path)
    }

    /// The library that the loader would take: along the runpath, then in the usual directories, then anywhere by name.
    fn find(&self, user: &ElfFile, name: &str) -> Option<&'a TreePath> {
        let origin = user.path.parent().unwrap_or_default();
        let runpath = user.runpath.as_deref().unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
        let relative = runpath.filter_map(|dir| within(&origin, dir));
        let usual = LIBRARY_DIRS.iter().map(|dir| (*dir).to_owned());
        let mut places =
            relative.chain(usual).map(|dir| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") });
        let found = places.find_map(|path| self.by_path.get(path.as_bytes()).copied());
        found.or_else(|| self.by_name.get(name.as_bytes()).copied()).map(|elf| &elf.path)
    }
}

/// A directory of a runpath as a path inside the tree; `None` when it leads out of it.
fn within(origin: &TreePath, dir: &str) -> Option<String> {
    let text = match dir.strip_prefix("$ORIGIN").or_else(|| dir.strip_prefix("${ORIGIN}")) {
        Some(rest) => format!("{origin}/{rest}"),
        None => dir.to_owned(),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Script;

    fn elf(path: &str, needed: &[&str], runpath: Option<&str>) -> ElfFile {
        ElfFile {
            path: TreePath::parse(path.as_bytes()).unwrap(),
            architecture: "x86_64".to_owned(),
            kind: "shared object".to_owned(),
            interpreter: None,
            needed: needed.iter().map(|name| (*name).to_owned()).collect(),
            soname: None,
            runpath: runpath.map(str::to_owned),
            build_id: None,
            bytes: 1,
        }
    }

    fn metadata(entry: &str, elf_files: Vec<ElfFile>, scripts: Vec<Script>) -> Metadata {
        Metadata {
            entry_point: Some(TreePath::parse(entry.as_bytes()).unwrap()),
            elf_files,
            scripts,
            ..Metadata::default()
        }
    }

    fn names(metadata: &Metadata) -> Vec<String> {
        start_up_files(metadata, &|path| Some(path.clone())).iter().map(TreePath::to_string).collect()
    }

    #[test]
    fn needed_libraries_are_found_as_the_loader_finds_them() {
        let files = vec![
            elf("bin/agent", &["liba.so", "libc.so.6"], Some("$ORIGIN/../lib/own:/opt/x")),
            elf("lib/own/liba.so", &["libb.so", "liba.so"], None),
            elf("usr/lib/libb.so", &[], None),
            elf("lib/unused.so", &[], None),
        ];
        assert_eq!(names(&metadata("bin/agent", files, vec![])), ["bin/agent", "lib/own/liba.so", "usr/lib/libb.so"]);
    }

    /// What `bin/agent` with this runpath takes for `x.so`, of these places.
    fn taken(runpath: &str, places: &[&str]) -> Option<String> {
        let mut files: Vec<ElfFile> = places.iter().map(|path| elf(path, &[], None)).collect();
        files.push(elf("bin/agent", &["x.so"], Some(runpath)));
        names(&metadata("bin/agent", files, vec![])).get(1).cloned()
    }

    #[test]
    fn a_runpath_is_followed_inside_the_tree() {
        for (runpath, place) in [
            ("$ORIGIN", "bin/x.so"),
            ("${ORIGIN}/lib", "bin/lib/x.so"),
            ("$ORIGIN/../own", "own/x.so"),
            ("$ORIGIN/./..//own/", "own/x.so"),
            ("/opt/own", "opt/own/x.so"),
            ("own", "own/x.so"),
            ("/", "x.so"),
            ("$ORIGIN/..", "x.so"),
            ("::$ORIGIN:", "bin/x.so"),
            ("/none:/opt/own", "opt/own/x.so"),
        ] {
            // Something else of the same name stands first in the tree.
            assert_eq!(taken(runpath, &["a/x.so", place]), Some(place.to_owned()), "{runpath}");
        }
        // Out of the tree there is nothing; by its name alone it is found all the same.
        for runpath in ["$ORIGIN/../..", "$ORIGIN/../../own", "/..", "$ORIGINAL"] {
            assert_eq!(taken(runpath, &["a/x.so", "own/y.so"]), Some("a/x.so".to_owned()), "{runpath}");
        }
    }

    #[test]
    fn the_runpath_comes_before_the_usual_directories_and_these_before_any_other() {
        let usual = LIBRARY_DIRS.map(|dir| format!("{dir}/x.so"));
        for (at, place) in usual.iter().enumerate() {
            let mut places: Vec<&str> = vec!["a/x.so"];
            places.extend(usual[at..].iter().rev().map(String::as_str));
            assert_eq!(taken("", &places), Some(place.clone()), "of those left the first");
        }
        assert_eq!(taken("$ORIGIN/../own", &["lib64/x.so", "own/x.so"]), Some("own/x.so".into()));
        assert_eq!(taken("", &["b/x.so", "c/x.so"]), Some("b/x.so".into()), "of several the first of the tree");
        assert_eq!(taken("", &["b/y.so"]), None);
    }

    #[test]
    fn a_library_is_also_found_by_its_soname() {
        let mut library = elf("opt/libx.so.1.2", &[], None);
        library.soname = Some("libx.so.1".into());
        let files = vec![library, elf("bin/agent", &["libx.so.1"], None)];
        assert_eq!(names(&metadata("bin/agent", files, vec![])), ["bin/agent", "opt/libx.so.1.2"]);
    }

    #[test]
    fn libraries_that_need_each_other_come_once_and_in_the_order_of_the_loader() {
        let files = vec![
            elf("bin/agent", &["a.so", "b.so"], None),
            elf("lib/a.so", &["c.so", "bin-is-not-a-library", "a.so"], None),
            elf("lib/b.so", &["c.so", "a.so"], None),
            elf("lib/c.so", &["b.so", "agent"], None),
        ];
        let wanted = ["bin/agent", "lib/a.so", "lib/b.so", "lib/c.so"];
        assert_eq!(names(&metadata("bin/agent", files, vec![])), wanted);
    }

    #[test]
    fn without_a_program_nothing_is_touched() {
        let files = vec![elf("bin/agent", &["a.so"], None), elf("lib/a.so", &[], None)];
        let mut none = metadata("bin/agent", files.clone(), vec![]);
        none.entry_point = None;
        assert_eq!(names(&none), Vec::<String>::new());
        let missing = start_up_files(&metadata("bin/agent", files.clone(), vec![]), &|_| None);
        assert_eq!(missing, [], "a link that leads nowhere");
        // Neither a program nor a script of the tree: it is touched itself, and nothing is known of more.
        assert_eq!(names(&metadata("share/data", files, vec![])), ["share/data"]);
    }

    #[test]
    fn the_interpreter_is_the_first_word_as_the_tree_lies_in_the_root_or_below_it() {
        let script = |line: &str| {
            let files = vec![elf("bin/python3", &[], None), elf("python3", &[], None), elf("opt/bin/sh", &[], None)];
            let script = |path: &str, line: &str| Script {
                path: TreePath::parse(path.as_bytes()).unwrap(),
                interpreter: line.to_owned(),
            };
            let scripts = vec![script("bin/other", "/opt/bin/sh"), script("bin/tool", line)];
            names(&metadata("bin/tool", files, scripts)).get(1).cloned()
        };
        assert_eq!(script("/bin/python3"), Some("bin/python3".into()));
        assert_eq!(script("//bin/python3 -s x"), Some("bin/python3".into()));
        assert_eq!(script("/srv/tree/bin/python3"), Some("bin/python3".into()), "the longest end that is there");
        assert_eq!(script("/srv/python3"), Some("python3".into()));
        assert_eq!(script("bin/python3"), Some("bin/python3".into()));
        for nothing in ["", "  ", "/", "/bin/none", "../..", "/opt/bin/sh/"] {
            assert_eq!(script(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_script_warms_its_interpreter_when_that_is_in_the_tree() {
        let script = |interpreter: &str| Script {
            path: TreePath::parse(b"bin/tool").unwrap(),
            interpreter: interpreter.to_owned(),
        };
        let files = vec![elf("bin/python3", &["libz.so"], None), elf("lib/libz.so", &[], None)];
        let inside = metadata("bin/tool", files.clone(), vec![script("/usr/local/bin/python3 -s")]);
        assert_eq!(names(&inside), ["bin/tool", "bin/python3", "lib/libz.so"]);
        assert_eq!(names(&metadata("bin/tool", files.clone(), vec![script("/bin/sh")])), ["bin/tool"]);

        let linked = metadata("tool", files, vec![script("/bin/python")]);
        let real = |path: &TreePath| {
            let target = match path.as_bytes() {
                b"tool" => b"bin/tool",
                b"bin/python" => &b"bin/python3"[..],
                other => other,
            };
            TreePath::parse(target).ok()
        };
        let found: Vec<String> = start_up_files(&linked, &real).iter().map(TreePath::to_string).collect();
        assert_eq!(found, ["bin/tool", "bin/python3", "lib/libz.so"], "links are followed by whoever knows the tree");
    }
}
