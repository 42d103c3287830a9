//! A tar stream, compressed in one of several ways, told by its first bytes.

use std::io::{self, BufReader, Chain, Cursor, Read};

use super::budget::{Budget, Metered};
use super::gzip::GzipReader;
use super::{IngestError, Intake, tar};

/// Memory that an archive may ask a decoder for: xz -9 asks for 65 MiB, zstd --ultra -22 for 128 MiB.
const DECODER_BYTES_MAX: u64 = 256 << 20;

/// Reads a tar stream, compressed or not.
pub(super) fn read_tar(
    intake: &mut Intake<'_, '_>,
    mut source: impl Read,
    budget: Budget,
) -> Result<(), IngestError> {
    let mut head = [0; 512];
    let got = read_head(&mut source, &mut head).map_err(|error| intake.unread(b"", error))?;
    let plain = plain_stream(&head[..got], source, tar::is_header).map_err(|error| intake.unread(b"", error))?;
    let Some(plain) = plain else {
        return Err(intake.unfit(
            "it is no archive that can be taken in: want a directory, tar (plain, gzip, bzip2, xz or zstd), .deb, .rpm, wheel or zip",
        ));
    };
    tar::read(intake, Metered { inner: plain, budget: budget.clone() }, budget)
}

type Rejoined<R> = Chain<Cursor<Vec<u8>>, R>;

/// The plain bytes of a stream that begins with `head`; `None` when it is neither compressed nor `is_plain`.
pub(super) fn plain_stream<'a, R: Read + 'a>(
    head: &[u8],
    rest: R,
    is_plain: fn(&[u8]) -> bool,
) -> io::Result<Option<Box<dyn Read + 'a>>> {
    let stream: Rejoined<R> = Cursor::new(head.to_vec()).chain(rest);
    Ok(Some(match head {
        head if is_plain(head) => Box::new(stream),
        [0x1f, 0x8b, ..] => Box::new(GzipReader::new(BufReader::new(stream))),
        b if b.starts_with(b"BZh") => Box::new(bzip2::read::MultiBzDecoder::new(stream)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let flags = liblzma::stream::CONCATENATED;
            let decoder = liblzma::stream::Stream::new_stream_decoder(DECODER_BYTES_MAX, flags)?;
            Box::new(liblzma::read::XzDecoder::new_stream(stream, decoder))
        }
        // A skippable frame may come first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(stream)?;
            decoder.window_log_max(DECODER_BYTES_MAX.ilog2())?;
            Box::new(decoder)
        }
        // The form before xz, which old packages have; it has no magic but the usual properties.
        [0x5d, 0, 0, ..] => {
            let decoder = liblzma::stream::Stream::new_lzma_decoder(DECODER_BYTES_MAX)?;
            Box::new(liblzma::read::XzDecoder::new_stream(stream, decoder))
        }
        _ => return Ok(None),
    }))
}

/// As many first bytes as there are and fit.
pub(super) fn read_head(source: &mut impl Read, head: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < head.len() {
        match source.read(&mut head[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
