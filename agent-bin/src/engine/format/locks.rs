//! restic's locks: files in the repository itself, so that whoever works on it, from whatever host and by whatever name
//! of its directory, waits for whoever must be alone, be it an agent, a person's restic, or none of ours.
//!
//! Adding and reading take a shared lock, removing an exclusive one. A lock is refreshed while it is held; one that was
//! not for half an hour belongs to nobody (restic's rule). Somebody who only died is recognised sooner where that is
//! certain: an agent on the same running kernel.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustic_core::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::meter::SharedMeter;
use super::files::{FileFault, FileKind, Files};
use super::id::Id;
use super::seal::{Key, SealFault};

/// restic's: how often a lock is refreshed, and after what silence it counts as left behind.
const REFRESH_EVERY: SignedDuration = SignedDuration::from_mins(5);
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// Before that, whoever could not refresh its own lock stops: others may soon take it for left behind.
const LOST_AFTER: SignedDuration = SignedDuration::from_mins(25);
/// restic's: between writing the own lock and looking for others, so that of two who begin at once one sees the other.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two looks whether the others have ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an operation waits for others in all. Longer than any prune, shorter than for ever.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);
/// How often the keeper looks whether it is still wanted.
const BEAT: Duration = Duration::from_millis(200);
/// How long a write that is under way may take once its operation is given up.
const LAST_WRITE: Duration = Duration::from_secs(60);

#[cfg(test)]
thread_local! {
    /// Tests in which nobody else comes at the same time need not wait for him.
    pub(crate) static ALONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn settle() -> Duration {
    #[cfg(test)]
    if ALONE.get() {
        return Duration::ZERO;
    }
    SETTLE
}

/// The locks that this process holds: one that carries its number and is not among them is left from before an `execve`.
static HELD: Mutex<Option<HashSet<Id>>> = Mutex::new(None);

/// The repository cannot be locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockFault {
    #[error("waited too long for {0}; try again when that has ended, or `restic unlock` if it never will")]
    Held(Holder),
    #[error("stopped while waiting for {0}")]
    Stopped(Holder),
    #[error("cannot be locked: {0}")]
    File(#[from] FileFault),
    #[error("cannot be locked: the lock {0}")]
    Seal(#[from] SealFault),
    #[error("cannot be locked: {0}")]
    Encode(#[from] serde_json::Error),
    #[error(
        "its lock is gone: somebody removed it, or it could not be refreshed; what was read is stored, run the job again"
    )]
    Lost,
}

/// How a repository is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Beside others: read and add.
    Shared,
    /// Alone: remove.
    Alone,
}

/// A lock file, as its JSON has it; restic passes over what it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LockFile {
    time: Timestamp,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    uid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    gid: u32,
    /// On which running kernel, in which PID namespace: there, and only there, `pid` means something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<Kernel>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kernel {
    boot: String,
    pids: u64,
}

impl Kernel {
    fn own() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { boot, pids: std::fs::metadata("/proc/self/ns/pid").ok()?.ino() })
    }
}

/// Who holds a lock, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    host: String,
    user: String,
    pid: i64,
    since: Option<Timestamp>,
    alone: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(since) = self.since else { return to.write_str("the holder of a lock that cannot be read") };
        let (host, user, pid) = (&self.host, &self.user, self.pid);
        let how = if self.alone { ", which must be alone" } else { "" };
        let user = if user.is_empty() { String::new() } else { format!("{user}, ") };
        write!(
            to,
            "{host} ({user}process {pid}, seen {}{how})",
            since.round(rustic_core::jiff::Unit::Second).unwrap_or(since)
        )
    }
}

/// In whose name a lock is taken.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    /// The enrolled host.
    pub(crate) host: String,
    /// What for, such as `data-agent, job 17`.
    pub(crate) what: String,
}

/// A lock that is held, and refreshed, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: Arc<Files>,
    key: Key,
    access: Access,
    me: Me,
    meter: SharedMeter,
    state: Mutex<Held>,
    change: Condvar,
    /// What is let go with the lock.
    beside: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Held {
    id: Id,
    at: Timestamp,
    ended: bool,
    lost: bool,
}

