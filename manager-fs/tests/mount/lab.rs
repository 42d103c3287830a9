//! A mount daemon in small: real holder, worker and helper processes around an upstream that reads a directory.
//!
//! The holder starts this very test binary again, with the role in the environment. Faults of the upstream are files
//! that a test makes while the daemon runs: `offline`, `lie`, `slow`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use manager_fs::host::cache::{Cache, CacheOptions, Look};
use manager_fs::host::fetch::{FetchOptions, Fetcher, HydrateOptions, TreeRef, Upstream, UpstreamError, Urgency};
use manager_fs::host::fuse::ServeOptions;
use manager_fs::host::mount::{
    HelperOptions, HoldOptions, Layout, Mounts, NamespaceChoice, Server, Worker, hold, serve_helper,
};
use manager_fs::host::objects::{Objects, ObjectsOptions, ViewEntry};
use manager_fs::manager::monitor::Quiet;
use manager_fs::manager::publish::{PublishOptions, publish};
use manager_fs::manager::store::Store;
use proto::bulk::{ChunkHead, Encoding};
use proto::id::ChunkId;
use proto::message::{ChunkRange, numbered};
use proto::{Manifest, TreeId};

use crate::tree::make_tree;

/// Whether daemons make images of metadata, where the kernel can.
pub(crate) static IMAGES: AtomicBool = AtomicBool::new(true);

pub(crate) fn images() -> bool {
    IMAGES.load(Ordering::Relaxed)
}

/// Published trees as plain files: manifests and chunks by id.
pub(crate) struct Origin {
    dir: PathBuf,
}

impl Origin {
    pub(crate) fn at(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("manifests")).unwrap();
        fs::create_dir_all(dir.join("chunks")).unwrap();
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn publish(&self, source: &Path) -> TreeId {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let published = publish(&store, source, &PublishOptions::default(), &Quiet, &AtomicBool::new(false)).unwrap();
        let bytes = store.manifest(&published.tree).unwrap().unwrap();
        let manifest = Manifest::decode(&bytes, &published.tree).unwrap();
        for chunk in manifest.objects.iter().flat_map(|object| &object.chunks) {
            let path = self.chunk_path(chunk);
            if !path.exists() {
                let stored = store.chunk(chunk).unwrap().unwrap();
                fs::write(&path, [&[stored.encoding.code()], stored.bytes.as_slice()].concat()).unwrap();
            }
        }
        fs::write(self.manifest_path(&published.tree), bytes).unwrap();
        published.tree
    }

    pub(crate) fn manifest(&self, tree: &TreeId) -> Manifest {
        Manifest::decode(&fs::read(self.manifest_path(tree)).unwrap(), tree).unwrap()
    }

    fn manifest_path(&self, tree: &TreeId) -> PathBuf {
        self.dir.join("manifests").join(tree.to_hex())
    }

    fn chunk_path(&self, chunk: &ChunkId) -> PathBuf {
        self.dir.join("chunks").join(chunk.to_hex())
    }

    fn flag(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(name)).ok()
    }

    fn gate(&self) -> Result<(), UpstreamError> {
        if let Some(ms) = self.flag("slow").and_then(|text| text.trim().parse().ok()) {
            std::thread::sleep(Duration::from_millis(ms));
        }
        match self.flag("offline") {
            Some(_) => Err(UpstreamError::Unavailable("the lab is offline".into())),
            None => Ok(()),
        }
    }
}

impl Upstream for Origin {
    fn manifest(&self, tree: &TreeId, _deadline: Instant) -> Result<Vec<u8>, UpstreamError> {
        self.gate()?;
        fs::read(self.manifest_path(tree)).map_err(|_| UpstreamError::NotExported(tree.to_string()))
    }

    fn chunks(
        &self,
        tree: &TreeId,
        wants: &[ChunkRange],
        _urgency: Urgency,
        _deadline: Instant,
        sink: &mut dyn FnMut(ChunkHead, Vec<u8>),
    ) -> Result<(), UpstreamError> {
        let manifest = self.manifest(tree);
        for (sequence, object, index) in numbered(wants) {
            self.gate()?;
            let object = manifest.object(&object).unwrap();
            let mut stored = fs::read(self.chunk_path(&object.chunks[index as usize])).unwrap();
            let encoding = Encoding::from_code(stored.remove(0)).unwrap();
            if self.flag("lie").is_some() {
                let middle = stored.len() / 2;
                stored[middle] ^= 1;
            }
            let plain_bytes = object.chunk_len(index, manifest.chunk_bytes).unwrap();
            sink(ChunkHead { sequence, encoding, plain_bytes }, stored);
        }
        Ok(())
    }
}

