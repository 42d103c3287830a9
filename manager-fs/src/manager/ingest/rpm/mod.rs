//! An RPM package (<https://rpm-software-management.github.io/rpm/manual/format_v4.html>): a lead, a header of signatures,
//! a header that lists the files, and a compressed cpio archive that has their contents. Parsed here and not by a library,
//! since those that exist allocate what a header claims.
//!
//! What stands in the list of files counts; the archive brings contents. Scripts that would run at an installation are
//! never run: nothing is installed.

use std::io::{self, Read};

use proto::limits::PATH_BYTES_MAX;
use proto::manifest::NodeKind;
use proto::path::printable;

use super::budget::{Budget, Metered};
use super::hashed::{Hashed, hex};
use super::stream::{plain_stream, read_head};
use super::tar::tree_path;
use super::{IngestError, Intake};
use crate::manager::store::Dense;

mod cpio;
mod files;
mod header;
#[cfg(test)]
mod tests;

use cpio::Entry;
use files::{PackagedFile, PackagedFiles};
use header::{Header, HeaderFault};

/// The first bytes of a package.
pub(super) const MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const LEAD_BYTES: usize = 96;

#[cfg(test)]
/// One package, made by rpmbuild 4.18 from `samples/small.spec`, with each of its compressions.
pub(crate) const SAMPLES: [(&str, &[u8]); 5] = [
    ("gzip", include_bytes!("samples/gzip.rpm")),
    ("bzip2", include_bytes!("samples/bzip2.rpm")),
    ("xz", include_bytes!("samples/xz.rpm")),
    ("lzma", include_bytes!("samples/lzma.rpm")),
    ("zstd", include_bytes!("samples/zstd.rpm")),
];

// Tags (rpmtag.h): of the signature header, then of the header.
const SHA256_OF_HEADER: u32 = 273;
const PAYLOAD_FORMAT: u32 = 1124;
const PAYLOAD_DIGEST: u32 = 5092;
const PAYLOAD_DIGEST_ALGORITHM: u32 = 5093;
/// `PGPHASHALGO_SHA256`.
const SHA256: u64 = 8;

const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_SYMLINK: u32 = 0o120_000;

/// Reads a package into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, mut source: impl Read, budget: Budget) -> Result<(), IngestError> {
    let header = headers(&mut source).map_err(|fault| unread_header(intake, fault))?;
    let (listed, digest) = described(&header).map_err(|fault| unread_header(intake, fault))?;
    if !listed.owners.is_empty() {
        let owners = listed.owners.join(", ");
        intake.remark(&format!(
            "owners are numbers on a host: what belongs to {owners} in the package belongs to root here"
        ));
    }
    if listed.capable > 0 {
        intake
            .remark(&format!("{} of its files have capabilities in the package, which are left out", listed.capable));
    }

    let mut payload = Hashed::new(source);
    let mut head = [0; 512];
    let got = read_head(&mut payload, &mut head).map_err(|error| intake.unread(b"", error))?;
    let plain = plain_stream(&head[..got], &mut payload, cpio::is_header);
    let plain = plain.map_err(|error| intake.unread(b"", error))?;
    let plain = plain.ok_or_else(|| intake.unfit("its archive is compressed in an unknown way"))?;
    let mut archive = Unpacking { names: vec![Names::default(); listed.names.len()], listed: &listed };
    archive.run(intake, cpio::Reader::new(Metered { inner: plain, budget }))?;

    let sum = payload.finish().map_err(|error| intake.unread(b"", error))?;
    match digest {
        Some(digest) if digest != sum => {
            Err(intake.unfit("its archive is damaged: it has another SHA-256 than the header says"))
        }
        _ => Ok(()),
    }
}

fn unread_header(intake: &Intake<'_, '_>, fault: HeaderFault) -> IngestError {
    match fault {
        HeaderFault::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            intake.unfit("the package is cut off")
        }
        HeaderFault::Io(error) => intake.unread(b"", error),
        HeaderFault::Damaged(_) | HeaderFault::Unfit(_) => intake.unfit(&fault.to_string()),
    }
}

/// The header of files, if the signature header's sum is its own.
fn headers(source: &mut impl Read) -> Result<Header, HeaderFault> {
    let mut lead = [0; LEAD_BYTES];
    source.read_exact(&mut lead)?;
    if lead[6..8] != [0, 0] {
        return Err(HeaderFault::Unfit("it is a source package: build it, and publish what comes out"));
    }
    let signatures = Header::read(source)?;
    source.read_exact(&mut [0; 8][..signatures.padding_bytes()])?;
    let header = Header::read(source)?;
    match signatures.text(SHA256_OF_HEADER)? {
        Some(sum) if sum != hex(&header.sha256).as_bytes() => {
            Err(HeaderFault::Damaged("it has another SHA-256 than the package says"))
        }
        _ => Ok(header),
    }
}

