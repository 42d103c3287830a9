//! `verify --host`: every object of this host's cache is hashed, however it looks. What is wrong is removed, so that it is
//! never used, and fetched again at once if that is wanted; otherwise when something reads it, or in the background.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::ObjectId;
use proto::daemon::{CacheReport, DaemonReply, StageProgress};
use proto::limits::WRONG_OBJECTS_MAX;
use proto::manifest::Object;
use proto::message::Fault;
use proto::width;
use tokio::sync::watch;

use super::daemon::Daemon;
use crate::host::blocking;
use crate::host::cache::Look;
use crate::host::fetch::{TreeRef, Wanted};
use crate::host::objects::Tree;
use crate::net::Answer;

/// Progress is told this often: a client that hears nothing gives up.
const PROGRESS: Duration = Duration::from_millis(500);
/// How long one chunk that is fetched again may take.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);

/// Checks the cache; events before the answer carry [`StageProgress`], of bytes hashed. Stops when the client goes away.
pub(super) async fn check(daemon: &Arc<Daemon>, repair: bool, answer: &Answer) -> Result<DaemonReply, Fault> {
    let cancel = Arc::new(AtomicBool::new(false));
    let (told, progress) = watch::channel(StageProgress { local_bytes: 0, object_bytes: 0 });
    let (whole, flag) = (Arc::clone(daemon), Arc::clone(&cancel));
    let work = blocking(move || Ok(Check { daemon: &whole, cancel: &flag, told: &told }.run(repair)));
    tokio::pin!(work);
    loop {
        tokio::select! {
            report = &mut work => return report.map(DaemonReply::Checked),
            () = answer.cancelled() => {
                cancel.store(true, Ordering::Relaxed);
                return Err(Fault::Refused("the client no longer wants the check".to_owned()));
            }
            () = tokio::time::sleep(PROGRESS) => {}
        }
        let now = *progress.borrow();
        if answer.event(&now).await.is_err() {
            cancel.store(true, Ordering::Relaxed);
        }
    }
}

struct Check<'d> {
    daemon: &'d Daemon,
    cancel: &'d AtomicBool,
    told: &'d watch::Sender<StageProgress>,
}

impl Check<'_> {
    fn run(&self, repair: bool) -> CacheReport {
        let objects = self.daemon.data.objects();
        let (mut report, mut seen) = (CacheReport::default(), BTreeSet::new());
        // Those of damaged manifests are found when these are fetched again.
        let trees: Vec<_> = self.daemon.records.trees().iter().filter_map(|tree| objects.load_kept(tree)).collect();
        let total: u64 = trees.iter().map(|tree| objects.fetcher().cache().local_bytes(tree.manifest())).sum();
        for tree in &trees {
            let of = TreeRef { id: tree.id(), manifest: tree.manifest() };
            for object in tree.manifest().objects.iter().filter(|object| seen.insert(object.id)) {
                if self.cancel.load(Ordering::Relaxed) {
                    return report;
                }
                let found = objects.fetcher().verify_local(of, [object], Look::All, self.cancel);
                report.objects += found.checked;
                report.bytes += found.checked_bytes;
                for wrong in found.wrong {
                    let again = repair && self.fetch(tree, object);
                    note(&mut report, wrong, again);
                }
                self.told.send_replace(StageProgress { local_bytes: report.bytes, object_bytes: total });
            }
        }
        // What is attached is made whole in the background.
        self.daemon.generations.changed();
        report
    }

    /// Fetches an object, chunk by chunk; whether all of it came.
    fn fetch(&self, tree: &Tree, object: &Object) -> bool {
        let (manifest, fetcher) = (tree.manifest(), self.daemon.data.objects().fetcher());
        let wanted = Wanted::of(tree.id(), manifest, object);
        (0..width::count(object.chunks.len())).all(|index| {
            let offset = u64::from(index) * u64::from(manifest.chunk_bytes);
            let read = fetcher.read(wanted, offset, manifest.chunk_bytes, self.daemon.clock().now() + FETCH_DEADLINE);
            if let Err(error) = &read {
                tracing::warn!(object = %object.id, %error, "an object that was wrong cannot be fetched again now");
            }
            read.is_ok()
        })
    }
}

fn note(report: &mut CacheReport, object: ObjectId, again: bool) {
    report.wrong += 1;
    report.fetched += u64::from(again);
    if !again && report.missing.len() < WRONG_OBJECTS_MAX {
        report.missing.push(object);
    }
}
