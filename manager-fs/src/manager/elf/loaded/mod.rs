//! Which pages of an ELF file the kernel and the dynamic loader read before its `main` runs, as far as its structure says:
//! headers, the loader's tables, relocations and what they write to, constructors and the entry.
//!
//! The bytes are hostile: what is read is bounded, a range is cut to the file, and the caller says how many pages there
//! may be.

use std::collections::HashSet;
use std::io::{Read, Seek};

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endian, Endianness, FileKind, ReadCache, ReadRef};
use proto::width;

use super::{SEGMENT_BYTES_MAX, offset_of};

const PAGE_BYTES: u64 = 4096;
/// A file up to this size is read whole: of those that were measured starts touch five sixths.
const SMALL_BYTES: u64 = 128 << 10;
/// A symbol or string table up to this size is read whole; of a larger one only what undefined symbols need.
const TABLE_BYTES: u64 = 64 << 10;
/// Bytes of one table that is looked into; more of it says nothing.
const LOOK_BYTES_MAX: u64 = 2 << 20;
/// Bytes after the last chain of a hash table in which its end is looked for.
const CHAIN_BYTES: u64 = 4096;

/// Pages of the file of `bytes` bytes in the order in which they are read, `pages_max` at most. Of what is no ELF file, all
/// if it is small.
pub(crate) fn pages(bytes: u64, content: impl Read + Seek, pages_max: usize) -> Vec<u32> {
    let mut pages = Pages { bytes, max: pages_max, order: Vec::new(), seen: HashSet::new() };
    if bytes <= SMALL_BYTES {
        pages.add(0, bytes);
        return pages.order;
    }
    pages.add(0, 1);
    let cache = ReadCache::new(content);
    let data = &cache;
    match FileKind::parse(data) {
        Ok(FileKind::Elf32) => add::<elf::FileHeader32<Endianness>, _>(data, &mut pages),
        Ok(FileKind::Elf64) => add::<elf::FileHeader64<Endianness>, _>(data, &mut pages),
        _ => None,
    };
    pages.order
}

/// Pages in the order in which they were first named.
struct Pages {
    /// Of the file.
    bytes: u64,
    max: usize,
    order: Vec<u32>,
    seen: HashSet<u32>,
}

impl Pages {
    /// What lies in the file of `bytes` bytes from `start` on.
    fn add(&mut self, start: u64, bytes: u64) {
        // What may be added bounds what is looked at.
        let bytes = bytes.min(self.max as u64 * PAGE_BYTES).min(self.bytes.saturating_sub(start));
        if bytes == 0 {
            return;
        }
        for page in start / PAGE_BYTES..=(start + bytes - 1) / PAGE_BYTES {
            let Ok(page) = u32::try_from(page) else { return };
            if self.order.len() >= self.max {
                return;
            }
            if self.seen.insert(page) {
                self.order.push(page);
            }
        }
    }
}

/// `None` when the file contradicts itself: what was found until then stays.
fn add<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(data: R, pages: &mut Pages) -> Option<()> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    // 0xffff means that the real count stands elsewhere: only cores have so many segments.
    let count = Some(header.e_phnum(endian)).filter(|count| *count != u16::MAX)?;
    let segments = header.program_headers(endian, data).ok()?;
    pages.add(header.e_phoff(endian).into(), u64::from(count) * u64::from(header.e_phentsize(endian)));
    let mut dynamic = Tables::default();
    for segment in segments {
        let bytes: u64 = segment.p_filesz(endian).into();
        if bytes > SEGMENT_BYTES_MAX {
            continue;
        }
        if matches!(segment.p_type(endian), elf::PT_INTERP | elf::PT_DYNAMIC | elf::PT_GNU_PROPERTY) {
            pages.add(segment.p_offset(endian).into(), bytes);
        }
        if let Ok(Some(entries)) = segment.dynamic(endian, data) {
            dynamic = Tables::of::<H>(entries, endian);
        }
    }
    let file = File::<H, R> { data, endian, segments };
    file.add_symbols(&dynamic, pages);
    for (table, bytes) in dynamic.relocations {
        file.add(table, bytes, pages);
    }
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD) {
        if segment.p_flags(endian).contains(elf::PF_W) {
            pages.add(segment.p_offset(endian).into(), segment.p_filesz(endian).into());
        }
    }
    file.add_code(&dynamic, pages);
    file.add(Some(header.e_entry(endian).into()), 1, pages);
    Some(())
}

