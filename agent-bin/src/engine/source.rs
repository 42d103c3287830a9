//! What is backed up, or compared with a snapshot: opened once, so that everything is read beneath it.
//!
//! Whoever owns a directory may put a link in any entry's place while it is read, and the agent may be root. So the
//! directories above a source are resolved once, what they lead to is opened again without following a link and held
//! against the host's permits, and what lies in the source is reached from that descriptor alone ([`Beneath`]).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use agent_core::Permits;
use rustix::fs::OFlags;

use super::beneath::{Beneath, READ};
use super::facts::Facts;
use super::fault::{EngineError, Refusal};
use super::format::tree::NodeKind;

/// A directory, or an entry of one.
#[derive(Debug)]
pub(super) struct Source {
    /// As it was named; snapshots have it under this path.
    path: PathBuf,
    /// The source itself, where it is a directory; otherwise the one that it lies in.
    beneath: Beneath,
    /// Its name there; empty where it is a directory.
    name: PathBuf,
    kind: NodeKind,
    /// Of the file system that it lies on.
    device: u64,
}

impl Source {
    /// Opens what lies at a path, whatever it is.
    ///
    /// # Errors
    /// It is not there, its path is none that is taken, or where it lies is not permitted to be read.
    pub(super) fn open(path: &Path, permits: &Permits) -> Result<Self, EngineError> {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(EngineError::refused(path, Refusal::SourceNotAbsolute));
        }
        let fault = |error| EngineError::io(path, error);
        let path: PathBuf = path.components().collect();
        let (above, name) = match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) => (above.canonicalize().map_err(fault)?, PathBuf::from(name)),
            _ => (PathBuf::from("/"), PathBuf::new()),
        };
        // What was opened is what lies at just this path: a link that comes between is not followed.
        let real = above.join(&name);
        permits.backup(&real)?;
        let beneath = Beneath::at(&above).map_err(fault)?;
        let facts = beneath.look(&name).map_err(fault)?.facts;
        let (kind, device) = (facts.kind, facts.identity.0);
        if kind != NodeKind::Dir {
            return Ok(Self { path, beneath, name, kind, device });
        }
        let beneath = Beneath::at(&real).map_err(fault)?;
        let device = beneath.look(Path::new("")).map_err(fault)?.facts.identity.0;
        Ok(Self { path, beneath, name: PathBuf::new(), kind, device })
    }

    /// Refuses what cannot be backed up under the path that it was named by.
    ///
    /// # Errors
    /// It is a symbolic link, or cannot be read.
    pub(super) fn must_be_readable(&self) -> Result<(), EngineError> {
        let flags = match self.kind {
            NodeKind::Symlink => {
                let to = self.path.canonicalize().map_err(|error| EngineError::io(&self.path, error))?;
                return Err(EngineError::refused(&self.path, Refusal::SourceIsLink(to)));
            }
            NodeKind::Dir => READ | OFlags::DIRECTORY,
            NodeKind::File => READ,
            _ => return Ok(()),
        };
        self.beneath.open(&self.name, flags, 0).map(drop).map_err(|error| EngineError::io(&self.path, error))
    }

    /// As it was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the device that it lies on.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// What it lies in, or is, and its name there.
    pub(super) fn place(&self) -> (&Beneath, &Path) {
        (&self.beneath, &self.name)
    }

    /// Looks at the source itself: descriptor and facts.
    pub(super) fn look(&self) -> io::Result<(OwnedFd, Facts)> {
        let looked = self.beneath.look(&self.name)?;
        let facts = looked.facts;
        Ok((looked.into(), facts))
    }

    /// Opens what is found at a path, of which that of the source is a part, without following a link below it.
    pub(super) fn read(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let below = path.strip_prefix(&self.path).map_err(|_| io::ErrorKind::InvalidInput)?;
        let below = if below.as_os_str().is_empty() { &self.name } else { below };
        self.beneath.open(below, READ | flags, 0)
    }
}
