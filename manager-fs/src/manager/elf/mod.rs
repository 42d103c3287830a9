//! What an ELF file says about itself. The bytes are hostile: every size is bounded before it is read, and a file that
//! contradicts itself yields what could be read.

pub(crate) mod loaded;
pub(crate) mod reach;

use std::io::{Read, Seek};

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};
use proto::TreePath;
use proto::path::printable;
use proto::record::ElfFile;
use proto::width;

/// The first bytes of every ELF file.
pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

/// Bytes of one segment that is read whole; real ones have some KiB.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one name or path in it: `PATH_MAX` of Linux.
const STRING_BYTES_MAX: u64 = 4096;
/// Needed libraries of one file; the largest programs have some hundred.
const NEEDED_MAX: usize = 1024;

/// Describes the ELF file at `path`, of `bytes` bytes; `None` when its header makes no sense.
pub(crate) fn describe(path: &TreePath, bytes: u64, content: impl Read + Seek) -> Option<ElfFile> {
    let cache = ReadCache::new(content);
    let data = &cache;
    let mut file = ElfFile {
        path: path.clone(),
        architecture: String::new(),
        kind: String::new(),
        interpreter: None,
        needed: Vec::new(),
        soname: None,
        runpath: None,
        build_id: None,
        bytes,
    };
    match FileKind::parse(data).ok()? {
        FileKind::Elf32 => read::<elf::FileHeader32<Endianness>, _>(data, &mut file)?,
        FileKind::Elf64 => read::<elf::FileHeader64<Endianness>, _>(data, &mut file)?,
        _ => return None,
    }
    Some(file)
}

fn read<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(data: R, file: &mut ElfFile) -> Option<()> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    file.architecture = architecture(header.e_machine(endian));
    let kind = header.e_type(endian);
    let mut facts = Dynamic::default();
    // 0xffff means that the real count stands elsewhere: only cores have so many segments.
    if header.e_phnum(endian) != u16::MAX {
        let segments = header.program_headers(endian, data).unwrap_or_default();
        for segment in segments {
            if segment.p_filesz(endian).into() > SEGMENT_BYTES_MAX {
                continue;
            }
            if let Ok(Some(interpreter)) = segment.interpreter(endian, data) {
                file.interpreter = Some(text(interpreter));
            }
            if file.build_id.is_none() {
                file.build_id = build_id::<H, R>(segment, endian, data);
            }
            if let Ok(Some(entries)) = segment.dynamic(endian, data) {
                facts = dynamic::<H>(entries, endian);
            }
        }
        let strings = facts.strings.and_then(|address| offset_of::<H>(segments, endian, address));
        if let Some(strings) = strings {
            let string = |at: u64| read_string(data, strings.checked_add(at)?);
            file.needed = facts.needed.iter().filter_map(|at| string(*at)).collect();
            file.soname = facts.soname.and_then(string);
            file.runpath = facts.runpath.or(facts.rpath).and_then(string);
        }
    }
    let program = facts.pie || (file.interpreter.is_some() && file.soname.is_none());
    file.kind = match kind {
        elf::ET_EXEC => "executable",
        elf::ET_DYN if program => "executable",
        elf::ET_DYN => "shared object",
        elf::ET_REL => "relocatable",
        elf::ET_CORE => "core",
        _ => "unknown",
    }
    .to_owned();
    Some(())
}

/// What the dynamic section says; strings as offsets into the string table.
#[derive(Default)]
struct Dynamic {
    strings: Option<u64>,
    needed: Vec<u64>,
    soname: Option<u64>,
    runpath: Option<u64>,
    rpath: Option<u64>,
    pie: bool,
}

fn dynamic<H: FileHeader>(entries: &[H::Dyn], endian: H::Endian) -> Dynamic {
    let mut facts = Dynamic::default();
    for entry in entries {
        let value: u64 = entry.d_val(endian).into();
        match entry.tag(endian) {
            elf::DT_NULL => break,
            elf::DT_STRTAB => facts.strings = Some(value),
            elf::DT_NEEDED if facts.needed.len() < NEEDED_MAX => facts.needed.push(value),
            elf::DT_SONAME => facts.soname = Some(value),
            elf::DT_RUNPATH => facts.runpath = Some(value),
            elf::DT_RPATH => facts.rpath = Some(value),
            elf::DT_FLAGS_1 => facts.pie = value & elf::DF_1_PIE.0 != 0,
            _ => {}
        }
    }
    facts
}

/// Where the byte at this address stands in the file.
fn offset_of<H: FileHeader>(segments: &[H::ProgramHeader], endian: H::Endian, address: u64) -> Option<u64> {
    segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian).into())?;
        if into >= segment.p_filesz(endian).into() {
            return None;
        }
        Into::<u64>::into(segment.p_offset(endian)).checked_add(into)
    })
}

fn read_string<'a, R: ReadRef<'a>>(data: R, at: u64) -> Option<String> {
    let left = data.len().ok()?.checked_sub(at)?;
    let bytes = data.read_bytes_at(at, left.min(STRING_BYTES_MAX)).ok()?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(printable(&bytes[..end]))
}

fn build_id<'a, H: FileHeader, R: ReadRef<'a>>(
    segment: &H::ProgramHeader,
    endian: H::Endian,
    data: R,
) -> Option<String> {
    let notes = segment.notes(endian, data).ok()??;
    let note = notes
        .map_while(Result::ok)
        .find(|note| note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID)?;
    let id = note.desc().get(..note.desc().len().min(64))?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A segment's string, up to its NUL.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    printable(&bytes[..bytes.len().min(width::index(STRING_BYTES_MAX))])
}

