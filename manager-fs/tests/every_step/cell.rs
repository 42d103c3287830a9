//! One cell of the table: one moment, one fault, and what an operator does meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::faults::Action;

use crate::moment::{Scenario, Step};
use crate::order::{self, Order};
use crate::sound;
use crate::unit::{Unit, signal};
use crate::world::{PATIENCE, World};

/// What happens to whoever comes to the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL.
    Kill,
    /// Its disk is full until the operator has seen it.
    Full,
    /// Its disk fails until the operator has seen it.
    Broken,
    /// SIGSTOP, for longer than anybody waits for a sign of life.
    Stop,
    /// The line between the host and the manager is cut right then, for a while.
    Cut,
    /// The manager is restarted in good order right then.
    Restart,
}

impl Fault {
    pub(crate) const ALL: [Fault; 6] =
        [Fault::Kill, Fault::Full, Fault::Broken, Fault::Stop, Fault::Cut, Fault::Restart];

    pub(crate) fn head(self) -> &'static str {
        match self {
            Fault::Kill => "killed",
            Fault::Full => "disk full",
            Fault::Broken => "disk fails",
            Fault::Stop => "stopped",
            Fault::Cut => "line cut",
            Fault::Restart => "manager restarted",
        }
    }
}

/// The holder replaces a worker after five unanswered questions, one a second; commands give up after 3 s here.
const STOPPED: Duration = Duration::from_millis(6_500);
/// How long the line stays cut.
const CUT: Duration = Duration::from_millis(400);
/// How long a disk is full or fails.
const SEEN: Duration = Duration::from_millis(1_500);

pub(crate) fn action(fault: Fault) -> Action {
    match fault {
        Fault::Kill => Action::Kill,
        Fault::Full => Action::Full,
        Fault::Broken => Action::Broken,
        Fault::Stop => Action::Stop,
        Fault::Cut | Fault::Restart => Action::Hold,
    }
}

/// Runs the cell in a world that is sound, and leaves it so.
pub(crate) fn run(world: &mut World, step: Step, fault: Fault) {
    let before = world.version;
    let orders = orders(world, step.scenario);
    world.faults.arm(step.name, action(fault));
    let said = std::thread::scope(|scope| {
        let saboteur = scope.spawn(|| strike(world, step, fault));
        let said: Vec<_> = orders.iter().map(|order| until_struck(world, order)).collect();
        if let Err(panic) = saboteur.join() {
            std::panic::resume_unwind(panic);
        }
        said
    });
    world.faults.disarm();
    mend(world, &orders, &said);
    world.set_bad(before, false);
    if world.serve.is_none() {
        world.start_serve();
    }
    if step.name == "link-back" {
        // A link that the disk did not take is put right by the next start.
        let again = order::relaunch(world);
        let said: Vec<_> = again.iter().map(|order| once(world, order)).collect();
        mend(world, &again, &said);
    }
    sound::check(world);
}

/// The orders of a scenario, with nothing in their way.
pub(crate) fn run_without_fault(world: &mut World, scenario: Scenario) {
    let orders = orders(world, scenario);
    let said: Vec<_> = orders.iter().map(|order| once(world, order)).collect();
    mend(world, &orders, &said);
    sound::check(world);
}

/// Waits until somebody comes to the moment, and does what belongs to the fault beside that.
pub(crate) fn strike(world: &World, step: Step, fault: Fault) {
    let mut victim = None;
    // What nobody waits for comes after the last command: a delta, a copy of the decisions.
    world.until_at_rest(&format!("somebody comes to {}", step.name), |world| {
        victim = world.faults.struck();
        victim.is_some()
    });
    match fault {
        Fault::Kill => {}
        // A command may wait for its end, and says so; so it has one.
        Fault::Full | Fault::Broken => {
            std::thread::sleep(SEEN);
            world.faults.release();
        }
        Fault::Stop => {
            std::thread::sleep(STOPPED);
            signal(victim.unwrap_or_default(), Signal::CONT);
        }
        Fault::Cut => {
            world.proxy.cut();
            world.faults.release();
            std::thread::sleep(CUT);
            world.proxy.heal();
        }
        Fault::Restart => {
            signal(world.serve.as_ref().map_or(0, Unit::pid), Signal::TERM);
            world.faults.release();
        }
    }
}

pub(crate) fn orders(world: &mut World, scenario: Scenario) -> Vec<Order> {
    match scenario {
        Scenario::Begin | Scenario::Change | Scenario::Copy => order::change(world),
        Scenario::Recover => order::recover(world),
        Scenario::Backup => order::backup(world),
        Scenario::Enrol => order::enrol(world),
        Scenario::Group => order::group(world),
        Scenario::Collect => order::collect(world),
        Scenario::Remount => order::remount(),
        Scenario::Relaunch => order::relaunch(world),
        Scenario::Attach => order::attach(world),
        Scenario::Cancel => order::cancel(),
        Scenario::Learn => order::learn(world),
        Scenario::Ordered => order::ordered(world),
        Scenario::NotStaged => {
            let tree = world.tree(&[]);
            order::bad_change(world, tree, true)
        }
        Scenario::NotExecuted => {
            let tree = world.tree(&[]);
            tree.file("bin/agent", 0o755, "#!/no/such/interpreter\n");
            order::bad_change(world, tree, false)
        }
        Scenario::Crash => {
            let tree = world.tree(&["--exit-at-once", "3"]);
            order::bad_change(world, tree, false)
        }
    }
}

/// What a command said the first time.
struct Said {
    code: Option<i32>,
    text: String,
}

/// An order that is refused before the fault has struck was given too early (the host still had what is taken from it,
/// a delta was being made): an operator gives it again, and nobody would come to the moment otherwise.
fn until_struck(world: &World, order: &Order) -> Said {
    let since = Instant::now();
    loop {
        let said = once(world, order);
        let early = said.code != Some(0) && !order.fails && !order.settles && world.faults.struck().is_none();
        if !early || since.elapsed() > PATIENCE {
            return said;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn once(world: &World, order: &Order) -> Said {
    let output = (order.run)(world);
    let text = format!("{}{}", output.stdout, output.stderr);
    // A command that was killed itself says nothing; any other says why.
    let silent = output.code.is_some_and(|code| code != 0) && text.trim().is_empty();
    assert!(!silent, "{} failed without a word", order.what);
    assert_ne!(output.code, Some(101), "{} panicked: {text}", order.what);
    Said { code: output.code, text }
}

/// Gives each order that failed again until it is done; what was said to be done must be so without that.
fn mend(world: &World, orders: &[Order], said: &[Said]) {
    for (order, said) in orders.iter().zip(said) {
        let told = said.code == Some(0);
        if order.settles {
            let settled = format!("{} has the outcome that it told ({:?})", order.what, said.code);
            world.until(&settled, |world| order::agrees(world, said.code));
            continue;
        }
        assert!(!(told && order.fails), "{} was said to be done:\n{}", order.what, said.text);
        if told {
            let lie = format!("{}, of which was said that it is done, holds:\n{}", order.what, said.text);
            world.until(&lie, |world| (order.holds)(world));
            continue;
        }
        let since = Instant::now();
        while !(order.holds)(world) {
            let again = (order.run)(world);
            if again.code == Some(0) || order.fails {
                world.until(&format!("{} holds after all", order.what), |world| (order.holds)(world));
                break;
            }
            let text = format!("{}{}", again.stdout, again.stderr);
            assert!(since.elapsed() < PATIENCE, "{} fails for ever: {text}{}", order.what, world.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
