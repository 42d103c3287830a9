//! The worker's side: taking over from the holder, serving the kernel, and asking the helper to mount.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use fuser::{BackgroundSession, INodeNo, Notifier};
use proto::TreeId;

use super::inherit::{Greeting, Inherited, Said, inherited_worker};
use super::message::{HelperClient, HelperError, HelperReply, PageRange, send};
use super::probe::ProbeReport;
use super::{DataPath, Layout, MountError, life, overlay, resume};
use crate::host::data::recorder::Recorder;
use crate::host::files::Doing;
use crate::host::fuse::{Adapter, ONE_PAGE_BYTES, RequestCounts, ServeOptions};
use crate::host::objects::Objects;
use crate::host::timeline::Timeline;
use crate::sync::lock;

/// A worker that has what its holder gave it.
#[derive(Debug)]
pub struct Worker {
    layout: Layout,
    device: Option<OwnedFd>,
    control: UnixStream,
    greeting: Greeting,
}

impl Worker {
    /// Takes over what the holder left open. Call it first in the hidden command `__worker`, before any thread starts.
    ///
    /// # Errors
    /// The process was not started by a holder.
    pub fn bootstrap(layout: Layout) -> Result<Self, MountError> {
        let Inherited { device, control, greeting } = inherited_worker()?;
        crate::net::allow_descriptors();
        Ok(Self { layout, device, control, greeting })
    }

    /// How many workers the holder has started before this one: 0 for the first.
    pub fn restarts(&self) -> u32 {
        self.greeting.restarts
    }

    /// Whether this host has FUSE; if not, why.
    pub fn fuse(&self) -> Result<(), &str> {
        self.greeting.fuse_fault.as_deref().map_or(Ok(()), Err)
    }

    /// The process whose user and mount namespaces hold the mounts, when they are not those of the host.
    pub fn namespace_pid(&self) -> Option<u32> {
        self.greeting.namespace_pid
    }

    /// Whether requests in flight survive the death of a worker (kernel 6.9).
    pub fn can_resend(&self) -> bool {
        resume::can_resend(&self.greeting.init)
    }

    /// Starts answering the kernel. `None` without FUSE. Dropping the server does not unmount.
    ///
    /// # Errors
    /// The connection cannot be taken over.
    pub fn serve(
        &self,
        objects: Arc<Objects>,
        timeline: Arc<Timeline>,
        options: ServeOptions,
    ) -> Result<Option<Server>, MountError> {
        let Some(device) = &self.device else { return Ok(None) };
        // Only root may change it later, so without root a fault never brings in more than its own page.
        let changes = self.namespace_pid().is_none();
        let read_ahead_bytes =
            if changes { options.read_ahead_bytes } else { options.read_ahead_bytes.min(ONE_PAGE_BYTES) };
        let options = ServeOptions { read_ahead_bytes };
        let counts = Arc::new(RequestCounts::default());
        let recorder = Arc::new(Recorder::default());
        let adapter = Adapter::new(objects.clone(), counts.clone(), (recorder.clone(), timeline), options);
        let pinned = self.greeting.answer.as_deref();
        let resumed = resume::serve(adapter, device.as_fd(), &self.greeting.init, pinned)
            .doing(|| "take over the FUSE connection".to_owned())?;
        if pinned.is_none() {
            // The holder saves the answer before it hands it to the kernel: a worker that dies in between is harmless.
            self.tell(&Said::Answer(resumed.answer))?;
        }
        let notifier = resumed.session.notifier();
        let read_ahead = ReadAhead::of(&self.layout.mountpoint, options.read_ahead_bytes);
        Ok(Some(Server { _session: resumed.session, notifier, counts, objects, read_ahead, recorder }))
    }

    /// Tells the holder that everything is served; the first time it says so to the operator and the service manager.
    pub fn ready(&self, line: &str) -> Result<(), MountError> {
        self.tell(&Said::Ready(line.to_owned()))
    }

    /// Answers the holder's questions whether this worker is alive, and ends the process when the holder has gone: nobody would
    /// restart this worker, and a new holder starts its own.
    pub fn end_with_holder(&self) -> Result<(), MountError> {
        let mut control = self.control.try_clone().doing(|| "copy the control socket".to_owned())?;
        let watch = move || {
            life::answer_until_end(&mut control, |control| send(control, &Said::Alive));
            std::process::exit(1);
        };
        let thread = std::thread::Builder::new().name("holder-watch".into()).stack_size(64 << 10);
        thread.spawn(watch).doing(|| "start a thread".to_owned())?;
        Ok(())
    }

