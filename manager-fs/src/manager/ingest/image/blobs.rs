//! Where an image's blobs lie: in the directory of an OCI layout, or in a tar archive of one, which is not unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proto::limits::ENTRIES_MAX;
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Bytes of one document; those of large images have some ten thousand.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// See the module.
pub(super) enum Blobs {
    Directory(OwnedFd),
    Archive { file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

/// Where a file of an archive is.
#[derive(Debug, Clone)]
pub(super) enum Member {
    Stretch {
        at: u64,
        bytes: u64,
    },
    /// Another name of a file; `docker save` writes equal layers once.
    Link(Vec<u8>),
}

impl Blobs {
    /// Finds what an archive holds.
    pub(super) fn of_archive(file: File) -> io::Result<Self> {
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if members.len() >= ENTRIES_MAX {
                return Err(io::Error::other("it has more than a million entries"));
            }
            let name = bare(&entry.path_bytes()).to_vec();
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    let (at, bytes) = (entry.raw_file_position(), entry.size());
                    members.insert(name, Member::Stretch { at, bytes });
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let is_hard = entry.header().entry_type() == tar::EntryType::Link;
                    if let Some(target) = entry.link_name_bytes() {
                        let target = if is_hard { bare(&target).to_vec() } else { beside(&name, &target) };
                        members.insert(name, Member::Link(target));
                    }
                }
                _ => {}
            }
        }
        Ok(Self::Archive { file: Arc::new(file), members })
    }

    /// A file of the image.
    ///
    /// # Errors
    /// `NotFound`, or it cannot be read.
    pub(super) fn open(&self, name: &str) -> io::Result<BufReader<Stretch>> {
        Ok(BufReader::with_capacity(256 << 10, self.stretch(name)?))
    }

    /// How many bytes a file of the image has.
    ///
    /// # Errors
    /// Those of [`Blobs::open`].
    pub(super) fn bytes(&self, name: &str) -> io::Result<u64> {
        Ok(self.stretch(name)?.left)
    }

    fn stretch(&self, name: &str) -> io::Result<Stretch> {
        match self {
            Blobs::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let fd = rustix::fs::openat2(directory, name, flags, Mode::empty(), ResolveFlags::BENEATH)?;
                let file = File::from(fd);
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other("it is not a regular file"));
                }
                Ok(Stretch { file: Arc::new(file), at: 0, left: metadata.len() })
            }
            Blobs::Archive { file, members } => {
                let mut name = name.as_bytes();
                // A link to a link is nothing that anybody writes; the bound is against circles.
                for _ in 0..4 {
                    match members.get(name) {
                        Some(Member::Link(target)) => name = target,
                        Some(Member::Stretch { at, bytes }) => {
                            return Ok(Stretch { file: Arc::clone(file), at: *at, left: *bytes });
                        }
                        None => break,
                    }
                }
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    /// A document of the image, whole.
    pub(super) fn document(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(io::Error::other("it is larger than any document of an image (4 MiB)"));
        }
        Ok(bytes)
    }
}

/// A name of an archive without `./` before it and `/` after it.
fn bare(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_suffix(b"/").unwrap_or(name)
}

/// Where a symbolic link at `name` leads.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut at: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    at.pop();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(at.pop()),
            part => at.push(part),
        }
    }
    at.join(&b'/')
}

/// A part of a file.
pub(super) struct Stretch {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Stretch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = proto::width::index(self.left.min(buffer.len() as u64));
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_where_they_are() {
        assert_eq!(beside(b"b/layer.tar", b"../a/layer.tar"), b"a/layer.tar");
        assert_eq!(beside(b"layer.tar", b"./x//y"), b"x/y");
        assert_eq!(beside(b"a/b", b"../../../c"), b"c");
    }
}
