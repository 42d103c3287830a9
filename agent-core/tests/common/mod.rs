//! A host without its mount daemon: plain directories as trees, a thread that answers as the daemon would, and the real
//! stub and agents as processes.

// Each test binary uses its part; panicking is how a test reports.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use agent_core::AgentPaths;
use agent_core::internal::control::{Client, ControlError, read_frame, write_frame};
use agent_core::internal::journal::Journal;
use agent_core::internal::sys::socket;
use ed25519_dalek::SigningKey;
use proto::agent::{
    AgentReply, AgentRequest, AgentState, AgentStatus, ChangeId, JobId, JobOrigin, Operation, Outcome, Progress,
    Repository, Step, StepEvent,
};
use proto::daemon::{Attached, DaemonReply, DaemonRequest, StageProgress};
use proto::frame::FrameKind;
use proto::message::Fault;
use proto::record::{HealthContract, SchemaRange};
use proto::{GenerationRecord, GenerationRef, Metadata, Publishers, SignedRecord, TreeId, TreePath};
use tests::Faults;

/// Nothing here takes longer unless it is broken; what is waited for is awaited, so a long bound costs nothing.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Of versions that are good. A version confirms after half of its probation, so that is what each change-over takes, and
/// the other half is what a busy machine may keep it waiting.
pub const PROBATION_MS: u64 = 2_000;

/// Held while a program is written and while a child is forked.
static FORK: Mutex<()> = Mutex::new(());

pub struct Host {
    dir: tempfile::TempDir,
    pub paths: AgentPaths,
    key: SigningKey,
    pub daemon: Option<Daemon>,
    shared: Arc<Shared>,
    stub: Option<Stub>,
    changes: u64,
}

pub struct Stub {
    pub child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

/// What the mount daemon knows and was told.
#[derive(Default)]
pub struct Shared {
    state: Mutex<DaemonState>,
    news: Condvar,
    pub run: PathBuf,
}

#[derive(Default)]
struct DaemonState {
    newest: Option<Vec<u8>>,
    reports: Vec<StepEvent>,
    stage_fault: Option<Fault>,
    stage_held: bool,
    namespace_pid: Option<u32>,
    /// It takes questions and answers none, as one that was stopped.
    stopped: bool,
    /// Trees that cannot be given just now.
    absent: std::collections::BTreeSet<TreeId>,
    /// Records that the daemon knows by name.
    records: std::collections::BTreeMap<String, Vec<u8>>,
}

pub struct Daemon {
    listener: Arc<UnixListener>,
}

/// A version to publish.
pub struct Spec<'a> {
    pub version: &'a str,
    pub arguments: &'a [&'a str],
    pub schemas: SchemaRange,
    pub architecture: Option<&'a str>,
    pub probation_ms: u64,
}

impl<'a> Spec<'a> {
    pub fn new(version: &'a str, arguments: &'a [&'a str]) -> Self {
        let schemas = SchemaRange { min: 1, max: 1 };
        Self { version, arguments, schemas, architecture: None, probation_ms: 3000 }
    }
}

pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: `cargo build --examples` builds it", program.display());
    program
}

