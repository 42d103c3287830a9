//! A directory as an archive that becomes the same tree: with the whole of its times and its extended attributes.

use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;

/// Bytes that an extended attribute has at most (xattr(7)).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Writes everything below a directory, in the order of its names.
pub(super) fn write<W: Write>(directory: &Path, to: W) -> io::Result<W> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    archive.sparse(false);
    entry(&mut archive, directory, Path::new("."))?;
    archive.into_inner()
}

fn entry<W: Write>(archive: &mut tar::Builder<W>, path: &Path, name: &Path) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let metadata = path.symlink_metadata().map_err(named)?;
    if metadata.file_type().is_socket() {
        return Err(named(io::Error::other("it is a socket, which no tree has")));
    }
    let mut more = vec![(String::from("mtime"), time(metadata.mtime(), metadata.mtime_nsec()).into_bytes())];
    more.extend(attributes(path).map_err(|error| named(error.into()))?);
    archive.append_pax_extensions(more.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    archive.append_path_with_name(path, name).map_err(named)?;
    if metadata.is_dir() {
        let mut below = std::fs::read_dir(path).map_err(named)?.collect::<io::Result<Vec<_>>>().map_err(named)?;
        below.sort_by_key(std::fs::DirEntry::file_name);
        for found in below {
            entry(archive, &found.path(), &name.join(found.file_name()))?;
        }
    }
    Ok(())
}

/// A moment in decimal seconds, as pax has it.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, all) = if all < 0 { ("-", all.unsigned_abs()) } else { ("", all.unsigned_abs()) };
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

/// All of them; which of them a tree keeps, its manager knows.
fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let bytes = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(bytes) => bytes,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names[..bytes].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; XATTR_BYTES_MAX];
        let bytes = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
        value.truncate(bytes);
        // As GNU tar, which escapes what ends a key.
        let name = String::from_utf8_lossy(name).replace('%', "%25").replace('=', "%3D");
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_keeps_all_of_its_digits_on_both_sides_of_1970() {
        assert_eq!(time(1_700_000_000, 5), "1700000000.000000005");
        assert_eq!(time(0, 0), "0.000000000");
        // stat(2) counts nanoseconds forward.
        assert_eq!(time(-1, 500_000_000), "-0.500000000");
    }

    #[test]
    fn everything_is_there_in_the_order_of_its_names_and_a_socket_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("b/file"), "content").unwrap();
        std::os::unix::fs::symlink("b/file", at("a")).unwrap();
        let bytes = write(directory.path(), Vec::new()).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let keys = entry.pax_extensions().unwrap().unwrap().map(|pair| pair.unwrap().key().unwrap().to_owned());
            assert!(keys.collect::<Vec<_>>().contains(&String::from("mtime")));
            entry.path().unwrap().display().to_string()
        });
        assert_eq!(entries.collect::<Vec<_>>(), [".", "a", "b", "b/file"]);
        let _socket = std::os::unix::net::UnixListener::bind(at("s")).unwrap();
        assert!(write(directory.path(), Vec::new()).unwrap_err().to_string().contains("socket"));
    }
}