impl Lock {
    /// Takes a lock, waiting for whoever does not go together with it; the meter says for whom. `beside` is the lock of
    /// earlier versions, which is let go with this one: also of an operation that was given up, whose threads never end.
    ///
    /// # Errors
    /// The operation was stopped meanwhile, the wait was too long, or the repository takes no lock.
    pub(crate) fn take(
        files: &Arc<Files>,
        key: &Key,
        me: Me,
        access: Access,
        beside: &mut Option<File>,
        meter: &SharedMeter,
    ) -> Result<Self, LockFault> {
        let until = Instant::now() + PATIENCE;
        loop {
            let holder = match conflict(files, key, access, None)? {
                Some(holder) => holder,
                None => {
                    let at = Timestamp::now();
                    let id = write(files, key, &me, access, at)?;
                    std::thread::sleep(settle());
                    match conflict(files, key, access, Some(&id)) {
                        Ok(None) => {
                            let state = Mutex::new(Held { id, at, ended: false, lost: false });
                            let shared = Shared {
                                files: files.clone(),
                                key: key.clone(),
                                access,
                                me,
                                meter: meter.clone(),
                                state,
                                change: Condvar::new(),
                                beside: Mutex::new(beside.take()),
                            };
                            return Ok(Self::kept(Arc::new(shared)));
                        }
                        Ok(Some(holder)) => {
                            remove(files, &id)?;
                            holder
                        }
                        Err(fault) => {
                            remove(files, &id)?;
                            return Err(fault);
                        }
                    }
                }
            };
            meter.say(&format!("waits for {holder}"));
            if meter.is_stopped() {
                return Err(LockFault::Stopped(holder));
            }
            if Instant::now() >= until {
                return Err(LockFault::Held(holder));
            }
            // Two who met must not meet again and again: each waits by its own number.
            std::thread::sleep(LOOK_EVERY + Duration::from_millis(u64::from(std::process::id() % 97)));
        }
    }

    fn kept(shared: Arc<Shared>) -> Self {
        let kept = Arc::clone(&shared);
        let keeper = std::thread::Builder::new().name("repository lock".to_owned()).spawn(move || kept.keep());
        if let Err(error) = &keeper {
            // Without refreshing the lock is good for half an hour; `is_held` says when it is not any more.
            tracing::warn!("the repository's lock will not be refreshed: {error}");
        }
        Self { shared, keeper: keeper.ok() }
    }

    /// Whether the lock still protects: it is there, and was refreshed in time. Asked before a snapshot is written:
    /// without a lock somebody may have removed what the snapshot needs.
    ///
    /// # Errors
    /// [`LockFault::Lost`].
    pub(crate) fn is_held(&self) -> Result<(), LockFault> {
        let state = lock(&self.shared.state);
        let old = Timestamp::now().duration_since(state.at) > LOST_AFTER;
        let there = self.shared.files.is_there(FileKind::Lock, &state.id);
        if state.lost || old || !there { Err(LockFault::Lost) } else { Ok(()) }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.change.notify_all();
        if let Some(keeper) = self.keeper.take() {
            drop(keeper.join());
        }
        self.shared.release();
    }
}

impl Shared {
    fn keep(&self) {
        let mut state = lock(&self.state);
        loop {
            state = self.change.wait_timeout(state, BEAT).unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                return;
            }
            if self.meter.is_abandoned() {
                drop(state);
                // The operation's threads may be stuck for ever. They write nothing more, so nobody need wait for them.
                if self.files.close(LAST_WRITE) {
                    self.release();
                }
                return;
            }
            let age = Timestamp::now().duration_since(state.at);
            if age > LOST_AFTER && !state.lost {
                state.lost = true;
                self.meter.problem("the repository's lock could not be refreshed; the operation stops");
                self.files.close(Duration::ZERO);
                self.meter.stop();
            } else if age > REFRESH_EVERY && !state.lost {
                state = self.refresh(state);
            }
        }
    }

    fn refresh<'a>(&'a self, state: MutexGuard<'a, Held>) -> MutexGuard<'a, Held> {
        let old = state.id;
        // Not under the lock of the state: the disk may be slow.
        drop(state);
        let at = Timestamp::now();
        let written = write(&self.files, &self.key, &self.me, self.access, at);
        let mut state = lock(&self.state);
        match written {
            Ok(id) => {
                (state.id, state.at) = (id, at);
                if let Err(fault) = remove(&self.files, &old) {
                    tracing::warn!("a refreshed lock cannot be removed: {fault}");
                }
            }
            Err(fault) => tracing::warn!("the repository's lock cannot be refreshed: {fault}"),
        }
        state
    }

    fn release(&self) {
        drop(lock(&self.beside).take());
        let id = lock(&self.state).id;
        if let Err(fault) = remove(&self.files, &id) {
            tracing::warn!(
                "the repository's lock cannot be removed, and counts as left behind in half an hour: {fault}"
            );
        }
    }
}

