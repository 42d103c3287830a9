//! Which archive a file is, by its first bytes.

use std::fs::File;
use std::io::{self, BufReader, Seek};

use super::budget::BombLimit;
use super::stream::read_head;
use super::{IngestError, Intake, deb, rpm, stream, zip};

/// Reads an archive file into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, mut file: File, limit: BombLimit) -> Result<(), IngestError> {
    let unread = |error: io::Error| intake.unread(b"", error);
    let bytes = file.metadata().map_err(unread)?.len();
    let mut head = [0; 512];
    let got = read_head(&mut file, &mut head).map_err(unread)?;
    file.rewind().map_err(unread)?;
    let budget = limit.budget(bytes);
    match &head[..got] {
        head if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") => zip::read(intake, file, budget),
        head if head.starts_with(deb::MAGIC) => deb::read(intake, BufReader::new(file), budget),
        head if head.starts_with(&rpm::MAGIC) => rpm::read(intake, BufReader::new(file), budget),
        [] => Err(intake.unfit("it is empty")),
        _ => stream::read_tar(intake, BufReader::with_capacity(256 << 10, file), budget),
    }
}