/// Runs one test of this binary as the root of a user and a mount namespace of its own; what may be missing is said.
pub(crate) fn in_a_namespace(test: &str) -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(std::env::current_exe().unwrap()).arg(test);
    command.stdout(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            println!("in a user namespace: {status}; where user namespaces are not allowed, run the tests as root");
            false
        }
        Err(error) => {
            println!("unshare (util-linux): {error}");
            false
        }
    }
}

/// Whether files can be given to any user here: by root, outside of user namespaces that map few.
pub(crate) fn all_users_exist() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().last() == Some("4294967295")
}

/// Nobody but the mounter may read `path`: tried as another user or, where there is only one, without capabilities on
/// a file that its owner may not read either.
pub(crate) fn assert_closed_to_others(path: &Path) {
    let who: &[&str] = if all_users_exist() {
        &["--reuid=65534", "--regid=65534", "--clear-groups"]
    } else {
        &["--bounding-set=-all", "--inh-caps=-all"]
    };
    let cat = Command::new("setpriv").args(who).arg("cat").arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&cat.stderr);
    assert!(!cat.status.success() && said.contains("ermission denied"), "{}: {cat:?}", path.display());
}

/// Drops the page cache of every file below `root`, so that its next reads ask the file system again.
pub(crate) fn forget_pages(root: &Path) {
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => forget_pages(&entry.path()),
            kind if kind.is_file() => forget(&entry.path()),
            _ => {}
        }
    }
}

/// Drops the page cache of one file.
pub(crate) fn forget(file: &Path) {
    let file = fs::File::open(file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// One host directory with a running daemon.
pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) origin: Origin,
    holder: Option<Child>,
}

impl Lab {
    /// Directories only.
    pub(crate) fn new(dir: &Path) -> Self {
        if !images() {
            fs::write(dir.join("no-images"), b"").unwrap();
        }
        Self { dir: dir.to_owned(), origin: Origin::at(&dir.join("origin")), holder: None }
    }

    /// With the sample tree at `source`, published; nothing is mounted yet.
    pub(crate) fn with_tree(dir: &Path) -> (Self, PathBuf, TreeId) {
        let source = dir.join("source");
        make_tree(&source);
        let lab = Self::new(dir);
        let tree = lab.origin.publish(&source);
        (lab, source, tree)
    }

    /// `role` is `hold` or `hold-namespace`.
    pub(crate) fn start(&mut self, role: &str) {
        self.start_by(self.command(role));
    }

    /// Starts as a user without rights. Everything below the directory is given to it first.
    pub(crate) fn start_unprivileged(&mut self, role: &str) {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65_534;
        if !rustix::process::geteuid().is_root() {
            return self.start(role);
        }
        let owned = Command::new("chown").arg("-R").arg(NOBODY.to_string()).arg(&self.dir).status().unwrap();
        assert!(owned.success());
        let mut command = self.command(role);
        // The build directory may be closed to others; the binary is executed from a copy.
        let copy = self.dir.join("test-binary");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let mut by_nobody = Command::new(copy);
        for (name, value) in command.get_envs() {
            by_nobody.env(name, value.unwrap_or_default());
        }
        command = by_nobody;
        command.stdout(Stdio::null()).uid(NOBODY).gid(NOBODY);
        self.start_by(command);
    }

    fn start_by(&mut self, mut command: Command) {
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let child = self.holder.insert(child);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready =
            lines.by_ref().map_while(Result::ok).inspect(|line| eprintln!("{line}")).any(|line| line == "lab ready");
        assert!(ready, "the daemon ended before it was ready");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    }

    pub(crate) fn command(&self, role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("LAB_ROLE", role).env("LAB_DIR", &self.dir).stdout(Stdio::null());
        command
    }

    pub(crate) fn holder_pid(&self) -> u32 {
        self.holder.as_ref().unwrap().id()
    }

    pub(crate) fn layout(&self) -> Layout {
        layout(&self.dir)
    }

    /// Ends the holder as a crash would.
    pub(crate) fn kill_holder(&mut self) {
        let mut holder = self.holder.take().unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
    }

