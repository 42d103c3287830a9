//! The short form of `tests/fuzz`, on every change: each of its targets takes its seeds and so many changes of each. What
//! libFuzzer finds in minutes by watching the program is not found here; that a target no longer fits the code, that a
//! seed is no longer taken as it was, and what a plain flipped bit does, is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../tests/fuzz/src/archives.rs"]
mod archives;
#[path = "../../../tests/fuzz/src/formats.rs"]
mod formats;
#[path = "../../../tests/fuzz/src/records.rs"]
mod records;
mod seeds;
#[path = "../../../tests/fuzz/src/storages.rs"]
mod storages;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::tests::damage::changed;
use ::tests::dice::Dice;

/// A name, and what takes its bytes and says whether they were taken for something.
type Target = (&'static str, fn(&[u8]) -> bool);

const TARGETS: [&[Target]; 4] = [formats::TARGETS, records::TARGETS, archives::TARGETS, storages::TARGETS];
/// Changes of each seed: what takes a few seconds in all. An archive is written to a store and read back.
const CHANGES: usize = 1000;
/// Seeds of what only the fuzz build has a door to.
const ONLY_OTHERWISE: [&str; 4] = ["handoff-v2", "inherited-v1", "job-v1", "snapshot-v1"];
const CHANGES_OF_ARCHIVES: usize = 50;

fn targets() -> impl Iterator<Item = Target> {
    TARGETS.into_iter().flatten().copied()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds")
}

/// By target and name, as they are committed.
fn committed() -> BTreeMap<(String, String), Vec<u8>> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found = BTreeMap::new();
    for target in entries(&folder()) {
        for seed in entries(&target) {
            found.insert((name(&target), name(&seed)), fs::read(&seed).unwrap());
        }
    }
    found
}

/// The seeds are made out of the samples of the documents and of what tests put together. `MANAGER_FS_WRITE_SEEDS=1` writes
/// them anew.
#[test]
fn the_committed_seeds_are_those_that_are_made_here() {
    let made = seeds::all();
    if std::env::var_os("MANAGER_FS_WRITE_SEEDS").is_some_and(|set| set == "1") {
        drop(fs::remove_dir_all(folder()));
        for ((target, name), bytes) in &made {
            fs::create_dir_all(folder().join(target)).unwrap();
            fs::write(folder().join(target).join(name), bytes).unwrap();
        }
    }
    let committed = committed();
    let names = |seeds: &BTreeMap<(String, String), Vec<u8>>| seeds.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&made), "MANAGER_FS_WRITE_SEEDS=1 writes them anew");
    for (name, bytes) in &made {
        assert!(committed[name] == *bytes, "{name:?} is made otherwise now; MANAGER_FS_WRITE_SEEDS=1 writes it anew");
    }
    let bytes: usize = committed.values().map(Vec::len).sum();
    assert!(bytes <= 400 << 10, "{bytes} bytes of seeds");
}

#[test]
fn every_target_has_a_seed_and_every_seed_a_target() {
    let committed = committed();
    let with_seeds: Vec<&str> = committed.keys().map(|(target, _)| target.as_str()).collect();
    let without: Vec<&str> = targets().map(|(name, _)| name).filter(|name| !with_seeds.contains(name)).collect();
    assert!(without.is_empty(), "targets without a seed in tests/fuzz/seeds: {without:?}");
    let strange: Vec<&&str> =
        with_seeds.iter().filter(|name| targets().all(|(target, _)| target != **name)).collect();
    assert!(strange.is_empty(), "seeds of no target: {strange:?}");
}

/// Runs a target; when it panics, the bytes are in the message.
fn takes(name: &str, run: fn(&[u8]) -> bool, seed: &str, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| run(bytes))).unwrap_or_else(|_| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {name}, made of seed {seed}: the bytes {hex}")
    })
}

#[test]
fn every_target_takes_its_seeds_and_what_becomes_of_them() {
    let all = committed();
    let (mut slow, mut idle) = (Vec::new(), Vec::new());
    for (name, run) in targets() {
        let seeds: Vec<(&str, &Vec<u8>)> = all
            .iter()
            .filter(|((target, _), _)| target == name)
            .map(|((_, seed), bytes)| (seed.as_str(), bytes))
            .collect();
        let writes = archives::TARGETS.iter().take(7).any(|(target, _)| *target == name);
        let count = if writes { CHANGES_OF_ARCHIVES } else { CHANGES };
        let began = Instant::now();
        for (number, (seed, bytes)) in seeds.iter().enumerate() {
            let mut dice = Dice::new(number as u64);
            let other = seeds[(number + 1) % seeds.len()].1;
            let taken = takes(name, run, seed, bytes);
            if !taken && !ONLY_OTHERWISE.contains(seed) {
                idle.push(format!("{name}/{seed}"));
            }
            for _ in 0..count {
                takes(name, run, seed, &changed(bytes, other, &mut dice));
            }
        }
        slow.push((began.elapsed(), name));
    }
    assert!(idle.is_empty(), "seeds that are taken for nothing: {idle:?}");
    slow.sort();
    let took: Duration = slow.iter().map(|(took, _)| *took).sum();
    println!("{took:?} in all; the slowest: {:?}", &slow[slow.len().saturating_sub(6)..]);
}