    /// What mounts and unmounts generations, by way of the helper.
    pub fn mounts(&self) -> Mounts {
        let helper = HelperClient::new(self.layout.helper_socket());
        Mounts { layout: self.layout.clone(), helper, fuse: self.device.is_some() }
    }

    fn tell(&self, said: &Said) -> Result<(), MountError> {
        // One write, so what the thread that answers says does not come in between.
        let told = self.control.try_clone().and_then(|mut control| send(&mut control, said));
        Ok(told.doing(|| "tell the holder".to_owned())?)
    }
}

/// The running FUSE server.
pub struct Server {
    _session: BackgroundSession,
    notifier: Notifier,
    counts: Arc<RequestCounts>,
    objects: Arc<Objects>,
    read_ahead: Option<ReadAhead>,
    recorder: Arc<Recorder>,
}

impl Server {
    /// Notes what the kernel asks for, when it is switched on.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Lets the kernel read ahead as the operator wished, or hardly more than is asked for. Files that are open keep what
    /// they had.
    pub fn allow_read_ahead(&self, allowed: bool) {
        if let Some(read_ahead) = &self.read_ahead {
            read_ahead.allow(allowed);
        }
    }

    /// Requests by opcode. Never blocks.
    pub fn counts(&self) -> &Arc<RequestCounts> {
        &self.counts
    }

    /// Makes the kernel ask again for the listings that [`Objects::set_view`] has changed.
    ///
    /// Only whole directories are invalidated: that takes no lock which a request of this file system can hold. To
    /// invalidate an entry the kernel locks its directory, and a worker killed while it waits for that lock could never
    /// die. Entries need none of it: what is new was never remembered as absent, what is gone is forgotten in a second.
    pub fn invalidate_view(&self) {
        for ino in self.objects.changing_directories() {
            // ENOENT: the kernel does not know that directory.
            let _ = self.notifier.inval_inode(INodeNo(ino.number()), 0, 0);
        }
    }
}

/// The knob of the mount's read-ahead: `read_ahead_kb` of its backing device (Documentation/ABI/testing/sysfs-class-bdi).
struct ReadAhead {
    path: PathBuf,
    allowed_kib: u32,
    now: Mutex<Option<bool>>,
}

impl ReadAhead {
    /// `None` where it cannot be changed. The mount's device is looked up in the mount table: the mount itself is not touched.
    fn of(mountpoint: &Path, allowed_bytes: u32) -> Option<Self> {
        // A mount point anywhere may have any name.
        let table = String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo").ok()?).into_owned();
        let lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        // The last one lies over those before it.
        let line = lines.rev().find(|fields| fields.get(4).is_some_and(|at| Path::new(at) == mountpoint))?;
        let path = Path::new("/sys/class/bdi").join(line.get(2)?).join("read_ahead_kb");
        path.exists().then_some(Self { path, allowed_kib: allowed_bytes >> 10, now: Mutex::default() })
    }

    fn allow(&self, allowed: bool) {
        let mut now = lock(&self.now);
        if *now == Some(allowed) {
            return;
        }
        let kib = if allowed { self.allowed_kib } else { self.allowed_kib.min(ONE_PAGE_BYTES >> 10) };
        match std::fs::write(&self.path, kib.to_string()) {
            Ok(()) => *now = Some(allowed),
            Err(error) => tracing::debug!(%error, path = %self.path.display(), "read-ahead stays as it is"),
        }
    }
}

/// A generation that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Absolute path of the tree's root directory.
    pub path: PathBuf,
    /// How its bytes come.
    pub data_path: DataPath,
    /// Whether it was mounted before.
    pub already: bool,
    /// Making the metadata layer took so long, microseconds.
    pub meta_us: u64,
    /// Mounting took so long, microseconds.
    pub mount_us: u64,
}

/// Mounts and unmounts generations, by way of the helper. Blocks; call it from a thread.
#[derive(Debug, Clone)]
pub struct Mounts {
    layout: Layout,
    helper: HelperClient,
    fuse: bool,
}

impl Mounts {
    /// The helper, for what needs no decision.
    pub fn helper(&self) -> &HelperClient {
        &self.helper
    }

