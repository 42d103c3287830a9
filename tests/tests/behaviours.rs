//! One table of what an agent does, asked of a program in each language and of an unchanged one. `docs/embedding.md` shows
//! it; every cell that says yes is what a program in that language was seen to do here.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::{program, until};
use tests::languages::{CInterface, PythonPackage};
use tests::load::under_load;
use tests::repository::root;
use tests::{Output, Site, TreeFixture};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Rust,
    C,
    Python,
    /// A program that knows nothing of agents, by its adapter.
    Unchanged,
}

use Language::{C, Python, Rust, Unchanged};

/// What an agent does, and how that is seen. It begins and ends with version `1` serving.
struct Behaviour {
    /// As the document says it.
    name: &'static str,
    see: fn(&mut Lab),
    /// Why an unchanged program has no part in it.
    not_unchanged: Option<&'static str>,
}

const fn all(name: &'static str, see: fn(&mut Lab)) -> Behaviour {
    Behaviour { name, see, not_unchanged: None }
}

const fn own(name: &'static str, not_unchanged: &'static str, see: fn(&mut Lab)) -> Behaviour {
    Behaviour { name, see, not_unchanged: Some(not_unchanged) }
}

const NO_NAMES: &str = "what crosses is what it listens on";
const NO_STATE: &str = "it saves none";
const NOT_DRAINED: &str = "it serves on beside its successor";
const NO_CALLBACKS: &str = "it has no callbacks";
const NO_KINDS: &str = "it performs none, and the job says so";

