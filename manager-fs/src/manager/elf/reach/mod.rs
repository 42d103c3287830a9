//! In which order a program gets to its own code and constants, as far as can be told without running it: what its entry
//! calls first, then what those call, and so on.
//!
//! ```text
//! entry, constructors ──calls, addresses──> functions ──calls, addresses──> functions …   breadth first
//!                              └──────────> constants; tables of pointers ──> functions, constants
//! ```
//! Nothing is disassembled: four bytes behind the code of a call count as one when they lead exactly to where a function
//! begins, which the unwind table says. Machines other than x86-64 are not looked at. The bytes are hostile: what is read and
//! how much is followed is bounded.

use std::collections::{HashSet, VecDeque};
use std::io::{Read, Seek};

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Sym};
use object::{Endianness, ReadCache, ReadRef};
use proto::width;

use super::{SEGMENT_BYTES_MAX, offset_of};
use links::{Link, links};

mod links;

const PAGE_BYTES: u64 = 4096;
/// Bytes of code that are looked at; what is larger is a browser.
const CODE_BYTES_MAX: u64 = 96 << 20;
/// The share of a file that is code, one byte in so many. One with less carries data that it reads in its own ways, and the
/// order of its code says little (`docs/decisions.md`).
const CODE_ONE_IN: u64 = 3;
/// Bytes of one table, or of everything that is written to.
const TABLE_BYTES_MAX: u64 = 48 << 20;
/// One function; what is longer than this is none.
const FUNCTION_BYTES_MAX: u64 = 1 << 20;
/// What is taken of a constant whose length nobody says.
const CONSTANT_BYTES: u64 = 64;
/// Constants that are followed.
const CONSTANTS_MAX: usize = 1 << 20;
/// Symbols that are looked at.
const SYMBOLS_MAX: usize = 1 << 20;

/// What other files of the same program have asked for, by symbol.
pub(crate) type Imports = HashSet<Vec<u8>>;

/// Pages of the file in the order in which they are reached, `pages_max` at most. `imports`: what the files before it take
/// from others; what this one takes is added.
pub(crate) fn pages(content: impl Read + Seek, imports: &mut Imports, pages_max: usize) -> Vec<u32> {
    let cache = ReadCache::new(content);
    Image::of(&cache, imports).map(|image| image.walk(pages_max)).unwrap_or_default()
}

type Header = FileHeader64<Endianness>;

/// One loaded segment with its bytes, if they matter.
struct Segment<'a> {
    address: u64,
    offset: u64,
    bytes: u64,
    kind: Kind,
    content: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Constants,
    /// Written to, at least by the loader: here stand pointers.
    Data,
}

impl<'a> Segment<'a> {
    fn of<R: ReadRef<'a>>(header: &elf::ProgramHeader64<Endianness>, endian: Endianness, data: R) -> Self {
        let (address, offset) = (header.p_vaddr(endian), header.p_offset(endian));
        let (bytes, flags) = (header.p_filesz(endian), header.p_flags(endian));
        let (kind, max) = if flags.contains(elf::PF_X) {
            (Kind::Code, CODE_BYTES_MAX)
        } else if flags.contains(elf::PF_W) {
            (Kind::Data, TABLE_BYTES_MAX)
        } else {
            (Kind::Constants, 0)
        };
        let content = if bytes > max { &[][..] } else { data.read_bytes_at(offset, bytes).unwrap_or_default() };
        Self { address, offset, bytes, kind, content }
    }
}

struct Image<'a> {
    segments: Vec<Segment<'a>>,
    /// Where functions begin, ascending.
    functions: Vec<u64>,
    /// What the loader writes: place and value, by place.
    written: Vec<(u64, u64)>,
    seeds: Vec<u64>,
    /// Whether addresses are what they are: code may hold them.
    is_fixed: bool,
}

/// What the dynamic section says.
#[derive(Default)]
struct Dynamic {
    relocations: [(u64, u64); 2],
    init: Option<u64>,
    constructors: [(u64, u64); 2],
}

