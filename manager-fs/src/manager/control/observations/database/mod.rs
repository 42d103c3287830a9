//! The observations of a manager on one machine: `redb`, one file, one sync for what came within some milliseconds.
//!
//! What hosts last said is in memory as well, so that nobody waits for the disk to read it; steps are read from the
//! file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::agent::{JobId, StepEvent};
use proto::{HostName, Product};
use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::sync::oneshot;

use super::super::contract::{ControlError, Pending};
use super::super::disk::{Disk, Opener, Readers, join, open_file, storage};
use super::{HostStatus, JobSeen, Noted, Observation, Observations, bounds};
use crate::moments::{self, Moment};
use crate::sync::{read, write};

mod tables;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_millis(20);
/// Observations of one batch, so that a flood is written in pieces.
const BATCH_MAX: usize = 20_000;

type Statuses = BTreeMap<HostName, Arc<HostStatus>>;

/// See the module. Dropping it waits for the batch under way.
pub struct LocalObservations {
    statuses: Arc<RwLock<Statuses>>,
    disk: Arc<Disk>,
    readers: Readers,
    orders: mpsc::Sender<Order>,
    writer: Option<JoinHandle<()>>,
}

/// The observations of a store, and what of them had to be given up.
pub struct Opened {
    /// The observations, possibly begun anew.
    pub observations: LocalObservations,
    /// What was lost, why, and where it lies now.
    pub set_aside: Option<String>,
}

enum Order {
    Note(Note),
    ForgetHost(HostName, oneshot::Sender<Result<(), ControlError>>),
}

struct Note {
    host: HostName,
    seen: Vec<Observation>,
    answer: oneshot::Sender<Result<Vec<Noted>, ControlError>>,
}

impl LocalObservations {
    /// Opens the file, or makes it. A file that cannot be read is set aside beside itself and a new one begun; where even
    /// that fails, observations are kept in memory: they never keep a manager from starting. Waits for the disk.
    ///
    /// # Errors
    /// Another process has it open, or there are no threads.
    pub fn open(path: &Path) -> Result<Opened, ControlError> {
        let opener = |path: PathBuf| -> Opener { Box::new(move || open_file(&path)) };
        let fault = match Self::open_with(opener(path.to_path_buf())) {
            Ok(observations) => return Ok(Opened { observations, set_aside: None }),
            Err(in_use @ ControlError::InUse { .. }) => return Err(in_use),
            Err(fault) => fault,
        };
        let unreadable = matches!(fault, ControlError::Broken { .. } | ControlError::Newer { .. });
        // What an error says of the decisions, and of how they come back, is not so of what hosts report.
        let fault = match fault {
            ControlError::Broken { reason, .. } => reason,
            ControlError::Newer { found, known } => format!("it is of format {found}; this program knows {known}"),
            other => other.to_string(),
        };
        if let Some(aside) = unreadable.then(|| set_aside(path)).flatten()
            && let Ok(observations) = Self::open_with(opener(path.to_path_buf()))
        {
            let text = format!("{} could not be read ({fault}) and lies in {}", path.display(), aside.display());
            return Ok(Opened { observations, set_aside: Some(text) });
        }
        let memory = || Database::builder().create_with_backend(InMemoryBackend::new()).map_err(storage);
        let observations = Self::open_with(Box::new(memory))?;
        let text = format!("{} cannot be used ({fault}); it is kept in memory instead", path.display());
        Ok(Opened { observations, set_aside: Some(text) })
    }

    pub(super) fn open_with(opener: Opener) -> Result<Self, ControlError> {
        let disk = Arc::new(Disk::open(opener)?);
        let statuses = Arc::new(RwLock::new(tables::begin(&disk)?));
        let mut writer = Writer { disk: Arc::clone(&disk), statuses: Arc::clone(&statuses) };
        let (orders, received) = mpsc::channel();
        let thread = std::thread::Builder::new().name(String::from("observe-write"));
        let thread = thread.spawn(move || writer.run(&received)).map_err(storage)?;
        let readers = Readers::start(&disk, "observe-read", 1)?;
        Ok(Self { statuses, disk, readers, orders, writer: Some(thread) })
    }

