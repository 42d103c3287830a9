use std::collections::BTreeSet;
use std::io::Cursor;

use proptest::prelude::*;
use proto::width;

use super::*;

const FILE_BYTES: usize = 0x48000;
/// Addresses are offsets and this.
const BASE: u64 = 0x10000;

/// A library with a table on each page, made by hand: of 64 bits, or of 32 and the other byte order.
struct Library {
    bytes: Vec<u8>,
    wide: bool,
}

impl Library {
    fn put(&mut self, at: u64, value: u64, bytes: usize) -> u64 {
        let target = &mut self.bytes[width::index(at)..width::index(at) + bytes];
        if self.wide {
            target.copy_from_slice(&value.to_le_bytes()[..bytes])
        } else {
            target.copy_from_slice(&value.to_be_bytes()[8 - bytes..])
        }
        at + bytes as u64
    }

    /// Words one after another; returns where the next would stand.
    fn words(&mut self, at: u64, values: &[u64]) -> u64 {
        let bytes = if self.wide { 8 } else { 4 };
        values.iter().fold(at, |at, value| self.put(at, *value, bytes))
    }

    fn halves(&mut self, at: u64, values: &[u64]) -> u64 {
        values.iter().fold(at, |at, value| self.put(at, *value, 4))
    }

    fn header(&mut self) {
        self.bytes[..4].copy_from_slice(&super::super::MAGIC);
        self.bytes[4..7].copy_from_slice(if self.wide { &[2, 1, 1] } else { &[1, 2, 1] });
        self.put(16, 3, 2);
        let at = self.halves(20, &[1]);
        let headers = if self.wide { 64 } else { 52 };
        let at = self.words(at, &[BASE + 0x35000, headers, 0]);
        let entry_bytes = if self.wide { 56 } else { 32 };
        [headers, entry_bytes, 4].iter().fold(at + 4, |at, value| self.put(at, *value, 2));
        let segments = [
            (1, 4, 0, 0x28000),       // tables
            (1, 5, 0x28000, 0x10000), // code
            (1, 6, 0x40000, 0x3000),  // data
            (2, 6, 0x41000, 0x800),   // the dynamic section, in the data
        ];
        for (number, (kind, flags, offset, bytes)) in segments.into_iter().enumerate() {
            let at = headers + number as u64 * entry_bytes;
            let place = [offset, BASE + offset, BASE + offset, bytes, bytes];
            if self.wide {
                let at = self.halves(at, &[kind, flags]);
                self.words(at, &[&place[..], &[4096]].concat());
            } else {
                self.halves(at, &[&[kind], &place[..], &[flags, 4096]].concat());
            }
        }
    }

    fn new(wide: bool) -> Self {
        let mut library = Self { bytes: vec![0; FILE_BYTES], wide };
        library.header();
        let word = if wide { 8 } else { 4 };
        let tables = [
            (0x6fff_fef5, BASE + 0x2000),
            (6, BASE + 0x4000),
            (5, BASE + 0x6000),
            (10, 100_000),
            (1, 0x3000), // NEEDED
            (0x6fff_fff0, BASE + 0x1f000),
            (0x6fff_fffe, BASE + 0x20000),
            (0x6fff_ffff, 1),
            (7, BASE + 0x21000), // RELA
            (8, 0x1800),
            (36, BASE + 0x23000), // RELR
            (35, 16),
            (23, BASE + 0x24000), // JMPREL
            (2, 48),
            (12, BASE + 0x29000), // INIT
            (25, BASE + 0x42000), // INIT_ARRAY
            (27, 2 * word),
        ];
        tables.iter().fold(0x41000, |at, (tag, value)| library.words(at, &[*tag, *value]));
        // One chain: symbols 2 and 3. Symbols 0 and 1 are undefined.
        let at = library.halves(0x2000, &[1, 2, 1, 0]);
        library.halves(at + word, &[2, 8, 9]);
        let symbol_bytes = if wide { 24 } else { 16 };
        for (number, name) in [0, 0x5000, 0x9000, 0x9000].into_iter().enumerate() {
            library.halves(0x4000 + number as u64 * symbol_bytes, &[name]);
        }
        // The first constructor is named by a relocation, the second by the array itself.
        library.words(0x21000, &[BASE + 0x42000, 8, BASE + 0x30123]);
        library.words(0x42000 + word, &[BASE + 0x2b000]);
        library
    }
}

