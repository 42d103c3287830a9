//! What Python programs read: the modules that the interpreter imports by itself with all that these import, then the others,
//! those first that most others import, each with what it imports. Found in the text of the modules: the sources say what is
//! imported, and the compiled ones beside them are what is read.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use proto::manifest::{Manifest, NodeKind};
use proto::{TreePath, width};

/// Imported before the program, where they are there.
const BY_ITSELF: [&str; 9] =
    ["encodings", "codecs", "encodings.aliases", "encodings.utf_8", "io", "abc", "site", "os", "sitecustomize"];
/// Modules of one tree that are looked at.
const MODULES_MAX: usize = 20_000;
/// Bytes of one source, and of all.
const SOURCE_BYTES_MAX: u64 = 1 << 20;
const SOURCES_BYTES_MAX: u64 = 64 << 20;

/// What is read when a module is imported, as an index into the tree's objects.
#[derive(Debug, Default, Clone, Copy)]
struct Files {
    source: Option<u32>,
    compiled: Option<u32>,
    native: Option<u32>,
}

/// Modules by their names.
type Modules = BTreeMap<String, Files>;

/// The objects of a tree's modules, the likeliest first: of those that are imported without being asked for, and of the
/// others; none when the program is no Python. `read` gives the content of an
/// object.
pub(super) fn objects(
    tree: &Manifest,
    programs: &[TreePath],
    read: &dyn Fn(u32) -> Option<Vec<u8>>,
) -> [Vec<u32>; 2] {
    let is_python = |path: &TreePath| [&b"python"[..], b"libpython"].iter().any(|name| path.name().starts_with(name));
    if !programs.iter().any(is_python) {
        return Default::default();
    }
    let modules = modules(tree);
    let imports = imports(&modules, tree, read);
    let mut importers: HashMap<&str, usize> = HashMap::new();
    imports.values().flatten().for_each(|name| *importers.entry(name).or_default() += 1);
    let mut ranked: Vec<&str> = modules.keys().map(String::as_str).collect();
    ranked.sort_by_key(|name| std::cmp::Reverse(importers.get(name).copied().unwrap_or_default()));
    let mut seen = HashSet::new();
    [BY_ITSELF.to_vec(), ranked].map(|names| {
        let (mut order, mut todo) = (Vec::new(), VecDeque::new());
        for name in names {
            todo.push_back(name);
            while let Some(name) = todo.pop_front() {
                let Some(files) = modules.get(name).filter(|_| seen.insert(name.to_owned())) else { continue };
                order.extend(files.compiled.or(files.native).or(files.source));
                todo.extend(imports.get(name).into_iter().flatten().map(String::as_str));
            }
        }
        order
    })
}

/// The library below the directory that has `encodings`; of several the first.
fn modules(tree: &Manifest) -> Modules {
    let mut modules = Modules::new();
    let paths = || tree.entries.iter().filter_map(|entry| Some((entry, entry.path.as_path().to_str()?)));
    let Some(root) = paths().find_map(|(_, path)| path.strip_suffix("encodings/__init__.py")) else { return modules };
    for (entry, path) in paths() {
        let NodeKind::File(id) = &tree.node(entry).kind else { continue };
        let Some((name, kind)) = path.strip_prefix(root).and_then(named) else { continue };
        let (Some(object), true) = (tree.object_index(id).map(width::count), modules.len() < MODULES_MAX) else {
            continue;
        };
        let files = modules.entry(name).or_default();
        match kind {
            "py" => files.source = Some(object),
            "pyc" => files.compiled = Some(object),
            _ => files.native = Some(object),
        }
    }
    modules
}

/// The module that a file of the library is, and how its name ends.
fn named(path: &str) -> Option<(String, &str)> {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    let (stem, rest) = file.split_once('.')?;
    let kind = match rest {
        "py" => rest,
        // Not those that were compiled otherwise.
        _ if rest.ends_with(".pyc") && !rest.contains("opt-") => "pyc",
        _ if rest.ends_with("so") => "so",
        _ => return None,
    };
    let dir = dir.strip_suffix("__pycache__").unwrap_or(dir).trim_end_matches('/');
    let dir = dir.strip_prefix("lib-dynload").unwrap_or(dir);
    let package = dir.replace('/', ".");
    Some(match (package.is_empty(), stem) {
        (true, _) => (stem.to_owned(), kind),
        (false, "__init__") => (package, kind),
        (false, _) => (format!("{package}.{stem}"), kind),
    })
}