static TABLE: &[Behaviour] = &[
    all("starts for the first time, and is believed", |lab| {
        lab.serves("1");
        assert_eq!(lab.site.agent_on_host()["state"], "serving");
    }),
    all("takes what it listens on from a service manager (`LISTEN_FDS`)", sockets_come_from_outside),
    all("goes to another version under load: nobody is refused or cut", |lab| {
        let pid = lab.site.agent_on_host()["pid"].clone();
        lab.publish("loaded", &[]);
        lab.upgrade_under_load("loaded", 0);
        assert_eq!(lab.site.agent_on_host()["pid"], pid, "the process is the same");
        lab.back();
    }),
    all("goes back under load to the version before", |lab| {
        lab.to("later", &[]);
        lab.upgrade_under_load("1", 0);
        lab.serves("1");
    }),
    all("stays where it is when the new version cannot be executed", |lab| {
        let pid = lab.site.agent_on_host()["pid"].clone();
        lab.publish_script("unexecutable", "#!/no/such/interpreter\n");
        lab.upgrade_under_load("unexecutable", 1);
        assert_eq!(lab.site.agent_on_host()["pid"] == pid, lab.language != Unchanged);
    }),
    all("comes back when the new version crashes at its start", |lab| {
        lab.publish_script("crashes", "#!/bin/sh\necho no luck >&2\nexit 7\n");
        lab.upgrade_under_load("crashes", 1);
        lab.site.log_says(&["no luck"]);
    }),
    all("comes back when the new version does not prove itself in time", |lab| {
        lab.publish_script("hangs", "#!/bin/sh\nexec sleep 1000\n");
        lab.upgrade("hangs", 1);
    }),
    all("comes back when the new version is not healthy", |lab| {
        lab.publish("sick", &["--sick"]);
        let said = lab.upgrade("sick", 1);
        assert!(lab.language == Unchanged || said.contains("did not confirm"), "{said}");
    }),
    own("keeps a descriptor under a name, forwards and backwards", NO_NAMES, |lab| {
        lab.to("names", &[]);
        assert_eq!(lab.count("names took extra once"), 1);
        let before = lab.count("1 took extra once");
        lab.back();
        assert_eq!(lab.count("1 took extra once"), before + 1);
    }),
    own("keeps a name that the new version does not know for the way back", NO_NAMES, |lab| {
        lab.to("ignorant", &["--without-extra"]);
        assert_eq!(lab.count("ignorant took extra once"), 0);
        let before = lab.count("1 took extra once");
        lab.back();
        assert_eq!(lab.count("1 took extra once"), before + 1);
    }),
    own("gives a descriptor as often as it is taken", NO_NAMES, |lab| {
        lab.to("greedy", &[]);
        assert_eq!((lab.count("greedy took extra once"), lab.count("greedy took extra twice")), (1, 1));
        lab.back();
    }),
    own("hands its state over", NO_STATE, |lab| {
        let before = lab.answered();
        lab.to("heir", &[]);
        assert_eq!((lab.answered(), lab.count("heir restore_state")), (before + 1, 1));
        lab.back();
        assert_eq!(lab.answered(), before + 2);
    }),
    own("hands over a state of any size, as a memory file", NO_STATE, |lab| {
        let before = lab.answered();
        let large = ["--large", "64"];
        lab.to("large", &large);
        lab.to("larger", &large);
        assert_eq!((lab.count("large restore_state_from"), lab.count("large save_state_to")), (1, 1));
        // What it saved is its own again, where the next one fails.
        lab.publish_script("heirless-too", "#!/bin/sh\nexit 7\n");
        lab.upgrade("heirless-too", 1);
        assert_eq!((lab.answered(), lab.count("larger restore_state_from")), (before + 1, 2));
        lab.back();
        assert_eq!(lab.answered(), before + 2);
        lab.to("fails-at-large", &["--large", "1", "--fails", "save_state_to"]);
        let said = lab.upgrade("1", 1);
        assert!(said.contains("told to fail"), "{said}");
        lab.serves("fails-at-large");
        lab.fresh();
    }),
    own("comes back when the new version refuses the state", NO_STATE, |lab| {
        lab.publish("refuses", &["--fails", "restore_state"]);
        lab.upgrade_under_load("refuses", 1);
        assert_eq!(lab.count("refuses restore_state"), 1);
    }),
    all("refuses a version that does not read its state before anything is drained", |lab| {
        let drained = lab.count("1 quiesce");
        lab.publish_with("stranger", &[], "state_schemas = [5, 6]\n");
        let said = lab.upgrade("stranger", 1);
        assert!(said.contains("schema"), "{said}");
        assert_eq!(lab.count("1 quiesce"), drained);
    }),
    own("has its state back when the next version fails", NO_STATE, |lab| {
        let before = lab.answered();
        lab.publish_script("heirless", "#!/bin/sh\nexit 7\n");
        lab.upgrade("heirless", 1);
        assert_eq!(lab.answered(), before + 1);
    }),
    own("is quiesced at every drain", NOT_DRAINED, |lab| {
        let before = lab.count("1 quiesce");
        lab.to("quiesced", &[]);
        lab.back();
        assert_eq!((lab.count("1 quiesce"), lab.count("quiesced quiesce")), (before + 1, 1));
    }),
    own("is resumed after every change-over that did not come about", NOT_DRAINED, |lab| {
        let before = lab.count("1 resume");
        lab.publish_script("unexecutable-too", "#!/no/such/interpreter\n");
        lab.upgrade("unexecutable-too", 1);
        lab.until("1 resume", before + 1);
    }),
    own("goes on when a callback panics, raises or says no", NO_CALLBACKS, |lab| {
        lab.to("raises", &["--fails", "save_state"]);
        let said = lab.upgrade("1", 1);
        assert!(said.contains("told to fail"), "{said}");
        lab.serves("raises");
        lab.until("raises resume", 1);
        lab.fresh();
    }),
    own("goes on when a callback never comes back", NO_CALLBACKS, |lab| {
        lab.to("blocks", &["--blocks", "save_state"]);
        let said = lab.upgrade("1", 1);
        assert!(said.contains("has not come back within 5s"), "{said}");
        lab.serves("blocks");
        lab.fresh();
    }),
    own("is told when it is believed", NO_CALLBACKS, |lab| {
        lab.to("believed", &[]);
        lab.until("believed confirmed", 1);
        lab.back();
    }),
    own("performs an operation of its own kind", NO_KINDS, |lab| {
        let said = lab.job(&["--arg", "units=3"]).expect(0).stdout;
        assert!(said.contains("units: 3"), "{said}");
        let refused = lab.job(&["--arg", "unit=3"]).expect(1);
        assert!(format!("{refused:?}").contains("takes no argument 'unit'"), "{refused:?}");
    }),
    own("ends an operation that is cancelled", NO_KINDS, |lab| {
        let job = lab.job(&["--arg", "units=1000", "--arg", "pause_ms=20", "--detach"]).expect(0).text();
        let shown = || lab.site.manager.run(&["job", "show", &job, "--json"]).expect(0).json();
        until("it counts", || shown()["progress"]["units_done"].as_u64().filter(|done| *done > 0));
        lab.site.manager.run(&["job", "cancel", &job]).expect(0);
        let end = lab.site.manager.run(&["job", "wait", &job, "--json"]).expect(1).json_lines().pop().unwrap();
        assert_eq!(end["state"], "cancelled", "{end}");
    }),
    all("is started again with what it listens on when it is killed", |lab| {
        lab.kill();
        lab.serves("1");
    }),
    all("ends in good order on SIGTERM", |lab| {
        let (ended, version) = (lab.count("1 ended"), lab.site.agent_on_host()["version"].clone());
        assert_eq!((version, lab.site.stop()), ("1".into(), Some(0)));
        assert_eq!(lab.count("1 ended"), ended + usize::from(lab.language != Unchanged));
        assert!(lab.site.ask().is_err(), "nobody listens any more");
        lab.launch();
    }),
];