    /// Batches that were synced since it was opened.
    pub fn synced(&self) -> u64 {
        self.disk.synced()
    }

    /// Writes statuses, steps and progress as they stand, in one go: for what is brought over from an older store.
    /// Waits for the disk.
    pub(in crate::manager::control) fn fill(path: &Path, all: &Filling) -> Result<(), ControlError> {
        let path = path.to_path_buf();
        let disk = Disk::open(Box::new(move || open_file(&path)))?;
        tables::begin(&disk)?;
        disk.write(|transaction| tables::fill(transaction, all))
    }
}

/// All observations of a store.
#[derive(Default)]
pub(in crate::manager::control) struct Filling {
    pub(in crate::manager::control) statuses: Vec<(HostName, HostStatus)>,
    pub(in crate::manager::control) steps: Vec<(HostName, Vec<StepEvent>)>,
    pub(in crate::manager::control) progress: Vec<(JobId, JobSeen)>,
}

/// Renames a file that cannot be read; `None` if that fails, too.
fn set_aside(path: &Path) -> Option<PathBuf> {
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{moment}"));
    let aside = PathBuf::from(name);
    match fs::rename(path, &aside) {
        Ok(()) => Some(aside),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the damaged observations cannot be set aside");
            None
        }
    }
}

impl Drop for LocalObservations {
    fn drop(&mut self) {
        // The writing thread ends when nobody can order anything any more.
        self.orders = mpsc::channel().0;
        join(self.writer.take().into_iter());
    }
}

impl Observations for LocalObservations {
    fn note(&self, host: &HostName, mut seen: Vec<Observation>) -> Pending<'_, Vec<Noted>> {
        seen.iter_mut().for_each(bounds::bound);
        let (answer, answered) = oneshot::channel();
        // A writer that is gone drops the answer, which says the same.
        let _ = self.orders.send(Order::Note(Note { host: host.clone(), seen, answer }));
        Box::pin(async move { answered.await.map_err(|_| ControlError::Closed)? })
    }

    fn statuses(&self) -> Pending<'_, Statuses> {
        let all = read(&self.statuses).clone();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn status<'a>(&'a self, host: &'a HostName) -> Pending<'a, Arc<HostStatus>> {
        let found = read(&self.statuses).get(host).map(Arc::clone);
        Box::pin(std::future::ready(Ok(found.unwrap_or_default())))
    }

    fn steps<'a>(&'a self, host: &'a HostName, product: &'a Product) -> Pending<'a, Vec<StepEvent>> {
        let (host, product) = (host.clone(), product.clone());
        Box::pin(async move {
            let read = move |disk: &Disk| disk.read(|transaction| tables::steps(transaction, &host, &product));
            self.readers.run(read).await
        })
    }

    fn progress(&self, job: JobId) -> Pending<'_, Option<JobSeen>> {
        Box::pin(async move {
            let read = move |disk: &Disk| disk.read(|transaction| tables::progress(transaction, job));
            self.readers.run(read).await
        })
    }

    fn forget_host<'a>(&'a self, host: &'a HostName) -> Pending<'a, ()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.orders.send(Order::ForgetHost(host.clone(), answer));
        Box::pin(async move { answered.await.map_err(|_| ControlError::Closed)? })
    }
}

/// The one that changes anything.
struct Writer {
    disk: Arc<Disk>,
    /// As it is on disk; written here only, and never over an access to the disk.
    statuses: Arc<RwLock<Statuses>>,
}

