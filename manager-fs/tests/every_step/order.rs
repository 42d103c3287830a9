//! What an operator does in a cell: orders, each with what it promises when it says that it was done.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::command::Output;
use tests::{Host, TreeFixture};

use crate::unit::{Unit, signal};
use crate::world::{HOST, PRODUCT, World, generation};

type Run = Box<dyn Fn(&World) -> Output>;
type Holds = Box<dyn Fn(&World) -> bool>;

pub(crate) struct Order {
    pub(crate) what: String,
    pub(crate) run: Run,
    /// Whether what it is for is so.
    pub(crate) holds: Holds,
    /// The right answer is a failure, after which all is as it was.
    pub(crate) fails: bool,
    /// It waits for a job, which may fail with its disk; what counts is that the command says what the record says.
    pub(crate) settles: bool,
}

impl Order {
    fn new(
        what: impl Into<String>,
        run: impl Fn(&World) -> Output + 'static,
        holds: impl Fn(&World) -> bool + 'static,
    ) -> Self {
        Self { what: what.into(), run: Box::new(run), holds: Box::new(holds), fails: false, settles: false }
    }

    fn admin(args: &[&str], holds: impl Fn(&World) -> bool + 'static) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let what = args.join(" ");
        Self::new(what, move |world| world.admin(&args.iter().map(String::as_str).collect::<Vec<_>>()), holds)
    }
}

fn publish(world: &mut World, tree: TreeFixture) -> (String, Vec<Order>) {
    world.published += 1;
    let version = world.published.to_string();
    let (told, source) = (version.clone(), tree.path().to_string_lossy().into_owned());
    // The tree lives as long as somebody may publish it.
    let run = move |world: &World| {
        let _ = &tree;
        world.admin(&["publish", PRODUCT, &told, &source])
    };
    let listed = version.clone();
    let published = Order::new(format!("publish {version}"), run, move |world| world.is_published(&listed));
    let exported = {
        let version = version.clone();
        move |world: &World| {
            let output = world.admin(&["show", &generation(&version), "--json"]);
            output.code == Some(0) && output.stdout.contains(&format!("\"{HOST}\""))
        }
    };
    let export = Order::admin(&["export", &generation(&version), "--to", HOST], exported);
    (version, vec![published, export])
}

/// A job of so many units, which somebody waits for.
fn job(units: usize) -> Vec<Order> {
    let run = move |world: &World| {
        let repository = world.path("repository").to_string_lossy().into_owned();
        let mut args = vec!["job", "backup", "--host", HOST, "--repository", &repository, "--detach"];
        let sources: Vec<String> = (0..units).map(|n| format!("/{n}")).collect();
        args.extend(sources.iter().map(String::as_str));
        let output = world.admin(&args);
        if output.code == Some(0) {
            fs::write(world.path("job"), output.stdout.trim()).unwrap();
        }
        output
    };
    let shown = |world: &World| world.admin(&["job", "show", &number(world), "--json"]);
    let known = move |world: &World| world.path("job").exists() && shown(world).code == Some(0);
    let wait = |world: &World| world.admin(&["job", "wait", &number(world), "--json"]);
    let wait = Order { settles: true, ..Order::new("job wait", wait, |_| true) };
    vec![Order::new("job backup", run, known), wait]
}

/// Whether the job's record says what a command that waited for it told by its exit code; a command that could not wait
/// (the manager was away) has told nothing.
pub(crate) fn agrees(world: &World, code: Option<i32>) -> bool {
    match &*state(world) {
        "done" => true,
        "failed" | "cancelled" => code != Some(0),
        _ => false,
    }
}

fn number(world: &World) -> String {
    fs::read_to_string(world.path("job")).unwrap_or_default()
}

fn state(world: &World) -> String {
    let output = world.admin(&["job", "show", &number(world), "--json"]);
    let document: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    document["state"].as_str().unwrap_or_default().to_owned()
}

fn upgrade(version: &str) -> Order {
    let (number, generation) = (version.parse().unwrap(), generation(version));
    let args = ["upgrade", PRODUCT, &generation, "--to", HOST, "--json", "--retry-bad"];
    Order::admin(&args, move |world| world.serves(number))
}

/// A change-over with a job under way.
pub(crate) fn change(world: &mut World) -> Vec<Order> {
    let tree = world.tree(&world.good().each_ref().map(String::as_str));
    let (version, mut orders) = publish(world, tree);
    let [job, wait] = <[Order; 2]>::try_from(job(60)).ok().unwrap();
    orders.extend([job, upgrade(&version), wait]);
    world.version = version.parse().unwrap();
    orders
}

