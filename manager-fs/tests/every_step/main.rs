//! Every moment at which any process makes something durable or does what cannot be undone, and what happens there: the
//! process is killed or stopped, its disk is full or fails, the line is cut, the manager is restarted. What a service
//! manager would restart is restarted. Afterwards one generation is attached and its agent does a job, every record can
//! be read, every command has ended and has told the truth, and nothing is left behind. A moment that nobody comes to
//! fails the run.
//!
//! `WHOLE=1 cargo test --release --workspace --test every_step whatever -- --nocapture` does every fault at every moment and
//! prints how each went; `MANAGER_FS_WRITE_DOCS=FILE`, with the other test of this binary, makes the table of
//! `docs/reliability.md` out of what was printed. Without `WHOLE` every other moment has one of the faults.
//! `CELLS=pack-put` or `CELLS=pack-put:killed` does only those, `CELLS=killed` that fault everywhere.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod cell;
mod moment;
mod order;
mod sound;
mod table;
mod unit;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use cell::Fault;
use moment::{Scenario, Step};
use world::World;

/// Worlds at the same time.
const WORLDS: usize = 2;

/// What is to be done: for each moment its faults.
fn plan() -> Vec<(Step, Fault)> {
    let whole = std::env::var_os("WHOLE").is_some();
    let only = std::env::var("CELLS").ok();
    // A process that is stopped costs seconds: only in the whole.
    let short = [Fault::Kill, Fault::Full, Fault::Broken, Fault::Cut, Fault::Restart];
    let mut cells = Vec::new();
    for (at, step) in moment::all().into_iter().enumerate() {
        for fault in Fault::ALL {
            let wanted = match &only {
                Some(only) => only.split(',').any(|cell| {
                    cell == step.name || cell == cell_name(&step, fault) || cell == fault.head().replace(' ', "-")
                }),
                None => whole || at % 2 == 0 && short[at / 2 % short.len()] == fault,
            };
            if wanted {
                cells.push((step, fault));
            }
        }
    }
    // A worker that has been replaced keeps what it found mounted for a minute, and a collection would wait for that.
    cells.sort_by_key(|(step, _)| step.scenario != Scenario::Collect);
    cells
}

fn cell_name(step: &Step, fault: Fault) -> String {
    format!("{}:{}", step.name, fault.head().replace(' ', "-"))
}

/// Does cells until there are none, in one world until one fails.
fn work(cells: &Mutex<Vec<(Step, Fault)>>, failures: &Mutex<BTreeMap<String, String>>) {
    let mut world: Option<World> = None;
    loop {
        let Some((step, fault)) = cells.lock().unwrap().pop() else { break };
        let (name, begun) = (cell_name(&step, fault), Instant::now());
        let here = world.take();
        let done = catch_unwind(AssertUnwindSafe(|| match step.scenario {
            Scenario::Begin => {
                if let Some(world) = here {
                    sound::end(world);
                }
                let mut world = begin(step, fault);
                cell::run_without_fault(&mut world, step.scenario);
                Some(world)
            }
            Scenario::Copy => {
                let mut world = World::begin(|_| {}).with_copies().complete();
                cell::run(&mut world, step, fault);
                here
            }
            _ => {
                let mut world = here.unwrap_or_else(|| World::begin(|_| {}).complete());
                cell::run(&mut world, step, fault);
                Some(world)
            }
        }));
        match done {
            Ok(sound) => world = sound,
            Err(panic) => drop(failures.lock().unwrap().insert(name.clone(), text_of(&*panic))),
        }
        let how = if failures.lock().unwrap().contains_key(&name) { "FAILED" } else { "held" };
        println!("{name}: {how} ({:.1} s)", begun.elapsed().as_secs_f64());
    }
    if let Some(world) = world
        && let Err(panic) = catch_unwind(AssertUnwindSafe(|| sound::end(world)))
    {
        failures.lock().unwrap().insert(String::from("at the end"), text_of(&*panic));
    }
}

/// A manager whose very first start meets the fault.
fn begin(step: Step, fault: Fault) -> World {
    let world = World::begin(|faults| faults.arm(step.name, cell::action(fault)));
    cell::strike(&world, step, fault);
    world.faults.disarm();
    world.complete()
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[test]
fn whatever_happens_at_any_moment_the_host_has_its_agent_afterwards() {
    tests::needs::demand(tests::needs::mounts());
    let mut cells = plan();
    cells.reverse();
    let all = cells.clone();
    let (cells, failures) = (Mutex::new(cells), Mutex::default());
    std::thread::scope(|scope| (0..WORLDS).for_each(|_| drop(scope.spawn(|| work(&cells, &failures)))));
    let failures = failures.into_inner().unwrap();
    for (name, text) in &failures {
        println!("\n=== {name}\n{text}");
    }
    println!("{} of {} cells held", all.len() - failures.len().min(all.len()), all.len());
    assert!(failures.is_empty(), "{:?}", failures.keys().collect::<Vec<_>>());
}

#[test]
fn the_table_of_the_documents_has_every_moment_and_each_has_held() {
    if let Some(printed) = std::env::var_os("MANAGER_FS_WRITE_DOCS") {
        table::write(&std::fs::read_to_string(printed).expect("what a whole run printed"));
    }
    table::compare();
}
