//! Which files of a tree its entry point touches before its first instruction: found in the record, so that they can be
//! read into the page cache while the old version still works.

use std::collections::{BTreeSet, VecDeque};

use proto::record::ElfFile;
use proto::{Metadata, TreePath};

/// Where the dynamic loader looks by default, inside the tree.
const LIBRARY_DIRS: [&str; 6] =
    ["lib64", "usr/lib64", "lib", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// The entry point (or its interpreter's, for a script of the tree) and everything it needs that is in the tree, in the
/// order in which the loader opens it. Empty when there is no entry point.
pub(crate) fn start_up_files(metadata: &Metadata) -> Vec<TreePath> {
    let Some(entry) = &metadata.entry_point else { return Vec::new() };
    let mut files = vec![entry.clone()];
    let mut seen = BTreeSet::from([entry.clone()]);
    let mut todo = VecDeque::from([entry.clone()]);
    if let Some(script) = metadata.scripts.iter().find(|script| script.path == *entry) {
        let program = script.interpreter.split_whitespace().next().unwrap_or_default();
        let inside = metadata.elf_files.iter().find(|elf| program.ends_with(&format!("/{}", elf.path)));
        if let Some(elf) = inside.filter(|elf| seen.insert(elf.path.clone())) {
            files.push(elf.path.clone());
            todo.push_back(elf.path.clone());
        }
    }
    while let Some(path) = todo.pop_front() {
        let Some(elf) = metadata.elf_files.iter().find(|elf| elf.path == path) else { continue };
        for name in &elf.needed {
            if let Some(found) = find(metadata, elf, name)
                && seen.insert(found.clone())
            {
                files.push(found.clone());
                todo.push_back(found.clone());
            }
        }
    }
    files
}

/// The library that the loader would take: along the runpath, then in the usual directories, then anywhere by name.
fn find<'a>(metadata: &'a Metadata, user: &ElfFile, name: &str) -> Option<&'a TreePath> {
    let origin = user.path.parent().unwrap_or_default();
    let runpath = user.runpath.as_deref().unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
    let relative = runpath.filter_map(|dir| within(&origin, dir)).collect::<Vec<_>>();
    let usual = LIBRARY_DIRS.iter().map(|dir| (*dir).to_owned());
    let mut places = relative
        .into_iter()
        .chain(usual)
        .map(|dir| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") });
    let at = |path: &str| metadata.elf_files.iter().find(|elf| elf.path.as_bytes() == path.as_bytes());
    let found = places.find_map(|path| at(&path));
    let by_name = || {
        metadata
            .elf_files
            .iter()
            .find(|elf| elf.path.name() == name.as_bytes() || elf.soname.as_deref() == Some(name))
    };
    found.or_else(by_name).map(|elf| &elf.path)
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
    use proto::record::{HealthContract, SchemaRange, Script};

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
            arguments: vec![],
            architecture: None,
            elf_files,
            scripts,
            entry_count: 1,
            file_count: 1,
            content_bytes: 1,
            object_bytes: 1,
            state_schemas: SchemaRange { min: 1, max: 1 },
            drain_deadline_ms: 1,
            health: HealthContract { probation_ms: 1 },
        }
    }

    fn names(metadata: &Metadata) -> Vec<String> {
        start_up_files(metadata).iter().map(TreePath::to_string).collect()
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

    #[test]
    fn a_script_warms_its_interpreter_when_that_is_in_the_tree() {
        let script = |interpreter: &str| Script {
            path: TreePath::parse(b"bin/tool").unwrap(),
            interpreter: interpreter.to_owned(),
        };
        let files = vec![elf("bin/python3", &["libz.so"], None), elf("lib/libz.so", &[], None)];
        let inside = metadata("bin/tool", files.clone(), vec![script("/usr/local/bin/python3 -s")]);
        assert_eq!(names(&inside), ["bin/tool", "bin/python3", "lib/libz.so"]);
        assert_eq!(names(&metadata("bin/tool", files, vec![script("/bin/sh")])), ["bin/tool"]);
    }
}
