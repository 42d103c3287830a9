//! A guess in the order of its likelihood: what the loader reads, then the program's code and constants in the order in
//! which it gets to them ([`crate::manager::elf::reach`]), then what else programs of its kind read.
//!
//! Made behind a publication for the entry point, or for the few programs that the tree has; for any other when the first
//! host asks for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use proto::bundle::{Origin, Touch};
use proto::manifest::{NodeKind, Object};
use proto::proof::PAGE_BYTES;
use proto::start_up::{PROGRAM_DIRS, program, start_up_files};
use proto::width;
use proto::{Manifest, Metadata, TreeId, TreePath};

use super::background::Wish;
use super::guess;
use super::guessed::{Guess, How};
use super::serve::{Bundles, LEVEL_GUESS, SendStartError};
use super::served::{Served, served};
use super::{BundleOrder, make};
use crate::manager::content::ObjectReader;
use crate::manager::elf::reach::{Imports, pages};
use crate::manager::store::Store;
use crate::sync::lock;

mod python;

/// Plain bytes of what is reached in one file.
const REACH_BYTES_MAX: u64 = 8 << 20;
/// Plain bytes of everything that is guessed.
const LIKELY_BYTES_MAX: u64 = 24 << 20;
/// Files whose code is followed.
const FILES_MAX: usize = 64;
/// A tree without an entry point that has more programs than this is guessed when one of them is started.
const PROGRAMS_MAX: usize = 3;
/// zstd level of what nobody waits for: higher ones take ten times as long for a hundredth.
const LEVEL_LIKELY: i32 = 15;

impl Bundles {
    /// What a start will touch as far as the tree says it, from memory or made now.
    pub(super) fn guessed_bundle(
        self: &Arc<Self>,
        tree: TreeId,
        typed: Option<&str>,
    ) -> Result<Arc<Served>, SendStartError> {
        let _one_at_a_time = lock(&self.guessing);
        // Someone else may have made it meanwhile, or better: recorded a start.
        if let Some(served) = self.stored_bundle((None, tree))? {
            return Ok(served);
        }
        let mut key = (tree, self.program(&tree, typed)?);
        if let Some(guessed) = lock(&self.guessed).get(&key) {
            return Ok(guessed);
        }
        if !lock(&self.guessed).may_make(tree) {
            key.1 = self.program(&tree, None)?;
            if let Some(guessed) = lock(&self.guessed).get(&key) {
                return Ok(guessed);
            }
        }
        let guessed = self.make_guess(&key, How::Quickly)?;
        lock(&self.guessed).put(key.clone(), Arc::clone(&guessed), How::Quickly);
        self.wish(Wish::Guessed(key.0, key.1));
        Ok(guessed)
    }

    /// Makes a guess that nobody waits for, unless a start has been recorded.
    pub(super) fn guess_well(&self, tree: TreeId, program: Option<TreePath>) -> Result<(), SendStartError> {
        if self.stored_bundle((None, tree))?.is_some() {
            return Ok(());
        }
        let key = (tree, program);
        if !lock(&self.guessed).is_well(&key) {
            let guessed = self.make_guess(&key, How::Well)?;
            lock(&self.guessed).put(key, guessed, How::Well);
        }
        Ok(())
    }

    fn make_guess(&self, (tree, program): &Guess, how: How) -> Result<Arc<Served>, SendStartError> {
        let since = Instant::now();
        let manifest = self.store.tree(tree)?;
        let mut records = self.metadata(tree);
        if program.is_some() {
            records.truncate(1);
            records.iter_mut().for_each(|record| record.entry_point.clone_from(program));
        }
        let (touches, level) = match how {
            How::Quickly => (guess::touches(&self.store, &manifest, &records), LEVEL_GUESS),
            How::Well => (touches(&self.store, &manifest, &records), LEVEL_LIKELY),
        };
        let order = |touches| BundleOrder { tree, from: None, touches, origin: Origin::Guessed, level };
        let never = AtomicBool::new(false);
        // The manifest is worth an answer of its own.
        let made = make(&self.store, order(&touches), &never).or_else(|error| {
            tracing::warn!(%tree, %error, "no guess of what a start touches");
            make(&self.store, order(&[]), &never)
        });
        let (bytes, facts) = made?;
        let (made_ms, bundle_bytes) = (width::millis(since.elapsed()), facts.bundle_bytes);
        tracing::info!(%tree, pages = facts.plain_bytes, bytes = bundle_bytes, made_ms, "start-up bundle guessed");
        Ok(Arc::new(served(bytes)?))
    }