    /// A command to the worker; asked again while there is none.
    pub(crate) fn ask(&self, line: &str) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.ask_once(line) {
                Ok(answer) if !answer.is_empty() => return answer,
                result => assert!(Instant::now() < until, "{line}: {result:?}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask_once(&self, line: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("run/lab.sock"))?;
        writeln!(stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    pub(crate) fn attach(&self, tree: &TreeId) -> PathBuf {
        let answer = self.ask(&format!("attach {tree}"));
        PathBuf::from(answer.strip_prefix("ok ").unwrap_or_else(|| panic!("attach: {answer}")))
    }

    pub(crate) fn counts(&self) -> u64 {
        self.ask("counts").parse().unwrap()
    }

    pub(crate) fn worker_pid(&self) -> i32 {
        self.ask("pid").parse().unwrap()
    }

    pub(crate) fn kill_worker(&self) {
        let pid = rustix::process::Pid::from_raw(self.worker_pid()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }

    /// Without a look at the processes themselves: one that waits for the mount would make the looker wait too.
    pub(crate) fn kill_helper(&self) {
        self.signal_helper(rustix::process::Signal::KILL);
    }

    pub(crate) fn signal_helper(&self, signal: rustix::process::Signal) {
        let holder = self.holder_pid();
        let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).unwrap();
        let worker = self.worker_pid();
        let helper = children.split_whitespace().map(|pid| pid.parse().unwrap()).find(|pid| *pid != worker);
        if let Some(pid) = helper.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    pub(crate) fn set(&self, flag: &str, text: Option<&str>) {
        let path = self.dir.join("origin").join(flag);
        match text {
            Some(text) => fs::write(path, text).unwrap(),
            None => {
                let _ = fs::remove_file(path);
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut holder) = self.holder.take() else { return };
        let pid = rustix::process::Pid::from_raw(holder.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let status = holder.wait().unwrap();
        assert!(status.success() || std::thread::panicking(), "holder: {status}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn layout(dir: &Path) -> Layout {
    Layout { run: dir.join("run"), cache: dir.join("cache"), mountpoint: dir.join("run/mnt") }
}

/// What a re-started test binary does; returns at once in the one that runs the tests. No thread may run yet.
pub(crate) fn process() {
    let Ok(role) = std::env::var("LAB_ROLE") else { return };
    let dir = PathBuf::from(std::env::var("LAB_DIR").unwrap());
    let result = match role.as_str() {
        "worker" => worker(&dir),
        "helper" => {
            let meta_bytes_max =
                fs::read_to_string(dir.join("meta-bytes")).map_or(64 << 20, |text| text.parse().unwrap());
            let images = !dir.join("no-images").exists();
            serve_helper(HelperOptions { layout: layout(&dir), meta_bytes_max, images }).map_err(Into::into)
        }
        // By hand: LAB_ROLE=publish LAB_SOURCE=DIR, then LAB_ROLE=hold, then lines to run/lab.sock.
        "publish" => {
            println!("{}", Origin::at(&dir.join("origin")).publish(Path::new(&std::env::var("LAB_SOURCE").unwrap())));
            Ok(())
        }
        "hold" => hold_in(&dir, NamespaceChoice::Own),
        "hold-namespace" => hold_in(&dir, NamespaceChoice::New),
        other => panic!("{other}"),
    };
    if let Err(error) = result {
        eprintln!("{role}: {error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn hold_in(dir: &Path, namespace: NamespaceChoice) -> anyhow::Result<()> {
    // Roles travel in the arguments' place: a wrapper sets the variable and executes this binary.
    let role = |role: &str| {
        let exe = std::env::current_exe().unwrap();
        let script = format!("LAB_ROLE={role} exec '{}'", exe.display());
        vec!["-c".into(), script.into()]
    };
    hold(&HoldOptions {
        layout: layout(dir),
        program: "/bin/sh".into(),
        worker_args: role("worker"),
        helper_args: role("helper"),
        namespace,
        state: None,
        fuse_device: if dir.join("no-fuse").exists() { "/dev/there-is-no-fuse".into() } else { "/dev/fuse".into() },
    })
    .map_err(Into::into)
}

struct Serving {
    objects: Arc<Objects>,
    mounts: Mounts,
    server: Option<Server>,
}

fn worker(dir: &Path) -> anyhow::Result<()> {
    let layout = layout(dir);
    let worker = Worker::bootstrap(layout.clone())?;
    let quota = fs::read_to_string(dir.join("quota")).ok().map(|text| text.parse().unwrap());
    let cache = Cache::open(&layout.cache, CacheOptions { quota_bytes: quota, epoch: "lab".into() })?;
    let deadline = fs::read_to_string(dir.join("deadline")).map_or(30_000, |text| text.parse().unwrap());
    let options = FetchOptions { read_deadline: Duration::from_millis(deadline), ..FetchOptions::default() };
    let fetcher = Fetcher::new(Arc::new(Origin::at(&dir.join("origin"))), cache, options);
    let keep_owners = worker.namespace_pid().is_none();
    let objects = Objects::open(fetcher, ObjectsOptions { numbers_path: layout.numbers(), keep_owners });
    let read_ahead_bytes = if dir.join("a-page").exists() { 4096 } else { 128 << 10 };
    let server = worker.serve(objects.clone(), Arc::default(), ServeOptions { read_ahead_bytes })?;
    worker.end_with_holder()?;
    let socket = layout.run.join("lab.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    worker.ready("lab ready")?;
    let serving = Arc::new(Serving { objects, mounts: worker.mounts(), server });
    for stream in listener.incoming() {
        let serving = serving.clone();
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = serving.answer(&words).unwrap_or_else(|error| format!("error {error:#}"));
            let _ = writeln!(stream, "{answer}");
        });
    }
    Ok(())
}

impl Serving {
    fn answer(&self, words: &[&str]) -> anyhow::Result<String> {
        let far = Instant::now() + Duration::from_secs(60);
        Ok(match words {
            ["pid"] => std::process::id().to_string(),
            ["verify", tree] => {
                let tree: TreeId = tree.parse()?;
                let loaded = self.objects.load(&tree, far)?;
                let cancel = AtomicBool::new(false);
                let report = {
                    let manifest = loaded.manifest();
                    let of = TreeRef { id: &tree, manifest };
                    self.objects.fetcher().verify_local(of, &manifest.objects, Look::Changed, &cancel)
                };
                format!("{} {}", report.checked, report.wrong.len())
            }
            ["a-page"] => {
                self.server.iter().for_each(|server| server.allow_read_ahead(false));
                "ok".into()
            }
            ["counts"] => self.server.as_ref().map_or(0, |server| server.counts().total()).to_string(),
            ["opcodes"] => format!("{:?}", self.server.as_ref().map(|server| server.counts().snapshot())),
            ["fetched"] => self.objects.fetcher().counts().plain_bytes.to_string(),
            ["usage"] => format!("{:?}", self.objects.fetcher().cache().usage()),
            ["probe"] => format!("{:?}", self.mounts.probe()?),
            ["rss"] => fs::read_to_string("/proc/self/status")?
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .map_or(String::new(), |text| text.trim().trim_end_matches(" kB").to_owned()),
            ["meta"] => format!("{:?}", self.mounts.helper().meta_usage()?),
            ["attach", tree] => {
                let tree: TreeId = tree.parse()?;
                let loaded = self.objects.register(&tree, far)?;
                let cache = self.objects.fetcher().cache();
                cache.pin(tree, loaded.manifest());
                let all_local = loaded.manifest().objects.iter().all(|object| cache.is_local(object));
                let mounted = self.mounts.mount_generation(&tree, &self.objects, all_local)?;
                eprintln!("{mounted:?}");
                format!("ok {}", mounted.path.display())
            }
            ["hydrate", tree] => {
                let tree: TreeId = tree.parse()?;
                let loaded = self.objects.register(&tree, far)?;
                let cancel = AtomicBool::new(false);
                let options = HydrateOptions::default();
                self.objects.fetcher().make_local(&tree, loaded.manifest(), options, &cancel, &mut |_| {})?;
                "ok".into()
            }
            ["release", tree] => {
                let tree: TreeId = tree.parse()?;
                self.mounts.helper().unmount(&tree)?;
                self.objects.unregister(&tree);
                self.objects.fetcher().cache().unpin(&tree);
                "ok".into()
            }
            ["view", entries @ ..] => {
                let entry = |words: &[&str]| ViewEntry {
                    product: words[0].parse().unwrap(),
                    version: words[1].parse().unwrap(),
                    tree: words[2].parse().unwrap(),
                };
                let entries: Vec<ViewEntry> = entries.chunks(3).map(entry).collect();
                if self.objects.set_view(&entries)?
                    && let Some(server) = &self.server
                {
                    server.invalidate_view();
                }
                "ok".into()
            }
            _ => anyhow::bail!("what? {words:?}"),
        })
    }
}
