//! This repository's own files, for tests of what holds for all of them: which modules know which, how long files are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose sources are ours, in the order of their dependencies.
pub const CRATES: [&str; 6] = ["proto", "agent-core", "agent-bin", "manager-fs", "tests", "benches"];

/// The root of the checkout that these tests were built from.
///
/// # Panics
/// The tests' own directory has no parent.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the checkout")
}

/// The files below a folder of the repository with this ending, as paths from its root, in order. What a build leaves
/// and what begins with a dot is not looked at.
pub fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![root().join(folder)]);
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let kind = entry.file_type().expect("a file type");
            if kind.is_dir() && !name.starts_with('.') && !["target", "build"].contains(&name.as_str()) {
                stack.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// One Rust file.
#[derive(Debug)]
pub struct Source {
    /// From the root of the repository.
    pub path: PathBuf,
    /// The file as it stands.
    pub text: String,
    /// The same lines without comments, and with the content of literals taken out.
    pub code: String,
    /// The first lines of [`Source::code`]: those before the module of unit tests at its end.
    pub own: String,
}

impl Source {
    /// Every Rust file of a folder.
    ///
    /// # Panics
    /// One cannot be read.
    pub fn all(folder: &str) -> Vec<Self> {
        files(folder, ".rs").into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(root().join(&path)).expect("a source file");
        let code = code_of(&text);
        let tests_begin = code.find("\n#[cfg(test)]\nmod ").filter(|at| code[at + 1..].contains('{'));
        let inline = tests_begin.filter(|at| {
            let declaration = code[at + "\n#[cfg(test)]\n".len()..].lines().next().unwrap_or_default();
            declaration.trim_end().ends_with('{')
        });
        // Tests in a file of their own leave a declaration of a few lines at the end.
        let declared = code.rfind("\n#[cfg(test)]\n").filter(|at| code[at + 1..].lines().count() <= 3);
        let own = inline.or(declared).map_or(code.as_str(), |at| &code[..at + 1]).to_owned();
        Self { path, text, code, own }
    }

    /// Whether the whole file is for tests: by its place, its name, or because its parent declares it so.
    pub fn is_test(&self) -> bool {
        let path = self.path.to_string_lossy();
        let name = self.path.file_name().expect("a name").to_string_lossy();
        path.starts_with("tests/")
            || path.contains("/tests/")
            || name == "tests.rs"
            || name.ends_with("_tests.rs")
            || name == "testing.rs"
    }

    /// Whether the path is one of these files, or below one of these folders (which end in `/`).
    pub fn is_in(&self, places: &[&str]) -> bool {
        let path = self.path.to_string_lossy();
        places.iter().any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
    }

    /// The lines of this code in which a word stands by itself, as `path:line`.
    pub fn lines_with(&self, code: &str, word: &str) -> Vec<String> {
        let lines = code.lines().enumerate().filter(|(_, line)| has_word(line, word));
        lines.map(|(at, _)| format!("{}:{}", self.path.display(), at + 1)).collect()
    }
}

/// Whether a word occurs in a line with no letter, digit or underscore beside it.
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let (bytes, mut from) = (line.as_bytes(), 0);
    while let Some(at) = line[from..].find(word).map(|at| at + from) {
        if !part(at.checked_sub(1).and_then(|before| bytes.get(before))) && !part(bytes.get(at + word.len())) {
            return true;
        }
        from = at + 1;
    }
    false
}

