//! A zip archive or wheel. Modes and links come from the external attributes, times from the extended timestamp (or the
//! DOS time, taken as UTC so that every machine reads the same), owners from the Unix field or 0. The central directory
//! counts; an entry whose own header leaves its bytes in doubt is refused.

use std::fs::File;
use std::io::{BufReader, Read};

use ::zip::ZipArchive;
use ::zip::read::ZipReadOptions;
use ::zip::result::ZipError;
use proto::limits::{ENTRIES_MAX, PATH_BYTES_MAX};
use proto::manifest::NodeKind;

use super::attributes::Attributes;
use super::budget::{Budget, Metered};
use super::tar::tree_path;
use super::{IngestError, Intake};
use crate::manager::store::Dense;

mod header;

use header::CentralHeader;

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
        // The crate's own check refuses archives whose headers differ in what decides nothing, such as times.
        let options = ZipReadOptions::new().enforce_header_consistency(false);
        let mut entry = archive.by_index_with_options(index, options).map_err(|error| broken(intake, error))?;
        let raw = entry.name_raw().to_vec();
        let central = CentralHeader::read(&headers, entry.central_header_start());
        let central = central.map_err(|error| intake.unread(&raw, error))?;
        let name = central.name();
        let doubt = central.doubt(&headers, entry.header_start()).map_err(|error| intake.unread(&name, error))?;
        if let Some(doubt) = doubt {
            return Err(intake.refused(&name, doubt));
        }
        let refused = |intake: &Intake<'_, '_>, fault: &'static str| Err(intake.refused(&name, fault));
        let path = tree_path(&name).map_err(|fault| intake.refused(&name, fault))?;
        // The crate invents a mode for archives that have none; only what is written there counts.
        let mode = entry.external_attributes() >> 16;
        let extra = central.extra();
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
                let (kind, bytes) = intake.content(&path, &mut Dense(&mut content))?;
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
