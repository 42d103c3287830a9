//! Descriptors that cross `execve` under names: what a program listens on, and whatever else of its own must not be
//! lost when it changes its version, or when a version crashes.
//!
//! ```text
//!  program ── keep("http", &listener) ──> table ── duplicate ──> stub (holds it for a version that crashes)
//!  program <── take("http") ───────────── table <── execve, or a start by the stub, or socket activation
//! ```
//!
//! A process whose pidfd is kept lives on: neither a change-over nor the crash of a version ends it.
//!
//! Every process that is started or executed finds one sealed memory file with the names and numbers of what it
//! inherits; the descriptors themselves keep their numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::codec;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, StubMessage};
use crate::descriptor_name::{DescriptorName, NotAName};
use crate::durable::{self, FileFault};
use crate::{handoff, sys};

const MAGIC: &[u8; 8] = b"MFSINH\0\x01";
/// Room for every name that may be kept.
const BYTES_MAX: usize = 64 << 10;
/// The stub holds a duplicate of each, beside its own descriptors, within the usual limit of 1,024 open files.
const KEPT_MAX: usize = 512;

/// A descriptor cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritedError {
    /// No descriptor can have this name.
    #[error(transparent)]
    Name(#[from] NotAName),
    /// There are too many.
    #[error("descriptor '{name}' cannot be kept: {KEPT_MAX} are kept already; forget those that are closed")]
    Full {
        /// The one too many.
        name: DescriptorName,
    },
    /// The host is out of descriptors, or what was to be made cannot be.
    #[error("descriptor '{name}': {source}")]
    Io {
        /// Which one.
        name: DescriptorName,
        /// The fault.
        source: io::Error,
    },
}

/// What this program inherited, and what the next one will: a handle that may be cloned and used from any thread.
///
/// What is kept goes to the next version at a change-over, in both directions, and to whatever version the stub starts
/// when one has crashed. A name that a version does not take goes on being kept, for the way back. A version on
/// probation cannot lose what belongs to the one before it: what it forgets is forgotten when it has confirmed.
///
/// The default has inherited nothing, and keeps for nobody but itself.
#[derive(Clone, Default)]
pub struct Inherited {
    table: Arc<Mutex<Table>>,
    stub: Option<Arc<Channel>>,
}

impl fmt::Debug for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Inherited {
    pub(crate) fn new(table: Table, stub: Option<Arc<Channel>>) -> Self {
        Self { table: Arc::new(Mutex::new(table)), stub }
    }