impl Writer {
    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let (mut batch, mut size) = (Vec::new(), 0);
            let end = Instant::now() + GATHER;
            let mut next = Some(first);
            while let Some(order) = next {
                match order {
                    Order::Note(note) => {
                        size += note.seen.len();
                        batch.push(note);
                    }
                    Order::ForgetHost(host, answer) => {
                        self.write(std::mem::take(&mut batch));
                        let _ = answer.send(self.forget_host(&host));
                    }
                }
                let patience = end.saturating_duration_since(Instant::now());
                next = if size < BATCH_MAX { orders.recv_timeout(patience).ok() } else { None };
            }
            self.write(batch);
        }
    }

    /// One transaction for all notes.
    fn write(&mut self, batch: Vec<Note>) {
        if batch.is_empty() {
            return;
        }
        let (known, hosts) = {
            let statuses = read(&self.statuses);
            let of =
                |note: &Note| statuses.get(&note.host).map(|found| (note.host.clone(), HostStatus::clone(found)));
            (batch.iter().filter_map(of).collect::<HashMap<_, _>>(), statuses.len())
        };
        let mut changed = known;
        let written = self.disk.write(|transaction| {
            let room = bounds::steps_bytes(hosts);
            let noted =
                batch.iter().map(|note| tables::note(transaction, &note.host, &note.seen, &mut changed, room));
            let noted = noted.collect::<Result<Vec<_>, _>>()?;
            let worth = tables::put_statuses(transaction, &changed)?;
            moments::reach(Moment::ObservationCommit, Path::new("observations.redb")).map_err(storage)?;
            Ok((noted, worth))
        });
        if written.is_ok() {
            let mut statuses = write(&self.statuses);
            statuses.extend(changed.into_iter().map(|(host, status)| (host, Arc::new(status))));
        }
        let mut written = written.map(Vec::into_iter);
        for note in batch {
            let its = match &mut written {
                Ok(noted) => Ok(noted.next().unwrap_or_default()),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may be gone; what was written stays.
            let _ = note.answer.send(its);
        }
    }

    fn forget_host(&mut self, host: &HostName) -> Result<(), ControlError> {
        self.disk.write(|transaction| tables::forget_host(transaction, host))?;
        write(&self.statuses).remove(host);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(host: &str, times: usize) -> (Order, oneshot::Receiver<Result<Vec<Noted>, ControlError>>) {
        let (answer, answered) = oneshot::channel();
        let seen = vec![Observation::Seen { at: 1, software: None }; times];
        (Order::Note(Note { host: host.parse().unwrap(), seen, answer }), answered)
    }

    #[test]
    fn a_batch_takes_so_many_observations_and_leaves_the_others_to_the_next() {
        let memory = || Database::builder().create_with_backend(InMemoryBackend::new()).map_err(storage);
        let disk = Arc::new(Disk::open(Box::new(memory)).unwrap());
        let statuses = Arc::new(RwLock::new(tables::begin(&disk).unwrap()));
        let before = disk.synced();
        let (queue, orders) = mpsc::channel();
        let answers = [("a", BATCH_MAX - 1), ("b", 1), ("c", 1)].map(|(host, times)| {
            let (order, answered) = note(host, times);
            queue.send(order).unwrap();
            answered
        });
        drop(queue);
        Writer { disk: Arc::clone(&disk), statuses }.run(&orders);
        assert_eq!(disk.synced() - before, 2);
        let noted = answers.map(|answered| answered.blocking_recv().unwrap().unwrap().len());
        assert_eq!(noted, [BATCH_MAX - 1, 1, 1]);
    }

    #[tokio::test]
    async fn the_first_of_a_batch_waits_for_others() {
        let directory = tempfile::tempdir().unwrap();
        let opened = LocalObservations::open(&directory.path().join("observations.redb")).unwrap();
        let begun = Instant::now();
        let seen = vec![Observation::Seen { at: 1, software: None }];
        opened.observations.note(&"a".parse().unwrap(), seen).await.unwrap();
        assert!(begun.elapsed() >= GATHER);
    }
}