/// The descriptors of a service manager: a listener of the test's on the same address, which nobody else can bind then.
fn sockets_come_from_outside(lab: &mut Lab) {
    assert_eq!(lab.site.stop(), Some(0));
    let listener = TcpListener::bind(lab.site.address).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let launch = lab.site.host.command(&["launch", lab.site.product]);
    let mut shell = Command::new("bash");
    let activate = format!("exec 3<&{}; LISTEN_PID=$$ exec \"$0\" \"$@\"", listener.as_raw_fd());
    shell.arg("-c").arg(activate).arg(launch.get_program()).args(launch.get_args());
    shell.envs(launch.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "http");
    lab.launch_by(shell);
    assert_eq!(lab.site.stop(), Some(0));
    drop(listener);
    lab.launch();
}

/// A program of one language on a host.
struct Lab {
    language: Language,
    site: Site,
    /// What all versions have.
    tree: TreeFixture,
}

impl Lab {
    fn running(language: Language) -> Self {
        let site = Site::new("conduct");
        let tree = tree(language, &site.manager.path(""));
        let mut lab = Self { language, site, tree };
        lab.publish("1", &[]);
        lab.launch();
        lab.site.serves("1");
        lab
    }

    fn notes(&self) -> PathBuf {
        self.site.host.path("notes")
    }

    fn count(&self, line: &str) -> usize {
        fs::read_to_string(self.notes()).unwrap_or_default().lines().filter(|found| *found == line).count()
    }

    #[track_caller]
    fn until(&self, line: &str, times: usize) {
        until(&format!("'{line}' was noted {times} times"), || (self.count(line) == times).then_some(()));
    }

    fn publish(&self, version: &str, flags: &[&str]) {
        self.publish_with(version, flags, "");
    }

    fn publish_with(&self, version: &str, flags: &[&str], more: &str) {
        let notes = self.notes().display().to_string();
        let address = self.site.address.to_string();
        let arguments = match self.language {
            Unchanged if flags == ["--sick"] => vec![version, "--status", "503"],
            Unchanged => vec![version],
            _ => [&[address.as_str(), &notes, version], flags].concat(),
        };
        self.publish_entry(version, "bin/service", &arguments, more);
    }

    /// A version that is this script instead.
    fn publish_script(&self, version: &str, script: &str) {
        self.tree.file("bin/other", 0o755, script);
        self.publish_entry(version, "bin/other", &[], "");
    }

