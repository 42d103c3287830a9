//! The header, which is written by hand, against the sources, the library's symbols, and a C compiler.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::{Output, program};
use tests::needs;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    fs::read_to_string(here().join("include/agent_core.h")).unwrap()
}

/// The built library; cargo leaves it beside the tests.
fn library(ending: &str) -> PathBuf {
    program(&format!("deps/libagent_core_c.{ending}"))
}

fn compact(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Without comments.
fn code(text: &str) -> String {
    let mut out = String::new();
    for part in text.split("/*") {
        out.push_str(part.split_once("*/").map_or(part, |(_, rest)| rest));
    }
    out
}

/// `NAME(` to its parameters' types and its own, in C, as the header declares them.
fn declared() -> BTreeMap<String, (Vec<String>, String)> {
    let code = code(&header());
    let mut found = BTreeMap::new();
    for statement in code.split(';').map(compact) {
        let Some((head, rest)) = statement.split_once('(') else { continue };
        let Some(at) = head.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_') else { continue };
        let (result, name) = head.split_at(at + 1);
        if !name.starts_with("agent_core_") || statement.contains("typedef") {
            continue;
        }
        let result = result.rsplit("{ ").next().unwrap().trim();
        let parameters = rest.trim_end_matches(')').split(", ").filter(|parameter| *parameter != "void");
        let types = parameters.map(|parameter| {
            // The name at the end goes; what is left is a type.
            let type_end = parameter.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0);
            parameter[..=type_end].trim().to_owned()
        });
        found.insert(name.to_owned(), (types.collect(), result.to_owned()));
    }
    found
}

/// The same, of the sources.
fn defined() -> BTreeMap<String, (Vec<String>, String)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(here().join("src")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for function in text.split("#[unsafe(no_mangle)]").skip(1) {
            let signature = compact(function.split('{').next().unwrap());
            let (_, rest) = signature.split_once("extern \"C\" fn ").unwrap();
            let (name, rest) = rest.split_once('(').unwrap();
            let (parameters, result) = rest.rsplit_once(')').unwrap();
            let types = parameters.split(", ").filter_map(|parameter| parameter.split_once(": "));
            let types = types.map(|(_, kind)| in_c(kind.trim_end_matches(','))).collect();
            let result = result.trim().strip_prefix("-> ").map_or("void".to_owned(), in_c);
            found.insert(name.to_owned(), (types, result));
        }
    }
    found
}

/// How the header writes a type of the sources.
fn in_c(kind: &str) -> String {
    let handle = |name: &str| match name.trim_end_matches("<'_>") {
        "Handle" => "agent_core".to_owned(),
        "Listening" => "agent_core_intake".to_owned(),
        "Gate" => "agent_core_gate".to_owned(),
        "Pass" => "agent_core_pass".to_owned(),
        "ChildPermit" => "agent_core_child_permit".to_owned(),
        "Answer" => "agent_core_answer".to_owned(),
        "Context" => "agent_core_context".to_owned(),
        "Table" => "agent_core_operations".to_owned(),
        "usize" => "size_t".to_owned(),
        "MaybeUninit<i32>" => "int32_t".to_owned(),
        "MaybeUninit<Option<Box<Pass>>>" => "agent_core_pass *".to_owned(),
        "c_char" => "char".to_owned(),
        "u8" => "uint8_t".to_owned(),
        other => panic!("the header has no word for {other}"),
    };
    let inside = |prefix: &str| kind.strip_prefix(prefix).map(|rest| rest.strip_suffix('>').unwrap_or(rest));
    let pointer = |name: String| if name.ends_with('*') { format!("{name}*") } else { format!("{name} *") };
    match kind {
        "i32" | "RawFd" => return "int32_t".to_owned(),
        "u32" => return "uint32_t".to_owned(),
        "u64" => return "uint64_t".to_owned(),
        "usize" => return "size_t".to_owned(),
        "bool" => return "bool".to_owned(),
        "User" => return "void *".to_owned(),
        "ErrorOut<'_>" => return "agent_core_error *".to_owned(),
        "Option<Run>" => return "agent_core_run".to_owned(),
        "*const *const c_char" => return "const char *const *".to_owned(),
        _ => {}
    }
    if let Some(name) = kind.strip_prefix("*const ") {
        return format!("const {}", pointer(handle(name)));
    }
    if let Some(name) = inside("Option<&mut ") {
        return pointer(handle(name));
    }
    if let Some(name) = inside("Option<&") {
        return format!("const {}", pointer(handle(name)));
    }
    pointer(handle(inside("Option<Box<").map_or(kind, |name| name.trim_end_matches('>'))))
}

