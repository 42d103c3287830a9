//! `verify`: what is wrong with the store and the records, and what became of it when it is to be repaired.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proto::TreeId;

use super::message::{ProblemView, RepairOrder, VerifyView, path_of};
use super::progress::Reporter;
use super::refusal::CatalogError;
use crate::manager::control::generations::{self, Generation};
use crate::manager::error::ManagerError;
use crate::manager::repair::{Repaired, Repairs};
use crate::manager::store::{Problem, Store, Thing};
use crate::manager::whole::Manager;

/// What is said of deltas and bundles, which are no loss.
const MADE_AGAIN: &str = "it is made again when a host asks for it";

/// Checks every byte of the store, and puts back what it can if that is wanted.
///
/// # Errors
/// The store or the control state failed, or the files to repair from cannot be read.
pub(super) fn verify(
    manager: &Manager,
    repair: Option<&RepairOrder>,
    monitor: &Reporter,
    cancelled: &AtomicBool,
) -> Result<VerifyView, ManagerError> {
    let source = repair.and_then(|order| order.source.as_deref()).map(path_of);
    if let Some(source) = source.as_ref().filter(|source| !source.is_absolute()) {
        return Err(CatalogError::RelativeSource(source.clone()).into());
    }
    let report = manager.store.verify(monitor)?;
    let generations = manager.state.generations();
    let mut problems = report.problems;
    problems.extend(without_manifest(&manager.store, &generations)?);
    let repaired = match repair {
        Some(_) => {
            let repairs = Repairs {
                store: &manager.store,
                state: &manager.state,
                exports: &manager.exports,
                connections: &manager.connections,
            };
            Some(repairs.run(source.as_deref(), monitor, cancelled)?)
        }
        None => None,
    };
    let view = |problem: &Problem| ProblemView {
        what: problem.thing.to_string(),
        fault: problem.fault.clone(),
        generations: names_of(&generations, &problem.trees),
        repaired: repaired.as_ref().and_then(|repaired| became(&manager.store, problem, repaired)),
    };
    let mut views: Vec<_> = problems.iter().map(view).collect();
    views.extend(of_records(manager, &generations));
    Ok(VerifyView {
        packs: report.packs,
        bytes: report.bytes,
        chunks: report.chunks,
        manifests: report.manifests,
        objects: report.objects,
        records: generations.len() as u64,
        problems: views,
        lost_chunks: repaired.map_or(0, |repaired| repaired.lost.chunks.len() as u64),
    })
}

fn names_of(generations: &[Arc<Generation>], trees: &BTreeSet<TreeId>) -> Vec<String> {
    let touched = generations.iter().filter(|generation| trees.contains(&generation.record.tree));
    touched.map(|generation| generation.record.name()).collect()
}

/// Generations whose manifest the store does not have at all.
fn without_manifest(store: &Store, generations: &[Arc<Generation>]) -> Result<Vec<Problem>, ManagerError> {
    let known: BTreeSet<TreeId> = store.trees()?.into_iter().collect();
    let trees: BTreeSet<TreeId> = generations.iter().map(|generation| generation.record.tree).collect();
    let missing = trees.difference(&known).map(|tree| Problem {
        thing: Thing::Manifest(*tree),
        fault: String::from("it is missing"),
        trees: BTreeSet::from([*tree]),
    });
    Ok(missing.collect())
}

/// What is wrong with records, which no pack and no host can put back.
fn of_records(manager: &Manager, generations: &[Arc<Generation>]) -> Vec<ProblemView> {
    let problem = |what: String, fault: String, generations| ProblemView { what, fault, generations, repaired: None };
    let damaged = manager.state.damaged().into_iter();
    let damaged = damaged.map(|(key, reason)| problem(format!("record '{key}'"), reason, Vec::new()));
    let unsigned = generations.iter().filter_map(|generation| {
        let fault = generations::verify(&generation.signed).err()?;
        let name = generation.record.name();
        Some(problem(format!("record of {name}"), fault.to_string(), vec![name]))
    });
    damaged.chain(unsigned).collect()
}

/// What became of a problem, for people; `None`: it is as it was.
fn became(store: &Store, problem: &Problem, repaired: &Repaired) -> Option<String> {
    let from = |text: &String| format!("from {text}");
    let lost = &repaired.lost;
    match &problem.thing {
        Thing::Delta(..) | Thing::Bundle(_) => Some(String::from(MADE_AGAIN)),
        Thing::Manifest(tree) if lost.manifests.contains(tree) => None,
        Thing::Manifest(tree) => Some(repaired.manifests.get(tree).map_or_else(|| unneeded(false), from)),
        Thing::Chunk(chunk, _) if lost.chunks.contains_key(chunk) => None,
        Thing::Chunk(chunk, _) => {
            Some(repaired.chunks.get(chunk).map_or_else(|| unneeded(store.has_sound(chunk)), from))
        }
        Thing::Object(id) => {
            let trees = problem.trees.iter().filter_map(|tree| store.tree(tree).ok());
            let chunks: Vec<_> =
                trees.filter_map(|tree| tree.object(id).map(|object| object.chunks.clone())).flatten().collect();
            let whole = !problem.trees.is_empty() && chunks.iter().all(|chunk| store.has_sound(chunk));
            let sources: BTreeSet<String> =
                chunks.iter().filter_map(|chunk| repaired.chunks.get(chunk)).map(from).collect();
            let sources = sources.into_iter().collect::<Vec<_>>().join(", ");
            whole.then(|| if sources.is_empty() { unneeded(true) } else { sources })
        }
        Thing::Pack(_) if lost.is_empty() => Some(String::from("what is needed of it lies in other packs")),
        Thing::Pack(_) => None,
    }
}

fn unneeded(elsewhere: bool) -> String {
    String::from(if elsewhere { "another pack has it" } else { "no generation needs it" })
}