    /// A duplicate of the descriptor with this name; `None` where nothing of this name was inherited or kept. It may
    /// be taken any number of times, and closing what was taken does not end the keeping.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.take_own(&name.parse().ok().filter(|name: &DescriptorName| !name.is_own(""))?)
    }

    /// As [`Inherited::take`], for any name.
    pub(crate) fn take_own(&self, name: &DescriptorName) -> Option<OwnedFd> {
        let found = self.table().by_name.get(name)?.clone();
        found.try_clone().inspect_err(|e| tracing::warn!("descriptor '{name}' cannot be duplicated: {e}")).ok()
    }

    /// Keeps a duplicate of this descriptor under a name, in the place of what had it before.
    ///
    /// # Errors
    /// It has no such name, there are too many, or no descriptor is left.
    pub fn keep(&self, name: &str, descriptor: impl AsFd) -> Result<(), InheritedError> {
        let name: DescriptorName = name.parse()?;
        if name.is_own("") {
            let fault = "names that begin with 'manager-fs.' are the library's own; take another one";
            return Err(InheritedError::Io { name, source: io::Error::new(io::ErrorKind::InvalidInput, fault) });
        }
        self.keep_own(name, descriptor.as_fd())
    }

    /// As [`Inherited::keep`], for any name.
    pub(crate) fn keep_own(&self, name: DescriptorName, descriptor: BorrowedFd<'_>) -> Result<(), InheritedError> {
        let io = |source| InheritedError::Io { name: name.clone(), source };
        let duplicate = descriptor.try_clone_to_owned().map_err(io)?;
        self.table().insert(name.clone(), duplicate)?;
        self.tell(&StubMessage::Keep { name }, Some(descriptor));
        Ok(())
    }

    /// Closes what is kept under a name, here and at the stub; what was taken stays open. A version that does not
    /// serve a port any more does this, or clients would go on connecting to it.
    pub fn forget(&self, name: &str) {
        if let Ok(name) = name.parse::<DescriptorName>()
            && !name.is_own("")
        {
            self.forget_own(&name);
        }
    }

    /// As [`Inherited::forget`], for any name.
    pub(crate) fn forget_own(&self, name: &DescriptorName) {
        if self.table().by_name.remove(name).is_some() {
            self.tell(&StubMessage::Forget { name: name.clone() }, None);
        }
    }

    /// All names of the library's own of this kind.
    pub(crate) fn own_names(&self, kind: &str) -> Vec<DescriptorName> {
        self.table().by_name.keys().filter(|name| name.is_own(kind)).cloned().collect()
    }

    /// What has this name, or what `make` makes, which is kept from then on.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = agent_core::AgentConfig::from_env()?;
    /// let log = config.inherited().take_or("access-log", || std::fs::File::create("/var/log/access.log"))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As of [`Inherited::keep`]; `make` failed.
    pub fn take_or<T: From<OwnedFd> + AsFd>(
        &self,
        name: &str,
        make: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, InheritedError> {
        if let Some(found) = self.take(name) {
            return Ok(T::from(found));
        }
        let made = make().map_err(|source| match name.parse() {
            Ok(name) => InheritedError::Io { name, source },
            Err(fault) => InheritedError::Name(fault),
        })?;
        self.keep(name, &made)?;
        Ok(made)
    }

    /// The listener of this name, bound to `address` if nobody had it yet.
    ///
    /// # Errors
    /// As of [`Inherited::take_or`].
    pub fn tcp_listener(&self, name: &str, address: impl ToSocketAddrs) -> Result<TcpListener, InheritedError> {
        self.take_or(name, || TcpListener::bind(address))
    }

    /// All names; those that begin with `manager-fs.` are the library's own, and neither shown nor taken.
    pub fn names(&self) -> Vec<DescriptorName> {
        self.table().by_name.keys().filter(|name| !name.is_own("")).cloned().collect()
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, message: &StubMessage, descriptor: Option<BorrowedFd<'_>>) {
        // Without a stub, or with one that is older than this, change-overs keep it all the same; a crash does not.
        let Some(stub) = &self.stub else { return };
        if let Err(e) = stub.send_with(message, descriptor) {
            tracing::warn!("the stub cannot be told {message:?}; a crash would lose it: {e}");
        }
    }
}

/// Descriptors by their names.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_name: BTreeMap<DescriptorName, Arc<OwnedFd>>,
}

/// A name and the number of its descriptor, as the next program finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: DescriptorName,
    pub(crate) number: i32,
}

impl Table {
    pub(crate) fn insert(&mut self, name: DescriptorName, descriptor: OwnedFd) -> Result<(), InheritedError> {
        if self.by_name.len() >= KEPT_MAX && !self.by_name.contains_key(&name) {
            return Err(InheritedError::Full { name });
        }
        self.by_name.insert(name, Arc::new(descriptor));
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &DescriptorName) {
        self.by_name.remove(name);
    }

    /// The same descriptors once more: what is changed in one table does not change the other.
    pub(crate) fn share(&self) -> Self {
        Self { by_name: self.by_name.clone() }
    }

    pub(crate) fn contains(&self, name: &DescriptorName) -> bool {
        self.by_name.contains_key(name)
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.by_name.values().map(|descriptor| descriptor.as_fd())
    }

