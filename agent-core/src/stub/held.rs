//! What the stub holds for the agent under names, so that not even a crash loses a socket.
//!
//! A version on probation works on a copy: what it keeps and forgets counts from its confirmation on, and until then
//! the version before would find everything as it left it.

use std::os::fd::OwnedFd;

use rustix::process::Pid;

use crate::descriptor_name::DescriptorName;
use crate::inherited::{InheritedError, Table};
use crate::sys;

/// Descriptors by name, for the version that is believed and for the one that has yet to prove itself.
#[derive(Debug, Default)]
pub(super) struct Held {
    believed: Table,
    on_trial: Option<Table>,
}

impl Held {
    /// With what the service manager opened for this process (`sd_listen_fds(3)`). A name that stands there more than
    /// once gets a number: `http`, `http.1`, …; one that no descriptor can have becomes `listen`.
    pub(super) fn from_service_manager() -> Self {
        let mut held = Self::default();
        let (pid, count) = (number_in("LISTEN_PID"), number_in("LISTEN_FDS"));
        if pid != Some(i32::try_from(std::process::id()).unwrap_or(0)) {
            return held;
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        for number in 0..count.unwrap_or(0) {
            // SD_LISTEN_FDS_START.
            let Ok(descriptor) = sys::fd::take_inherited(3 + number) else { continue };
            let name = held.believed.free_name(names.next().unwrap_or_default());
            drop(held.believed.insert(name, descriptor));
        }
        held
    }

    /// Another version is on trial from now on.
    pub(super) fn begin_trial(&mut self) {
        self.on_trial = Some(self.believed.share());
    }

    /// The version on trial is believed.
    pub(super) fn believe(&mut self) {
        if let Some(on_trial) = self.on_trial.take() {
            self.believed = on_trial;
        }
    }

    /// The version on trial is given up.
    pub(super) fn give_up(&mut self) {
        self.on_trial = None;
    }

    pub(super) fn keep(&mut self, name: DescriptorName, descriptor: OwnedFd) -> Result<(), InheritedError> {
        self.current_mut().insert(name, descriptor)
    }

    pub(super) fn forget(&mut self, name: &DescriptorName) {
        self.current_mut().remove(name);
    }

    /// Processes that outlive the one that has ended: those that the believed version keeps. What one on trial had
    /// started ends with it.
    pub(super) fn processes(&self) -> Vec<Pid> {
        self.believed.processes()
    }

    /// What the version that is started now inherits.
    pub(super) fn current(&self) -> &Table {
        self.on_trial.as_ref().unwrap_or(&self.believed)
    }

    fn current_mut(&mut self) -> &mut Table {
        self.on_trial.as_mut().unwrap_or(&mut self.believed)
    }
}

impl Table {
    /// A name made of what the service manager says, that nothing has yet.
    fn free_name(&self, said: &str) -> DescriptorName {
        let base = said.parse::<DescriptorName>().map_or_else(|_| "listen".to_owned(), String::from);
        let numbered = (0..).map(|n| if n == 0 { base.clone() } else { format!("{base}.{n}") });
        let mut free = numbered.map_while(|name| name.parse().ok()).filter(|name| !self.contains(name));
        free.next().unwrap_or_else(|| self.free_name("listen"))
    }
}

fn number_in(variable: &str) -> Option<i32> {
    std::env::var(variable).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn name(text: &str) -> DescriptorName {
        text.parse().unwrap()
    }

    #[test]
    fn a_version_on_trial_cannot_lose_what_belongs_to_the_one_before_it() {
        let mut held = Held::default();
        held.keep(name("http"), null()).unwrap();
        held.begin_trial();
        held.forget(&name("http"));
        held.keep(name("new"), null()).unwrap();
        assert!(!held.current().contains(&name("http")) && held.current().contains(&name("new")));
        held.give_up();
        assert!(held.current().contains(&name("http")) && !held.current().contains(&name("new")));
        held.begin_trial();
        held.forget(&name("http"));
        held.believe();
        held.give_up();
        assert_eq!(held.current().descriptors().count(), 0, "believed, so it counts");
    }

    #[test]
    fn names_of_the_service_manager_become_names_of_ours() {
        let mut table = Table::default();
        for (said, want) in
            [("http", "http"), ("http", "http.1"), ("http", "http.2"), ("", "listen"), ("a b", "listen.1")]
        {
            let free = table.free_name(said);
            assert_eq!(free, name(want));
            table.insert(free, null()).unwrap();
        }
        let long = "n".repeat(64);
        table.insert(name(&long), null()).unwrap();
        assert_eq!(table.free_name(&long), name("listen.2"), "there is no room for a number");
    }
}