/// Rust code without its comments and without what its literals hold; every line stays where it was.
pub fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped(bytes, at);
        if end > at {
            // Something of a literal stays, so that `f("x")` does not become `f()`.
            out.push_str(if bytes[at] == b'/' { "" } else { "\"\"" });
            out.extend(text[at..end].chars().filter(|c| *c == '\n'));
            at = end;
        } else {
            let next = text[at..].chars().next().expect("a character");
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

/// Where a comment or a literal that begins here ends; `at` itself if none does.
fn skipped(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let until = |end: Option<usize>| at + end.unwrap_or(rest.len());
    let before_is_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return until(rest.iter().position(|byte| *byte == b'\n'));
    }
    if rest.starts_with(b"/*") {
        return until(rest.windows(2).position(|two| two == b"*/").map(|end| end + 2));
    }
    if !before_is_name && (rest.starts_with(b"r\"") || rest.starts_with(b"r#") || rest.starts_with(b"br")) {
        return raw_string(rest).map_or(at, |length| at + length);
    }
    match rest[0] {
        b'"' => {
            let mut end = 1;
            while end < rest.len() && rest[end] != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            (at + end + 1).min(bytes.len())
        }
        // A character, not a lifetime.
        b'\'' if rest.get(1) == Some(&b'\\') => {
            until(rest.iter().skip(3).position(|b| *b == b'\'').map(|end| end + 4))
        }
        b'\'' => {
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)]).map_or_else(
                |error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]).ok().and_then(|s| s.chars().next()),
                |text| text.chars().next(),
            );
            let width = width.map_or(1, char::len_utf8);
            if rest.get(1 + width) == Some(&b'\'') { at + width + 2 } else { at }
        }
        _ => at,
    }
}

/// The length of a raw string at the beginning of these bytes.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = rest.iter().position(|byte| *byte == b'r')? + 1;
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = start + hashes + 1;
    rest[body..].windows(close.len()).position(|window| window == close).map(|end| body + end + close.len())
}

/// Which module of a crate knows which other: by `use`, and by paths in the code.
#[derive(Debug)]
pub struct Modules {
    /// The file of each module, by the module's path (`host::mount::worker`).
    pub files: BTreeMap<Vec<String>, PathBuf>,
    /// From a module to those that it names.
    pub edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
}

impl Modules {
    /// Reads the sources of a crate, without its tests.
    ///
    /// # Panics
    /// One cannot be read.
    pub fn of(src: &str) -> Self {
        let sources: Vec<Source> = Source::all(src).into_iter().filter(|source| !source.is_test()).collect();
        let modules = sources.iter().map(|source| (module_of(&source.path, src), source.path.clone())).collect();
        let mut found = Self { files: modules, edges: BTreeMap::new() };
        for source in &sources {
            let module = module_of(&source.path, src);
            let named = paths(&source.own).into_iter().filter_map(|path| found.resolve(&module, &path));
            let named: BTreeSet<_> = named.filter(|other| !related(&module, other)).collect();
            found.edges.insert(module, named);
        }
        found
    }