/// A change-over to a version that cannot be had or does not come up, which is refused or goes back.
pub(crate) fn bad_change(world: &mut World, tree: TreeFixture, hide: bool) -> Vec<Order> {
    let now = world.version;
    let (version, mut orders) = publish(world, tree);
    let order = upgrade(&version);
    let packs = move |world: &World, to: bool| {
        let (store, away) = (world.manager.store().join("packs"), world.path("packs"));
        let (from, to) = if to { (store, away) } else { (away, store) };
        if from.exists() && hide {
            fs::rename(from, to).unwrap();
        }
    };
    let run = move |world: &World| {
        packs(world, true);
        let output = (order.run)(world);
        packs(world, false);
        output
    };
    let failing = Order::new(order.what.clone(), run, move |world| world.serves(now));
    orders.push(Order { fails: true, ..failing });
    orders
}

/// A start is recorded, which makes a start-up bundle.
pub(crate) fn learn(world: &mut World) -> Vec<Order> {
    let mut orders = change(world);
    let name = generation(world.version);
    let run = move |world: &World| world.local(&["profile", &name, "--for", "5s", "--", "bin/hello"]);
    orders.push(Order::new("profile", run, |world| world.local(&["status"]).code == Some(0)));
    orders
}

/// The agent that runs ends at every start, and the order for another version comes to the stub.
pub(crate) fn ordered(world: &mut World) -> Vec<Order> {
    let now = world.version;
    let tree = world.tree(&world.good().each_ref().map(String::as_str));
    let (version, mut orders) = publish(world, tree);
    let run = move |world: &World| {
        world.set_bad(now, true);
        let pid = world.agent().and_then(|agent| agent["pid"].as_i64()).unwrap_or_default();
        signal(i32::try_from(pid).unwrap_or_default(), Signal::KILL);
        // An order that comes before the host knows that waits for an agent that ends, and ends with it.
        world.until("the host knows that its agent does not run", |world| {
            let status = world.local(&["status", "--json"]).stdout;
            let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
            status["agents"][0]["state"] == "stopped"
        });
        Output { line: String::from("kill"), code: Some(0), stdout: String::new(), stderr: String::new() }
    };
    orders.push(Order::new("the agent ends", run, |_| true));
    let Order { what, run: ordered, holds, .. } = upgrade(&version);
    let again = move |world: &World| {
        // Between two starts there is an agent for a moment, which takes the order and ends with it.
        let mut output = ordered(world);
        for _ in 0..20 {
            if output.code == Some(0) || world.faults.struck().is_some() {
                break;
            }
            output = ordered(world);
        }
        output
    };
    orders.push(Order::new(what, again, holds));
    world.version = version.parse().unwrap();
    orders
}

/// The manager has ended, and its control state is damaged.
pub(crate) fn recover(world: &mut World) -> Vec<Order> {
    let store = world.manager.store();
    // Whoever reads what was just written need not wait for the next decision.
    let copied = || fs::metadata(store.join("control.backup")).and_then(|facts| facts.modified()).ok();
    let before = copied();
    world.serve.as_ref().unwrap().restart();
    world.until("what was decided is copied", |_| copied().is_some_and(|at| Some(at) != before));
    assert_eq!(world.serve.take().and_then(Unit::end), Some(0), "the manager ends in good order");
    let control = store.join("control.redb");
    let length = fs::metadata(&control).unwrap().len();
    fs::File::options().write(true).open(&control).unwrap().set_len(length / 2).unwrap();
    let whole = |world: &World| world.admin(&["recover"]).stderr.contains("there is nothing to recover");
    vec![Order::admin(&["recover"], whole)]
}

/// What the manager knows is copied while it serves, and put back into a directory of its own.
pub(crate) fn backup(world: &mut World) -> Vec<Order> {
    world.published += 1;
    let file = world.manager.path(&format!("backup-{}", world.published));
    let back = world.manager.path(&format!("restored-{}", world.published));
    let (file_text, back_text) = (file.display().to_string(), back.display().to_string());
    let made = Order::admin(&["store", "backup", "--packs", &file_text], move |_| file.exists());
    let line = ["store", "restore", &file_text, "--store", &back_text];
    let restored = Order::admin(&line, move |_| back.join("format").exists());
    let saved = world.manager.path(&format!("saved-{}", world.published));
    let line = ["save", &generation(world.version), &saved.display().to_string()];
    vec![made, restored, Order::admin(&line, move |_| saved.exists())]
}

