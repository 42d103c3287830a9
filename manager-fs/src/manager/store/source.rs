//! A content on its way into the store: its bytes, and the stretches of zeros that nobody wrote and nobody need read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// What comes next in a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes were read, at least one.
    Data(usize),
    /// So many zeros, at least one; nothing was read.
    Hole(u64),
    /// The source has ended.
    End,
}

/// A content, front to back.
pub(crate) trait Source {
    /// The next piece; data goes to the start of `buffer`, which is not empty.
    fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece>;
}

/// A stream that knows nothing of holes.
pub(crate) struct Dense<R>(pub(crate) R);

impl<R: Read> Source for Dense<R> {
    fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        read(buffer, |buffer| self.0.read(buffer))
    }
}

/// A file, whose holes are asked of the file system (`SEEK_DATA`, lseek(2)).
pub(crate) struct SparseFile<'a> {
    file: &'a File,
    at: u64,
    /// Where the stretch of data ends in which `at` is; `at` itself where that is not known.
    data_end: u64,
}

impl<'a> SparseFile<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, at: 0, data_end: 0 }
    }

    /// Finds the stretch of data at or after `at`; returns the zeros before it.
    fn look(&mut self) -> io::Result<u64> {
        match rustix::fs::seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => {
                self.data_end = rustix::fs::seek(self.file, SeekFrom::Hole(start))?;
                let zeros = start.saturating_sub(self.at);
                self.at = start;
                Ok(zeros)
            }
            // No data from here on: a hole to the end, if this is not it.
            Err(Errno::NXIO) => {
                let zeros = self.file.metadata()?.len().saturating_sub(self.at);
                self.at += zeros;
                Ok(zeros)
            }
            // A file system that does not tell: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => {
                self.data_end = u64::MAX;
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Source for SparseFile<'_> {
    fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        if self.at >= self.data_end {
            match self.look()? {
                0 if self.at >= self.data_end => return Ok(Piece::End),
                0 => {}
                zeros => return Ok(Piece::Hole(zeros)),
            }
        }
        let room = usize::try_from(self.data_end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = read(&mut buffer[..room], |buffer| self.file.read_at(buffer, self.at))?;
        if let Piece::Data(bytes) = piece {
            self.at += bytes as u64;
        }
        Ok(piece)
    }
}

fn read(buffer: &mut [u8], mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<Piece> {
    loop {
        match read(buffer) {
            Ok(0) => return Ok(Piece::End),
            Ok(bytes) => return Ok(Piece::Data(bytes)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// The plain bytes, and how many of them were holes.
    fn all(source: &mut dyn Source) -> (Vec<u8>, u64) {
        let (mut plain, mut holes, mut buffer) = (Vec::new(), 0, [0; 5000]);
        loop {
            match source.piece(&mut buffer).unwrap() {
                Piece::Data(bytes) => plain.extend_from_slice(&buffer[..bytes]),
                Piece::Hole(bytes) => {
                    plain.resize(plain.len() + proto::width::index(bytes), 0);
                    holes += bytes;
                }
                Piece::End => return (plain, holes),
            }
        }
    }

    /// Gives one byte at a time, and is interrupted before each.
    struct Nagged(&'static [u8], bool);

    impl Read for Nagged {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..1]) }
        }
    }

    #[test]
    fn whoever_is_interrupted_reads_on_and_another_fault_is_told() {
        assert_eq!(all(&mut Dense(Nagged(b"three", false))), (b"three".to_vec(), 0));
        let directory = tempfile::tempdir().unwrap();
        let file = File::open(directory.path()).unwrap();
        assert!(Dense(&file).piece(&mut [0; 10]).is_err());
    }

    #[test]
    fn a_file_s_holes_are_told_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        for (length, written) in
            [(0, vec![]), (1 << 20, vec![]), (1 << 20, vec![0, 500_000]), (999_999, vec![999_990])]
        {
            let path = dir.path().join("file");
            let file = File::create_new(&path).unwrap();
            file.set_len(length).unwrap();
            written.iter().for_each(|at| file.write_all_at(b"data", *at).unwrap());
            file.sync_all().unwrap();
            let on_disk = file.metadata().unwrap().blocks() * 512;
            let file = File::open(&path).unwrap();
            let (plain, holes) = all(&mut SparseFile::new(&file));
            assert!(plain == std::fs::read(&path).unwrap(), "{length} {written:?}");
            assert!(length - holes <= on_disk, "{} bytes were read, {on_disk} are there", length - holes);
            assert!(length < 1 << 20 || holes > length / 2, "{holes} bytes of holes in {length}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