pub fn tree(version: &str) -> TreeId {
    TreeId::of(version.as_bytes())
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_bytes(&[42; 32]);
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let paths = AgentPaths::new(&state, &run, "tiny".parse().unwrap());
        std::fs::create_dir_all(state.join("identity")).unwrap();
        std::fs::create_dir_all(run.join("gens")).unwrap();
        let publishers = Publishers::from_keys(&[key.verifying_key().to_bytes()]).unwrap();
        std::fs::write(paths.publishers(), publishers.to_text()).unwrap();
        let shared = Arc::new(Shared { run, ..Shared::default() });
        let mut host = Self { dir, paths, key, daemon: None, shared, stub: None, changes: 0 };
        host.start_daemon();
        host
    }

    /// Makes a tree of the tiny agent, and returns its signed record.
    pub fn publish(&self, spec: &Spec<'_>) -> Vec<u8> {
        let root = self.paths.generation(&tree(spec.version));
        std::fs::create_dir_all(root.join("bin")).unwrap();
        if !root.join("bin/agent").exists() {
            self.place(&example("tiny_agent"), &root.join("bin/agent"));
        }
        self.sign(spec, tree(spec.version))
    }

    /// Copies a program to its place.
    pub fn place(&self, program: &Path, to: &Path) {
        // A child that another test forks meanwhile would hold the file open for writing: "text file busy".
        let _no_fork = FORK.lock().unwrap();
        std::fs::copy(program, to).unwrap();
    }

    pub fn program(&self, version: &str) -> PathBuf {
        self.paths.generation(&tree(version)).join("bin/agent")
    }

    pub fn sign(&self, spec: &Spec<'_>, tree: TreeId) -> Vec<u8> {
        let metadata = Metadata {
            entry_point: Some(TreePath::parse(b"bin/agent").unwrap()),
            arguments: spec.arguments.iter().map(|s| (*s).to_owned()).collect(),
            architecture: spec.architecture.map(str::to_owned),
            elf_files: vec![],
            scripts: vec![],
            entry_count: 3,
            file_count: 1,
            content_bytes: 1,
            object_bytes: 1,
            state_schemas: spec.schemas,
            drain_deadline_ms: 1000,
            health: HealthContract { probation_ms: spec.probation_ms, check: None },
            adapter: None,
        };
        let record = GenerationRecord {
            product: self.paths.product().clone(),
            version: spec.version.parse().unwrap(),
            sequence: 1,
            tree,
            manifest_bytes: 1,
            published_unix_ms: 1,
            metadata,
        };
        SignedRecord::sign(&record, &self.key).unwrap().to_bytes().unwrap()
    }

    pub fn start_daemon(&mut self) {
        let listener = Arc::new(socket::replace(&self.paths.daemon_socket()).unwrap());
        let (accepting, shared) = (listener.clone(), self.shared.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        self.daemon = Some(Daemon { listener });
    }

    /// As if the worker had been killed: nobody listens, and connections break.
    pub fn stop_daemon(&mut self) {
        std::fs::remove_file(self.paths.daemon_socket()).unwrap();
        let daemon = self.daemon.take().unwrap();
        rustix::net::shutdown(&*daemon.listener, rustix::net::Shutdown::Both).unwrap();
    }

    pub fn set_newest(&self, record: &[u8]) {
        self.shared.state.lock().unwrap().newest = Some(record.to_vec());
    }

    pub fn set_stage_fault(&self, fault: Option<Fault>) {
        self.shared.state.lock().unwrap().stage_fault = fault;
    }

    /// Staging does not come to its end while held.
    pub fn hold_staging(&self, held: bool) {
        self.shared.state.lock().unwrap().stage_held = held;
        self.shared.news.notify_all();
    }

    /// The paths of trees are valid only in this process's namespaces.
    pub fn set_namespace(&self, pid: u32) {
        self.shared.state.lock().unwrap().namespace_pid = Some(pid);
    }

    /// The daemon cannot give this tree while it is absent, as when its objects are not local and the manager is away.
    pub fn set_absent(&self, version: &str, absent: bool) {
        let mut state = self.shared.state.lock().unwrap();
        if absent {
            state.absent.insert(tree(version))
        } else {
            state.absent.remove(&tree(version))
        };
    }

    /// The daemon answers nobody while it is stopped.
    pub fn set_stopped(&self, stopped: bool) {
        self.shared.state.lock().unwrap().stopped = stopped;
        self.shared.news.notify_all();
    }

    /// The daemon gives this record to whoever asks for it by name.
    pub fn set_known(&self, version: &str, record: &[u8]) {
        self.shared.state.lock().unwrap().records.insert(version.to_owned(), record.to_vec());
    }

    /// From now on moments of stub and agent go as these lines say.
    pub fn set_faults(&self, lines: &str) {
        self.faults().set(lines);
    }

    pub fn faults(&self) -> Faults {
        Faults::new(&self.dir.path().join("faults"))
    }

    /// The stub's command line.
    pub fn stub_command(&self) -> Command {
        let mut command = Command::new(example("tiny_stub"));
        command.arg(self.paths.state()).arg(self.paths.run()).arg(self.paths.product().as_str());
        command.env(tests::faults::FILE, self.faults().file());
        command
    }

    /// Starts the stub.
    pub fn launch(&mut self) -> &mut Stub {
        let command = self.stub_command();
        self.launch_as(command)
    }

    /// Starts the stub by way of another program.
    pub fn launch_as(&mut self, mut command: Command) -> &mut Stub {
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = {
            let _no_writer = FORK.lock().unwrap();
            command.spawn().unwrap()
        };
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if std::env::var_os("SHOW_STUB").is_some() {
                    eprintln!("    | {line}");
                }
                lines.0.lock().unwrap().push(line);
                lines.1.notify_all();
            }
        });
        self.stub.insert(Stub { child, log })
    }

    /// A second stub beside the first one is refused.
    pub fn launch_refused(&mut self) {
        let first = self.stub.take().unwrap();
        let second = self.launch();
        second.wait_for("another `launch` of tiny runs here");
        assert_eq!(second.wait().code(), Some(1));
        self.stub = Some(first);
    }

    /// Publishes and starts a first version.
    pub fn with_first(spec: &Spec<'_>) -> Self {
        let mut host = Self::new();
        let record = host.publish(spec);
        host.set_newest(&record);
        host.launch().wait_for("stub: ready");
        host
    }

    pub fn stub(&mut self) -> &mut Stub {
        self.stub.as_mut().unwrap()
    }

    pub fn ask(&self, request: &AgentRequest) -> AgentReply {
        Client::ask(&self.paths.socket(), request, PATIENCE).unwrap()
    }

    /// The status; a connection that an exec cut is no answer, and one asks again.
    pub fn status(&self) -> AgentStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match Client::ask(&self.paths.socket(), &AgentRequest::Status, PATIENCE) {
                Ok(AgentReply::Status(status)) => return status,
                Ok(other) => panic!("{other:?}"),
                Err(e) => assert!(Instant::now() < until, "no status: {e}"),
            }
        }
    }

    pub fn wait_status(&self, what: &str, mut is: impl FnMut(&AgentStatus) -> bool) -> AgentStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < until, "never {what}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_serving(&self, version: &str) -> AgentStatus {
        self.wait_status(version, |s| s.version.as_str() == version && s.state == AgentState::Serving)
    }

    pub fn wait_serving_any(&self) -> AgentStatus {
        self.wait_status("serving", |s| s.state == AgentState::Serving)
    }

    /// What the stub says of its agent.
    pub fn stub_status(&self) -> AgentStatus {
        match Client::ask(&self.paths.stub_socket(), &AgentRequest::Status, PATIENCE).unwrap() {
            AgentReply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Processes that were started below this host's directories.
    pub fn processes(&self) -> usize {
        let below = self.paths.run().display().to_string();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter(|pid| {
            std::fs::read(pid.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&below))
        })
        .count()
    }

    /// Messages A, B and C, back to back on one connection. Returns the first refusal.
    pub fn tell(&mut self, record: &[u8], order: &Order) -> (ChangeId, Result<(), Fault>) {
        let (change, told) = self.try_tell(record, order);
        (change, told.unwrap())
    }

    /// As [`Host::tell`], to an agent that may die meanwhile.
    pub fn try_tell(&mut self, record: &[u8], order: &Order) -> (ChangeId, Result<Result<(), Fault>, ControlError>) {
        let socket = self.paths.socket();
        self.try_tell_at(&socket, record, order)
    }

    /// As [`Host::tell`], to the stub.
    pub fn tell_stub(&mut self, record: &[u8]) -> (ChangeId, Result<(), Fault>) {
        let socket = self.paths.stub_socket();
        let (change, told) = self.try_tell_at(&socket, record, &Order::default());
        (change, told.unwrap())
    }

    /// Messages A, B and C to whoever serves this socket.
    pub fn try_tell_at(
        &mut self,
        socket: &Path,
        record: &[u8],
        order: &Order,
    ) -> (ChangeId, Result<Result<(), Fault>, ControlError>) {
        self.changes += 1;
        let change = ChangeId(self.changes);
        let payload = SignedRecord::from_bytes(record).unwrap().payload;
        let record_tree = proto::codec::decode::<GenerationRecord, { 1 << 20 }>(&payload).unwrap().tree;
        let mut client = match Client::connect(socket) {
            Ok(client) => client,
            Err(e) => return (change, Err(e)),
        };
        let messages = [
            AgentRequest::SaveMetadata { change, record: record.to_vec() },
            AgentRequest::Attach {
                change,
                release: None,
                attach: record_tree,
                lazy: false,
                retry_bad: order.retry_bad,
            },
            AgentRequest::Finish { change, drain_deadline_ms: order.drain_ms },
        ];
        for message in &messages {
            match client.request(message, Some(PATIENCE), |_: ()| {}) {
                Ok(AgentReply::Done) => {}
                Ok(AgentReply::Fault(fault)) => return (change, Ok(Err(fault))),
                Ok(other) => panic!("{other:?}"),
                Err(e) => return (change, Err(e)),
            }
        }
        (change, Ok(Ok(())))
    }

    /// A whole change-over that is to succeed.
    pub fn upgrade(&mut self, record: &[u8]) -> ChangeId {
        // A version that is ready may still have to prove itself.
        self.wait_serving_any();
        let (change, told) = self.tell(record, &Order::default());
        told.unwrap();
        self.wait_step(change, Step::Confirmed);
        change
    }

    /// Waits for a report that ends this change-over.
    pub fn wait_end(&self, change: ChangeId) -> StepEvent {
        self.wait_report(&format!("the end of {change:?}"), |e| e.change == change && e.step.ends().is_some())
    }

    pub fn wait_step(&self, change: ChangeId, step: Step) -> StepEvent {
        self.wait_report(&format!("{step:?} of {change:?}"), |e| e.change == change && e.step == step)
    }

    pub fn wait_report(&self, what: &str, is: impl Fn(&StepEvent) -> bool) -> StepEvent {
        let state = self.shared.state.lock().unwrap();
        let missing = |s: &mut DaemonState| !s.reports.iter().any(&is);
        let (state, result) = self.shared.news.wait_timeout_while(state, PATIENCE, missing).unwrap();
        assert!(!result.timed_out(), "never reported: {what}; reported: {:#?}", state.reports);
        state.reports.iter().find(|e| is(e)).cloned().unwrap()
    }

    pub fn steps(&self, change: ChangeId) -> Vec<Step> {
        let state = self.shared.state.lock().unwrap();
        state.reports.iter().filter(|e| e.change == change).map(|e| e.step).collect()
    }

    pub fn backup(job: u64, units: usize) -> AgentRequest {
        let repository = Repository { path: "/nowhere".to_owned(), password_file: None };
        let sources = (0..units).map(|n| format!("/{n}")).collect();
        let origin = JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap());
        AgentRequest::Run { job: JobId(job), origin, operation: Operation::Backup { repository, sources } }
    }

    /// Runs or joins a job to its end, asking again over every change-over.
    pub fn finish(&self, run: &AgentRequest) -> (Outcome, Vec<Progress>) {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < until {
            let reply = Client::connect(&self.paths.socket())
                .and_then(|mut c| c.request(run, Some(PATIENCE), |progress: Progress| seen.push(progress)));
            match reply {
                Ok(AgentReply::Outcome(outcome)) => return (outcome, seen),
                Ok(AgentReply::Fault(Fault::Draining)) => std::thread::sleep(Duration::from_millis(5)),
                Ok(other) => panic!("{other:?}"),
                Err(e) if e.may_retry() => assert!(is_no_refusal(&e), "{e}"),
                Err(e) => panic!("{e}"),
            }
        }
        panic!("never finished; saw {seen:?}");
    }

    pub fn journal(&self) -> Journal {
        Journal::read(&self.paths.journal()).unwrap().unwrap()
    }

    pub fn journal_path(&self) -> PathBuf {
        self.paths.journal()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// SIGTERM to the stub, and its end.
    pub fn terminate(&mut self) -> ExitStatus {
        let stub = self.stub();
        let pid = rustix::process::Pid::from_child(&stub.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        stub.wait()
    }
}

/// What messages B and C say.
pub struct Order {
    pub drain_ms: u64,
    pub retry_bad: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self { drain_ms: 10_000, retry_bad: false }
    }
}