fn write(files: &Files, key: &Key, me: &Me, access: Access, time: Timestamp) -> Result<Id, LockFault> {
    let lock_file = LockFile {
        time,
        exclusive: access == Access::Alone,
        hostname: me.host.clone(),
        username: me.what.clone(),
        pid: i64::from(std::process::id()),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        kernel: Kernel::own(),
    };
    let sealed = key.seal_document(&serde_json::to_vec(&lock_file)?, None)?;
    // Known before it is seen: another operation of this process must not take it for left behind.
    lock(&HELD).get_or_insert_default().insert(Id::of(&sealed));
    Ok(files.write(FileKind::Lock, &sealed)?)
}

fn remove(files: &Files, id: &Id) -> Result<(), FileFault> {
    let removed = files.remove(FileKind::Lock, id);
    lock(&HELD).get_or_insert_default().remove(id);
    removed
}

/// Whoever does not go together with such an access. Removes what is left behind, as `restic unlock` would.
fn conflict(files: &Files, key: &Key, access: Access, own: Option<&Id>) -> Result<Option<Holder>, LockFault> {
    for (id, _) in files.list(FileKind::Lock)? {
        if Some(&id) == own {
            continue;
        }
        let sealed = match files.read(FileKind::Lock, &id) {
            Ok(sealed) => sealed,
            Err(fault) if fault.source.kind() == io::ErrorKind::NotFound => continue,
            Err(fault) => return Err(fault.into()),
        };
        let lock_file =
            key.open_document(&sealed).ok().and_then(|text| serde_json::from_slice::<LockFile>(&text).ok());
        if is_left_behind(files, &id, lock_file.as_ref()) {
            tracing::warn!("removing a lock that was left behind: {lock_file:?}");
            match remove(files, &id) {
                // In a repository that another host serves it is somebody else's; the agent there removes it.
                Err(fault) if fault.source.kind() == io::ErrorKind::PermissionDenied => {}
                removed => removed?,
            }
            continue;
        }
        // What cannot be read may be anything.
        let exclusive = lock_file.as_ref().is_none_or(|lock_file| lock_file.exclusive);
        if exclusive || access == Access::Alone {
            return Ok(Some(holder(lock_file)));
        }
    }
    Ok(None)
}