    /// Living processes of which it has a pidfd.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        self.descriptors().filter_map(sys::fd::process_of).collect()
    }

    /// The memory file that names them.
    pub(crate) fn to_memory(&self) -> io::Result<OwnedFd> {
        let named = self.by_name.iter();
        let named = named.map(|(name, fd)| Named { name: name.clone(), number: fd.as_raw_fd() }).collect::<Vec<_>>();
        handoff::seal_in_memory("inherited", &to_bytes(&named)?)
    }

    /// Takes over what such a file names. What is not open any more is passed over: the rest is worth more than a
    /// refusal.
    pub(crate) fn from_memory(memory: OwnedFd) -> Result<Self, FileFault> {
        let mut table = Self::default();
        for Named { name, number } in from_bytes(&handoff::read_sealed(memory, "inherited")?)? {
            match sys::fd::take_inherited(number) {
                Ok(descriptor) => {
                    table.by_name.insert(name, Arc::new(descriptor));
                }
                Err(e) => tracing::warn!("descriptor '{name}' was not inherited: {e}"),
            }
        }
        Ok(table)
    }
}

pub(crate) fn to_bytes(named: &[Named]) -> io::Result<Vec<u8>> {
    let named = named.to_vec();
    Ok(durable::seal(MAGIC, &codec::encode(&named).map_err(io::Error::other)?))
}

pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Vec<Named>, FileFault> {
    let path = Path::new("inherited");
    let body = durable::unseal(MAGIC, bytes, path, "list of inherited descriptors")?;
    let named: Vec<Named> = codec::decode::<_, BYTES_MAX>(body).map_err(|e| FileFault::Damaged {
        path: path.to_owned(),
        what: "list of inherited descriptors",
        detail: e.to_string(),
    })?;
    if named.len() > KEPT_MAX {
        let detail = format!("{} descriptors, at most {KEPT_MAX}", named.len());
        return Err(FileFault::Damaged { path: path.to_owned(), what: "list of inherited descriptors", detail });
    }
    Ok(named)
}

