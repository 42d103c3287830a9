//! The tar formats that exist: v7, ustar, GNU and pax, with sparse files. Parsed here and not by a library, since a
//! tree needs what libraries drop (nanoseconds, attributes, duplicates) and hostile archives need bounds on all of it.

use std::io::{self, Read};

use proto::TreePath;
use proto::manifest::NodeKind;
use proto::path::{PathError, printable};
use proto::width;

use super::budget::Budget;
use super::tree::Repeated;
use super::{Devices, EntryFault, IngestError, Intake};
use crate::manager::store::Dense;

mod described;
mod header;
mod pax;
mod sparse;

use described::Described;
use header::{Header, checksum_fits, cut_nul, number};
use pax::{Layered, Records};
use sparse::{Extent, SparseReader};

pub(super) const BLOCK: usize = 512;
/// Bytes of one pax header or GNU long name. Attributes are the largest: the kernel allows 64 KiB for each.
const EXTENSION_BYTES_MAX: u64 = 4 << 20;
/// What a byte that is parsed costs, in bytes that are unpacked and hashed.
const PARSED_BYTES: u64 = 16;

/// Whether these bytes begin a tar archive (an empty one is two blocks of zeros).
pub(super) fn is_header(head: &[u8]) -> bool {
    head.len() == BLOCK && (head.iter().all(|byte| *byte == 0) || checksum_fits(head))
}

/// Reads a tar stream into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, source: impl Read, budget: Budget) -> Result<(), IngestError> {
    if !intake.strict {
        intake.tree.on_repeated(Repeated::LaterWins);
    }
    Reader { source, budget, global: Records::default(), odd_link: false }.run(intake)
}

struct Reader<R> {
    source: R,
    budget: Budget,
    /// What holds for all that follows.
    global: Records,
    /// The entry before was a hard link with a size.
    odd_link: bool,
}

