//! Whom this host believes, and who it is: the files of `STATE/identity`, each there twice, so that a bit that flips, or a
//! file that is gone, costs nothing.
//!
//! ```text
//! NAME  NAME.2    the same bytes
//! sums  sums.2    a line a file: its BLAKE3 in 64 hex digits, two spaces, NAME (as `b3sum` prints it)
//! ```
//! A file is the first of its copies that has a sum that either list names. An identity without sums was made by an
//! earlier version: its only copy is taken as it is, and [`mend`] makes the rest. Nobody edits these files: what
//! has no sum is not believed. The directory is replaced as a whole, by `manager-fs enroll` and at a renewal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::{ObjectId, Publishers};

use crate::durable::{self, Durability, FileFault};

/// The largest file is a certificate.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file with the keys of the publishers that this host believes.
pub const PUBLISHERS: &str = "publishers";

/// A file of the identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityFault {
    /// There is no identity.
    #[error("{} is not there: this host trusts no publisher yet; enrol it with `manager-fs enroll`", .0.display())]
    NotEnrolled(PathBuf),
    /// Neither copy is what was written.
    #[error(
        "{path} and its second copy are damaged ({why}): restore one of them, or enrol this host again with \
         `manager-fs enroll --force`; until then nothing new is believed here",
        path = path.display()
    )]
    Damaged {
        /// The first copy.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileFault),
}

/// Where a host keeps its key, its certificate and the publishers it believes: `STATE/identity`.
pub fn directory(state: &Path) -> PathBuf {
    state.join("identity")
}

/// The text of one file.
///
/// # Errors
/// There is no identity, or neither copy is whole.
pub fn read(state: &Path, name: &str) -> Result<String, IdentityFault> {
    let dir = directory(state);
    if !dir.exists() {
        return Err(IdentityFault::NotEnrolled(dir));
    }
    let sums = sums(&dir, name);
    let path = dir.join(name);
    let mut why = None;
    for copy in [path.clone(), second(&path)] {
        let bytes = match read_bounded(&copy) {
            Ok(bytes) => bytes,
            Err(e) => {
                why.get_or_insert(e.to_string());
                continue;
            }
        };
        let is_whole = sums.is_empty() && !bytes.is_empty() || sums.contains(&ObjectId::of(&bytes));
        match String::from_utf8(bytes) {
            Ok(text) if is_whole => return Ok(text),
            Ok(_) | Err(_) => drop(why.get_or_insert_with(|| "these are not the bytes that were written".to_owned())),
        }
    }
    Err(IdentityFault::Damaged { path, why: why.unwrap_or_default() })
}

/// Whom this host believes.
///
/// # Errors
/// As [`read`], or the file names nobody.
pub fn publishers(state: &Path) -> Result<Publishers, IdentityFault> {
    let text = read(state, PUBLISHERS)?;
    let damaged = |why: String| IdentityFault::Damaged { path: directory(state).join(PUBLISHERS), why };
    let publishers = Publishers::parse(&text).map_err(|fault| damaged(fault.to_string()))?;
    if publishers.keys().is_empty() {
        return Err(damaged("it holds no publisher's key".to_owned()));
    }
    Ok(publishers)
}

/// Writes the files of a new identity into `dir`, which is not the identity yet. They are synced, the directory is not.
///
/// # Errors
/// The file system's.
pub fn write(dir: &Path, files: &[(&str, &str)]) -> Result<(), FileFault> {
    let by_name: BTreeMap<_, _> = files.iter().map(|(name, text)| (*name, *text)).collect();
    let sums: String = by_name.iter().map(|(name, text)| line(name, text)).collect();
    for (name, text) in files.iter().chain([&(SUMS, sums.as_str())]) {
        let path = dir.join(name);
        for copy in [second(&path), path] {
            durable::write(&copy, text.as_bytes(), Durability::PowerCut)?;
        }
    }
    Ok(())
}

