use proto::Manifest;

use super::cpio::Reader;
use super::header::Header;
use super::*;
use crate::manager::testing::{Fixture, tree_path};

fn taken(bytes: &[u8]) -> Manifest {
    let fixture = Fixture::new();
    let published = fixture.publish_bytes(bytes).unwrap();
    fixture.manifest(&published)
}

fn refused(bytes: &[u8]) -> String {
    Fixture::new().publish_bytes(bytes).unwrap_err().to_string()
}

fn described(manifest: &Manifest) -> Vec<String> {
    let described = |entry: &proto::manifest::Entry| {
        let node = manifest.node(entry);
        let kind = match &node.kind {
            NodeKind::Directory => "directory".to_owned(),
            NodeKind::EmptyFile => "empty".to_owned(),
            NodeKind::Symlink(target) => format!("-> {}", printable(target)),
            NodeKind::File(id) => format!("{} bytes", manifest.object(id).unwrap().bytes),
        };
        format!("{} {:04o} {}:{} {} {kind}", entry.path, node.mode, node.uid, node.gid, node.mtime_s)
    };
    manifest.entries.iter().map(described).collect()
}

#[test]
fn a_package_is_the_tree_that_its_list_of_files_says() {
    for (compression, bytes) in SAMPLES {
        let manifest = taken(bytes);
        let expected = [
            " 0755 0:0 0 directory",
            "opt 0755 0:0 0 directory",
            "opt/small 0755 0:0 1700000000 directory",
            "opt/small/bin 0755 0:0 1700000000 directory",
            "opt/small/bin/link 0777 0:0 1700000000 -> ../lib/one",
            "opt/small/bin/run 0755 0:0 1700000000 21 bytes",
            "opt/small/empty 0700 0:0 1700000000 directory",
            "opt/small/lib 0755 0:0 0 directory",
            "opt/small/lib/nothing 0640 0:0 1700000000 empty",
            "opt/small/lib/one 0644 0:0 1700000000 25 bytes",
            "opt/small/lib/three 0644 0:0 1700000000 25 bytes",
            "opt/small/lib/two 0644 0:0 1700000000 25 bytes",
        ];
        let got: Vec<String> =
            described(&manifest).into_iter().map(|line| line.trim_start_matches('.').into()).collect();
        assert_eq!(got, expected, "{compression}");
        let node = |path: &str| manifest.entry(&tree_path(path)).unwrap().node;
        assert_eq!(
            (node("opt/small/lib/two"), node("opt/small/lib/three")),
            (node("opt/small/lib/one"), node("opt/small/lib/one"))
        );
    }
}

#[test]
fn no_changed_or_missing_byte_of_a_package_goes_unnoticed() {
    let whole = SAMPLES[4].1;
    let tree = taken(whole);
    // The lead, the signatures, padding: what they hold beside the sum says nothing of the tree.
    let mut source = &whole[LEAD_BYTES..];
    let signatures = Header::read(&mut source).unwrap();
    let header_at = whole.len() - source.len() + signatures.padding_bytes();
    for at in (0..whole.len()).step_by(31) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x10;
        if at >= header_at {
            refused(&bytes);
        } else if let Ok(published) = Fixture::new().publish_bytes(&bytes) {
            assert_eq!(published.manifest_bytes, tree.encode().unwrap().0.len() as u64, "byte {at}");
        }
    }
    for cut in (4..whole.len()).step_by(401) {
        refused(&whole[..cut]);
    }
    assert!(refused(&whole[..header_at + 40]).contains("cut off"));
}

/// A package that rpm would take, without sums.
#[derive(Default)]
struct Package {
    tags: Vec<(u32, u32, u32, Vec<u8>)>,
    archive: Vec<u8>,
}

impl Package {
    /// With this list of files: path, mode, length and number of the inode.
    fn of(files: &[(&str, u16, u64, u32)]) -> Self {
        let count = u32::try_from(files.len()).unwrap();
        let texts =
            |texts: Vec<&str>| texts.iter().flat_map(|text| [text.as_bytes(), &[0]].concat()).collect::<Vec<u8>>();
        let directories = files.iter().map(|file| &file.0[..=file.0.rfind('/').unwrap()]).collect();
        let names = files.iter().map(|file| &file.0[file.0.rfind('/').unwrap() + 1..]).collect();
        let words =
            |word: &dyn Fn(usize) -> u32| (0..files.len()).flat_map(|n| word(n).to_be_bytes()).collect::<Vec<u8>>();
        let number = |n: usize| u32::try_from(n).unwrap();
        let tags = vec![
            (1118, 8, count, texts(directories)),
            (1117, 8, count, texts(names)),
            (1116, 4, count, words(&number)),
            (1030, 3, count, files.iter().flat_map(|file| file.1.to_be_bytes()).collect()),
            (5008, 5, count, files.iter().flat_map(|file| file.2.to_be_bytes()).collect()),
            (1034, 4, count, words(&|_| 7)),
            (1095, 4, count, words(&|_| 1)),
            (1096, 4, count, words(&|n| files[n].3)),
        ];
        Self { tags, archive: Vec::new() }
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }

    fn named(mut self, name: &str, content: &[u8]) -> Self {
        let field = |number: usize| format!("{number:08x}");
        let mut entry = String::from("070701");
        for number in [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            entry.push_str(&field(number));
        }
        self.archive.extend(entry.as_bytes());
        self.archive.extend(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend(content);
        self.pad();
        self
    }

    fn numbered(mut self, number: u32, content: &[u8]) -> Self {
        self.archive.extend(format!("07070X{number:08x}").as_bytes());
        self.pad();
        self.archive.extend(content);
        self.pad();
        self
    }

    fn tag(mut self, tag: u32, kind: u32, count: u32, bytes: &[u8]) -> Self {
        self.tags.push((tag, kind, count, bytes.to_vec()));
        self
    }

    fn unfinished(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes.extend(header(&[]));
        bytes.extend(header(&self.tags));
        bytes.extend(&self.archive);
        bytes
    }

    fn bytes(self) -> Vec<u8> {
        self.named("TRAILER!!!", b"").unfinished()
    }
}

fn header(tags: &[(u32, u32, u32, Vec<u8>)]) -> Vec<u8> {
    let (mut index, mut store) = (Vec::new(), Vec::new());
    for (tag, kind, count, bytes) in tags {
        for number in [*tag, *kind, u32::try_from(store.len()).unwrap(), *count] {
            index.extend(number.to_be_bytes());
        }
        store.extend(bytes);
    }
    let counts =
        [u32::try_from(tags.len()).unwrap().to_be_bytes(), u32::try_from(store.len()).unwrap().to_be_bytes()];
    [&[0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0], counts.as_flattened(), &index, &store].concat()
}

const FILE: u16 = 0o100_644;

#[test]
fn entries_may_be_numbers_of_the_list() {
    let files = [("/a/one", FILE, 3, 1), ("/a/two", FILE, 3, 1), ("/b", 0o120_777, 5, 2), ("/c", FILE, 1, 3)];
    let package = Package::of(&files).numbered(0, b"").numbered(2, b"a/two").numbered(3, b"x").numbered(1, b"abc");
    let manifest = taken(&package.bytes());
    let lines = described(&manifest);
    assert_eq!(lines[2..4], ["a/one 0644 0:0 7 3 bytes", "a/two 0644 0:0 7 3 bytes"]);
    assert_eq!(lines[4..], ["b 0777 0:0 7 -> a/two", "c 0644 0:0 7 1 bytes"]);
    let beyond = Package::of(&files).numbered(4, b"");
    assert!(refused(&beyond.bytes()).contains("its list of files has not"));
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let one = || Package::of(&[("/a/one", FILE, 3, 1)]);
    let two = || Package::of(&[("/a/one", FILE, 3, 1), ("/a/two", FILE, 3, 1)]);
    for (package, fault) in [
        (one().named("./a/other", b"abc"), "'./a/other'"),
        (one().named("./a/one", b"ab"), "'a/one'"),
        (two().named("./a/one", b""), "'a/one'"),
        (Package::of(&[("/../one", FILE, 3, 1)]).named("/../one", b"abc"), "'../one'"),
        (Package::of(&[("/null", 0o020_666, 0, 1)]).named("./null", b""), "devices"),
        (one().tag(1124, 6, 1, b"drpm\0"), "delta package"),
        (one().tag(1030, 4, 2, &[0; 8]), "different lengths"),
        (one().tag(1116, 4, 1, &[0, 0, 0, 9]), "a directory that it does not have"),
        (one().tag(1117, 8, 1 << 21, b""), "more than a million items"),
        (one().tag(1117, 8, 9, b"a\0"), "fewer texts"),
        (one().tag(1034, 4, 9, b""), "fewer numbers"),
        (one().tag(1034, 6, 1, b"\0"), "something else where numbers"),
        (one().tag(1117, 4, 0, b""), "something else where texts"),
    ] {
        let error = refused(&package.bytes());
        assert!(error.contains(fault), "want {fault}: {error}");
    }
    let mut source = one().bytes();
    source[7] = 1;
    assert!(refused(&source).contains("source package"));
    assert!(refused(&one().named("./a/one", b"abc").unfinished()).contains("cut off"));
    let mut large = one().unfinished();
    large[LEAD_BYTES + 12] = 0xff;
    assert!(refused(&large).contains("larger than any header"));
}

#[test]
fn an_archive_of_a_package_is_bounded() {
    let head = |fields: &str| format!("070701{fields}").into_bytes();
    let mut long = head(&"00000000".repeat(11));
    long.extend(b"ffffffff00000000");
    for (bytes, fault) in [
        (long, "more than 4095"),
        (head("0000000g"), "a number that is none"),
        (head("+0000001"), "a number that is none"),
        (b"070703".to_vec(), "is none"),
    ] {
        let error = Reader::new(bytes.as_slice()).entry().unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
}