fn is_left_behind(files: &Files, id: &Id, lock_file: Option<&LockFile>) -> bool {
    let now = Timestamp::now();
    let Some(lock_file) = lock_file else {
        let written = files.written_at(FileKind::Lock, id);
        let written = written.and_then(|time| Timestamp::try_from(time).ok());
        return written.is_some_and(|time| now.duration_since(time) > STALE_AFTER);
    };
    if now.duration_since(lock_file.time) > STALE_AFTER {
        return true;
    }
    if lock_file.kernel.is_none() || lock_file.kernel != Kernel::own() {
        return false;
    }
    if lock_file.pid == i64::from(std::process::id()) {
        return !lock(&HELD).get_or_insert_default().contains(id);
    }
    let pid = i32::try_from(lock_file.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

fn holder(lock_file: Option<LockFile>) -> Holder {
    match lock_file {
        Some(LockFile { time, exclusive, hostname, username, pid, .. }) => {
            Holder { host: hostname, user: username, pid, since: Some(time), alone: exclusive }
        }
        None => Holder { host: String::new(), user: String::new(), pid: 0, since: None, alone: true },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustic_core::repofile::MasterKey;

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        files: Arc<Files>,
        key: Key,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let files = Arc::new(Files::new(dir.path()));
            Self { dir, files, key: Key::new(&MasterKey::new()).unwrap() }
        }

        fn take(&self, access: Access, meter: &SharedMeter) -> Result<Lock, LockFault> {
            Lock::take(&self.files, &self.key, me("host-1"), access, &mut None, meter)
        }

        fn strange(&self, alter: impl FnOnce(&mut LockFile)) -> Id {
            let mut lock_file = LockFile {
                time: Timestamp::now(),
                exclusive: true,
                hostname: "elsewhere".into(),
                username: "root".into(),
                pid: 1,
                uid: 0,
                gid: 0,
                kernel: None,
            };
            alter(&mut lock_file);
            let sealed = self.key.seal_document(&serde_json::to_vec(&lock_file).unwrap(), Some(3)).unwrap();
            self.files.write(FileKind::Lock, &sealed).unwrap()
        }

        fn count(&self) -> usize {
            self.files.list(FileKind::Lock).unwrap().len()
        }
    }

    fn me(host: &str) -> Me {
        Me { host: host.to_owned(), what: "data-agent, job 7".to_owned() }
    }

    #[test]
    fn shared_locks_go_together_and_whoever_must_be_alone_waits_and_says_for_whom() {
        let bench = Bench::new();
        let meter = SharedMeter::default();
        let (first, second) =
            (bench.take(Access::Shared, &meter).unwrap(), bench.take(Access::Shared, &meter).unwrap());
        assert_eq!(bench.count(), 2);
        let waiting = SharedMeter::default();
        std::thread::scope(|scope| {
            let alone = scope.spawn(|| bench.take(Access::Alone, &waiting).unwrap());
            while !waiting.read().2.contains("host-1 (data-agent, job 7, process") {
                std::thread::yield_now();
            }
            drop((first, second));
            let alone = alone.join().unwrap();
            alone.is_held().unwrap();
            assert_eq!(bench.count(), 1);
            let stopped = SharedMeter::default();
            stopped.stop();
            let refused = bench.take(Access::Shared, &stopped).unwrap_err();
            assert!(refused.to_string().contains("must be alone"), "{refused}");
        });
        assert_eq!(bench.count(), 0);
    }

    #[test]
    fn only_what_is_certainly_left_behind_is_removed() {
        let bench = Bench::new();
        let now = Timestamp::now();
        let minutes = SignedDuration::from_mins;
        let own = || Kernel::own();
        let left_behind: [&dyn Fn(&mut LockFile); 3] = [
            &|lock_file| lock_file.time = now - minutes(31),
            // A process that has ended, on this very kernel.
            &|lock_file| (lock_file.kernel, lock_file.pid) = (own(), i64::from(i32::MAX)),
            // This process, before an execve.
            &|lock_file| (lock_file.kernel, lock_file.pid) = (own(), i64::from(std::process::id())),
        ];
        for alter in left_behind {
            bench.strange(alter);
            assert!(conflict(&bench.files, &bench.key, Access::Shared, None).unwrap().is_none());
            assert_eq!(bench.count(), 0);
        }
        let kept: [&dyn Fn(&mut LockFile); 4] = [
            &|_| {},
            &|lock_file| lock_file.time = now - minutes(29),
            // A clone of this host says the same of itself, but for the kernel that it runs on.
            &|lock_file| lock_file.pid = i64::from(i32::MAX),
            &|lock_file| (lock_file.kernel, lock_file.pid) = (own(), 1),
        ];
        for alter in kept {
            let id = bench.strange(alter);
            assert!(conflict(&bench.files, &bench.key, Access::Shared, None).unwrap().is_some());
            bench.files.remove(FileKind::Lock, &id).unwrap();
        }
        let id = bench.files.write(FileKind::Lock, b"not a lock at all").unwrap();
        let unreadable = conflict(&bench.files, &bench.key, Access::Shared, None).unwrap().unwrap();
        assert!(unreadable.to_string().contains("cannot be read"));
        bench.files.remove(FileKind::Lock, &id).unwrap();
    }

    #[test]
    fn a_lock_that_somebody_removed_is_not_held() {
        let bench = Bench::new();
        let held = bench.take(Access::Shared, &SharedMeter::default()).unwrap();
        let (id, _) = bench.files.list(FileKind::Lock).unwrap()[0];
        bench.files.remove(FileKind::Lock, &id).unwrap();
        assert!(matches!(held.is_held(), Err(LockFault::Lost)));
    }

    #[test]
    fn an_abandoned_operation_lets_its_lock_go_and_writes_nothing_more() {
        let bench = Bench::new();
        let meter = SharedMeter::default();
        let directory = || File::open(bench.dir.path()).unwrap();
        let beside = directory();
        beside.lock_shared().unwrap();
        let (access, mut beside) = (Access::Shared, Some(beside));
        let held = Lock::take(&bench.files, &bench.key, me("host-1"), access, &mut beside, &meter).unwrap();
        meter.abandon();
        while bench.count() > 0 {
            std::thread::yield_now();
        }
        directory().try_lock().expect("the lock of earlier versions goes, too");
        assert!(bench.files.write(FileKind::Pack, b"late").is_err());
        assert!(held.is_held().is_err());
    }
}