/// Where the dynamic section says that things are: addresses, and bytes.
#[derive(Default)]
struct Tables {
    gnu_hash: Option<u64>,
    hash: Option<u64>,
    symbols: Option<u64>,
    strings: (Option<u64>, u64),
    versions: Option<u64>,
    /// Needed and defined versions, with their counts.
    version_lists: [(Option<u64>, u64); 2],
    /// RELR, RELA, REL, JMPREL.
    relocations: [(Option<u64>, u64); 4],
    init: Option<u64>,
    /// PREINIT_ARRAY, INIT_ARRAY.
    constructors: [(Option<u64>, u64); 2],
    /// Needed libraries and the file's own name, as offsets into the strings.
    names: Vec<u64>,
}

impl Tables {
    fn of<H: FileHeader>(entries: &[H::Dyn], endian: H::Endian) -> Self {
        let mut tables = Self::default();
        for entry in entries {
            let value: u64 = entry.d_val(endian).into();
            let [needed, defined] = &mut tables.version_lists;
            let [relr, rela, rel, plt] = &mut tables.relocations;
            let [before, init] = &mut tables.constructors;
            match entry.tag(endian) {
                elf::DT_NULL => break,
                elf::DT_GNU_HASH => tables.gnu_hash = Some(value),
                elf::DT_HASH => tables.hash = Some(value),
                elf::DT_SYMTAB => tables.symbols = Some(value),
                elf::DT_STRTAB => tables.strings.0 = Some(value),
                elf::DT_STRSZ => tables.strings.1 = value,
                elf::DT_VERSYM => tables.versions = Some(value),
                elf::DT_VERNEED => needed.0 = Some(value),
                elf::DT_VERNEEDNUM => needed.1 = value,
                elf::DT_VERDEF => defined.0 = Some(value),
                elf::DT_VERDEFNUM => defined.1 = value,
                elf::DT_RELR => relr.0 = Some(value),
                elf::DT_RELRSZ => relr.1 = value,
                elf::DT_RELA => rela.0 = Some(value),
                elf::DT_RELASZ => rela.1 = value,
                elf::DT_REL => rel.0 = Some(value),
                elf::DT_RELSZ => rel.1 = value,
                elf::DT_JMPREL => plt.0 = Some(value),
                elf::DT_PLTRELSZ => plt.1 = value,
                elf::DT_INIT => tables.init = Some(value),
                elf::DT_PREINIT_ARRAY => before.0 = Some(value),
                elf::DT_PREINIT_ARRAYSZ => before.1 = value,
                elf::DT_INIT_ARRAY => init.0 = Some(value),
                elf::DT_INIT_ARRAYSZ => init.1 = value,
                elf::DT_NEEDED | elf::DT_SONAME => tables.names.push(value),
                _ => {}
            }
        }
        tables
    }
}

/// A file whose addresses can be followed.
struct File<'d, H: FileHeader, R> {
    data: R,
    endian: H::Endian,
    segments: &'d [H::ProgramHeader],
}