fn pages_of(bytes: &[u8], pages_max: usize) -> Vec<u32> {
    pages(bytes.len() as u64, Cursor::new(bytes), pages_max)
}

#[rustfmt::skip]
const EXPECTED: [u32; 19] = [
    0, 0x41, // headers, dynamic section
    2, 0x1f, 0x20, // hash, versions
    4, 9, 6, 0xb, // symbols, names of a library and of undefined symbols; not those of defined ones
    0x23, 0x21, 0x22, 0x24, // relocations
    0x40, 0x42, // what they write to
    0x29, 0x30, 0x2b, // constructors
    0x35, // entry
];

#[test]
fn what_the_structure_names_is_found_in_order() {
    let expected = EXPECTED;
    for wide in [true, false] {
        let library = Library::new(wide);
        assert_eq!(pages_of(&library.bytes, 1000), expected, "wide: {wide}");
        assert_eq!(pages_of(&library.bytes, 5), expected[..5], "wide: {wide}");
    }
}

#[test]
fn small_files_are_whole_and_large_ones_that_are_no_programs_have_their_beginning() {
    assert_eq!(pages_of(&[1; 10_000], 1000), [0, 1, 2]);
    assert_eq!(pages_of(&[1; 10_000], 2), [0, 1]);
    assert_eq!(pages_of(&vec![1; 200_000], 1000), [0]);
    assert_eq!(pages_of(&[], 1000), [0; 0]);
}

#[test]
fn of_a_real_program_the_headers_and_everything_writable_is_found() {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let found: BTreeSet<u32> = pages_of(&program, 1 << 20).into_iter().collect();
    let header = elf::FileHeader64::<Endianness>::parse(&program[..]).unwrap();
    let endian = header.endian().unwrap();
    let written = header.program_headers(endian, &program[..]).unwrap().iter();
    let written = written.filter(|s| s.p_type(endian) == elf::PT_LOAD && s.p_flags(endian).contains(elf::PF_W));
    let mut expected = vec![0];
    for segment in written {
        let (start, bytes) = (segment.p_offset(endian), segment.p_filesz(endian));
        expected.extend((start / PAGE_BYTES..(start + bytes).div_ceil(PAGE_BYTES)).map(width::count));
    }
    assert!(expected.len() > 2 && expected.iter().all(|page| found.contains(page)));
    assert!(found.len() * 2 < program.len() / width::index(PAGE_BYTES), "{} pages", found.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Any number of wrong bytes where the structure is, and any cut, gives pages of the file, each once, and never more
    /// than is allowed.
    #[test]
    fn damage_never_panics(
        wide in any::<bool>(),
        changes in prop::collection::vec(
            (prop::sample::select(vec![0, 0x40, 0x2000, 0x4000, 0x21000, 0x41000, 0x42000]), 0..0x140_usize, any::<u8>()),
            0..12,
        ),
        large in prop::collection::vec((0..17_u64, prop::sample::select(vec![u64::MAX, u64::MAX - 4096, 1 << 40])), 0..3),
        cut in prop::option::of(0..FILE_BYTES),
        pages_max in prop::sample::select(vec![0, 7, 1000]),
    ) {
        let mut library = Library::new(wide);
        let word = if wide { 8 } else { 4 };
        for (entry, value) in large {
            library.words(0x41000 + (2 * entry + 1) * word, &[value]);
        }
        let mut bytes = library.bytes;
        changes.iter().for_each(|(table, at, value)| bytes[table + at] = *value);
        bytes.truncate(cut.unwrap_or(FILE_BYTES));
        let found = pages_of(&bytes, pages_max);
        prop_assert!(found.len() <= pages_max);
        prop_assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
        prop_assert!(found.iter().all(|page| u64::from(*page) * PAGE_BYTES < bytes.len() as u64));
    }
}
