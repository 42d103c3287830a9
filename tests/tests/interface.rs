//! What `agent-core` promises to programs of other people: every public name, against a list that is committed, so that
//! none comes or goes without somebody meaning it; and what the library costs whoever links it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use tests::repository::{Source, root};

/// The list, one name a line.
const LIST: &str = "agent-core/interface.txt";
/// Names at the root and below `proto`; `internal` is for this project's own programs.
const NAMES_MAX: usize = 50;

/// Everything that `lib.rs` and `internal.rs` name as public: its path, and where it comes from.
fn exported(code: &str, above: &str) -> BTreeMap<String, String> {
    let (mut found, mut modules, mut at) = (BTreeMap::new(), Vec::<String>::new(), 0);
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    while at < lines.len() {
        // A declaration of several lines, as one.
        let mut line = lines[at].to_owned();
        while line.starts_with("pub use") && !line.ends_with(';') {
            at += 1;
            line += lines[at];
        }
        at += 1;
        let inside = |name: &str| format!("{above}{}{name}", modules.concat());
        if let Some(list) = line.strip_prefix("pub use ") {
            let list = list.trim_end_matches(';');
            let (path, names) = list.rsplit_once("::").expect("a path");
            let names = names.trim_matches(['{', '}']).split(',').map(str::trim).filter(|name| !name.is_empty());
            found.extend(names.map(|name| {
                let name = name.rsplit_once(" as ").map_or(name, |(_, new)| new);
                (inside(name), path.to_owned())
            }));
        } else if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(" {")) {
            modules.push(format!("{name}::"));
        } else if line == "}" {
            modules.pop();
        }
    }
    found
}

/// The public functions, variants and fields of a type, or what a trait has, as `Type::name`.
fn members(sources: &[Source], of: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let mut inside = None;
        for line in source.own.lines() {
            if line.starts_with(|c: char| c.is_ascii_lowercase()) {
                inside = opened(line).filter(|(_, name)| *name == of).map(|(kind, _)| kind);
                continue;
            }
            let (Some(kind), Some(member)) = (inside, line.strip_prefix("    ")) else { continue };
            let name = match kind {
                "trait" => member.strip_prefix("fn ").or_else(|| member.strip_prefix("type ")),
                "enum" => Some(member).filter(|member| member.starts_with(|c: char| c.is_ascii_uppercase())),
                _ => ["pub fn ", "pub const ", "pub "].iter().find_map(|start| member.strip_prefix(start)),
            };
            found.extend(name.map(|name| format!("{of}::{}", word(name))));
        }
    }
    found
}

/// What a line at the left edge begins: `struct`, `enum`, `trait` or `impl`, and of which type.
fn opened(line: &str) -> Option<(&'static str, &str)> {
    for kind in ["struct", "enum", "trait"] {
        if let Some(rest) = line.strip_prefix("pub ").and_then(|rest| rest.strip_prefix(kind)) {
            return Some((kind, word(rest.trim_start())));
        }
    }
    let rest = line.strip_prefix("impl").filter(|rest| !rest.contains(" for "))?;
    let rest = if rest.starts_with('<') { rest.split_once("> ")?.1 } else { rest };
    Some(("impl", word(rest.trim_start())))
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Every name that another crate can write, with what its type has.
fn interface(sources: &[Source]) -> BTreeSet<String> {
    let code_of = |name: &str| {
        let path = format!("agent-core/src/{name}");
        &sources.iter().find(|source| source.path.to_string_lossy() == path).expect("a source").code
    };
    let lib = code_of("lib.rs");
    let (own, internal) = (exported(lib, ""), exported(code_of("internal.rs"), "internal::"));
    let mut names: BTreeSet<String> = own.keys().chain(internal.keys()).cloned().collect();
    for name in own.iter().filter(|(_, origin)| !origin.starts_with("::")).map(|(name, _)| name) {
        names.extend(members(sources, name));
    }
    // A module that is public as it stands: what is public in it.
    for module in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        if module == "internal" || module == "fuzzing" {
            continue;
        }
        let items = code_of(&format!("{module}.rs")).lines().filter_map(|line| line.strip_prefix("pub fn "));
        names.extend(items.map(|item| format!("{module}::{}", word(item))));
    }
    for source in sources {
        let mut before = "";
        for line in source.own.lines() {
            let name = line.strip_prefix("macro_rules! ").filter(|_| before == "#[macro_export]");
            names.extend(name.map(|name| format!("{}!", word(name))));
            before = line;
        }
    }
    names
}