    fn publish_entry(&self, version: &str, entry: &str, arguments: &[&str], more: &str) {
        // Long enough for a start on a busy machine; half of it passes at every change-over.
        let probation = if matches!(self.language, Rust | C) { "3s" } else { "5s" };
        let head = format!("entrypoint = {entry:?}\narguments = {arguments:?}\nprobation = '{probation}'\n{more}");
        let adapter = format!(
            "[health]\nhttp = 'http://{0}/'\ninterval = '100ms'\n\
             [adapter]\nhandover = 'sockets'\nlisten = [{{ name = 'http', tcp = '{0}' }}]\n",
            self.site.address
        );
        let adapter = if self.language == Unchanged { &adapter } else { "" };
        self.tree.file("manager-fs.toml", 0o644, format!("{head}{adapter}"));
        self.tree.file("VERSION", 0o644, version);
        self.site.publish(version, self.tree.path());
    }

    /// Waits until this version is believed.
    #[track_caller]
    fn is(&self, version: &str) {
        until(&format!("{version} is believed"), || {
            let agent = self.site.agent_on_host();
            (agent["version"] == version && agent["state"] == "serving").then_some(())
        });
    }

    /// As [`Lab::is`], and it answers.
    #[track_caller]
    fn serves(&self, version: &str) {
        self.is(version);
        until(&format!("{version} answers"), || {
            let answer = self.site.ask().ok()?;
            (answer.split(' ').nth(1) == Some(version)).then_some(())
        });
    }

