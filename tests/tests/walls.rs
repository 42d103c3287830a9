//! What holds for the whole of the sources and documents, and what a reader may therefore rely on: who may know whom, how
//! long things are, and what does not occur.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use tests::repository::{CRATES, Modules, Source, files, root};

/// Lines of a file before its unit tests.
const OWN_LINES_MAX: usize = 500;
/// Columns of prose.
const COLUMNS_MAX: usize = 118;
/// Lines of tests for a line of our own code. Fields of documents, with what each means, are lines of their own, and a
/// few lines of tests hold them against what is printed.
const TEST_WEIGHT_MIN: f64 = 0.60;

fn all() -> impl Iterator<Item = Source> {
    CRATES.iter().flat_map(|name| Source::all(name))
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Lines of our own code, outside of these places, in which one of these words stands.
fn words_outside(words: &[&str], folders: &[&str], places: &[&str]) -> Vec<String> {
    let sources = folders.iter().flat_map(|folder| Source::all(folder));
    let outside = sources.filter(|source| !source.is_test() && !source.is_in(places));
    outside
        .flat_map(|source| words.iter().flat_map(|word| source.lines_with(&source.own, word)).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_managers_half_and_the_hosts_half_never_import_each_other() {
    let modules = Modules::of("manager-fs/src");
    let half = |module: &[String]| module.first().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for (from, to) in &modules.edges {
        let crossing =
            to.iter().filter(|to| matches!((&*half(from), &*half(to)), ("manager", "host") | ("host", "manager")));
        found.extend(crossing.map(|to| format!("{} imports {}", from.join("::"), to.join("::"))));
    }
    none("one half knows the other", found);
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let text = |circle: &std::collections::BTreeSet<Vec<String>>| {
        circle.iter().map(|module| module.join("::")).collect::<Vec<_>>().join(", ")
    };
    let mut found = Vec::new();
    for name in CRATES {
        let circles = Modules::of(&format!("{name}/src")).circles();
        found.extend(circles.iter().map(|circle| format!("{name}: {}", text(circle))));
    }
    none("files that know each other", found);
}

#[test]
fn dangerous_and_replaceable_things_have_one_place() {
    let sys = ["agent-core/src/sys/", "manager-fs/src/sys.rs", "manager-fs/src/sys/", "benches/src/sys.rs"];
    // Pointers of programs in C come in by one crate, which has nothing else to do.
    let with_c = [&sys[..], &["agent-core/c/src/"]].concat();
    none("unsafe outside of sys and of the C interface", words_outside(&["unsafe"], &CRATES, &with_c));
    none("bincode outside of the codec", words_outside(&["bincode"], &CRATES, &["proto/src/codec.rs"]));
    let fuse = ["manager-fs/src/host/fuse.rs", "manager-fs/src/host/mount/"];
    none("fuser outside of the mount", words_outside(&["fuser"], &CRATES, &fuse));
    let net = ["manager-fs/src/net/", "agent-bin/src/wire/"];
    // The other two only name its files.
    let control =
        ["manager-fs/src/manager/control/", "manager-fs/src/manager/store/", "manager-fs/src/manager/recover.rs"];
    none("the database outside of the control state", words_outside(&["redb"], &CRATES, &control));
    none("TLS outside of net", words_outside(&["rustls", "tokio_rustls"], &CRATES, &net));
    let locks = ["manager-fs/src/sync.rs"];
    none("poisoned locks outside of sync", words_outside(&["PoisonError"], &["manager-fs/src"], &locks));
    // Calls into the C library; its constants are only numbers.
    let calls =
        CRATES.iter().flat_map(|name| Source::all(name)).filter(|source| !source.is_test() && !source.is_in(&sys));
    let calls = calls.flat_map(|source| {
        let called = |line: &str| {
            line.split("libc::").skip(1).any(|rest| {
                let name =
                    rest.trim_start_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                name.starts_with('(')
            })
        };
        let lines = source.own.lines().enumerate().filter(|(_, line)| called(line));
        lines.map(|(at, _)| format!("{}:{}", source.path.display(), at + 1)).collect::<Vec<_>>()
    });
    none("calls into libc outside of sys", calls.collect());
}

#[test]
fn the_vocabulary_does_no_io_and_the_machine_reads_no_clock() {
    let io = ["fs", "net", "thread", "process", "Instant", "SystemTime", "tokio"];
    // An address is a value.
    let found = words_outside(&io, &["proto/src"], &["proto/src/address.rs"]);
    none("I/O, time or tasks in proto", found);
    let machine = Source::all("agent-core/src")
        .into_iter()
        .filter(|source| source.is_in(&["agent-core/src/machine/"]) && !source.is_test());
    let found = machine
        .flat_map(|source| io.iter().flat_map(|word| source.lines_with(&source.own, word)).collect::<Vec<_>>());
    none("I/O, time or tasks in the change-over's machine", found.collect());
}

#[test]
fn files_are_short() {
    let long = all().filter(|source| !source.is_test()).filter_map(|source| {
        let lines = source.own.lines().count();
        (lines > OWN_LINES_MAX).then(|| format!("{}: {lines} lines before its tests", source.path.display()))
    });
    none(&format!("files of more than {OWN_LINES_MAX} lines"), long.collect());
}

#[test]
fn a_module_of_several_files_is_a_folder_with_a_mod_file() {
    let beside = all().filter(|source| root().join(source.path.with_extension("")).is_dir());
    none(
        "files beside the folder of the same module",
        beside.map(|source| source.path.display().to_string()).collect(),
    );
}

#[test]
fn prose_is_narrow_and_every_document_is_in_the_index() {
    let documents = files("", ".md");
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let (mut wide, mut missing) = (Vec::new(), Vec::new());
    for path in &documents {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let mut code = false;
        for (at, line) in text.lines().enumerate() {
            code ^= line.trim_start().starts_with("```");
            if !code && !line.trim_start().starts_with('|') && line.chars().count() > COLUMNS_MAX {
                wide.push(format!("{}:{}", path.display(), at + 1));
            }
        }
        let name = path.file_name().unwrap().to_string_lossy();
        if path.starts_with("docs") && name != "README.md" && !index.contains(&format!("]({name})")) {
            missing.push(path.display().to_string());
        }
    }
    none(&format!("prose wider than {COLUMNS_MAX} columns"), wide);
    none("documents that docs/README.md does not name", missing);
}

#[test]
fn the_map_names_what_there_is() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let all: Vec<String> = files("", "").into_iter().map(|path| path.display().to_string()).collect();
    let is_file = |name: &str| all.iter().any(|path| path == name || path.ends_with(&format!("/{name}")));
    let is_folder = |name: &str| all.iter().any(|path| format!("/{path}").contains(&format!("/{name}")));
    let named: Vec<&str> = map.split('`').skip(1).step_by(2).collect();
    let mut wrong = Vec::new();
    // A name in capitals stands for any.
    for name in named.iter().filter(|name| !name.contains(char::is_whitespace) && !name.starts_with("NAME")) {
        let is_there = if name.ends_with('/') { is_folder(name) } else { !name.ends_with(".rs") || is_file(name) };
        if !is_there {
            wrong.push(format!("ARCHITECTURE.md names {name}, which there is not"));
        }
    }
    // Every area that has a folder of its own can be found from the map.
    let areas =
        ["manager-fs/src", "manager-fs/src/manager", "manager-fs/src/host", "agent-core/src", "agent-bin/src"];
    for path in all.iter().filter(|path| path.ends_with("/mod.rs") && !path.contains("/tests/")) {
        let folder = path.trim_end_matches("/mod.rs");
        let Some((area, name)) = folder.rsplit_once('/').filter(|(area, _)| areas.contains(area)) else { continue };
        let by_name = |known: &&str| {
            known.trim_end_matches('/') == folder || format!("/{known}").contains(&format!("/{name}/"))
        };
        if !named.iter().any(by_name) && !name.starts_with("fuzz") {
            wrong.push(format!("ARCHITECTURE.md does not name {area}/{name}/"));
        }
    }
    none("the map and the house differ", wrong);
}

#[test]
fn nothing_names_the_machine_it_was_made_on() {
    // In two parts, so that this file does not name them.
    let banned = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];
    let mut found = Vec::new();
    for ending in [".rs", ".md", ".toml", ".sh", "run", "demo"] {
        for path in files("", ending) {
            let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
            let lines =
                text.lines().enumerate().filter(|(_, line)| banned.iter().any(|banned| line.contains(banned)));
            found.extend(lines.map(|(at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim())));
        }
    }
    none("paths of one machine", found);
}

#[test]
fn errors_are_types_below_the_command_line() {
    let folders = ["proto/src", "agent-core/src", "manager-fs/src"];
    let edges = ["manager-fs/src/cli/", "manager-fs/src/main.rs"];
    none("anyhow below the command line", words_outside(&["anyhow"], &folders, &edges));
}

/// As far as reading the code can tell: the types of the control state say the rest.
#[test]
fn nothing_is_synced_in_an_async_function() {
    let syncing = [".sync_all(", ".sync_data(", "fsync(", "fdatasync(", "syncfs("];
    let mut found = Vec::new();
    for source in Source::all("manager-fs/src").into_iter().filter(|source| !source.is_test()) {
        for (line, body) in async_bodies(&source.own) {
            let blocking = without_blocking(&body);
            found.extend(
                syncing
                    .iter()
                    .filter(|call| blocking.contains(**call))
                    .map(|call| format!("{}:{line}: {call}…)", source.path.display())),
            );
        }
    }
    none("an async thread waits for the disk", found);
}

/// The bodies of async functions and blocks, with the line at which each begins.
fn async_bodies(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("async ") {
        let Some(open) = code[at..].find('{').map(|open| open + at) else { continue };
        if code[at..open].contains(';') {
            continue;
        }
        found.push((code[..at].lines().count(), balanced(&code[open..], '{', '}').to_owned()));
    }
    found
}

/// Without what runs on threads that may wait.
fn without_blocking(body: &str) -> String {
    let mut rest = body;
    let mut out = String::new();
    while let Some(at) = rest.find("blocking(") {
        let open = at + "blocking".len();
        out.push_str(&rest[..open]);
        rest = &rest[open + balanced(&rest[open..], '(', ')').len()..];
    }
    out + rest
}

/// The text from an opening bracket to the one that closes it.
fn balanced(text: &str, open: char, close: char) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == open) - i32::from(c == close);
        if depth == 0 {
            return &text[..at + c.len_utf8()];
        }
    }
    text
}

