//! A zip archive or wheel. Modes and links come from the external attributes, times from the extended timestamp (or the
//! DOS time, taken as UTC so that every machine reads the same), owners from the Unix field or 0.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use ::zip::ZipArchive;
use ::zip::read::ZipReadOptions;
use ::zip::result::ZipError;
use proto::limits::{ENTRIES_MAX, PATH_BYTES_MAX};
use proto::manifest::NodeKind;

use super::archive::{Budget, Metered};
use super::tar::tree_path;
use super::tree::Attributes;
use super::{IngestError, Intake};

const TYPE_MASK: u32 = 0o170_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;

/// Reads a zip archive into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, file: File, budget: Budget) -> Result<(), IngestError> {
    let headers = file.try_clone().map_err(|error| intake.unread(b"", error))?;
    let broken = |intake: &Intake<'_, '_>, error: ZipError| intake.unfit(&format!("it does not parse: {error}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| broken(intake, error))?;
    if archive.len() > ENTRIES_MAX {
        return Err(intake.unfit("it has more than a million entries"));
    }
    if archive.has_duplicate_names() {
        return Err(intake.unfit("it has duplicate entries; a tree has one entry a path"));
    }
    if archive.has_overlapping_files().map_err(|error| broken(intake, error))? {
        return Err(intake.unfit("its entries share bytes: it looks like a bomb and is refused"));
    }
    for index in 0..archive.len() {
        if intake.is_cancelled() {
            return Err(IngestError::Cancelled);
        }
        let options = ZipReadOptions::new().enforce_header_consistency(true);
        let mut entry = archive.by_index_with_options(index, options).map_err(|error| broken(intake, error))?;
        let name = entry.name_raw().to_vec();
        let refused = |intake: &Intake<'_, '_>, fault: &str| Err(intake.refused(&name, fault));
        let path = tree_path(&name).map_err(|fault| intake.refused(&name, fault))?;
        // The crate invents a mode for archives that have none; only what is written there counts.
        let mode = entry.external_attributes() >> 16;
        let extra = Extra::read(&headers, entry.central_header_start()).unwrap_or_default();
        let attributes = |default: u32| Attributes {
            mode: if mode == 0 { default } else { mode & 0o7777 },
            uid: extra.owner.map_or(0, |owner| owner.0),
            gid: extra.owner.map_or(0, |owner| owner.1),
            mtime: (extra.mtime.unwrap_or_else(|| entry.last_modified().map_or(0, dos_time)), 0),
            xattrs: Vec::new(),
        };
        let kind = match mode & TYPE_MASK {
            0 | TYPE_DIRECTORY if name.ends_with(b"/") => TYPE_DIRECTORY,
            0 => TYPE_FILE,
            kind => kind,
        };
        match kind {
            TYPE_DIRECTORY => {
                let attributes = attributes(0o755);
                intake.enter(path, NodeKind::Directory, attributes)?;
            }
            TYPE_SYMLINK => {
                let (attributes, mut target) = (attributes(0o777), Vec::new());
                let mut content = (&mut entry).take(PATH_BYTES_MAX as u64 + 1);
                content.read_to_end(&mut target).map_err(|error| intake.unread(&name, error))?;
                intake.enter(path, NodeKind::Symlink(target), attributes)?;
            }
            TYPE_FILE if name.ends_with(b"/") => return refused(intake, "a file whose name ends in a slash"),
            TYPE_FILE => {
                let (attributes, size) = (attributes(0o644), entry.size());
                // One byte more than promised, so that more is noticed.
                let mut content =
                    Metered { inner: (&mut entry).take(size.saturating_add(1)), budget: budget.clone() };
                let (kind, bytes) = intake.content(&path, &mut content)?;
                if bytes != size {
                    return refused(intake, "its content has another length than its header says");
                }
                intake.enter(path, kind, attributes)?;
            }
            _ => return refused(intake, "devices, sockets and pipes do not belong into a tree"),
        }
    }
    Ok(())
}

/// What the extra fields of an entry's central header tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extra {
    /// Seconds since 1970.
    mtime: Option<i64>,
    /// User and group.
    owner: Option<(u32, u32)>,
}

impl Extra {
    fn read(file: &File, at: u64) -> io::Result<Self> {
        let mut header = [0; 46];
        file.read_exact_at(&mut header, at)?;
        if &header[..4] != b"PK\x01\x02" {
            return Ok(Self::default());
        }
        let length = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let mut fields = vec![0; length(30) as usize];
        file.read_exact_at(&mut fields, at + 46 + length(28))?;
        Ok(Self::parse(&fields))
    }

    fn parse(mut fields: &[u8]) -> Self {
        let mut extra = Self::default();
        while let Some((head, rest)) = fields.split_first_chunk::<4>() {
            let bytes = usize::from(u16::from_le_bytes([head[2], head[3]]));
            let Some((field, rest)) = rest.split_at_checked(bytes) else { break };
            match (u16::from_le_bytes([head[0], head[1]]), field) {
                // "UT": flags, then the modification time if bit 0 is set.
                (0x5455, [flags, a, b, c, d, ..]) if flags & 1 != 0 => {
                    extra.mtime = Some(i64::from(i32::from_le_bytes([*a, *b, *c, *d])));
                }
                // "ux": version 1, then the sizes and values of user and group.
                (0x7875, [1, 4, u0, u1, u2, u3, 4, g0, g1, g2, g3, ..]) => {
                    extra.owner =
                        Some((u32::from_le_bytes([*u0, *u1, *u2, *u3]), u32::from_le_bytes([*g0, *g1, *g2, *g3])));
                }
                _ => {}
            }
            fields = rest;
        }
        extra
    }
}

/// A DOS time as seconds since 1970, taken as UTC.
fn dos_time(time: ::zip::DateTime) -> i64 {
    let (year, month, day) = (i64::from(time.year()), i64::from(time.month()), i64::from(time.day()));
    // Days from civil date; see Howard Hinnant, "chrono-compatible low-level date algorithms".
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    days * 86_400 + i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second())
}