/// The machine's name as `std::env::consts::ARCH` has it, so that a host can compare it with its own.
fn architecture(machine: elf::Machine) -> String {
    let name = match machine {
        elf::EM_X86_64 => "x86_64",
        elf::EM_AARCH64 => "aarch64",
        elf::EM_386 => "x86",
        elf::EM_ARM => "arm",
        elf::EM_RISCV => "riscv64",
        elf::EM_PPC64 => "powerpc64",
        elf::EM_S390 => "s390x",
        elf::EM_LOONGARCH => "loongarch64",
        other => return format!("machine {}", other.0),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn own_program() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    fn described(bytes: &[u8]) -> Option<ElfFile> {
        describe(&TreePath::root(), bytes.len() as u64, Cursor::new(bytes))
    }

    #[test]
    fn a_real_program_is_described() {
        let bytes = own_program();
        let file = described(&bytes).unwrap();
        assert_eq!(file.architecture, std::env::consts::ARCH);
        assert_eq!(file.kind, "executable");
        assert!(file.interpreter.unwrap().contains("ld-linux"));
        assert!(file.needed.contains(&"libc.so.6".to_owned()), "{:?}", file.needed);
        assert_eq!(file.bytes, bytes.len() as u64);
    }

    /// A library of 32 bits and the other byte order, made by hand: one loaded and one dynamic segment.
    fn foreign_library() -> Vec<u8> {
        let mut bytes = vec![0; 0x200];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let word = |value: u32| value.to_be_bytes();
        put(0, b"\x7fELF\x01\x02\x01");
        put(16, &[0, 3, 0, 22]); // shared object, S/390
        put(20, &word(1));
        put(28, &word(52)); // program headers
        put(40, &[0, 52, 0, 32, 0, 2]);
        for (at, fields) in
            [(52, [1, 0, 0x1000, 0x1000, 0x200, 0x200, 5, 0x1000]), (84, [2, 0x100, 0x1100, 0x1100, 48, 48, 4, 4])]
        {
            fields.iter().enumerate().for_each(|(n, field)| put(at + 4 * n, &word(*field)));
        }
        // STRTAB at 0x1180, NEEDED, SONAME, RPATH, FLAGS_1, NULL
        let entries = [(5, 0x1180), (1, 1), (14, 11), (15, 20), (0x6fff_fffb, 0), (0, 0)];
        entries.iter().enumerate().for_each(|(n, (tag, value))| {
            put(0x100 + 8 * n, &word(*tag));
            put(0x104 + 8 * n, &word(*value));
        });
        put(0x180, b"\0libx.so.1\0libme.so\0\0/opt/lib\0");
        put(0x180 + 20, b"/opt/lib\0");
        bytes
    }

    #[test]
    fn a_foreign_library_is_described() {
        let file = described(&foreign_library()).unwrap();
        assert_eq!((file.architecture.as_str(), file.kind.as_str()), ("s390x", "shared object"));
        assert_eq!(file.needed, ["libx.so.1"]);
        assert_eq!((file.soname.as_deref(), file.runpath.as_deref()), (Some("libme.so"), Some("/opt/lib")));
        assert_eq!((file.interpreter, file.build_id), (None, None));
    }

    #[test]
    fn what_is_no_elf_file_is_not_described() {
        for bytes in [b"".as_slice(), b"\x7fELF", b"\x7fELF\x03\x01\x01 and so on and on", &[0; 4096]] {
            assert_eq!(described(bytes), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Any number of wrong bytes and any cut gives a description or none, and never more than is allowed.
        #[test]
        fn damage_never_panics(
            changes in prop::collection::vec((0..0x200_usize, any::<u8>()), 0..12),
            cut in prop::option::of(0..0x200_usize),
        ) {
            let mut bytes = foreign_library();
            changes.iter().for_each(|(at, value)| bytes[*at] = *value);
            bytes.truncate(cut.unwrap_or(bytes.len()));
            if let Some(file) = described(&bytes) {
                prop_assert!(file.needed.len() <= NEEDED_MAX);
                prop_assert!(file.needed.iter().all(|name| name.len() <= 4 * width::index(STRING_BYTES_MAX)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn damage_to_the_start_of_a_real_program_never_panics(
            changes in prop::collection::vec((0..1200_usize, any::<u8>()), 1..8),
        ) {
            static PROGRAM: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let program = PROGRAM.get_or_init(own_program);
            // The rest of the file stays shared: it is large.
            let mut head = program[..4096].to_vec();
            changes.iter().for_each(|(at, value)| head[*at] = *value);
            describe(&TreePath::root(), program.len() as u64, Patched { head: &head, program, at: 0 });
        }
    }

    struct Patched<'a> {
        head: &'a [u8],
        program: &'a [u8],
        at: u64,
    }

    impl Read for Patched<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let at = width::index(self.at).min(self.program.len());
            let rest = self.head.get(at..).filter(|rest| !rest.is_empty()).unwrap_or(&self.program[at..]);
            let bytes = rest.len().min(buffer.len());
            buffer[..bytes].copy_from_slice(&rest[..bytes]);
            self.at += bytes as u64;
            Ok(bytes)
        }
    }

    impl Seek for Patched<'_> {
        fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
            let mut cursor = Cursor::new(self.program);
            cursor.set_position(self.at);
            self.at = cursor.seek(to)?;
            Ok(self.at)
        }
    }
}