impl<'a> Image<'a> {
    fn of<R: ReadRef<'a>>(data: R, imports: &mut Imports) -> Option<Self> {
        let header = Header::parse(data).ok()?;
        let endian = header.endian().ok()?;
        if header.e_machine(endian) != elf::EM_X86_64 || header.e_phnum(endian) == u16::MAX {
            return None;
        }
        let headers = header.program_headers(endian, data).ok()?;
        let (mut segments, mut functions, mut dynamic) = (Vec::new(), Vec::new(), Dynamic::default());
        for segment in headers {
            let (offset, bytes) = (segment.p_offset(endian), segment.p_filesz(endian));
            match segment.p_type(endian) {
                elf::PT_LOAD => segments.push(Segment::of(segment, endian, data)),
                elf::PT_GNU_EH_FRAME if bytes <= TABLE_BYTES_MAX => {
                    functions = functions_of(data.read_bytes_at(offset, bytes).ok()?, segment.p_vaddr(endian));
                }
                _ if bytes <= SEGMENT_BYTES_MAX => {
                    if let Ok(Some(entries)) = segment.dynamic(endian, data) {
                        dynamic = Dynamic::of(entries, endian);
                    }
                }
                _ => {}
            }
        }
        let file_bytes = data.len().ok()?;
        segments.retain(|segment: &Segment<'_>| segment.offset.saturating_add(segment.bytes) <= file_bytes);
        let code: u64 =
            segments.iter().filter(|segment| segment.kind == Kind::Code).map(|segment| segment.bytes).sum();
        if code.saturating_mul(CODE_ONE_IN) < file_bytes {
            return None;
        }
        let is_fixed = header.e_type(endian) == elf::ET_EXEC;
        let mut image = Self { segments, functions, written: Vec::new(), seeds: Vec::new(), is_fixed };
        let sections = header.sections(endian, data).ok();
        let symbols = sections.and_then(|sections| sections.symbols(endian, data, elf::SHT_DYNSYM).ok());
        let at = |address| offset_of::<Header>(headers, endian, address);
        let table = |(address, bytes): (u64, u64)| {
            at(address).and_then(|at| data.read_bytes_at(at, bytes.min(TABLE_BYTES_MAX)).ok()).unwrap_or_default()
        };
        let value = |index: u32| {
            let symbol = symbols.as_ref()?.symbol(object::SymbolIndex(index as usize)).ok()?;
            Some(symbol.st_value(endian)).filter(|value| *value != 0)
        };
        image.written =
            dynamic.relocations.map(table).into_iter().flat_map(|table| relocations(table, &value)).collect();
        image.written.sort_unstable();
        image.seed(header.e_entry(endian), &dynamic);
        for symbol in symbols.iter().flat_map(|symbols| symbols.iter()).take(SYMBOLS_MAX) {
            let name = symbols.as_ref().and_then(|symbols| symbols.symbol_name(endian, symbol).ok());
            if name.is_some_and(|name| !symbol.is_undefined(endian) && imports.contains(name)) {
                image.seeds.push(symbol.st_value(endian));
            }
        }
        let wanted = symbols.iter().flat_map(|symbols| symbols.iter()).take(SYMBOLS_MAX);
        let wanted = wanted.filter(|symbol| symbol.is_undefined(endian));
        let name = |symbol| symbols.as_ref()?.symbol_name(endian, symbol).ok().map(<[u8]>::to_vec);
        imports.extend(wanted.filter_map(name));
        Some(image)
    }

    /// Where it begins: the entry, and what runs before.
    fn seed(&mut self, entry: u64, dynamic: &Dynamic) {
        self.seeds.extend(Some(entry).filter(|entry| *entry != 0).into_iter().chain(dynamic.init));
        for (array, bytes) in dynamic.constructors {
            let places = (0..bytes.min(SEGMENT_BYTES_MAX) / 8).map(|index| array.saturating_add(index * 8));
            let constructors: Vec<u64> = places.filter_map(|place| self.pointer(place)).collect();
            self.seeds.extend(constructors);
        }
    }