/// A connection that was made and cut is asked again; one that was refused must not happen.
pub fn is_no_refusal(error: &ControlError) -> bool {
    !matches!(error, ControlError::Unreachable { .. })
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut stub) = self.stub.take() {
            let pid = rustix::process::Pid::from_child(&stub.child);
            if let Ok(None) = stub.child.try_wait() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                stub.wait();
            }
        }
    }
}

impl Stub {
    /// Waits for a line of stderr that contains this.
    pub fn wait_for(&mut self, text: &str) -> String {
        let lines = self.log.0.lock().unwrap();
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|line| line.contains(text));
        let (lines, result) = self.log.1.wait_timeout_while(lines, PATIENCE, missing).unwrap();
        assert!(!result.timed_out(), "the stub never said {text:?}, but {lines:#?}");
        lines.iter().find(|line| line.contains(text)).cloned().unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the stub does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap().clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: UnixStream) {
        while let Ok(Some(frame)) = read_frame(&mut stream) {
            assert_eq!(frame.kind, FrameKind::Request);
            let request = proto::codec::decode::<DaemonRequest, { 1 << 20 }>(&frame.body).unwrap();
            let reply = self.answer(request, &stream, frame.request);
            if write_frame(&stream, FrameKind::Response, frame.request, &reply).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: DaemonRequest, stream: &UnixStream, number: u64) -> DaemonReply {
        drop(self.news.wait_while(self.state.lock().unwrap(), |state| state.stopped).unwrap());
        match request {
            DaemonRequest::Newest { product } => match &self.state.lock().unwrap().newest {
                Some(record) => DaemonReply::Record(record.clone()),
                None => DaemonReply::Fault(Fault::NotFound(format!("no generation of {product} is exported here"))),
            },
            DaemonRequest::Hold { generation: GenerationRef::TreePrefix(hex) } => {
                let namespace_pid = self.state.lock().unwrap().namespace_pid;
                self.attached(hex.parse().unwrap(), 0, namespace_pid)
            }
            DaemonRequest::HoldLocal { tree } => {
                let namespace_pid = self.state.lock().unwrap().namespace_pid;
                self.attached(tree, 0, namespace_pid)
            }
            DaemonRequest::Hold { generation: GenerationRef::Named(_, version) } => {
                let record = self.state.lock().unwrap().records.get(version.as_str()).cloned();
                match self.attached(tree(version.as_str()), 0, None) {
                    DaemonReply::Attached(attached) if record.is_some() => {
                        DaemonReply::Attached(Attached { record, ..attached })
                    }
                    _ => DaemonReply::Fault(Fault::NotFound(format!("{version} is not exported here"))),
                }
            }
            DaemonRequest::Stage { tree, .. } => {
                let progress = StageProgress { local_bytes: 1, object_bytes: 2 };
                drop(write_frame(stream, FrameKind::Event, number, &progress));
                let state = self.state.lock().unwrap();
                let fault = self.news.wait_while(state, |s| s.stage_held).unwrap().stage_fault.clone();
                match fault {
                    Some(fault) => DaemonReply::Fault(fault),
                    None => self.attached(tree, 7, None),
                }
            }
            DaemonRequest::Report { event } => {
                self.state.lock().unwrap().reports.push(event);
                self.news.notify_all();
                DaemonReply::Done
            }
            DaemonRequest::Changed { .. } => DaemonReply::Done,
            other => panic!("{other:?}"),
        }
    }

    fn attached(&self, tree: TreeId, warm_us: u64, namespace_pid: Option<u32>) -> DaemonReply {
        if self.state.lock().unwrap().absent.contains(&tree) {
            return DaemonReply::Fault(Fault::Unavailable("the manager is away".to_owned()));
        }
        let path = self.run.join("gens").join(tree.to_hex());
        if !path.is_dir() {
            return DaemonReply::Fault(Fault::NotFound(format!("tree {tree}")));
        }
        let path = path.to_str().unwrap().to_owned();
        DaemonReply::Attached(Attached { tree, path, namespace_pid, record: None, warm_us })
    }
}

/// Puts other bytes of the same length into a program.
pub fn patch(program: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let _no_fork = FORK.lock().unwrap();
    let mut bytes = std::fs::read(program).unwrap();
    let at: Vec<usize> = (0..bytes.len() - from.len()).filter(|i| bytes[*i..].starts_with(from)).collect();
    assert!(!at.is_empty(), "{} does not contain {from:?}", program.display());
    for at in at {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(program, bytes).unwrap();
}

pub fn script(program: &Path, text: &str) {
    let _no_fork = FORK.lock().unwrap();
    std::fs::write(program, text).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
}