#[test]
fn what_is_public_is_what_the_list_says() {
    let found = interface(&Source::all("agent-core/src"));
    let list = std::fs::read_to_string(root().join(LIST)).unwrap_or_default();
    let listed: BTreeSet<String> = list.lines().map(str::to_owned).collect();
    let differing: Vec<String> = found
        .difference(&listed)
        .map(|name| format!("+{name}"))
        .chain(listed.difference(&found).map(|name| format!("-{name}")))
        .collect();
    let hint = "a name that goes away, or means something else, breaks programs; one that comes is kept for good";
    assert!(differing.is_empty(), "{LIST} does not say what is public; {hint}:\n{}", differing.join("\n"));
    let promised = found.iter().filter(|name| !name.starts_with("internal::"));
    let types = promised.filter(|name| !name.contains("::") || name.starts_with("proto::")).count();
    println!("{types} names, {} with their members and what is internal", found.len());
    assert!(types <= NAMES_MAX, "{types} names, at most {NAMES_MAX}: a program reads all of them in ten minutes");
}

/// Crates that a program gets with the library, as `cargo tree` counts them: with what runs while it is compiled, and
/// without those that only tests need. The library itself is one.
const CRATES_MAX: usize = 35;
/// Of these, what the library names itself.
const DIRECT_MAX: usize = 8;

#[test]
fn a_program_that_links_the_library_gets_few_crates() {
    let tree = |depth: &str| -> BTreeSet<String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["tree", "--package", "agent-core", "--edges", "normal", "--prefix", "none", "--depth", depth]);
        let answer = cargo.args(["--locked", "--offline"]).current_dir(root()).output().expect("cargo");
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        let lines = String::from_utf8(answer.stdout).unwrap();
        // A crate of two versions counts twice; what is said about it behind them is the same crate.
        let name = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        lines.lines().filter(|line| !line.is_empty()).map(name).collect()
    };
    let (all, direct) = (tree("100"), tree("1").len() - 1);
    println!("{} crates, {direct} of them direct", all.len());
    assert!(all.len() > direct && direct > 0, "{all:?}");
    assert!(direct <= DIRECT_MAX, "{direct} direct dependencies, at most {DIRECT_MAX}");
    assert!(all.len() <= CRATES_MAX, "{} crates, at most {CRATES_MAX}: {all:?}", all.len());
}

/// The reader of sources itself: what is public is found, and nothing else is.
#[test]
fn public_names_are_told_from_private_ones() {
    let code = "mod a;\npub use a::{Shown, Other as Renamed};\npub mod inner {\n    pub use ::b::c::{\n        Deep,\n    \
                };\n}\npub(crate) use a::Hidden;\n";
    let names: Vec<String> = exported(code, "").into_keys().collect();
    assert_eq!(names, ["Renamed", "Shown", "inner::Deep"]);
    let source = |code: &str| Source {
        path: "agent-core/src/a.rs".into(),
        text: code.to_owned(),
        code: code.to_owned(),
        own: code.to_owned(),
    };
    let code = "pub struct Shown<T> {\n    pub field: u8,\n    hidden: T,\n}\n\nimpl<T: Copy> Shown<T> {\n    pub fn \
                go(&self) {\n        pub_not();\n    }\n\n    pub(crate) fn inner() {}\n}\n\nimpl Drop for Shown<u8> \
                {\n    fn drop(&mut self) {}\n}\n\npub enum Kind {\n    One,\n    Two {\n        a: u8,\n    },\n}\n\npub \
                trait Does {\n    type Out;\n    fn it(&self);\n}\n";
    let sources = [source(code)];
    let of = |name: &str| members(&sources, name).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(of("Shown"), "Shown::field Shown::go");
    assert_eq!(of("Kind"), "Kind::One Kind::Two");
    assert_eq!(of("Does"), "Does::Out Does::it");
}
