//! What a test makes of a moment (`agent_core::internal::moments`, `manager_fs::moments`): both sides of the file by which a test
//! tells the programs under test, which are examples that hand every moment to [`at`].
//!
//! ```text
//! FILE           lines `MOMENT ACTION`; `all` is every moment. Read at every moment, so that a test can change it
//! FILE.reached   the moments that were come to, a line each
//! FILE.struck    the process that an action was done to; what happens once happens only while there is none
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

/// The variable that names the file.
pub const FILE: &str = "TEST_FAULTS";
/// A process that is held goes on after this long, whoever has forgotten it.
const HELD_MAX: Duration = Duration::from_secs(60);

/// What is done to a process that comes to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It is killed, once.
    Kill,
    /// It is stopped, once.
    Stop,
    /// It waits until the line is gone, once.
    Hold,
    /// The disk is full, for as long as the line is there.
    Full,
    /// The disk is full, once.
    FullOnce,
    /// The disk fails, for as long as the line is there.
    Broken,
    /// The disk fails, once.
    BrokenOnce,
}

impl Action {
    const ALL: [(Action, &'static str); 7] = [
        (Action::Kill, "kill"),
        (Action::Stop, "stop"),
        (Action::Hold, "hold"),
        (Action::Full, "enospc"),
        (Action::FullOnce, "enospc-once"),
        (Action::Broken, "eio"),
        (Action::BrokenOnce, "eio-once"),
    ];

    /// As it is written.
    ///
    /// # Panics
    /// Never: the list has them all.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(action, _)| *action == self).expect("in the list").1
    }

    fn parse(name: &str) -> Option<Self> {
        Some(Self::ALL.iter().find(|(_, known)| *known == name)?.0)
    }
}

/// For the program under test: does what the file says of this moment. Without the file nothing happens.
///
/// # Errors
/// The one that the moment is to have.
pub fn at(moment: &str) -> io::Result<()> {
    static NAMED: OnceLock<Option<Faults>> = OnceLock::new();
    let named = NAMED.get_or_init(|| std::env::var_os(FILE).map(|file| Faults { file: file.into() }));
    named.as_ref().map_or(Ok(()), |faults| faults.at(moment))
}

/// The file by which a test tells.
#[derive(Debug, Clone)]
pub struct Faults {
    file: PathBuf,
}

impl Faults {
    /// `file` need not be there; its name has no extension.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned() }
    }

    /// For the environment of the programs: under [`FILE`].
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// From now on this is done at this moment, and nothing at any other.
    pub fn arm(&self, moment: &str, action: Action) {
        self.set(&format!("{moment} {}\n", action.name()));
    }

    /// From now on nothing is done.
    pub fn disarm(&self) {
        self.set("");
    }

    /// From now on moments go as these lines say.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn set(&self, lines: &str) {
        drop(fs::remove_file(self.beside("struck")));
        let fresh = self.beside("new");
        // In one step: a moment that found half of it would pass.
        fs::write(&fresh, lines).and_then(|()| fs::rename(&fresh, &self.file)).expect("the file of faults");
    }

    /// Lets a process go on that is held; who it is stays known.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn release(&self) {
        fs::write(&self.file, "").expect("the file of faults");
    }

    /// The process that the action was done to last.
    pub fn struck(&self) -> Option<i32> {
        fs::read_to_string(self.beside("struck")).ok()?.trim().parse().ok()
    }

    /// The moments that were come to since [`Faults::forget_reached`].
    pub fn reached(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.beside("reached")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// See [`Faults::reached`].
    pub fn forget_reached(&self) {
        drop(fs::remove_file(self.beside("reached")));
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.file.with_extension(extension)
    }

    fn at(&self, moment: &str) -> io::Result<()> {
        writeln!(OpenOptions::new().create(true).append(true).open(self.beside("reached"))?, "{moment}")?;
        let Some(action) = self.wanted(moment)? else { return Ok(()) };
        let first = self.strike();
        match action {
            Action::Kill if first => Ok(kill_process(getpid(), Signal::KILL)?),
            Action::Stop if first => Ok(kill_process(getpid(), Signal::STOP)?),
            Action::Hold if first => self.hold(moment),
            Action::Full => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Action::FullOnce if first => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Action::Broken => Err(io::Error::from_raw_os_error(libc::EIO)),
            Action::BrokenOnce if first => Err(io::Error::from_raw_os_error(libc::EIO)),
            Action::Kill | Action::Stop | Action::Hold | Action::FullOnce | Action::BrokenOnce => Ok(()),
        }
    }

    fn wanted(&self, moment: &str) -> io::Result<Option<Action>> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let mut words = text.lines().filter_map(|line| line.split_once(' '));
        let Some((_, action)) = words.find(|(name, _)| *name == moment || *name == "all") else { return Ok(None) };
        Action::parse(action).map(Some).ok_or_else(|| io::Error::other(format!("no such action: {action}")))
    }

    /// Whether this is the first process that comes here.
    fn strike(&self) -> bool {
        let file = File::create_new(self.beside("struck"));
        file.and_then(|mut file| write!(file, "{}", getpid().as_raw_pid())).is_ok()
    }

    fn hold(&self, moment: &str) -> io::Result<()> {
        let since = Instant::now();
        while self.wanted(moment)? == Some(Action::Hold) && since.elapsed() < HELD_MAX {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_once_happens_once_and_the_rest_for_as_long_as_it_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new(&dir.path().join("faults"));
        assert!(faults.at("a").is_ok());
        faults.arm("a", Action::FullOnce);
        assert!(faults.at("b").is_ok());
        assert_eq!(faults.struck(), None);
        assert_eq!(faults.at("a").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(faults.struck(), Some(getpid().as_raw_pid()));
        assert!(faults.at("a").is_ok());
        faults.arm("all", Action::Broken);
        assert_eq!((0..2).filter(|_| faults.at("b").is_err()).count(), 2);
        faults.disarm();
        assert!(faults.at("b").is_ok());
        assert_eq!(faults.reached(), ["a", "b"].map(str::to_owned).into());
    }
}