    fn segment(&self, address: u64) -> Option<&Segment<'a>> {
        self.segments.iter().find(|segment| address >= segment.address && address - segment.address < segment.bytes)
    }

    /// The eight bytes at an address once the loader has been there, where pointers can stand.
    fn pointer(&self, place: u64) -> Option<u64> {
        if let Ok(at) = self.written.binary_search_by_key(&place, |(place, _)| *place) {
            return Some(self.written[at].1);
        }
        let segment = self.segment(place).filter(|segment| segment.kind == Kind::Data)?;
        let at = width::index(place - segment.address);
        Some(u64::from_le_bytes(*segment.content.get(at..)?.first_chunk()?)).filter(|value| *value != 0)
    }

    fn is_function(&self, address: u64) -> bool {
        self.functions.binary_search(&address).is_ok()
    }

    /// The function that an address lies in: where it begins, and its bytes.
    fn function(&self, address: u64) -> Option<(u64, &'a [u8])> {
        let segment = self.segment(address).filter(|segment| segment.kind == Kind::Code)?;
        let next = self.functions.partition_point(|start| *start <= address);
        let start = next.checked_sub(1).map(|at| self.functions[at]).filter(|start| *start >= segment.address);
        // What begins a program has no place in the unwind table.
        let start = start.filter(|start| address - start < FUNCTION_BYTES_MAX).unwrap_or(address);
        let end = self.functions.get(next).copied().unwrap_or(u64::MAX).min(start.saturating_add(FUNCTION_BYTES_MAX));
        let from = width::index(start - segment.address);
        let to = width::index((end - segment.address).min(segment.content.len() as u64));
        Some((start, segment.content.get(from..to)?))
    }

    /// Where a call leads: a function, also by way of a stub that takes its address from a table.
    fn called(&self, address: u64) -> Option<u64> {
        if self.is_function(address) {
            return Some(address);
        }
        let segment = self.segment(address).filter(|segment| segment.kind == Kind::Code)?;
        let stub = segment.content.get(width::index(address - segment.address)..)?;
        let jump = links(&stub[..stub.len().min(16)], address).find_map(|link| match link {
            Link::Slot(place) => Some(place),
            _ => None,
        });
        self.pointer(jump?).filter(|target| self.is_function(*target))
    }

    fn walk(&self, pages_max: usize) -> Vec<u32> {
        let mut walk = Walk { image: self, pages: Vec::new(), known: HashSet::new(), max: pages_max };
        let mut todo: VecDeque<u64> = self.seeds.iter().copied().collect();
        let (mut functions, mut constants) = (HashSet::new(), HashSet::new());
        while let Some(address) = todo.pop_front() {
            let Some((start, code)) = self.function(address) else { continue };
            if !functions.insert(start) {
                continue;
            }
            if walk.pages.len() >= pages_max {
                break;
            }
            walk.add(start, code.len() as u64);
            for link in links(code, start) {
                match link {
                    Link::Call(target) => todo.extend(self.called(target)),
                    Link::Slot(place) => todo.extend(self.pointer(place).filter(|to| self.is_function(*to))),
                    Link::Address(target) if self.is_function(target) => todo.push_back(target),
                    Link::Absolute(target) if !self.is_fixed || target == 0 => {}
                    Link::Absolute(target) if self.is_function(target) => todo.push_back(target),
                    Link::Address(target) | Link::Absolute(target) => {
                        if constants.len() < CONSTANTS_MAX && constants.insert(target) {
                            walk.constant(target, &mut todo);
                        }
                    }
                }
            }
        }
        walk.pages
    }
}

/// What has been reached.
struct Walk<'i, 'a> {
    image: &'i Image<'a>,
    pages: Vec<u32>,
    known: HashSet<u32>,
    max: usize,
}