    /// How many were answered before this one.
    #[track_caller]
    fn answered(&self) -> u64 {
        let answer = self.site.ask().unwrap();
        answer.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Orders a version; returns what was said. After a failure version `1` serves again, or whatever did.
    #[track_caller]
    fn upgrade(&self, version: &str, code: i32) -> String {
        let serving = self.site.agent_on_host()["version"].as_str().unwrap().to_owned();
        let output = self.site.upgrade(version).expect(code);
        self.is(if code == 0 { version } else { &serving });
        format!("{}{}", output.stdout, output.stderr)
    }

    #[track_caller]
    fn upgrade_under_load(&self, version: &str, code: i32) -> String {
        let (seen, said) = under_load(2, || self.site.ask(), || self.upgrade(version, code));
        assert_eq!(seen.lost(), 0, "{version}: {seen:?}");
        assert!(seen.of("200 ") > 0);
        said
    }

    /// Publishes a version and goes there.
    #[track_caller]
    fn to(&self, version: &str, flags: &[&str]) {
        self.publish(version, flags);
        self.upgrade(version, 0);
    }

    #[track_caller]
    fn back(&self) {
        self.upgrade("1", 0);
    }

    /// Kills the program, and waits until it is there again.
    #[track_caller]
    fn kill(&self) {
        let pid = self.site.agent_on_host()["pid"].clone();
        let number = rustix::process::Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
        until("it is there again", || {
            let agent = self.site.agent_on_host();
            (agent["pid"] != pid && agent["state"] == "serving").then_some(())
        });
    }

    /// Where the child is shown, as long as it is there, that this version has noted.
    #[track_caller]
    fn child(&self, version: &str) -> PathBuf {
        let noted = format!("{version} child ");
        until("a child was noted", || {
            let notes = fs::read_to_string(self.notes()).unwrap_or_default();
            notes.lines().find_map(|line| Some(Path::new("/proc").join(line.strip_prefix(&noted)?)))
        })
    }

    /// From a version that cannot be left: what was saved of `1` is what starts next.
    #[track_caller]
    fn fresh(&mut self) {
        self.site.stub().kill();
        until("the agent has ended with its stub", || self.site.ask().is_err().then_some(()));
        self.site.stop();
        self.site.host.run(&["rescue", self.site.product, "--to", &format!("{}@1", self.site.product)]).expect(0);
        self.launch();
    }

    #[track_caller]
    fn launch(&mut self) {
        self.launch_by(self.site.host.command(&["launch", self.site.product]));
    }

    /// Starts version `1` again.
    #[track_caller]
    fn launch_by(&mut self, command: Command) {
        self.site.host.launch_by(self.site.product, command);
        self.serves("1");
    }

    fn job(&self, more: &[&str]) -> Output {
        self.site.job("count", more)
    }
}

/// What all versions of the program have.
fn tree(language: Language, dir: &Path) -> TreeFixture {
    let tree = TreeFixture::new();
    match language {
        Rust => drop(tree.file("bin/service", 0o755, fs::read(program("examples/conduct")).unwrap())),
        C => CInterface::install(dir).program(&root().join("agent-core/c/tests/conduct.c"), tree.path()),
        Python => {
            let package = PythonPackage::install(dir);
            let interpreter = package.interpreter().display().to_string();
            package.service(tree.path(), &interpreter, &root().join("agent-core/python/tests/conduct.py"));
        }
        Unchanged => drop(tree.file("bin/service", 0o755, fs::read(program("examples/plain_server")).unwrap())),
    }
    tree
}

fn behaves(language: Language) {
    let mut lab = Lab::running(language);
    let only = std::env::var("BEHAVIOUR").unwrap_or_default();
    for behaviour in TABLE.iter().filter(|behaviour| behaviour.name.contains(&only)) {
        if language == Unchanged && behaviour.not_unchanged.is_some() {
            continue;
        }
        println!("{language:?}: {}", behaviour.name);
        (behaviour.see)(&mut lab);
        assert_eq!(lab.site.agent_on_host()["version"], "1", "after '{}'", behaviour.name);
    }
    if language == Unchanged {
        let refused = format!("{:?}", lab.job(&[]).expect(1));
        assert!(refused.contains("performs no count; its program brings no operations of its own"), "{refused}");
    }
}

#[test]
fn a_program_in_rust_behaves() {
    behaves(Rust);
}

#[test]
fn a_program_in_c_behaves() {
    behaves(C);
}

#[test]
fn a_program_in_python_behaves() {
    behaves(Python);
}

#[test]
fn an_unchanged_program_behaves() {
    behaves(Unchanged);
}

/// Whether this process is there, and not only waits for somebody to ask how it ended.
fn lives(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// What no program should do, and one in C or Python can (Rust has no `fork` but in `unsafe`).
fn embeds_badly(language: Language) {
    let mut lab = Lab::running(language);
    // A child by fork, which never executes anything and keeps all that was open, what is listened on among it.
    lab.to("forks", &["--forks", "start"]);
    let child = lab.child("forks");
    lab.upgrade_under_load("1", 0);
    assert!(lives(&child), "it is no child of the program any more, and harms nobody");
    lab.kill();
    until("it is ended with the program", || (!lives(&child)).then_some(()));
    lab.serves("1");
    // The same where nobody is left to end it: it holds the product's lock.
    lab.to("forks-too", &["--forks", "start"]);
    let child = lab.child("forks-too");
    lab.site.stub().kill();
    lab.site.stop();
    lab.site.host.launch_by(lab.site.product, lab.site.host.command(&["launch", lab.site.product]));
    lab.serves("forks-too");
    until("whoever starts next is rid of it", || (!lives(&child)).then_some(()));
    lab.back();
    // A callback whose child goes on where its parent does, and one whose child ends as a program does.
    for callback in ["quiesce", "save_state"] {
        let version = format!("forks-in-{callback}");
        lab.to(&version, &["--forks", callback]);
        lab.upgrade_under_load("1", 0);
        lab.serves("1");
    }
    lab.to("maps", &["--large", "1", "--maps"]);
    let said = lab.upgrade("1", 1);
    assert!(said.contains("still mapped for writing"), "{said}");
    lab.serves("maps");
}

#[test]
fn a_program_in_c_may_fork_and_map_what_it_should_not() {
    embeds_badly(C);
}

#[test]
fn a_program_in_python_may_fork_and_map_what_it_should_not() {
    embeds_badly(Python);
}

#[test]
fn the_document_shows_the_table() {
    let mut table = String::from("| the agent | Rust | C | Python | unchanged |\n|---|---|---|---|---|\n");
    for behaviour in TABLE {
        let unchanged = behaviour.not_unchanged.unwrap_or("yes");
        table.push_str(&format!("| {} | yes | yes | yes | {unchanged} |\n", behaviour.name));
    }
    let page = fs::read_to_string(root().join("docs/embedding.md")).unwrap();
    assert!(page.contains(&format!("\n{table}\n")), "docs/embedding.md shows another table than this:\n{table}");
}