    /// The file's module that a path leads to, seen from a module; `None` for what is not in this crate.
    fn resolve(&self, from: &[String], path: &[String]) -> Option<Vec<String>> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.get(..from.len().checked_sub(1)?)?.to_vec(),
            child => {
                let inside = [from, &[child.to_owned()]].concat();
                self.files.contains_key(&inside).then_some(inside)?
            }
        };
        for word in &path[1..] {
            let next = match word.as_str() {
                "super" => at.get(..at.len().checked_sub(1)?)?.to_vec(),
                "self" => at.clone(),
                word => [at.as_slice(), &[word.to_owned()]].concat(),
            };
            if !self.files.contains_key(&next) && !next.is_empty() {
                break;
            }
            at = next;
        }
        Some(at)
    }

    /// Modules that reach each other in a circle, each circle in order.
    pub fn circles(&self) -> Vec<BTreeSet<Vec<String>>> {
        let reach: BTreeMap<_, BTreeSet<_>> = self.files.keys().map(|module| (module, self.reach(module))).collect();
        let mut circles: Vec<BTreeSet<Vec<String>>> = Vec::new();
        for (module, reached) in &reach {
            let circle: BTreeSet<_> =
                reached.iter().filter(|other| reach[other].contains(*module)).cloned().collect();
            if !circle.is_empty() && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    fn reach(&self, from: &[String]) -> BTreeSet<Vec<String>> {
        let (mut found, mut stack) = (BTreeSet::new(), vec![from.to_vec()]);
        while let Some(module) = stack.pop() {
            for next in self.edges.get(&module).into_iter().flatten() {
                if found.insert(next.clone()) {
                    stack.push(next.clone());
                }
            }
        }
        found
    }
}

/// Parent and child may know each other, over any number of generations.
fn related(one: &[String], other: &[String]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn module_of(path: &Path, src: &str) -> Vec<String> {
    let below = path.strip_prefix(src).expect("below the crate's sources").with_extension("");
    let mut words: Vec<String> = below.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.last().is_some_and(|last| last == "mod") || words == ["lib"] || words == ["main"] {
        words.pop();
    }
    words
}

/// Every path of modules and items in some code; the braces of a `use` are taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let bytes = code.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begins = bytes[at].is_ascii_alphabetic() || bytes[at] == b'_';
        let inside = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || matches!(bytes[at - 1], b'_' | b':' | b'.'));
        if begins && !inside {
            let (tree, end) = path_tree(code, at, &[]);
            found.extend(tree.into_iter().filter(|path| path.len() > 1));
            at = end.max(at + 1);
        } else {
            at += 1;
        }
    }
    found
}

/// The paths of `a::b::{c, d::e}` that begins here, below `prefix`, and where it ends.
fn path_tree(code: &str, mut at: usize, prefix: &[String]) -> (Vec<Vec<String>>, usize) {
    let bytes = code.as_bytes();
    let mut path = prefix.to_vec();
    loop {
        let word = code[at..].bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        if word > 0 {
            path.push(code[at..at + word].to_owned());
            at += word;
        }
        if !code[at..].starts_with("::") {
            return (vec![path], at);
        }
        at += 2;
        if bytes.get(at) == Some(&b'{') {
            let mut found = Vec::new();
            at += 1;
            while at < bytes.len() && bytes[at] != b'}' {
                if bytes[at].is_ascii_alphabetic() || bytes[at] == b'_' {
                    let (inner, end) = path_tree(code, at, &path);
                    found.extend(inner);
                    at = end;
                } else {
                    at += 1;
                }
            }
            return (found, at + 1);
        }
        if !bytes.get(at).is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_') {
            return (vec![path], at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text =
            "a(\"x // y\"); // unsafe\nlet c = 'u'; let l: &'a str = r#\"un\"safe\"#; /* two\nlines */ b('\\n')";
        let code = code_of(text);
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(!code.contains("unsafe") && !code.contains("two") && code.contains("&'a str"), "{code}");
        assert!(has_word("an unsafe block", "unsafe") && !has_word("unsafe_code", "unsafe"));
    }

    #[test]
    fn the_braces_of_a_use_are_taken_apart() {
        let found = paths("use crate::a::{b, c::{D, e}, self};\nlet x = super::f::g(y.h());");
        let text: Vec<String> = found.iter().map(|path| path.join("::")).collect();
        assert_eq!(text, ["crate::a::b", "crate::a::c::D", "crate::a::c::e", "crate::a::self", "super::f::g"]);
    }

    #[test]
    fn circles_are_found_and_families_are_none() {
        let module = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
        let names = ["a", "b", "c", "p", "p::q"];
        let edges = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["a"]), ("p", vec![]), ("p::q", vec!["a"])];
        let modules = Modules {
            files: names.iter().map(|name| (module(name), PathBuf::new())).collect(),
            edges: edges.iter().map(|(from, to)| (module(from), to.iter().map(|to| module(to)).collect())).collect(),
        };
        assert_eq!(modules.circles(), [["a", "b", "c"].map(module).into_iter().collect()]);
        assert!(related(&module("p"), &module("p::q")) && !related(&module("p"), &module("a")));
    }
}
