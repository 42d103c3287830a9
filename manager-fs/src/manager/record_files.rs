//! Signed records as files (`STORE/records/PRODUCT@VERSION`, and `…@ARCHITECTURE` of what came later to a version), beside the control state that decides: what was published
//! can be found again when that is lost.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::GenerationRecord;
use proto::limits::RECORD_BYTES_MAX;

use super::control::RECORDS;
use super::control::generations::{Generation, verify};
use crate::moments::{self, Moment};
use crate::sync::lock;

/// The records of a store. Every method waits for the disk.
pub(crate) struct RecordFiles {
    dir: PathBuf,
    /// There is one draft.
    writing: Mutex<()>,
}

/// The records that lie in a store.
#[derive(Default)]
pub(crate) struct FoundRecords {
    /// Those that are signed and can be read, with their files' bytes, and whether each came to a version later.
    pub(crate) records: Vec<(GenerationRecord, Vec<u8>, bool)>,
    /// Names of the files that cannot.
    pub(crate) damaged: Vec<String>,
}

impl RecordFiles {
    pub(crate) fn of(store: &Path) -> Self {
        Self { dir: store.join(RECORDS), writing: Mutex::default() }
    }

    /// Writes the files of generations that have none.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn complete<'a>(&self, generations: impl IntoIterator<Item = &'a Generation>) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            there.insert(entry?.file_name());
        }
        let mut missing = generations.into_iter().filter(|g| !there.contains(std::ffi::OsStr::new(&g.full_name())));
        missing.try_for_each(|generation| self.put(generation))
    }

    /// Writes the file of a generation.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn put(&self, generation: &Generation) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let _writing = lock(&self.writing);
        let draft = self.dir.join(".new");
        moments::reach(Moment::RecordFilePut, &draft)?;
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&generation.signed)?;
        file.sync_all()?;
        fs::rename(&draft, self.path(generation))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes the file of a generation. It is no error that there is none.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn remove(&self, generation: &Generation) -> io::Result<()> {
        let path = self.path(generation);
        moments::reach(Moment::RecordFileRemove, &path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every record that can be read and is signed, and the names of the files that cannot.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn all(&self) -> io::Result<FoundRecords> {
        let mut found = FoundRecords::default();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == ".new" {
                continue;
            }
            let mut signed = Vec::new();
            let file = File::open(self.dir.join(&name))?;
            file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut signed)?;
            match verify(&signed) {
                Ok(record) if record.name() == name => found.records.push((record, signed, false)),
                Ok(record) if is_also(&record, &name) => found.records.push((record, signed, true)),
                Ok(_) | Err(_) => found.damaged.push(name),
            }
        }
        Ok(found)
    }

    fn path(&self, generation: &Generation) -> PathBuf {
        // Checked names: each is safe as a part of a file's name.
        self.dir.join(generation.full_name())
    }
}

/// Whether a file of this name holds what came to a version later.
fn is_also(record: &GenerationRecord, name: &str) -> bool {
    let architecture = record.metadata.architecture.as_deref();
    architecture.is_some_and(|architecture| name == format!("{}@{architecture}", record.name()))
}
