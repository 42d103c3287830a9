//! One program with every target: `MANAGER_FS_FUZZ_TARGET` names the one that runs, `list` prints them all.
//!
//! A target fails by a panic, by more memory or time than libFuzzer allows, or by an answer that contradicts itself: what was
//! read is written otherwise.

#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archives;
mod formats;
mod records;
mod storages;

use std::sync::OnceLock;

/// A name, and what takes its bytes and says whether they were taken for something.
type Target = (&'static str, fn(&[u8]) -> bool);

const TARGETS: &[&[Target]] = &[formats::TARGETS, records::TARGETS, archives::TARGETS, storages::TARGETS];

fn targets() -> impl Iterator<Item = Target> {
    TARGETS.iter().copied().flatten().copied()
}

/// The one that runs. Ends the program when it is none: before libFuzzer has begun, which would take that for a finding.
fn target() -> fn(&[u8]) -> bool {
    let wanted = std::env::var("MANAGER_FS_FUZZ_TARGET").unwrap_or_default();
    if wanted == "list" {
        targets().for_each(|(name, _)| println!("{name}"));
        std::process::exit(0);
    }
    let found = targets().find(|(name, _)| *name == wanted);
    let Some((_, run)) = found else {
        eprintln!("MANAGER_FS_FUZZ_TARGET='{wanted}' is no target; 'list' prints them");
        std::process::exit(2);
    };
    run
}

static RUN: OnceLock<fn(&[u8]) -> bool> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        RUN.get_or_init(target);
    },
    |bytes: &[u8]| {
        RUN.get_or_init(target)(bytes);
    }
);
