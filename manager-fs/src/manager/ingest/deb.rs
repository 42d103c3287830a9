//! A Debian package: an `ar` archive whose `data.tar.*` holds the tree.

use std::io::{self, Read};

use super::budget::Budget;
use super::{IngestError, Intake, stream};

/// The first bytes of an `ar` archive.
pub(super) const MAGIC: &[u8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;

/// Reads a Debian package into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, mut source: impl Read, budget: Budget) -> Result<(), IngestError> {
    let unread = |intake: &Intake<'_, '_>, error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => intake.unfit("the package is cut off"),
        _ => intake.unread(b"", error),
    };
    source.read_exact(&mut [0; MAGIC.len()]).map_err(|error| unread(intake, error))?;
    let mut first = true;
    loop {
        let mut header = [0; HEADER_BYTES];
        source.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => intake.unfit("it has no data.tar, so it is no Debian package"),
            _ => intake.unread(b"", error),
        })?;
        let (name, bytes) = member(&header).ok_or_else(|| intake.unfit("the header of a member is damaged"))?;
        if first && name != "debian-binary" {
            return Err(
                intake.unfit("it is an ar archive, but no Debian package: 'debian-binary' is not its first member")
            );
        }
        if name.starts_with("data.tar") {
            let mut data = (&mut source).take(bytes);
            stream::read_tar(intake, &mut data, budget)?;
            // The decoder may have stopped before the member's end; what is missing shows as a short copy.
            io::copy(&mut data, &mut io::sink()).map_err(|error| unread(intake, error))?;
            return if data.limit() == 0 { Ok(()) } else { Err(intake.unfit("the package is cut off")) };
        }
        let padded = bytes + bytes % 2;
        let skipped = io::copy(&mut (&mut source).take(padded), &mut io::sink());
        if skipped.map_err(|error| unread(intake, error))? != padded {
            return Err(intake.unfit("the package is cut off"));
        }
        first = false;
    }
}

/// Name and length of a member.
fn member(header: &[u8; HEADER_BYTES]) -> Option<(String, u64)> {
    if &header[58..] != b"`\n" {
        return None;
    }
    let name = std::str::from_utf8(&header[..16]).ok()?.trim_end();
    let bytes = std::str::from_utf8(&header[48..58]).ok()?.trim_end().parse().ok()?;
    Some((name.trim_end_matches('/').to_owned(), bytes))
}