/// What came before a header and belongs to it.
#[derive(Default)]
struct Pending {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    fn run(mut self, intake: &mut Intake<'_, '_>) -> Result<(), IngestError> {
        let mut pending = Pending::default();
        let mut last = Vec::new();
        while let Some(header) = self.header(intake, &last)? {
            let name = header.name();
            match header.kind() {
                b'x' | b'X' => {
                    let bytes = self.extension(intake, &header)?;
                    pending.records.extend_entry(&bytes).map_err(|fault| intake.refused(&name, fault))?;
                }
                b'g' => {
                    let bytes = self.extension(intake, &header)?;
                    self.global.extend_global(&bytes).map_err(|fault| intake.refused(&name, fault))?;
                }
                // The label of a volume says nothing of a tree.
                b'V' => {
                    pending = Pending::default();
                    self.skip(intake, &header)?;
                }
                b'L' => pending.long_name = Some(cut_nul(&self.extension(intake, &header)?)),
                b'K' => pending.long_link = Some(cut_nul(&self.extension(intake, &header)?)),
                _ => last = self.entry(intake, &header, std::mem::take(&mut pending))?,
            }
        }
        if !pending.records.is_empty() || pending.long_name.is_some() || pending.long_link.is_some() {
            return Err(intake.refused(&last, "the archive ends after an entry's extended header: it is cut off"));
        }
        // To the end, so that the checksums of the compression are checked too.
        io::copy(&mut self.source, &mut io::sink()).map_err(|error| intake.unread(b"", error))?;
        Ok(())
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self, intake: &Intake<'_, '_>, last: &[u8]) -> Result<Option<Header>, IngestError> {
        if intake.is_cancelled() {
            return Err(IngestError::Cancelled);
        }
        let mut block = [0; BLOCK];
        self.source.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => intake.refused(last, "the archive ends after this entry: it is cut off"),
            _ => intake.unread(last, error),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !checksum_fits(&block) {
            // GNU tar takes such a link for one without content, others for one with it; only the former can go on here.
            if self.odd_link {
                return Err(intake.refused(last, "a hard link that brings content of its own"));
            }
            return Err(intake.refused(last, "the header after this entry is damaged: its checksum is wrong"));
        }
        let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| intake.refused(last, "the size of the entry after this one is no number"))?;
        Ok(Some(Header { block, size }))
    }

    fn extension(&mut self, intake: &Intake<'_, '_>, header: &Header) -> Result<Vec<u8>, IngestError> {
        if header.size > EXTENSION_BYTES_MAX {
            return Err(intake.refused(&header.name(), "an extended header of more than 4 MiB"));
        }
        let mut bytes = vec![0; width::index(header.size)];
        self.source.read_exact(&mut bytes).map_err(|error| intake.unread(&header.name(), error))?;
        self.skip_padding(header.size).map_err(|error| intake.unread(&header.name(), error))?;
        Ok(bytes)
    }

    /// Leaves out what an entry brings.
    fn skip(&mut self, intake: &Intake<'_, '_>, header: &Header) -> Result<(), IngestError> {
        let name = header.name();
        let skipped = io::copy(&mut (&mut self.source).take(header.size), &mut io::sink());
        if skipped.map_err(|error| intake.unread(&name, error))? != header.size {
            return Err(intake.refused(&name, "the archive ends inside this entry: it is cut off"));
        }
        self.skip_padding(header.size).map_err(|error| intake.unread(&name, error))
    }

    fn skip_padding(&mut self, size: u64) -> io::Result<()> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.source.read_exact(&mut [0; BLOCK][..width::index(padding)])
    }

    /// Takes one entry in; returns its name.
    fn entry(
        &mut self,
        intake: &mut Intake<'_, '_>,
        header: &Header,
        pending: Pending,
    ) -> Result<Vec<u8>, IngestError> {
        // What holds for the whole archive is parsed again for each entry.
        self.budget.take(self.global.bytes() * PARSED_BYTES).map_err(|error| intake.unread(&header.name(), error))?;
        let records = Layered { own: &pending.records, global: &self.global };
        let entry = Described::new(header, records, pending.long_name, pending.long_link);
        let entry = entry.map_err(|(name, fault)| intake.refused(&name, fault))?;
        self.odd_link = header.kind() == b'1' && entry.size != 0;
        let refused = |intake: &Intake<'_, '_>, fault: EntryFault| Err(intake.refused(&entry.name, fault));
        let path = tree_path(&entry.name).map_err(|fault| intake.refused(&entry.name, fault))?;
        match header.kind() {
            b'0' | 0 | b'7' if entry.name.ends_with(b"/") => {
                intake.enter(path, NodeKind::Directory, entry.attributes)?;
            }
            b'0' | 0 | b'7' | b'S' => {
                let name = entry.name.clone();
                self.file(intake, header, path, entry)?;
                return Ok(name);
            }
            b'5' => {
                intake.enter(path, NodeKind::Directory, entry.attributes)?;
            }
            // A directory of an incremental archive brings the list of what it had then.
            b'D' => {
                intake.enter(path, NodeKind::Directory, entry.attributes)?;
                self.skip(intake, header)?;
            }
            b'2' => {
                intake.enter(path, NodeKind::Symlink(entry.link), entry.attributes)?;
            }
            b'1' => {
                let target = tree_path(&entry.link).map_err(|PathError { fault, .. }| {
                    intake.refused(&entry.name, format!("hard link to '{}': {fault}", printable(&entry.link)))
                })?;
                intake.link_to(path, &target)?;
            }
            b'3' | b'4' | b'6' => match &mut intake.devices {
                Devices::Refused => {
                    return refused(intake, "devices, sockets and pipes do not belong into a tree".into());
                }
                Devices::LeftOut(devices) => *devices += 1,
            },
            other => {
                return refused(intake, format!("an entry of the unknown type '{}'", other.escape_ascii()).into());
            }
        }
        Ok(entry.name)
    }

    fn file(
        &mut self,
        intake: &mut Intake<'_, '_>,
        header: &Header,
        path: TreePath,
        entry: Described,
    ) -> Result<(), IngestError> {
        let name = &entry.name;
        let mut extents = None;
        let mut stored = entry.size;
        if header.kind() == b'S' {
            let found = sparse::gnu_map(&header.block, &mut self.source);
            extents = Some(found.map_err(|error| intake.unread(name, error))?);
        } else if let Some(map) = &entry.sparse {
            let mut data = (&mut self.source).take(stored);
            let found = sparse::pax_map(map, &mut data);
            extents = Some((found.map_err(|error| intake.unread(name, error))?, map.real_size));
            stored = data.limit();
        }
        let mut data = (&mut self.source).take(stored);
        let (kind, bytes, expected) = match extents {
            None => {
                let (kind, bytes) = intake.content(&path, &mut Dense(&mut data))?;
                (kind, bytes, stored)
            }
            Some((extents, real_size)) => {
                let budget = self.budget.clone();
                let sparse = SparseReader::new(&mut data, extents, stored, real_size, budget);
                let mut sparse = sparse.map_err(|error| intake.unread(name, error))?;
                let (kind, bytes) = intake.content(&path, &mut sparse)?;
                (kind, bytes, real_size)
            }
        };
        if bytes != expected {
            return Err(intake.refused(name, "the archive ends inside this file: it is cut off"));
        }
        self.skip_padding(entry.size).map_err(|error| intake.unread(name, error))?;
        intake.enter(path, kind, entry.attributes)?;
        Ok(())
    }
}

/// A name of an archive as a path of the tree: without `./` at its start and `/` at its end, which archivers add.
///
/// # Errors
/// It leads out of the tree, or is none.
pub(super) fn tree_path(name: &[u8]) -> Result<TreePath, PathError> {
    let mut bare = name;
    while let Some(rest) = bare.strip_prefix(b"./") {
        bare = rest;
    }
    // What `tar -C / .` and `tar -P /` call the root.
    if !name.is_empty() && name.iter().all(|byte| *byte == b'/') {
        return Ok(TreePath::root());
    }
    bare = bare.strip_suffix(b"/").unwrap_or(bare);
    if bare == b"." || (bare.is_empty() && name.starts_with(b".")) {
        return Ok(TreePath::root());
    }
    if bare.is_empty() {
        let fault = if name.is_empty() { "an entry without a name" } else { "is absolute" };
        return Err(PathError { path: printable(name), fault });
    }
    TreePath::parse(bare)
}

/// See [`sparse`].
type Extents = Vec<Extent>;