impl<'a, H: FileHeader, R: ReadRef<'a>> File<'_, H, R> {
    const WORD_BYTES: u64 = size_of::<H::Word>() as u64;
    /// `Elf32_Sym`, `Elf64_Sym`.
    const SYMBOL_BYTES: u64 = size_of::<H::Sym>() as u64;

    fn at(&self, address: u64) -> Option<u64> {
        offset_of::<H>(self.segments, self.endian, address)
    }

    fn add(&self, address: Option<u64>, bytes: u64, pages: &mut Pages) {
        if let Some(at) = address.and_then(|address| self.at(address)) {
            pages.add(at, bytes);
        }
    }

    /// The bytes at an offset, as many of them as there are and may be looked at.
    fn look(&self, at: u64, bytes: u64) -> &'a [u8] {
        let left = self.data.len().map_or(0, |len| len.saturating_sub(at));
        self.data.read_bytes_at(at, bytes.min(left).min(LOOK_BYTES_MAX)).unwrap_or_default()
    }

    fn halves(&self, at: u64, count: u64) -> Vec<u32> {
        let (bytes, _) = self.look(at, count.saturating_mul(4)).as_chunks();
        bytes.iter().map(|half| self.endian.read_u32(*half)).collect()
    }

    fn words(&self, at: u64, bytes: u64) -> Vec<u64> {
        if Self::WORD_BYTES == 4 {
            return self.halves(at, bytes / 4).into_iter().map(u64::from).collect();
        }
        let (bytes, _) = self.look(at, bytes).as_chunks();
        bytes.iter().map(|word| self.endian.read_u64(*word)).collect()
    }

    /// What looking up symbols reads. Undefined symbols come first: each is looked up, by its name, in other files. Which of
    /// the defined ones others look up cannot be known.
    fn add_symbols(&self, tables: &Tables, pages: &mut Pages) {
        let (undefined, all) = self.add_hash(tables, pages);
        let versions = all.unwrap_or(undefined).saturating_mul(2);
        self.add(tables.versions, versions, pages);
        for (list, count) in tables.version_lists {
            // A library is 16 bytes, as is each of its versions: some hundred.
            self.add(list, count.saturating_mul(128), pages);
        }
        let Some(symbols) = tables.symbols.and_then(|address| self.at(address)) else { return };
        let bytes = |count: u64| count.saturating_mul(Self::SYMBOL_BYTES);
        let whole = all.map(bytes).filter(|bytes| *bytes <= TABLE_BYTES);
        pages.add(symbols, whole.unwrap_or(bytes(undefined)));
        let (Some(strings), strings_bytes) = tables.strings else { return };
        let Some(strings) = self.at(strings) else { return };
        if strings_bytes <= TABLE_BYTES {
            return pages.add(strings, strings_bytes);
        }
        let mut name = |at: u64| pages.add(strings.saturating_add(at), 1);
        tables.names.iter().for_each(|at| name(*at));
        // A symbol begins with its name, in both classes.
        let table = self.look(symbols, bytes(undefined));
        for symbol in table.chunks_exact(width::index(Self::SYMBOL_BYTES)) {
            if let Some(at) = symbol.first_chunk() {
                name(self.endian.read_u32(*at).into());
            }
        }
    }

    /// The hash table; returns how many symbols are before those that it has, and how many there are, if it says.
    fn add_hash(&self, tables: &Tables, pages: &mut Pages) -> (u64, Option<u64>) {
        if let Some(at) = tables.gnu_hash.and_then(|address| self.at(address)) {
            let [buckets, first, filter_words, _shift] = self.halves(at, 4)[..] else { return (0, None) };
            let first = u64::from(first);
            let chains_at = u64::from(filter_words) * Self::WORD_BYTES + 16 + u64::from(buckets) * 4;
            let chains = at.saturating_add(chains_at);
            let heads = self.halves(chains.saturating_sub(u64::from(buckets) * 4), buckets.into());
            let last_chain = heads.into_iter().max().map_or(0, u64::from);
            let chain = last_chain.checked_sub(first).map(|into| chains.saturating_add(into * 4));
            let rest = chain.map(|chain| self.halves(chain, CHAIN_BYTES / 4)).unwrap_or_default();
            // The lowest bit ends a chain.
            let all = rest.iter().position(|hash| hash & 1 != 0).map_or(first, |more| last_chain + more as u64 + 1);
            pages.add(at, chains_at + all.saturating_sub(first) * 4);
            return (first, Some(all));
        }
        let Some(at) = tables.hash.and_then(|address| self.at(address)) else { return (0, None) };
        let [buckets, chains] = self.halves(at, 2)[..] else { return (0, None) };
        pages.add(at, (u64::from(buckets) + u64::from(chains) + 2) * 4);
        // It does not say which are undefined.
        (0, Some(chains.into()))
    }

    /// The first page of everything that runs before `main`. A relocation says where a constructor is, or the place that it
    /// writes to says it already.
    fn add_code(&self, tables: &Tables, pages: &mut Pages) {
        self.add(tables.init, 1, pages);
        let [_, (rela, rela_bytes), ..] = tables.relocations;
        let rela = rela.and_then(|address| self.at(address));
        let relocations = rela.map(|at| self.words(at, rela_bytes)).unwrap_or_default();
        for (array, bytes) in tables.constructors {
            let (Some(array), bytes) = (array, bytes.min(LOOK_BYTES_MAX)) else { continue };
            let within = |place: u64| place >= array && place - array < bytes;
            for [place, _, addend] in relocations.as_chunks().0 {
                if within(*place) {
                    self.add(Some(*addend), 1, pages);
                }
            }
            let values = self.at(array).map(|at| self.words(at, bytes)).unwrap_or_default();
            for value in values {
                self.add(Some(value).filter(|value| *value != 0), 1, pages);
            }
        }
    }
}

#[cfg(test)]
mod tests;