    fn metadata(&self, tree: &TreeId) -> Vec<Metadata> {
        let generations = self.state.generations();
        let records = generations.iter().map(|generation| &generation.record).filter(|record| record.tree == *tree);
        records.map(|record| record.metadata.clone()).collect()
    }

    /// The program that is started: what was typed, if the tree has it, else the entry point.
    fn program(&self, tree: &TreeId, typed: Option<&str>) -> Result<Option<TreePath>, SendStartError> {
        Ok(self.program_of(&self.store.tree(tree)?, tree, typed))
    }

    fn program_of(&self, manifest: &Manifest, tree: &TreeId, typed: Option<&str>) -> Option<TreePath> {
        let is_program =
            |path: &TreePath| manifest.entry(path).is_some_and(|entry| manifest.node(entry).mode & 0o111 != 0);
        let typed = typed.and_then(|typed| program(manifest, typed)).filter(is_program);
        let entry = || {
            let mut entries = self.metadata(tree).into_iter().filter_map(|record| record.entry_point);
            entries.find_map(|entry| program(manifest, &String::from_utf8_lossy(entry.as_bytes())))
        };
        typed.or_else(entry)
    }

    /// The programs that a tree is for: its entry point, else what it has in the usual places, if that is little.
    pub(super) fn programs(&self, tree: &TreeId) -> Result<Vec<Option<TreePath>>, SendStartError> {
        let manifest = self.store.tree(tree)?;
        if let Some(entry) = self.program_of(&manifest, tree, None) {
            return Ok(vec![Some(entry)]);
        }
        let mut found = Vec::new();
        for entry in &manifest.entries {
            let path = String::from_utf8_lossy(entry.path.as_bytes());
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            let node = manifest.node(entry);
            let is_program = matches!(node.kind, NodeKind::File(_)) && node.mode & 0o111 != 0;
            if is_program && PROGRAM_DIRS.contains(&dir) {
                found.push(Some(entry.path.clone()));
            }
        }
        found.truncate(if found.len() > PROGRAMS_MAX { 0 } else { PROGRAMS_MAX });
        Ok(found)
    }
}

/// What a start will touch, the likeliest first.
fn touches(store: &Store, tree: &Manifest, records: &[Metadata]) -> Vec<Touch> {
    let real = |path: &TreePath| tree.resolve(path).ok().map(|at| tree.entries[at].path.clone());
    let files = records.iter().flat_map(|record| start_up_files(record, &real));
    let files: Vec<TreePath> = files.take(FILES_MAX).collect();
    let (mut imports, mut seen) = (Imports::new(), HashSet::new());
    let mut likely = Likely { touches: guess::touches(store, tree, records), left: pages_in(LIKELY_BYTES_MAX) };
    let mut rest = Vec::new();
    for path in &files {
        let Some(entry) = tree.entry(path) else { continue };
        let NodeKind::File(id) = &tree.node(entry).kind else { continue };
        let Some(at) = tree.object_index(id).filter(|at| seen.insert(*at)) else { continue };
        let (object, chunk) = (&tree.objects[at], |id: &_| store.plain_chunk(id));
        let content = ObjectReader::new(object, tree.chunk_bytes, &chunk);
        let pages = pages(content, &mut imports, likely.left.min(pages_in(REACH_BYTES_MAX)));
        likely.left -= pages.len();
        likely.touches.extend(guess::runs(width::count(at), &pages));
        if !pages.is_empty() && object.bytes <= REACH_BYTES_MAX {
            rest.push(width::count(at));
        }
    }
    let read = |at: u32| content(store, tree.objects.get(at as usize)?);
    let [by_itself, others] = python::objects(tree, &files, &read);
    by_itself.into_iter().chain(rest).chain(others).for_each(|at| likely.whole(tree, at));
    likely.touches
}

fn pages_in(bytes: u64) -> usize {
    width::index(bytes.div_ceil(u64::from(PAGE_BYTES)))
}

struct Likely {
    touches: Vec<Touch>,
    /// Pages that may still be added.
    left: usize,
}

impl Likely {
    /// All of a file, or as much as there is room for; what is named again counts twice.
    fn whole(&mut self, tree: &Manifest, at: u32) {
        let count = tree.objects.get(at as usize).map_or(0, |object| pages_in(object.bytes)).min(self.left);
        if count > 0 {
            self.left -= count;
            self.touches.push(Touch { object: at, first: 0, count: width::count(count) });
        }
    }
}

fn content(store: &Store, object: &Object) -> Option<Vec<u8>> {
    let chunks = object.chunks.iter().map(|id| store.plain_chunk(id).ok()).collect::<Option<Vec<_>>>()?;
    Some(chunks.concat())
}

#[cfg(test)]
mod tests;
