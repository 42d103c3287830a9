//! What an ELF file says about itself. The bytes are hostile: every size is bounded before it is read, and a file that
//! contradicts itself yields what could be read.

use std::io::{Read, Seek};

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};
use proto::TreePath;
use proto::path::printable;
use proto::record::ElfFile;

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
    printable(&bytes[..bytes.len().min(STRING_BYTES_MAX as usize)])
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
