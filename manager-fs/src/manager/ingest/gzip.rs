//! A gzip stream as gzip itself reads it: members one after another, then zeros that a tape or a block device added.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The plain bytes of a gzip stream.
pub(super) struct GzipReader<R> {
    /// `None` after the last member.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(source: R) -> Self {
        Self { member: Some(GzDecoder::new(source)) }
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            match member.read(buffer)? {
                0 => self.member = self.member.take().map(GzDecoder::into_inner).map_or(Ok(None), next)?,
                got => return Ok(got),
            }
        }
        Ok(0)
    }
}

/// What follows a member: another one, or nothing but zeros.
fn next<R: BufRead>(mut source: R) -> io::Result<Option<GzDecoder<R>>> {
    let mut padded = false;
    loop {
        let buffered = match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffered => buffered?,
        };
        let zeros = buffered.iter().take_while(|byte| **byte == 0).count();
        match buffered.get(zeros) {
            None if buffered.is_empty() => return Ok(None),
            None => padded = true,
            // After padding nothing can follow that gzip would read.
            Some(_) if !padded && zeros == 0 => return Ok(Some(GzDecoder::new(source))),
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "something other than zeros after the gzip data",
                ));
            }
        }
        source.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], buffer: usize) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        GzipReader::new(BufReader::with_capacity(buffer, bytes)).read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn members_and_padding_are_read_and_garbage_is_not() {
        let two = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        for buffer in [1, 7, 4096] {
            assert_eq!(read(&two, buffer).unwrap(), b"one two");
            assert_eq!(read(&[two.clone(), vec![0; 10_000]].concat(), buffer).unwrap(), b"one two");
            assert!(read(&[two.clone(), b"garbage".to_vec()].concat(), buffer).is_err());
            let after_padding = read(&[two.clone(), vec![0; 5000], b"x".to_vec()].concat(), buffer);
            assert!(after_padding.unwrap_err().to_string().contains("zeros"));
            assert!(read(&two[..two.len() - 1], buffer).is_err(), "cut in a checksum");
        }
    }
}