/// What each module imports when it is imported itself, of those that are there.
fn imports(
    modules: &Modules,
    tree: &Manifest,
    read: &dyn Fn(u32) -> Option<Vec<u8>>,
) -> HashMap<String, Vec<String>> {
    let mut left = SOURCES_BYTES_MAX;
    let mut imports = HashMap::new();
    for (name, files) in modules {
        let Some(source) = files.source else { continue };
        let bytes = tree.objects.get(source as usize).map_or(u64::MAX, |object| object.bytes);
        if bytes > SOURCE_BYTES_MAX.min(left) {
            continue;
        }
        left -= bytes;
        let Some(text) = read(source) else { continue };
        let below = format!("{name}.");
        let is_package = modules.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below));
        let package =
            if is_package { name.as_str() } else { name.rsplit_once('.').map_or("", |(package, _)| package) };
        let mut found: Vec<String> = Vec::new();
        for imported in imported(&String::from_utf8_lossy(&text), package) {
            // Importing a.b imports a first.
            let ends = imported.match_indices('.').map(|(at, _)| at).chain([imported.len()]);
            for end in ends {
                if modules.contains_key(&imported[..end]) && !found.iter().any(|known| *known == imported[..end]) {
                    found.push(imported[..end].to_owned());
                }
            }
        }
        imports.insert(name.clone(), found);
    }
    imports
}

/// The modules that a source of a package names outside of its functions.
fn imported(text: &str, package: &str) -> Vec<String> {
    let (mut found, mut within) = (Vec::new(), None);
    for line in text.lines() {
        let code = line.trim_start();
        if code.is_empty() || code.starts_with('#') {
            continue;
        }
        let indent = line.len() - code.len();
        if within.is_some_and(|outer| indent > outer) {
            continue;
        }
        let is_later =
            ["def ", "async def ", "if __name__", "if TYPE_CHECKING"].iter().any(|word| code.starts_with(word));
        within = is_later.then_some(indent);
        let code = code.split('#').next().unwrap_or_default();
        if let Some(names) = code.strip_prefix("import ") {
            found.extend(names.split(',').filter_map(|name| name.split_whitespace().next()).map(str::to_owned));
        } else if let Some((from, names)) = code.strip_prefix("from ").and_then(|rest| rest.split_once(" import")) {
            let Some(from) = absolute(from.trim(), package) else { continue };
            let parts = names.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|name| !name.is_empty());
            found.push(from.clone());
            found.extend(parts.map(|name| if from.is_empty() { name.to_owned() } else { format!("{from}.{name}") }));
        }
    }
    found
}

/// `..name` of a package as a whole name.
fn absolute(from: &str, package: &str) -> Option<String> {
    let name = from.trim_start_matches('.');
    let up = from.len() - name.len();
    if up == 0 {
        return Some(name.to_owned());
    }
    let mut parts: Vec<&str> = package.split('.').filter(|part| !part.is_empty()).collect();
    parts.truncate(parts.len().checked_sub(up - 1)?);
    parts.extend(Some(name).filter(|name| !name.is_empty()));
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_imports_is_found_outside_of_functions() {
        let text = "import os, sys as s\nfrom . import names  # near\nfrom .. import far\nfrom .deep.er import (a,\n    b)\n\
                    try:\n    import _fast\nexcept ImportError:\n    pass\ndef later():\n    import unwanted\n\n    import more\n\
                    class C:\n    from x import y\nif __name__ == '__main__':\n    import never\n";
        let expected =
            ["os", "sys", "p.q", "p.q.names", "p", "p.far", "p.q.deep.er", "p.q.deep.er.a", "_fast", "x", "x.y"];
        assert_eq!(imported(text, "p.q"), expected);
        assert_eq!(imported("from ... import a\nfrom .... import b", "p.q"), ["", "a"]);
    }

    #[test]
    fn files_of_the_library_are_modules() {
        let name = |path| named(path).map(|(name, kind)| format!("{name} {kind}"));
        assert_eq!(name("os.py").unwrap(), "os py");
        assert_eq!(name("json/__pycache__/__init__.cpython-311.pyc").unwrap(), "json pyc");
        assert_eq!(name("__pycache__/abc.cpython-311.pyc").unwrap(), "abc pyc");
        assert_eq!(name("lib-dynload/_json.cpython-311-x86_64-linux-gnu.so").unwrap(), "_json so");
        assert_eq!(name("a/b/c.so").unwrap(), "a.b.c so");
        assert_eq!(
            (name("__pycache__/abc.cpython-311.opt-1.pyc"), name("LICENSE.txt"), name("x")),
            (None, None, None)
        );
    }
}
