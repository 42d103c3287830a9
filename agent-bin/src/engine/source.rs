//! A directory of the host as the engine reads it: watched, so that what cannot be read is reported, and so that reading
//! ends when the operation is stopped.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{
    Excludes, LocalSource, LocalSourceFilterOptions, LocalSourceSaveOptions, ReadSource, ReadSourceEntry,
    ReadSourceOpen, RusticResult,
};

use super::SharedMeter;
use super::compare::{attribute, attribute_names, directory_mode_of_file};
use super::gate::STOPPED;

/// A [`LocalSource`] that tells a meter what it could not read. The engine itself only logs such files and leaves them
/// out, and a backup without a file that should be in it is not a clean one.
pub(super) struct WatchedSource {
    root: PathBuf,
    files: LocalSource,
    meter: SharedMeter,
}

impl WatchedSource {
    pub(super) fn new(source: &Path, meter: SharedMeter) -> RusticResult<Self> {
        let (save, filter) = (LocalSourceSaveOptions::default(), LocalSourceFilterOptions::default());
        let files = LocalSource::new(save, &Excludes::default(), &filter, &[source])?;
        Ok(Self { root: source.to_owned(), files, meter })
    }
}

impl ReadSource for WatchedSource {
    type Open = WatchedOpen;
    type Iter = WatchedEntries;

    fn size(&self) -> RusticResult<Option<u64>> {
        self.files.size()
    }

    fn entries(&self) -> Self::Iter {
        let root = root_entry(&self.root)
            .inspect_err(|error| self.meter.problem(format!("{}: its own metadata: {error}", self.root.display())));
        WatchedEntries { root: root.ok().flatten(), entries: self.files.entries(), meter: self.meter.clone() }
    }
}

/// The source itself, when it is a directory: the engine's own walk begins below it and would forget its mode, owner,
/// times and extended attributes. The root of a file system has no name and so no entry in a snapshot.
fn root_entry(root: &Path) -> io::Result<Option<ReadSourceEntry<WatchedOpen>>> {
    let metadata = fs::symlink_metadata(root)?;
    let Some(name) = root.file_name().filter(|_| metadata.is_dir()) else { return Ok(None) };
    let mtime = Timestamp::try_from(metadata.modified()?).ok();
    let nanoseconds = i32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    let attributes = attribute_names(root)?.into_iter().map(|name| {
        let value = base64(&attribute(root, &name)?);
        Ok(serde_json::json!({ "name": name, "value": value }))
    });
    // The library's type of an attribute cannot be named from outside of it; its form in a snapshot can be read.
    let attributes = serde_json::Value::Array(attributes.collect::<io::Result<_>>()?);
    let meta = Metadata {
        mode: Some(directory_mode_of_file(metadata.mode())),
        mtime,
        atime: mtime,
        ctime: Timestamp::new(metadata.ctime(), nanoseconds).ok(),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        inode: metadata.ino(),
        extended_attributes: serde_json::from_value(attributes)?,
        ..Metadata::default()
    };
    let node = Node::new_node(name, NodeType::Dir, meta);
    Ok(Some(ReadSourceEntry { path: root.to_owned(), node, open: None }))
}

/// As in restic's snapshots: the standard alphabet, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

pub(super) struct WatchedEntries {
    root: Option<ReadSourceEntry<WatchedOpen>>,
    entries: <LocalSource as ReadSource>::Iter,
    meter: SharedMeter,
}

impl Iterator for WatchedEntries {
    type Item = RusticResult<ReadSourceEntry<WatchedOpen>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.meter.is_stopped() {
            return None;
        }
        if let Some(root) = self.root.take() {
            return Some(Ok(root));
        }
        Some(match self.entries.next()? {
            Ok(ReadSourceEntry { path, node, open }) => {
                let open = open.map(|_| WatchedOpen { path: path.clone(), meter: self.meter.clone() });
                Ok(ReadSourceEntry { path, node, open })
            }
            Err(error) => {
                self.meter.problem(format!("not backed up: {}", error.display_log()));
                Err(error)
            }
        })
    }
}

pub(super) struct WatchedOpen {
    path: PathBuf,
    meter: SharedMeter,
}

impl ReadSourceOpen for WatchedOpen {
    type Reader = WatchedFile;

    fn open(self) -> RusticResult<WatchedFile> {
        // An error here would make the engine leave the file out with a message in its own words; the reader fails
        // with ours at the first read instead, to the same effect.
        let file = File::open(&self.path);
        Ok(WatchedFile { file, path: self.path, meter: self.meter })
    }
}

pub(super) struct WatchedFile {
    file: io::Result<File>,
    path: PathBuf,
    meter: SharedMeter,
}

impl Read for WatchedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.is_stopped() {
            return Err(io::Error::other(STOPPED));
        }
        let read = match &mut self.file {
            Ok(file) => file.read(buffer),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        read.inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.meter.problem(format!("not backed up: {}: {error}", self.path.display()));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_the_padded_standard_one() {
        let known = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, text) in known {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }
}
