//! One program with every target: `MANAGER_FS_FUZZ_TARGET` names the one that runs, `list` prints them all.
//!
//! A target fails by a panic, by more memory or time than libFuzzer allows, or by an answer that contradicts itself: what was
//! read is written otherwise.

#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archives;
mod formats;
mod records;

use std::sync::OnceLock;

/// A name, and what takes its bytes and says whether they were taken for something.
type Target = (&'static str, fn(&[u8]) -> bool);

const TARGETS: &[&[Target]] = &[formats::TARGETS, records::TARGETS, archives::TARGETS];

fn target() -> fn(&[u8]) -> bool {
    let wanted = std::env::var("MANAGER_FS_FUZZ_TARGET").unwrap_or_default();
    let all = || TARGETS.iter().copied().flatten();
    if wanted == "list" {
        all().for_each(|(name, _)| println!("{name}"));
        std::process::exit(0);
    }
    match all().find(|(name, _)| *name == wanted) {
        Some((_, run)) => *run,
        None => {
            eprintln!("MANAGER_FS_FUZZ_TARGET='{wanted}' is no target; 'list' prints them");
            std::process::exit(2);
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static RUN: OnceLock<fn(&[u8]) -> bool> = OnceLock::new();
    RUN.get_or_init(target)(bytes);
});