#[test]
fn the_header_declares_what_the_sources_define_with_the_same_types() {
    let (declared, defined) = (declared(), defined());
    assert!(declared.len() > 20, "{declared:#?}");
    for (name, signature) in &defined {
        assert_eq!(declared.get(name), Some(signature), "{name}: header, then sources");
    }
    assert_eq!(declared.len(), defined.len());
}

#[test]
fn the_library_shows_these_symbols_and_no_others() {
    needs::demand(needs::program("nm"));
    let symbols = Output::of(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library("so")));
    let symbols: Vec<String> =
        symbols.text().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(symbols, declared().into_keys().collect::<Vec<_>>());
}

/// A C program that names every function and prints what it knows of the structures.
fn probe() -> String {
    let functions = declared().into_keys().map(|name| format!("    (void (*)(void)){name},\n")).collect::<String>();
    let fields = ["size", "user", "writes_min", "writes_max", "quiesce", "resume", "save_state", "restore_state"];
    let fields = fields.iter().chain(&["healthy", "confirmed", "save_state_to", "restore_state_from"]);
    let offsets = fields.map(|field| format!("    printf(\"%zu \", offsetof(agent_core_operations, {field}));\n"));
    format!(
        "#include <agent_core.h>\n#include <stdio.h>\nvoid (*const all[])(void) = {{\n{functions}}};\n\
         int main(void) {{\n    agent_core_error error;\n{}\
         printf(\"%zu %zu\\n\", sizeof(agent_core_operations), sizeof error);\n\
         if (agent_core_open(&error)) return 1;\n    printf(\"%d %s\\n\", (int)error.code, error.text);\n\
         return all[0] == NULL;\n}}\n",
        offsets.collect::<String>()
    )
}

#[test]
fn a_c_program_with_every_function_builds_against_either_library_and_sees_the_same_structures() {
    needs::demand(needs::program("cc"));
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("probe.c");
    fs::write(&source, probe()).unwrap();
    std::os::unix::fs::symlink(library("so"), dir.path().join("libagent_core.so.0")).unwrap();
    for (name, standard) in [("shared", "-std=c99"), ("static", "-std=c11")] {
        let binary = dir.path().join(name);
        let mut cc = Command::new("cc");
        cc.args([standard, "-pedantic", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&binary).arg(&source);
        cc.arg("-I").arg(here().join("include"));
        if name == "shared" {
            cc.arg(dir.path().join("libagent_core.so.0")).arg(format!("-Wl,-rpath,{}", dir.path().display()));
        } else {
            cc.arg(library("a")).args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]);
        }
        Output::of(&mut cc).expect(0);
        let mut run = Command::new(&binary);
        let said = Output::of(run.env_remove("MANAGER_FS_PRODUCT")).text();
        // As `operations.rs` lays them out on a machine of 64 bits, and `error.rs`.
        let (layout, refusal) = said.split_once('\n').unwrap();
        assert_eq!(layout, "0 8 16 20 24 32 40 48 56 64 72 80 88 1024");
        let refused = "2 MANAGER_FS_PRODUCT is not set: start this program with `manager-fs launch PRODUCT`";
        assert_eq!(refusal, refused);
    }
}

#[test]
fn what_is_installed_is_found_by_pkg_config() {
    for program in ["make", "cc", "pkg-config"] {
        needs::demand(needs::program(program));
    }
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("prefix");
    let mut make = Command::new("make");
    make.arg("-C").arg(here()).arg("install").arg(format!("PREFIX={}", prefix.display()));
    make.arg(format!("LIBRARIES={}", library("so").parent().unwrap().display()));
    Output::of(&mut make).expect(0);
    let tree = dir.path().join("tree");
    let mut make = Command::new("make");
    make.arg("-C").arg(here().join("example")).arg(format!("TREE={}", tree.display())).arg("CFLAGS=-Wall -Werror");
    Output::of(make.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))).expect(0);
    // The example finds the library of its own tree.
    fs::remove_dir_all(&prefix).unwrap();
    let mut service = Command::new(tree.join("bin/service"));
    let said = Output::of(service.arg("127.0.0.1:0").env_remove("MANAGER_FS_PRODUCT")).expect(1).stderr;
    assert!(said.contains("manager-fs launch PRODUCT"), "{said}");
    let version = Command::new(tree.join("bin/service")).output().unwrap();
    assert_eq!(version.status.code(), Some(2));
}