/// Printed by `cargo test -p tests --test walls weight -- --nocapture`.
#[test]
fn tests_have_their_weight() {
    let code = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    let (mut own_all, mut tests_all) = (0, 0);
    println!("{:<12} {:>7} {:>7} {:>6}", "", "own", "tests", "ratio");
    for name in CRATES {
        let (mut own, mut tests) = (0, 0);
        for source in Source::all(name) {
            if source.is_test() {
                tests += code(&source.text);
            } else {
                let lines = source.own.lines().count();
                let all: Vec<&str> = source.text.lines().collect();
                own += code(&all[..lines.min(all.len())].join("\n"));
                tests += code(&all[lines.min(all.len())..].join("\n"));
            }
        }
        println!("{name:<12} {own:>7} {tests:>7} {:>6.2}", tests as f64 / own.max(1) as f64);
        // Benchmarks are neither what is tested nor what tests it.
        if name != "benches" {
            (own_all, tests_all) = (own_all + own, tests_all + tests);
        }
    }
    let weight = tests_all as f64 / own_all as f64;
    println!("{:<12} {own_all:>7} {tests_all:>7} {weight:>6.2}", "all");
    assert!(weight >= TEST_WEIGHT_MIN, "{weight:.2} lines of tests a line of our own; want {TEST_WEIGHT_MIN}");
}

