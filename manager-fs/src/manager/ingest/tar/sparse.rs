//! Sparse files in tar archives: where their data goes, and the zeros between.

use std::io::{self, Read};

use proto::width;

use super::header::number;
use super::{BLOCK, Extents};
use crate::manager::ingest::budget::Budget;
use crate::manager::store::{Dense, Piece, Source};

/// Extents of one file; GNU tar writes one for each stretch of data.
const EXTENTS_MAX: usize = 1_000_000;

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    bytes: u64,
}

/// What pax records say about a sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PaxMap {
    pub(super) real_size: u64,
    /// Format 0.1 has the map in the header, 1.0 at the start of the data.
    inline: Option<Extents>,
}

fn bad(fault: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

impl PaxMap {
    /// From the records of an entry; `None` when it is not sparse.
    pub(super) fn new<'a>(value: impl Fn(&[u8]) -> Option<&'a [u8]>) -> Result<Option<Self>, &'static str> {
        const FAULT: &str = "its sparse map does not parse";
        let number = |key: &[u8]| value(key).map(|text| parse(text).ok_or(FAULT)).transpose();
        if let Some(map) = value(b"GNU.sparse.map") {
            let real_size = number(b"GNU.sparse.size")?.ok_or(FAULT)?;
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(parse).collect();
            let extents = numbers.filter(|numbers| numbers.len() % 2 == 0).ok_or(FAULT)?;
            let extents = extents.chunks_exact(2).map(|pair| Extent { offset: pair[0], bytes: pair[1] }).collect();
            return Ok(Some(Self { real_size, inline: Some(extents) }));
        }
        match (number(b"GNU.sparse.major")?, number(b"GNU.sparse.minor")?) {
            (None, None) => Ok(None),
            (Some(1), Some(0)) => {
                Ok(Some(Self { real_size: number(b"GNU.sparse.realsize")?.ok_or(FAULT)?, inline: None }))
            }
            _ => Err("a sparse file of an unknown format"),
        }
    }
}

fn parse(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The map of a pax sparse file; `data` is left where the file's data begins.
pub(super) fn pax_map(map: &PaxMap, data: &mut impl Read) -> io::Result<Extents> {
    if let Some(extents) = &map.inline {
        return Ok(extents.clone());
    }
    let mut lines = Lines { data, block: [0; BLOCK], at: BLOCK };
    let count = width::index(lines.number()?);
    if count > EXTENTS_MAX {
        return Err(bad("a sparse file of more than a million pieces"));
    }
    let mut extents = Vec::new();
    for _ in 0..count {
        extents.push(Extent { offset: lines.number()?, bytes: lines.number()? });
    }
    Ok(extents)
}

/// Decimal numbers, one a line, in whole blocks.
struct Lines<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut value: u64 = 0;
        for digits in 0.. {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    value = next.ok_or_else(|| bad("its sparse map does not parse"))?;
                }
                b'\n' if digits > 0 => return Ok(value),
                _ => break,
            }
        }
        Err(bad("its sparse map does not parse"))
    }
}

/// The map and real size of an old GNU sparse file: in its header, and in blocks after it.
pub(super) fn gnu_map(header: &[u8; BLOCK], source: &mut impl Read) -> io::Result<(Extents, u64)> {
    let field = |bytes: &[u8]| {
        let value = number(bytes).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| bad("its sparse map does not parse"))
    };
    let mut extents = Vec::new();
    let mut take = |pairs: &[u8]| {
        for pair in pairs.chunks_exact(24) {
            let extent = Extent { offset: field(&pair[..12])?, bytes: field(&pair[12..])? };
            if pair[0] != 0 && pair[12] != 0 {
                extents.push(extent);
            }
        }
        if extents.len() > EXTENTS_MAX { Err(bad("a sparse file of more than a million pieces")) } else { Ok(()) }
    };
    take(&header[386..482])?;
    let mut more = header[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        source.read_exact(&mut block)?;
        take(&block[..504])?;
        more = block[504] != 0;
    }
    Ok((extents, field(&header[483..495])?))
}

/// A sparse file's content: its data, with zeros between.
pub(super) struct SparseReader<R> {
    data: R,
    /// In reverse, so that the next one is last.
    extents: Extents,
    at: u64,
    real_size: u64,
    budget: Budget,
}

impl<R: Read> SparseReader<R> {
    /// `stored` is how much data the archive has for the file.
    pub(super) fn new(
        data: R,
        mut extents: Extents,
        stored: u64,
        real_size: u64,
        budget: Budget,
    ) -> io::Result<Self> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for extent in &extents {
            let next = extent.offset.checked_add(extent.bytes).filter(|_| extent.offset >= end);
            end = next.ok_or_else(|| bad("its sparse map is not in order"))?;
            sum = sum.saturating_add(extent.bytes);
        }
        if end > real_size || sum != stored {
            return Err(bad("its sparse map does not fit its size"));
        }
        extents.reverse();
        Ok(Self { data, extents, at: 0, real_size, budget })
    }
}

impl<R: Read> Source for SparseReader<R> {
    fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        while self.extents.last().is_some_and(|extent| extent.offset + extent.bytes <= self.at) {
            self.extents.pop();
        }
        let (is_data, end) = match self.extents.last() {
            Some(extent) if extent.offset <= self.at => (true, extent.offset + extent.bytes),
            Some(extent) => (false, extent.offset),
            None => (false, self.real_size),
        };
        let left = end - self.at;
        let piece = match (is_data, left) {
            (_, 0) => Piece::End,
            (true, _) => {
                let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                Dense(&mut self.data).piece(&mut buffer[..room])?
            }
            (false, _) => {
                self.budget.take_hole(left)?;
                Piece::Hole(left)
            }
        };
        self.at += match piece {
            Piece::Data(bytes) => bytes as u64,
            Piece::Hole(bytes) => bytes,
            Piece::End => 0,
        };
        Ok(piece)
    }
}