    /// What this host permits, and the data path that follows.
    pub fn probe(&self) -> Result<(DataPath, ProbeReport), HelperError> {
        let report = self.helper.probe()?;
        Ok((report.data_path(self.fuse), report))
    }

    /// Has the helper bring these pages of objects of a registered tree into the page cache. They must be here.
    ///
    /// # Errors
    /// The helper cannot be reached.
    pub(in crate::host) fn prefetch(&self, ranges: Vec<PageRange>) -> Result<(), HelperError> {
        self.helper.prefetch(ranges)
    }

    /// Whether a generation that was mounted at this path still is, by the mount table and without touching it. The view and
    /// plain copies are no mounts of their own.
    pub(in crate::host) fn is_still_mounted(&self, path: &Path) -> bool {
        let own = path.parent() == Some(&self.layout.generations());
        !own || overlay::mounts().is_ok_and(|mounts| mounts.iter().any(|line| line.target == path))
    }

    /// Has the helper compare the plain copy of a tree with its manifest, and make it anew where it differs.
    ///
    /// # Errors
    /// It differs and could not be made anew.
    pub(in crate::host) fn compare_copy(&self, tree: &TreeId) -> Result<(), HelperError> {
        self.helper.copy(tree).map(drop)
    }

    /// Makes a registered tree usable. `all_local` says that every object is local: then the generation is mounted
    /// without the FUSE layer and does not depend on the daemon at all. Where [`DataPath::needs_all_objects`], it must be.
    ///
    /// # Errors
    /// The helper failed, or the data path needs what is not there.
    pub fn mount_generation(
        &self,
        tree: &TreeId,
        objects: &Objects,
        all_local: bool,
    ) -> Result<Mounted, HelperError> {
        let (data_path, report) = self.probe()?;
        if data_path.needs_all_objects() && !all_local {
            let text = format!("{data_path}: every object of {tree} must be local first");
            return Err(HelperError::Failed { errno: libc::EAGAIN, text });
        }
        self.hand_over_manifest(tree, objects)?;
        let reply = match data_path {
            DataPath::Overlay | DataPath::OverlayLocal => self.helper.mount(tree, !all_local)?,
            DataPath::Copy => self.helper.copy(tree)?,
            DataPath::View => return self.view(tree, objects, &report),
        };
        match reply {
            HelperReply::Mounted { path, already, meta_us, mount_us, .. } => {
                let data_path =
                    if all_local && data_path == DataPath::Overlay { DataPath::OverlayLocal } else { data_path };
                Ok(Mounted { path: path.into(), data_path, already, meta_us, mount_us })
            }
            _ => Err(HelperError::Protocol),
        }
    }

    /// The helper reads the manifest in the cache. Where that is full or read-only it is left beside the sockets.
    fn hand_over_manifest(&self, tree: &TreeId, objects: &Objects) -> Result<(), HelperError> {
        let spare = self.layout.spare_manifest(tree);
        if self.layout.manifest(tree).exists() || spare.exists() {
            return Ok(());
        }
        let failed =
            |text: String| HelperError::Failed { errno: libc::EIO, text: format!("manifest of {tree}: {text}") };
        let deadline = Instant::now() + objects.fetcher().read_deadline();
        let loaded = objects.load(tree, deadline).map_err(|error| failed(error.to_string()))?;
        let (bytes, _) = loaded.manifest().encode().map_err(|fault| failed(fault.to_string()))?;
        let written = std::fs::create_dir_all(self.layout.run.join("manifests"))
            .and_then(|()| std::fs::write(spare.with_extension("new"), bytes))
            .and_then(|()| std::fs::rename(spare.with_extension("new"), &spare));
        written.map_err(|error| failed(format!("{}: {error}", spare.display())))
    }

    fn view(&self, tree: &TreeId, objects: &Objects, report: &ProbeReport) -> Result<Mounted, HelperError> {
        let relative = objects.view_path(tree).ok_or_else(|| HelperError::Failed {
            errno: libc::ENOENT,
            text: format!(
                "tree {tree} is not in the browsing view, and overlay mounts are not permitted here ({})",
                report.overlay_fault.as_deref().unwrap_or_default()
            ),
        })?;
        let path = self.layout.mountpoint.join(relative);
        Ok(Mounted { path, data_path: DataPath::View, already: true, meta_us: 0, mount_us: 0 })
    }
}
