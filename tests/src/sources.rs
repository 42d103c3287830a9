//! Sources to publish, of every kind, and hostile ones. Made by hand where the machine's tools would not make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proto::width::count;

/// Packs a directory as the data of a `.deb`, compressed by this tar option (`--gzip`, `--xz`, `--zstd`).
pub fn deb(dir: &Path, archive: &Path, compression: &str) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let suffix = match compression {
        "--gzip" => "gz",
        "--xz" => "xz",
        "--zstd" => "zst",
        other => panic!("no such compression of a .deb: {other}"),
    };
    let at = |name: &str| work.path().join(name);
    fs::write(at("debian-binary"), "2.0\n").expect("write");
    fs::write(at("control"), "Package: sample\nVersion: 1\nArchitecture: all\n").expect("write");
    let mut control = Command::new("tar");
    control.arg("-czf").arg(at("control.tar.gz")).arg("-C").arg(work.path()).arg("control");
    assert!(control.status().expect("running tar").success(), "tar failed");
    let data = format!("data.tar.{suffix}");
    crate::tree::tar(dir, &at(&data), &[compression]);
    let mut ar = Vec::from(*b"!<arch>\n");
    for name in ["debian-binary", "control.tar.gz", &data] {
        let bytes = fs::read(at(name)).expect("read");
        ar.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", bytes.len()).bytes());
        ar.extend(&bytes);
        if bytes.len() % 2 == 1 {
            ar.push(b'\n');
        }
    }
    fs::write(archive, ar).expect("write");
}

/// One member of a hand-made archive.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, exactly as it goes into the archive.
    pub name: String,
    /// File type and permissions.
    pub mode: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Member {
    /// A regular file.
    pub fn file(name: &str, mode: u32, bytes: impl AsRef<[u8]>) -> Self {
        Self { name: name.to_owned(), mode: 0o100_000 | mode, bytes: bytes.as_ref().to_vec() }
    }
}

/// Writes a zip archive of stored members, as unix programs write it.
pub fn zip(archive: &Path, members: &[Member]) {
    let (mut file, mut index) = (Vec::new(), Vec::new());
    for member in members {
        let offset = count(file.len());
        let mut fields = Vec::new();
        // Method 0, 2020-01-01 12:00.
        for half in [0u16, 0, 0x6000, 0x5021] {
            fields.extend(half.to_le_bytes());
        }
        for word in [crc32(&member.bytes), count(member.bytes.len()), count(member.bytes.len())] {
            fields.extend(word.to_le_bytes());
        }
        fields.extend(u16::try_from(member.name.len()).expect("a short name").to_le_bytes());
        file.extend(b"PK\x03\x04\x14\x00");
        file.extend(&fields);
        file.extend([0, 0]);
        file.extend(member.name.as_bytes());
        file.extend(&member.bytes);
        // Made on unix (3), so that the upper half of the attributes is the mode.
        index.extend(b"PK\x01\x02\x14\x03\x14\x00");
        index.extend(&fields);
        index.extend([0; 8]);
        index.extend((member.mode << 16).to_le_bytes());
        index.extend(offset.to_le_bytes());
        index.extend(member.name.as_bytes());
    }
    let (start, entries) = (count(file.len()), u16::try_from(members.len()).expect("few members"));
    file.extend(&index);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(entries.to_le_bytes());
    file.extend(entries.to_le_bytes());
    file.extend(count(index.len()).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    fs::write(archive, file).expect("write");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1))))
}

/// One header of a hand-made tar archive.
#[derive(Debug, Clone)]
pub struct TarMember {
    /// Its name, exactly as it goes into the archive; at most 100 bytes.
    pub name: String,
    /// The type flag: `0` file, `1` hard link, `2` symlink, `3` character device, `5` directory.
    pub kind: u8,
    /// Target of a link.
    pub link: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The size that the header claims, when that is not the content's.
    pub claimed_bytes: Option<u64>,
}

impl TarMember {
    /// A member of this kind with this link target.
    pub fn new(name: &str, kind: u8, link: &str) -> Self {
        Self { name: name.to_owned(), kind, link: link.to_owned(), bytes: Vec::new(), claimed_bytes: None }
    }

    /// A file with this content.
    pub fn file(name: &str, bytes: impl AsRef<[u8]>) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), ..Self::new(name, b'0', "") }
    }
}

/// Writes a tar archive that no tar would write.
pub fn raw_tar(archive: &Path, members: &[TarMember]) {
    let mut file = Vec::new();
    for member in members {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, member.name.as_bytes());
        put(100, b"0000755\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        let size = member.claimed_bytes.unwrap_or(member.bytes.len() as u64);
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"13370000000\0");
        put(148, b"        ");
        put(156, &[member.kind]);
        put(157, member.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        file.extend(header);
        file.extend(&member.bytes);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file.resize(file.len() + 1024, 0);
    fs::write(archive, file).expect("write");
}

/// Archives that must be refused: file name and what the refusal must name.
pub fn hostile(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let good = TarMember::file("bin/good", "good");
    let with = |bad: TarMember| vec![good.clone(), bad];
    let mut found = Vec::new();
    let mut add = |name: &str, named: &'static str, members: Vec<TarMember>| {
        let path = dir.join(format!("{name}.tar"));
        raw_tar(&path, &members);
        found.push((path, named));
    };
    add("parent", "../escape", with(TarMember::file("../escape", "x")));
    add("inner-parent", "a/../../escape", with(TarMember::file("a/../../escape", "x")));
    add("absolute", "/etc/escape", with(TarMember::file("/etc/escape", "x")));
    add("device", "dev/null", with(TarMember::new("dev/null", b'3', "")));
    add("fifo", "pipe", with(TarMember::new("pipe", b'6', "")));
    add("file-as-directory", "bin/good", with(TarMember::file("bin/good/below", "x")));
    add("link-outside", "hard", with(TarMember::new("hard", b'1', "../../etc/passwd")));
    add("link-to-nothing", "hard", with(TarMember::new("hard", b'1', "missing")));
    let through = [TarMember::new("way", b'2', "/tmp"), TarMember::file("way/escape", "x")];
    add("through-symlink", "way", through.to_vec());
    let cut = TarMember { claimed_bytes: Some(1 << 20), ..TarMember::file("cut", "short") };
    add("cut-off", "cut", with(cut));
    let zipped = dir.join("parent.zip");
    zip(&zipped, &[Member::file("good", 0o644, "good"), Member::file("../escape", 0o644, "x")]);
    found.push((zipped, "../escape"));
    found
}