/// Makes every file whole twice again, from the copy that is. For an identity that is known to be good as a whole: one
/// without sums gets them now. What was wrong is kept as `NAME.damaged-MILLISECONDS`. Returns what was done, for people.
pub fn mend(state: &Path, now_unix_ms: u64) -> Vec<String> {
    let dir = directory(state);
    let mut said = Vec::new();
    let mut sums = String::new();
    let mut is_all = true;
    for name in names(&dir) {
        let path = dir.join(&name);
        match read(state, &name) {
            Ok(text) => {
                sums.push_str(&line(&name, &text));
                mend_file(&path, &text, now_unix_ms, &mut said);
            }
            // Without its sum what is damaged would be taken for what was written.
            Err(_) if path.exists() || second(&path).exists() => is_all = false,
            // No file, but a name that a flipped bit has made.
            Err(_) => {}
        }
    }
    if is_all {
        mend_file(&dir.join(SUMS), &sums, now_unix_ms, &mut said);
    }
    said
}

const SUMS: &str = "sums";

fn mend_file(path: &Path, text: &str, now_unix_ms: u64, said: &mut Vec<String>) {
    for copy in [path.to_owned(), second(path)] {
        let found = read_bounded(&copy);
        if found.as_ref().is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        let mut kept = String::new();
        if copy.exists() {
            let name = copy.file_name().unwrap_or_default().to_string_lossy();
            let aside = copy.with_file_name(format!("{name}.damaged-{now_unix_ms}"));
            if fs::rename(&copy, &aside).is_ok() {
                kept = format!("; what was there is kept as {}", aside.display());
            }
        }
        let what = if found.is_ok() { "was damaged" } else { "was missing" };
        said.push(match durable::write(&copy, text.as_bytes(), Durability::PowerCut) {
            Ok(()) => format!("{} {what}, and is whole again{kept}", copy.display()),
            Err(e) => format!("{} {what}, and cannot be mended: {e}{kept}", copy.display()),
        });
    }
}

/// The files that an identity has, by its sums or, if it has none, by its directory.
fn names(dir: &Path) -> BTreeSet<String> {
    let listed: BTreeSet<String> = all_sums(dir).into_iter().map(|(_, name)| name).collect();
    if !listed.is_empty() {
        return listed.into_iter().filter(|name| is_name(name)).collect();
    }
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.file_name().into_string().ok()).filter(|name| is_name(name)).collect()
}

/// Not a second copy, the sums, what was set aside, or being written.
fn is_name(name: &str) -> bool {
    let is_other = name.ends_with(".2") || name == SUMS || name.contains(".damaged-");
    !is_other && !name.starts_with('.') && !name.contains('/')
}

fn sums(dir: &Path, name: &str) -> Vec<ObjectId> {
    all_sums(dir).into_iter().filter(|(_, of)| of == name).map(|(sum, _)| sum).collect()
}

fn all_sums(dir: &Path) -> Vec<(ObjectId, String)> {
    let path = dir.join(SUMS);
    let texts = [path.clone(), second(&path)].map(|path| read_bounded(&path).unwrap_or_default());
    let texts = texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let lines = texts.iter().flat_map(|text| text.lines());
    lines
        .filter_map(|line| line.split_once("  ").and_then(|(sum, of)| Some((sum.parse().ok()?, of.to_owned()))))
        .collect()
}

fn line(name: &str, text: &str) -> String {
    format!("{}  {name}\n", ObjectId::of(text.as_bytes()))
}

fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".2");
    PathBuf::from(name)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than anything that was ever written there"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[(&str, &str)] =
        &[("host.key", "secret\n"), ("manager", "manager:7420\n"), ("publishers", "abc\n")];

    fn identity() -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(directory(state.path())).unwrap();
        write(&directory(state.path()), FILES).unwrap();
        state
    }

    fn is_whole(state: &Path) -> bool {
        FILES.iter().all(|(name, text)| read(state, name).is_ok_and(|found| found == *text))
    }

    /// Every file, and each thing that can happen to one: nothing is lost, and afterwards everything is there twice again.
    #[test]
    fn whatever_happens_to_one_file_nothing_is_lost() {
        let one = identity();
        let all = fs::read_dir(directory(one.path())).unwrap().map(|file| file.unwrap().file_name());
        let all: Vec<_> = all.collect();
        assert_eq!(all.len(), 8);
        for name in all {
            let bytes = fs::read(directory(one.path()).join(&name)).unwrap();
            let mut harms: Vec<Option<Vec<u8>>> = (0..8 * bytes.len())
                .map(|bit| {
                    let mut harmed = bytes.clone();
                    harmed[bit / 8] ^= 1 << (bit % 8);
                    Some(harmed)
                })
                .collect();
            harms.extend([None, Some(Vec::new()), Some(bytes[..bytes.len() / 2].to_vec()), Some(vec![0; 2 << 20])]);
            let state = identity();
            let path = directory(state.path()).join(&name);
            for (n, harm) in harms.into_iter().enumerate() {
                match harm {
                    Some(harm) => fs::write(&path, harm).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                assert!(is_whole(state.path()), "{name:?}, harm {n}");
                let said = mend(state.path(), n as u64);
                assert_eq!(said.len(), 1, "{name:?}, harm {n}: {said:?}");
                assert_eq!(fs::read(&path).unwrap(), bytes, "{name:?}, harm {n}");
            }
        }
    }

    #[test]
    fn what_is_damaged_twice_is_named_and_not_believed() {
        let state = identity();
        for name in ["publishers", "publishers.2"] {
            fs::write(directory(state.path()).join(name), "abd\n").unwrap();
        }
        let fault = read(state.path(), "publishers").unwrap_err().to_string();
        assert!(fault.contains("identity/publishers") && fault.contains("enroll --force"), "{fault}");
        mend(state.path(), 1);
        assert!(read(state.path(), "publishers").is_err(), "damage is never taken for what was written");
        fs::remove_dir_all(directory(state.path())).unwrap();
        assert!(matches!(read(state.path(), "publishers"), Err(IdentityFault::NotEnrolled(_))));
    }

    #[test]
    fn an_identity_of_an_earlier_version_is_kept_twice_from_now_on() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(directory(state.path())).unwrap();
        for (name, text) in FILES {
            fs::write(directory(state.path()).join(name), text).unwrap();
        }
        assert!(is_whole(state.path()));
        mend(state.path(), 1);
        fs::write(directory(state.path()).join("publishers"), "").unwrap();
        assert!(is_whole(state.path()));
    }

    #[test]
    fn only_what_was_written_as_a_file_of_the_identity_is_one() {
        let state = identity();
        assert_eq!(names(&directory(state.path())), FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
        for name in ["sums", "sums.2"] {
            fs::remove_file(directory(state.path()).join(name)).unwrap();
        }
        for name in ["host.key.damaged-7", ".host.key.77.tmp"] {
            fs::write(directory(state.path()).join(name), b"left over").unwrap();
        }
        assert_eq!(names(&directory(state.path())), FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
        assert!(!is_name("a/b"), "a flipped bit leads out of no directory");
    }

    #[test]
    fn a_file_of_which_one_copy_is_left_and_damaged_keeps_its_sum() {
        let state = identity();
        let path = directory(state.path()).join("publishers");
        fs::write(&path, "abd\n").unwrap();
        fs::remove_file(second(&path)).unwrap();
        for now in 1..3 {
            mend(state.path(), now);
            assert!(read(state.path(), "publishers").is_err(), "damage is never taken for what was written");
        }
    }

    #[test]
    fn the_largest_file_is_read_and_a_larger_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (bytes, is_read) in [(FILE_BYTES_MAX, true), (FILE_BYTES_MAX + 1, false)] {
            fs::File::create(&path).unwrap().set_len(bytes).unwrap();
            assert_eq!(read_bounded(&path).is_ok(), is_read, "{bytes} bytes");
        }
    }

    #[test]
    fn an_identity_that_names_no_publisher_is_not_believed() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(directory(state.path())).unwrap();
        write(&directory(state.path()), &[(PUBLISHERS, "# nobody\n")]).unwrap();
        let fault = publishers(state.path()).unwrap_err().to_string();
        assert!(fault.contains("no publisher's key"), "{fault}");
    }
}
