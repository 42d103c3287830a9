//! The list of files in a package's header: what each is, beside its content.

use std::collections::HashMap;

use proto::limits::MANIFEST_BYTES_MAX;

use super::super::attributes::Attributes;
use super::header::{Header, HeaderFault};

// Tags of the header (rpmtag.h).
const OLD_FILE_NAMES: u32 = 1027;
const FILE_SIZES: u32 = 1028;
const FILE_MODES: u32 = 1030;
const FILE_TIMES: u32 = 1034;
const FILE_FLAGS: u32 = 1037;
const FILE_USERS: u32 = 1039;
const FILE_GROUPS: u32 = 1040;
const FILE_DEVICES: u32 = 1095;
const FILE_INODES: u32 = 1096;
const DIRECTORY_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIRECTORY_NAMES: u32 = 1118;
const LONG_FILE_SIZES: u32 = 5008;
const FILE_CAPABILITIES: u32 = 5010;

/// `RPMFILE_GHOST`: the package owns the file and does not bring it.
const GHOST: u64 = 1 << 6;
const TYPE_MASK: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackagedFile {
    /// Where it belongs, without the first `/`.
    pub(super) path: Vec<u8>,
    /// Type and permissions, as `st_mode`.
    pub(super) mode: u32,
    pub(super) bytes: u64,
    /// Seconds since 1970.
    mtime: i64,
    /// A number that its other names share, where it has any.
    pub(super) names: Option<usize>,
}

impl PackagedFile {
    /// Packages name owners, which are numbers on a host only; all belongs to root, as what a package manager's own files do.
    pub(super) fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode & 0o7777, uid: 0, gid: 0, mtime: (self.mtime, 0), xattrs: Vec::new() }
    }

    pub(super) fn kind(&self) -> u32 {
        self.mode & TYPE_MASK
    }
}

/// See the module.
pub(super) struct PackagedFiles {
    pub(super) files: Vec<PackagedFile>,
    by_path: HashMap<Vec<u8>, usize>,
    /// How many names each file with several has.
    pub(super) names: Vec<u32>,
    /// Owners that are not root.
    pub(super) owners: Vec<String>,
    /// How many files have capabilities.
    pub(super) capable: usize,
}

impl PackagedFiles {
    pub(super) fn read(header: &Header) -> Result<Self, HeaderFault> {
        let paths = paths(header)?;
        let modes = header.numbers(FILE_MODES)?;
        let mut sizes = header.numbers(LONG_FILE_SIZES)?;
        if sizes.is_empty() {
            sizes = header.numbers(FILE_SIZES)?;
        }
        let times = header.numbers(FILE_TIMES)?;
        if [modes.len(), sizes.len(), times.len()].iter().any(|length| *length != paths.len()) {
            return Err(HeaderFault::Damaged("its lists of files are of different lengths"));
        }
        let (devices, inodes) = (header.numbers(FILE_DEVICES)?, header.numbers(FILE_INODES)?);
        let flags = header.numbers(FILE_FLAGS)?;
        let mut together: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
        let mut files = Vec::with_capacity(paths.len());
        for (number, path) in paths.into_iter().enumerate() {
            // The kernel's mode has 16 bits.
            let mode = u32::try_from(modes[number] & 0xffff).unwrap_or(0);
            let is_ghost = flags.get(number).is_some_and(|flags| flags & GHOST != 0);
            if let (Some(device), Some(inode)) = (devices.get(number), inodes.get(number))
                && mode & TYPE_MASK == TYPE_FILE
                && !is_ghost
            {
                together.entry((*device, *inode)).or_default().push(number);
            }
            let mtime = i64::try_from(times[number]).unwrap_or(0);
            files.push(PackagedFile { path, mode, bytes: sizes[number], mtime, names: None });
        }
        let mut names = Vec::new();
        for same in together.into_values().filter(|same| same.len() > 1) {
            for number in &same {
                files[*number].names = Some(names.len());
            }
            names.push(proto::width::count(same.len()));
        }
        let by_path = files.iter().enumerate().map(|(number, file)| (file.path.clone(), number)).collect();
        let owners = [header.texts(FILE_USERS)?, header.texts(FILE_GROUPS)?].concat();
        let mut owners: Vec<String> = owners.into_iter().map(proto::path::printable).collect();
        owners.retain(|owner| owner != "root");
        owners.sort();
        owners.dedup();
        let capable = header.texts(FILE_CAPABILITIES)?.iter().filter(|text| !text.is_empty()).count();
        Ok(Self { files, by_path, names, owners, capable })
    }

    /// The file of an archive's name, which begins with `./` or `/`, or with neither.
    pub(super) fn find(&self, name: &[u8]) -> Option<&PackagedFile> {
        let name = name.strip_prefix(b".").filter(|rest| rest.starts_with(b"/")).unwrap_or(name);
        self.by_path.get(name.strip_prefix(b"/").unwrap_or(name)).map(|number| &self.files[*number])
    }
}

/// The paths, without the first `/`.
fn paths(header: &Header) -> Result<Vec<Vec<u8>>, HeaderFault> {
    let bare = |path: &[u8]| path.strip_prefix(b"/").unwrap_or(path).to_vec();
    let old = header.texts(OLD_FILE_NAMES)?;
    if !old.is_empty() {
        return Ok(old.into_iter().map(bare).collect());
    }
    let directories = header.texts(DIRECTORY_NAMES)?;
    let (names, indexes) = (header.texts(BASE_NAMES)?, header.numbers(DIRECTORY_INDEXES)?);
    if names.len() != indexes.len() {
        return Err(HeaderFault::Damaged("its lists of files are of different lengths"));
    }
    let (mut paths, mut bytes) = (Vec::with_capacity(names.len()), 0);
    for (name, index) in names.into_iter().zip(indexes) {
        let directory = usize::try_from(index).ok().and_then(|index| directories.get(index));
        let directory = directory.ok_or(HeaderFault::Damaged("a file is in a directory that it does not have"))?;
        // One long directory may stand before a million names.
        bytes += directory.len() + name.len();
        if bytes > MANIFEST_BYTES_MAX {
            return Err(HeaderFault::Damaged("its paths have more than 256 MiB together"));
        }
        paths.push(bare(&[directory, name].concat()));
    }
    Ok(paths)
}