/// Tells the stub why a program that keeps these is not well: what is said last is the reason if it fails.
pub fn unwell(inherited: &Inherited, why: &str) {
    if let Some(stub) = &inherited.stub {
        // A message that is lost costs a reason and nothing else.
        let _ = stub.send(&StubMessage::unwell(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn alone() -> Inherited {
        Inherited::new(Table::default(), None)
    }

    #[test]
    fn what_is_kept_can_be_taken_again_and_again_until_it_is_forgotten() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let inherited = alone();
        inherited.keep("line", &ours).unwrap();
        drop(ours);
        let (mut one, mut two) = (
            UnixStream::from(inherited.take("line").unwrap()),
            UnixStream::from(inherited.clone().take("line").unwrap()),
        );
        one.write_all(b"1").unwrap();
        two.write_all(b"2").unwrap();
        drop((one, two));
        inherited.forget("line");
        inherited.forget("line");
        assert!(inherited.take("line").is_none());
        let mut all = String::new();
        theirs.read_to_string(&mut all).unwrap();
        assert_eq!(all, "12", "and its end came, so nothing is open any more");
    }

    #[test]
    fn names_and_numbers_have_bounds() {
        let inherited = alone();
        let null = std::fs::File::open("/dev/null").unwrap();
        for bad in ["", "a b", "a/b", "ä", &"n".repeat(65)] {
            assert!(matches!(inherited.keep(bad, &null), Err(InheritedError::Name(_))), "{bad:?}");
            assert!(inherited.take(bad).is_none());
        }
        inherited.keep(&"n".repeat(64), &null).unwrap();
        for n in 1..KEPT_MAX {
            inherited.keep(&format!("n{n}"), &null).unwrap();
        }
        let full = inherited.keep("one-more", &null).unwrap_err().to_string();
        assert!(full.contains("one-more") && full.contains("512"), "{full}");
        inherited.keep("n1", &null).unwrap();
        assert!(inherited.table().to_memory().is_ok(), "and all of them fit");
    }

    #[test]
    fn a_list_that_names_too_much_or_nothing_real_is_no_list() {
        let named = |name: &str, number| Named { name: name.parse().unwrap(), number };
        let many: Vec<Named> = (0..513).map(|n| named(&format!("n{n}"), n)).collect();
        assert!(from_bytes(&to_bytes(&many).unwrap()).is_err());
        assert_eq!(from_bytes(&to_bytes(&many[1..]).unwrap()).unwrap().len(), KEPT_MAX);
        let mut bytes = to_bytes(&many[..1]).unwrap();
        assert_eq!(from_bytes(&bytes).unwrap(), &many[..1]);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(from_bytes(&bytes).is_err());
        // A name that no keeper would have written.
        let forged = codec::encode(&vec![("a b".to_owned(), 5_i32)]).unwrap();
        assert!(from_bytes(&durable::seal(MAGIC, &forged)).is_err());
        // Standard streams and closed numbers are not taken over.
        let list = to_bytes(&[named("stdin", 0), named("gone", 9_999_999)]).unwrap();
        let table = Table::from_memory(handoff::seal_in_memory("x", &list).unwrap()).unwrap();
        assert_eq!(table.descriptors().count(), 0);
    }

    #[test]
    fn a_process_is_known_by_its_pidfd_until_it_has_ended() {
        let inherited = alone();
        inherited.keep("null", std::fs::File::open("/dev/null").unwrap()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        inherited.keep("child", pidfd).unwrap();
        assert_eq!(inherited.table().processes(), [pid]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(inherited.table().processes(), []);
    }

    #[test]
    fn what_nobody_could_make_says_its_name() {
        let fault = alone().take_or::<std::fs::File>("log", || Err(io::Error::other("no disk"))).unwrap_err();
        assert_eq!(fault.to_string(), "descriptor 'log': no disk");
    }

    #[test]
    fn the_stub_is_told_of_all_that_is_kept_and_forgotten_and_why_a_program_is_not_well() {
        use crate::channel::Received;
        let (stub, ours) = Channel::pair().unwrap();
        let inherited = Inherited::new(Table::default(), Some(Arc::new(ours)));
        let name: DescriptorName = "null".parse().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        inherited.keep("null", &null).unwrap();
        let (message, descriptor) = stub.receive_with().unwrap().unwrap();
        assert_eq!(message, Received::Known(StubMessage::Keep { name: name.clone() }));
        let kept = sys::fd::file_id(descriptor.unwrap().as_fd());
        assert_eq!(kept, sys::fd::file_id(null.as_fd()), "with the descriptor itself");
        inherited.forget("null");
        inherited.forget("null");
        unwell(&inherited, "no disk");
        let told = [(); 3].map(|()| stub.receive().unwrap());
        let well = StubMessage::unwell("no disk");
        assert_eq!(told, [Some(Received::Known(StubMessage::Forget { name })), Some(Received::Known(well)), None]);
    }

    #[test]
    fn a_table_that_is_shared_goes_on_by_itself_and_the_next_program_takes_it_over() {
        let inherited = alone();
        inherited.keep("null", std::fs::File::open("/dev/null").unwrap()).unwrap();
        let name = "null".parse().unwrap();
        let mut shared = inherited.table().share();
        assert!(shared.contains(&name));
        shared.remove(&name);
        assert!(inherited.take("null").is_some());
        assert_eq!(format!("{inherited:?}"), "{DescriptorName(\"null\")}");
        // As it is after `execve`: a number that nobody owns.
        let number = std::os::fd::IntoRawFd::into_raw_fd(std::fs::File::open("/dev/null").unwrap());
        let list = to_bytes(&[Named { name, number }]).unwrap();
        let table = Table::from_memory(handoff::seal_in_memory("x", &list).unwrap()).unwrap();
        let taken: Vec<_> = table.descriptors().map(|descriptor| descriptor.as_raw_fd()).collect();
        assert_eq!(taken, [number]);
    }
}
