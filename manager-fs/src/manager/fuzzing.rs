//! Doors to decoders that nobody else may call, for `tests/fuzz` and its replay (`fuzz_replay.rs`); not built otherwise. Each says
//! whether the bytes were taken for something.

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proto::relative::Part;
use proto::{Manifest, TreePath};

use super::monitor::Quiet;
use super::policy::Policy;
use super::rollout::Plan;
use super::store::Store;
use super::{control, crossing, elf, identity, ingest, metadata, store, upkeep};

/// Reads an archive into a draft, which is dropped; with a base it is a service pack. A MiB is a bomb here.
pub fn archive(bytes: &[u8], base: Option<&Manifest>, path: &Path, to: &Store) -> bool {
    std::fs::write(path, bytes).is_ok() && source(path, base, to)
}

/// Reads a container image in an archive, as [`archive`] does.
pub fn container(bytes: &[u8], path: &Path, to: &Store) -> bool {
    let named = format!("docker-archive:{}", path.display());
    std::fs::write(path, bytes).is_ok() && source(Path::new(&named), None, to)
}

fn source(source: &Path, base: Option<&Manifest>, to: &Store) -> bool {
    let guard = to.guard();
    let read = to.write_contents(4096, &guard, &Quiet, &AtomicBool::new(false), |writer| {
        ingest::read_small_source(source, base, writer)
    });
    read.is_ok_and(|(tree, contents)| {
        let manifest = tree.into_manifest(4096, |id| contents.objects.get(id).cloned());
        // What is taken in is a well-formed tree, or refused as one that cannot be.
        if let Ok(Ok((bytes, id))) = manifest.map(|manifest| manifest.encode()) {
            assert!(proto::Manifest::decode(&bytes, &id).is_ok());
        }
        true
    })
}

/// A backup of a manager, put back as far as it goes.
pub fn manager_backup(bytes: &[u8], dir: &Path) -> bool {
    let packs = store::LocalPacks::open(&dir.join("restored"));
    packs.is_ok_and(|packs| {
        upkeep::read_any(bytes, &packs, true);
        upkeep::read_any(bytes, &packs, false)
    })
}

/// A file of saved generations, taken in as far as it goes.
pub fn saved_generations(bytes: &[u8], to: &Store) -> bool {
    let keys = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
    let trusted = [proto::PublisherKey::from(keys)];
    crossing::read_any(bytes, to, &trusted, true);
    crossing::read_any(bytes, to, &trusted, false)
}

/// An access control list as tar has it in text.
pub fn acl(bytes: &[u8]) -> bool {
    ingest::read_acl(bytes)
}

/// What a program says of itself, and what a loader reads of it.
pub fn elf(bytes: &[u8]) -> bool {
    let described = elf::describe(&TreePath::root(), bytes.len() as u64, Cursor::new(bytes));
    let pages = elf::loaded::pages(bytes.len() as u64, Cursor::new(bytes), 1024);
    let reached = elf::reach::pages(Cursor::new(bytes), &mut elf::reach::Imports::new(), 1024);
    assert!(reached.len() <= 1024);
    assert!(pages.iter().all(|page| u64::from(*page) * 4096 < bytes.len() as u64));
    described.is_some()
}

/// The index at a pack's end; returns whether it was taken.
pub fn pack_index(bytes: &[u8]) -> bool {
    let parts = bytes.split_first_chunk::<4>();
    parts.is_some_and(|(length, index)| store::read_pack_index(index, u64::from(u32::from_le_bytes(*length))))
}

/// A patch over a base.
pub fn patch(base: &[u8], patch: Part, literals: Part, stored: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    crate::patch::decode(base, patch, literals, stored, plain_bytes).ok()
}

/// What `manager-fs.toml` of a product says.
pub fn descriptor(bytes: &[u8]) -> bool {
    metadata::read_any_descriptor(&String::from_utf8_lossy(bytes))
}

/// A plan of a rollout.
pub fn rollout_plan(bytes: &[u8]) -> bool {
    Plan::parse(&String::from_utf8_lossy(bytes)).is_ok()
}

/// A policy's file.
pub fn policy(bytes: &[u8]) -> bool {
    let Ok(policy) = Policy::parse(&String::from_utf8_lossy(bytes)) else { return false };
    assert_eq!(Policy::parse(&policy.text()).as_ref(), Ok(&policy));
    true
}

/// A certificate request, and a certificate.
pub fn certificate(bytes: &[u8]) -> bool {
    identity::read_any(bytes)
}

/// Records of the control state.
pub fn control_records(bytes: &[u8]) -> bool {
    control::fuzzing::records(bytes)
}

/// A record of a store of format 1.
pub fn old_record(bytes: &[u8]) -> bool {
    control::fuzzing::old_record(bytes)
}

/// A copy of the control state.
pub fn backup(bytes: &[u8]) -> bool {
    control::fuzzing::backup(bytes)
}

/// A value as the control store has it, for a seed.
#[cfg(test)]
pub(crate) fn sealed(key: &str, number: u64) -> Vec<u8> {
    control::fuzzing::sealed(key, number)
}