#[test]
fn every_crate_takes_the_lints_and_facts_of_the_workspace() {
    for name in CRATES.iter().chain(&["agent-core/c"]) {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in ["[lints]\nworkspace = true", "rust-version.workspace = true", "license.workspace = true"] {
            assert!(manifest.contains(line), "{name}/Cargo.toml lacks {line:?}");
        }
    }
    assert!(Path::new(&root().join("LICENSE")).is_file());
}

/// Functions that make something durable beside any moment of their own, and why.
const WITHOUT_MOMENT: &[(&str, &str)] = &[
    ("agent-core/src/durable.rs", "what writes for whoever comes to a moment"),
    ("agent-core/src/identity.rs", "what is damaged is made again of its copy; tests damage each file of STATE"),
    ("agent-core/src/journal.rs", "as above; what is damaged is set aside for people"),
    ("agent-core/src/records.rs", "its callers come to a moment; a damaged copy as above"),
    ("agent-core/src/swap.rs", "as above"),
    ("agent-core/src/sys/socket.rs", "RUN does not outlive the machine"),
    ("manager-fs/src/cli/repository_key.rs", "a new file of an operator's; half of one is refused by its check"),
    ("manager-fs/src/host/mount/meta.rs", "RUN does not outlive the machine"),
    ("manager-fs/src/host/mount/overlay.rs", "what its callers come to a moment for"),
    ("manager-fs/src/host/mount/probe.rs", "RUN does not outlive the machine"),
    ("manager-fs/src/host/mount/worker.rs", "RUN does not outlive the machine"),
    ("manager-fs/src/host/cache/partial.rs", "its caller in local.rs comes to the moment"),
    ("manager-fs/src/manager/control/bring_over/", "a store of an older format; its own tests cut it off everywhere"),
];

#[test]
fn whatever_makes_something_durable_comes_to_a_moment_first() {
    let durable =
        ["sync_all(", "sync_data(", "syncfs(", "fs::rename(", "renameat_with(", "mount_overlay(", "mount_fuse("];
    let mut found = Vec::new();
    for source in ["agent-core/src", "manager-fs/src"].iter().flat_map(|folder| Source::all(folder)) {
        let excused: Vec<_> = WITHOUT_MOMENT.iter().map(|(place, _)| *place).collect();
        let durably = durable.iter().any(|word| source.own.contains(word));
        if durably && !source.is_test() && !source.is_in(&excused) && !source.own.contains("Moment::") {
            found.push(source.path.display().to_string());
        }
    }
    none("made durable without a moment (agent_core::internal::moments, manager_fs::moments)", found);
}