impl Walk<'_, '_> {
    fn add(&mut self, address: u64, bytes: u64) {
        let Some(segment) = self.image.segment(address) else { return };
        let start = segment.offset + (address - segment.address);
        let end = (start + bytes.max(1)).min(segment.offset + segment.bytes);
        for page in start / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let Ok(page) = u32::try_from(page) else { return };
            if self.pages.len() < self.max && self.known.insert(page) {
                self.pages.push(page);
            }
        }
    }

    /// A constant, and what it points to: a table of functions, a list of names.
    fn constant(&mut self, address: u64, todo: &mut VecDeque<u64>) {
        let Some(segment) = self.image.segment(address).filter(|segment| segment.kind != Kind::Code) else { return };
        self.add(address, CONSTANT_BYTES);
        if segment.kind != Kind::Data {
            return;
        }
        for word in 0..CONSTANT_BYTES / 8 {
            let Some(target) = self.image.pointer(address.saturating_add(word * 8)) else { continue };
            match self.image.segment(target).map(|segment| segment.kind) {
                Some(Kind::Code) if self.image.is_function(target) => todo.push_back(target),
                Some(Kind::Constants) => self.add(target, CONSTANT_BYTES),
                _ => {}
            }
        }
    }
}

impl Dynamic {
    fn of(entries: &[elf::Dyn64<Endianness>], endian: Endianness) -> Self {
        let mut dynamic = Self::default();
        for entry in entries {
            let value = entry.d_val(endian);
            let [relative, stubs] = &mut dynamic.relocations;
            let [before, init] = &mut dynamic.constructors;
            match entry.tag(endian) {
                elf::DT_NULL => break,
                elf::DT_RELA => relative.0 = value,
                elf::DT_RELASZ => relative.1 = value,
                elf::DT_JMPREL => stubs.0 = value,
                elf::DT_PLTRELSZ => stubs.1 = value,
                elf::DT_INIT => dynamic.init = Some(value),
                elf::DT_PREINIT_ARRAY => before.0 = value,
                elf::DT_PREINIT_ARRAYSZ => before.1 = value,
                elf::DT_INIT_ARRAY => init.0 = value,
                elf::DT_INIT_ARRAYSZ => init.1 = value,
                _ => {}
            }
        }
        dynamic
    }
}

/// Where the functions begin, as the table says by which a debugger finds them (`.eh_frame_hdr` in its usual form).
fn functions_of(table: &[u8], address: u64) -> Vec<u64> {
    /// Version 1; the frames' place relative to here; a count of four bytes; places of four bytes relative to the table.
    const USUAL: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
    let Some(rest) = table.strip_prefix(&USUAL).and_then(|rest| rest.get(8..)) else { return Vec::new() };
    let mut starts: Vec<u64> = rest
        .as_chunks::<8>()
        .0
        .iter()
        .map(|[a, b, c, d, ..]| address.wrapping_add_signed(i32::from_le_bytes([*a, *b, *c, *d]).into()))
        .collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// What these relocations (`Elf64_Rela`) make the loader write, as far as it is the file's own.
fn relocations(table: &[u8], value: &dyn Fn(u32) -> Option<u64>) -> Vec<(u64, u64)> {
    const ABSOLUTE: u32 = 1;
    const GLOBAL: u32 = 6;
    const JUMP: u32 = 7;
    const RELATIVE: u32 = 8;
    let (words, _) = table.as_chunks::<8>();
    let (records, _) = words.as_chunks::<3>();
    let written = |[place, info, addend]: &[[u8; 8]; 3]| {
        let [place, addend] = [*place, *addend].map(u64::from_le_bytes);
        let [a, b, c, d, e, f, g, h] = *info;
        let target = match u32::from_le_bytes([a, b, c, d]) {
            RELATIVE => Some(addend),
            ABSOLUTE => value(u32::from_le_bytes([e, f, g, h])).map(|value| value.wrapping_add(addend)),
            GLOBAL | JUMP => value(u32::from_le_bytes([e, f, g, h])),
            _ => None,
        };
        target.map(|target| (place, target))
    };
    records.iter().filter_map(written).collect()
}

#[cfg(test)]
mod tests;