/// The list of files, and the archive's SHA-256 as the header has it.
fn described(header: &Header) -> Result<(PackagedFiles, Option<String>), HeaderFault> {
    match header.text(PAYLOAD_FORMAT)? {
        None | Some(b"cpio") => {}
        Some(_) => {
            return Err(HeaderFault::Unfit("its archive is not cpio: a delta package needs what it is a delta to"));
        }
    }
    let is_sha256 = header.numbers(PAYLOAD_DIGEST_ALGORITHM)?.first() == Some(&SHA256);
    let digest = header.text(PAYLOAD_DIGEST)?.filter(|_| is_sha256).map(printable);
    Ok((PackagedFiles::read(header)?, digest))
}

/// The names of one file: those that came before its content, and then the node.
#[derive(Debug, Clone, Default)]
struct Names {
    seen: u32,
    waiting: Vec<Vec<u8>>,
    node: Option<u32>,
}

struct Unpacking<'a> {
    listed: &'a PackagedFiles,
    /// Of each file with several names.
    names: Vec<Names>,
}

impl Unpacking<'_> {
    fn run(&mut self, intake: &mut Intake<'_, '_>, mut archive: cpio::Reader<impl Read>) -> Result<(), IngestError> {
        let mut last = Vec::new();
        loop {
            if intake.is_cancelled() {
                return Err(IngestError::Cancelled);
            }
            let entry = archive.entry().map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    intake.refused(&last, "the archive ends after this entry: it is cut off")
                }
                _ => intake.unread(&last, error),
            })?;
            let Some(entry) = entry else { break };
            let (file, named_bytes) = match &entry {
                Entry::Named { name, bytes } => (self.listed.find(name), Some(*bytes)),
                Entry::Numbered(number) => (self.listed.files.get(*number), None),
            };
            let Some(file) = file.cloned() else {
                let name = if let Entry::Named { name, .. } = &entry { name.as_slice() } else { b"" };
                return Err(intake.refused(name, "the package's archive has it, but its list of files has not"));
            };
            self.take(intake, &file, named_bytes, &mut archive)?;
            last = file.path;
        }
        if let Some(waiting) = self.names.iter().find_map(|names| names.waiting.first()) {
            return Err(intake.refused(waiting, "the archive has this name of a file, but not the file"));
        }
        // To the end, so that the checksums of the compression are checked too.
        io::copy(&mut archive, &mut io::sink()).map_err(|error| intake.unread(b"", error))?;
        Ok(())
    }

    fn take(
        &mut self,
        intake: &mut Intake<'_, '_>,
        file: &PackagedFile,
        named_bytes: Option<u64>,
        archive: &mut impl Read,
    ) -> Result<(), IngestError> {
        let path = tree_path(&file.path).map_err(|fault| intake.refused(&file.path, fault))?;
        match file.kind() {
            TYPE_DIRECTORY => {
                intake.enter(path, NodeKind::Directory, file.attributes())?;
                Ok(())
            }
            TYPE_SYMLINK => {
                let bytes = named_bytes.unwrap_or(file.bytes).min(PATH_BYTES_MAX as u64 + 1);
                let mut target = Vec::new();
                archive.take(bytes).read_to_end(&mut target).map_err(|error| intake.unread(&file.path, error))?;
                intake.enter(path, NodeKind::Symlink(target), file.attributes())?;
                Ok(())
            }
            TYPE_FILE => self.regular(intake, file, named_bytes, archive),
            _ => Err(intake.refused(&file.path, "devices, sockets and pipes do not belong into a tree")),
        }
    }

    /// A regular file. Of one with several names only the last entry brings the content.
    fn regular(
        &mut self,
        intake: &mut Intake<'_, '_>,
        file: &PackagedFile,
        named_bytes: Option<u64>,
        archive: &mut impl Read,
    ) -> Result<(), IngestError> {
        let mut earlier = Vec::new();
        if let Some(number) = file.names {
            let names = &mut self.names[number];
            names.seen += 1;
            let is_last = names.seen == self.listed.names[number];
            let brings = named_bytes.map_or(is_last, |bytes| bytes > 0 || is_last);
            if let Some(node) = names.node {
                let path = tree_path(&file.path).map_err(|fault| intake.refused(&file.path, fault))?;
                return intake.link(path, node);
            }
            if !brings {
                names.waiting.push(file.path.clone());
                return Ok(());
            }
            earlier = std::mem::take(&mut names.waiting);
        }
        let path = tree_path(&file.path).map_err(|fault| intake.refused(&file.path, fault))?;
        let expected = named_bytes.unwrap_or(file.bytes);
        if expected != file.bytes {
            return Err(intake.refused(&file.path, "the archive has another length of it than the list of files"));
        }
        let (kind, bytes) = intake.content(&path, &mut Dense(&mut archive.take(expected)))?;
        if bytes != expected {
            return Err(intake.refused(&file.path, "the archive ends inside this file: it is cut off"));
        }
        let node = intake.enter(path, kind, file.attributes())?;
        for name in earlier {
            let path = tree_path(&name).map_err(|fault| intake.refused(&name, fault))?;
            intake.link(path, node)?;
        }
        if let Some(number) = file.names {
            self.names[number].node = Some(node);
        }
        Ok(())
    }
}