/// A job that is cancelled.
pub(crate) fn cancel() -> Vec<Order> {
    let [start, wait] = <[Order; 2]>::try_from(job(1_000)).ok().unwrap();
    let run = move |world: &World| {
        // On a busy machine it may be done before it is told to stop, or stop before that is written; then another one is.
        for _ in 0..10 {
            let ordered = (start.run)(world);
            if ordered.code != Some(0) {
                return ordered;
            }
            // Until the agent has it: the moment is the agent's.
            world.until("the job runs", |world| ["running", "cancelled", "done", "failed"].contains(&&*state(world)));
            let cancelled = world.admin(&["job", "cancel", &number(world)]);
            let now = state(world);
            if now != "done" && (now != "cancelled" || world.faults.struck().is_some()) {
                return cancelled;
            }
        }
        panic!("no job is slow enough to be cancelled");
    };
    let over = |world: &World| ["cancelled", "done", "failed"].contains(&&*state(world));
    vec![Order::new("job cancel", run, over), wait]
}

/// A host is enrolled.
pub(crate) fn enrol(world: &World) -> Vec<Order> {
    let name = format!("more-{}", fs::read_dir(world.dir.path()).unwrap().count());
    // A directory that counts.
    fs::create_dir(world.path(&name)).unwrap();
    let host = Host::with_faults(&name, &world.faults);
    let (known, token): (_, PathBuf) = (name.clone(), host.path("token"));
    let run = move |world: &World| {
        let made = world.admin(&["token", &host.name]);
        if made.code != Some(0) {
            return made;
        }
        fs::write(&token, made.stdout.trim()).unwrap();
        let mut command =
            host.command(&["enroll", "--manager", &world.proxy.address(), "--token-file", &token.to_string_lossy()]);
        Output::of(&mut command)
    };
    let listed = move |world: &World| world.admin(&["hosts", "--json"]).stdout.contains(&known);
    vec![Order::new("enroll", run, listed)]
}

/// A host is put into a group.
pub(crate) fn group(world: &World) -> Vec<Order> {
    let name = format!("group-{}", world.published);
    let listed = name.clone();
    let holds = move |world: &World| world.admin(&["hosts", "--json"]).stdout.contains(&listed);
    vec![Order::admin(&["host", "group", "add", &name, HOST], holds)]
}

/// The generation before the one that runs is taken back, and what it needed is freed.
pub(crate) fn collect(world: &mut World) -> Vec<Order> {
    let old = generation(world.version);
    let number = world.version.to_string();
    let mut orders = change(world);
    let gone = {
        let old = old.clone();
        move |world: &World| !world.admin(&["show", &old, "--json"]).stdout.contains(&format!("\"{HOST}\""))
    };
    orders.push(Order::admin(&["unexport", &old, "--from", HOST, "--force"], gone));
    orders.push(Order::admin(&["unpublish", &old], move |world| !world.is_published(&number)));
    // What is being made or sent at this very moment stays until the next collection.
    let collect = |world: &World| {
        let since = Instant::now();
        loop {
            let output = world.admin(&["gc"]);
            if output.code != Some(0) || world.faults.struck().is_some() || since.elapsed() > Duration::from_secs(10)
            {
                return output;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    orders.push(Order::new("gc", collect, |_| true));
    orders
}

/// The mount daemon ends in good order and is started again.
pub(crate) fn remount() -> Vec<Order> {
    let run = |world: &World| world.local(&["unmount"]);
    vec![Order::new("unmount", run, |world| world.local(&["status"]).code == Some(0))]
}

/// The stub ends in good order and is started again; its agent is another process then.
pub(crate) fn relaunch(world: &World) -> Vec<Order> {
    let run = |world: &World| {
        let stub = world.launch.as_ref().unwrap();
        let before = stub.pid();
        stub.restart();
        world.until("the stub is another one", |_| stub.pid() != before);
        Output { line: String::from("launch"), code: Some(0), stdout: String::new(), stderr: String::new() }
    };
    // A version that cannot be started gives way to the last good one, and comes back by an order.
    let launch = Order::new("launch", run, |world| world.agent().is_some_and(|agent| agent["state"] == "serving"));
    vec![launch, upgrade(&world.version.to_string())]
}

/// A generation that nobody runs is attached and released by hand.
pub(crate) fn attach(world: &mut World) -> Vec<Order> {
    let tree = world.tree(&[]);
    let (version, mut orders) = publish(world, tree);
    let (name, again) = (generation(&version), generation(&version));
    let answers = |world: &World| world.local(&["status"]).code == Some(0);
    orders.push(Order::new("attach", move |world| world.local(&["attach", &name]), answers));
    orders.push(Order::new("release", move |world| world.local(&["release", &again]), answers));
    orders
}
