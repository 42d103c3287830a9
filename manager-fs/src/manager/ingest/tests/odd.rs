//! Odd sources that other tools take, and odd ones that no host could attach.

use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use proto::ObjectId;
use proto::manifest::{Manifest, Node};

use super::*;

/// Header of a directory, a file or a symlink without content, with a mode.
fn header_with_mode(name: &[u8], kind: u8, mode: u32, link: &[u8]) -> Vec<u8> {
    let mut header = raw_header(name, kind, 0, link);
    header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    fix_sum(header)
}

pub(super) fn taken(bytes: &[u8]) -> Manifest {
    let fixture = Fixture::new();
    fixture.manifest(&fixture.publish_bytes(bytes).unwrap())
}

pub(super) fn refused(bytes: &[u8]) -> String {
    let fixture = Fixture::new();
    let before = list(&fixture.dir.path().join("store"));
    let error = fixture.publish_bytes(bytes).unwrap_err().to_string();
    assert_eq!(list(&fixture.dir.path().join("store")), before);
    error
}

pub(super) fn paths(manifest: &Manifest) -> Vec<String> {
    manifest.entries.iter().map(|entry| entry.path.to_string()).collect()
}

pub(super) fn node<'a>(manifest: &'a Manifest, path: &str) -> &'a Node {
    manifest.node(manifest.entry(&tree_path(path)).unwrap())
}

#[test]
fn an_access_list_decides_the_group_s_permissions() {
    let list = "SCHILY.acl.access=user::rwx,user:1000:r-x,group::---,mask::r-x,other::---";
    let tar = raw_tar(&[pax(&record(list)), header_with_mode(b"tool", b'0', 0o700, b"")]);
    let manifest = taken(&tar);
    assert_eq!(node(&manifest, "tool").mode, 0o750);
    assert_eq!(node(&manifest, "tool").xattrs.len(), 1);

    let minimal = "SCHILY.acl.access=user::rwx,group::r-x,other::r--";
    let tar = raw_tar(&[pax(&record(minimal)), header_with_mode(b"tool", b'0', 0o4700, b"")]);
    let manifest = taken(&tar);
    assert_eq!(node(&manifest, "tool").mode, 0o4754, "as the kernel does, which stores no such list");
    assert_eq!(node(&manifest, "tool").xattrs.len(), 0);
}

#[test]
fn attributes_that_some_host_could_not_attach_are_refused_by_name() {
    let on = |text: &[u8], kind: u8| {
        let mut own = text.to_vec();
        own.push(b'\n');
        let length = (1..6).map(|digits| own.len() + 1 + digits);
        let length = length.clone().find(|length| own.len() + 1 + length.to_string().len() == *length).unwrap();
        let record = [length.to_string().as_bytes(), b" ", &own].concat();
        raw_tar(&[pax(&record), header_with_mode(b"entry", kind, 0o755, b"target")])
    };
    let default_list = b"SCHILY.acl.default=user::rwx,group::r-x,other::r-x".as_slice();
    let large = [b"SCHILY.xattr.user.large=".as_slice(), &vec![b'v'; 65_536]].concat();
    let cases: [(&[u8], u8, &str); 9] = [
        (default_list, b'0', "default access control list"),
        (b"SCHILY.xattr.system.posix_acl_access=abc", b'0', "no access control list"),
        (b"SCHILY.acl.access=user::rwx,user:1000:r-x,group::---,other::---", b'0', "needs a mask"),
        (b"SCHILY.acl.access=user::rwx,group::---", b'5', "one entry each"),
        (b"SCHILY.xattr.security.capability=abc", b'0', "no capability"),
        (b"SCHILY.xattr.user.=value", b'0', "no name"),
        (b"SCHILY.xattr.user.a=value", b'2', "symlink"),
        (default_list, b'2', "symlink"),
        (&large, b'0', "ext4"),
    ];
    for (text, kind, wanted) in cases {
        let error = refused(&on(text, kind));
        assert!(error.contains(wanted) && error.contains("'entry'"), "{wanted}: {error}");
    }
    assert_eq!(node(&taken(&on(default_list, b'5')), "entry").xattrs.len(), 1, "a directory has default lists");
    let many: Vec<u8> = (0..256).flat_map(|n| record(&format!("SCHILY.xattr.user.{n:0>250}="))).collect();
    assert!(refused(&raw_tar(&[pax(&many), raw_header(b"entry", b'0', 0, b"")])).contains("ext4"));
}

#[test]
fn a_file_has_no_more_names_than_ext4_can_hold() {
    let names = (0..65_000).map(|n| raw_header(format!("n{n}").as_bytes(), b'1', 0, b"a"));
    let tar = raw_tar(&std::iter::once(raw_header(b"a", b'0', 0, b"")).chain(names).collect::<Vec<_>>());
    let error = refused(&tar);
    assert!(error.contains("65000 names") && error.contains("'n64999'"), "{error}");
}

#[test]
fn padding_labels_and_listings_are_left_out() {
    let inner = tar_of(&[("a", Item::file("content"))]);
    let padded_gzip = [gzip(&inner), vec![0; 5000]].concat();
    assert_eq!(paths(&taken(&padded_gzip)), ["", "a"]);
    assert!(refused(&[gzip(&inner), vec![0; 5000], b"x".to_vec()].concat()).contains("zeros"));

    let mut label = raw_header(b"BACKUP-1", b'V', 0, b"");
    label.extend_from_slice(&raw_header(b"dir/", b'D', 9, b""));
    label.extend_from_slice(&padded(b"Ya\0Yb\0\0\0\0"));
    label.extend_from_slice(&raw_header(b"dir/a", b'0', 7, b""));
    label.extend_from_slice(&padded(b"content"));
    let manifest = taken(&raw_tar(&[label]));
    assert_eq!(paths(&manifest), ["", "dir", "dir/a"]);
    assert_eq!(node(&manifest, "dir").mode, 0o644, "the directory is described, its listing is not content");
    assert!(refused(&raw_tar(&[raw_header(b"dir/", b'D', 900, b"")])).contains("cut off"));
}

#[test]
fn a_hard_link_may_have_a_size_but_no_content() {
    let manifest = taken(&raw_tar(&[link_with(5), raw_header(b"c", b'0', 0, b"")]));
    assert_eq!(paths(&manifest), ["", "a", "b", "c"]);
    assert_eq!(manifest.entries[1].node, manifest.entries[2].node);
}

#[test]
fn the_root_has_several_names() {
    for name in ["./", "/", "//", "."] {
        let tar = raw_tar(&[header_with_mode(name.as_bytes(), b'5', 0o711, b""), raw_header(b"a", b'0', 0, b"")]);
        let manifest = taken(&tar);
        assert_eq!(node(&manifest, "").mode, 0o711, "{name}");
        assert_eq!(paths(&manifest), ["", "a"], "{name}");
    }
}

#[test]
fn of_two_entries_the_later_one_counts_as_for_tar() {
    let directory = || Item::new(Kind::Directory);
    let link = |target: &str| Item::new(Kind::Link(target.into()));
    let tar = tar_of(&[
        ("file", Item::file("first")),
        ("name", link("file")),
        ("file", Item::file("second")),
        ("empty", directory()),
        ("empty", Item::file("now a file")),
        ("was", Item::file("a file")),
        ("was", directory()),
        ("was/in", Item::file("below")),
        ("kept", Item { mode: 0o700, ..directory() }),
        ("kept/in", Item::file("stays")),
        ("kept", Item { mode: 0o711, ..directory() }),
        ("linked", Item::file("third")),
        ("linked", link("file")),
        ("linked", link("linked")),
    ]);
    let manifest = taken(&tar);
    let content = |path: &str| node(&manifest, path).kind.clone();
    let file = |text: &str| NodeKind::File(ObjectId::of(text.as_bytes()));
    assert_eq!(content("file"), file("second"));
    assert_eq!(content("name"), file("first"), "another name of what was there keeps it");
    assert_eq!(content("empty"), file("now a file"));
    assert_eq!(content("was/in"), file("below"));
    assert_eq!((node(&manifest, "kept").mode, content("kept/in")), (0o711, file("stays")));
    assert_eq!(content("linked"), file("second"));
    assert!(
        manifest.objects.iter().all(|object| object.id != ObjectId::of(b"third")),
        "what no entry has is left out"
    );

    let fixture = Fixture::new();
    let path = fixture.dir.path().join("archive");
    fs::write(&path, &tar).unwrap();
    let strict = PublishOptions { strict: true, ..PublishOptions::default() };
    let error = fixture.publish_with(&path, &strict, &Quiet).unwrap_err().to_string();
    assert!(error.contains("'file'") && error.contains("twice"), "{error}");
}

#[test]
fn headers_that_hold_for_a_whole_archive_cannot_multiply() {
    // Thirty kilobytes compressed: what was copied for each of these entries cost a gigabyte.
    let comment = record(&format!("comment={}", "c".repeat(100_000)));
    let global = [raw_header(b"pax", b'g', comment.len() as u64, b""), padded(&comment)].concat();
    let entries: Vec<Vec<u8>> = (0..1000).map(|n| raw_header(format!("e{n}").as_bytes(), b'0', 0, b"")).collect();
    let error = refused(&gzip(&raw_tar(&[global, entries.concat()])));
    assert!(error.contains("64 KiB"), "{error}");
    let part = pax(&record(&format!("a={}", "c".repeat(3 << 20))));
    let other = pax(&record(&format!("b={}", "c".repeat(3 << 20))));
    assert!(refused(&raw_tar(&[part, other, raw_header(b"a", b'0', 0, b"")])).contains("4 MiB"));
}

/// A zip archive of one stored file, and where its central header begins.
fn small_zip(name: &str, method: ::zip::CompressionMethod) -> (Vec<u8>, usize) {
    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = ::zip::write::SimpleFileOptions::default().compression_method(method);
    zip.start_file(name, options).unwrap();
    zip.write_all(b"content").unwrap();
    let bytes = zip.finish().unwrap().into_inner();
    let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    (bytes, central)
}

#[test]
fn a_zip_s_directory_counts_where_no_byte_is_in_doubt() {
    use ::zip::CompressionMethod::{Bzip2, Deflated, Stored};
    for method in [Stored, Deflated, Bzip2] {
        let (good, central) = small_zip("a", method);
        let mut other_time = good.clone();
        other_time[10] ^= 0x21;
        let mut flag = good.clone();
        flag[central + 8] |= 8;
        for bytes in [good, other_time, flag] {
            assert_eq!(node(&taken(&bytes), "a").kind, NodeKind::File(ObjectId::of(b"content")), "{method:?}");
        }
    }
    let (good, _) = small_zip("a", Stored);
    for (at, wanted) in [(8, "compressed"), (14, "checksum"), (22, "size"), (30, "two ways")] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let error = refused(&bytes);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_zip_from_dos_has_directories() {
    let (mut bytes, central) = small_zip("dir\\sub\\a.txt", ::zip::CompressionMethod::Stored);
    assert_eq!(paths(&taken(&bytes)), ["", "dir\\sub\\a.txt"], "made on Unix, where this is a name");
    bytes[central + 5] = 0;
    assert_eq!(paths(&taken(&bytes)), ["", "dir", "dir/sub", "dir/sub/a.txt"]);
    let (mut bytes, central) = small_zip("..\\a.txt", ::zip::CompressionMethod::Stored);
    bytes[central + 5] = 10;
    assert!(refused(&bytes).contains(".."));
}

#[test]
fn bzip2_is_read() {
    let tar = tar_of(&[("a", Item::file("content"))]);
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    assert_eq!(taken(&encoder.finish().unwrap()), taken(&tar));
}

#[test]
fn large_holes_are_the_same_in_a_directory_and_in_an_archive() {
    // More than an archive may unpack to, and with data that is not at the border of a chunk.
    const SIZE: u64 = (4 << 30) + 12_345;
    const AT: u64 = (1 << 30) + 777;
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create_new(source.join("holes")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"data", AT).unwrap();
    drop(file);
    let from_directory = fixture.manifest(&fixture.publish(&source).unwrap());

    let mut header = raw_header(b"holes", b'S', 4, b"");
    header[386..398].copy_from_slice(format!("{AT:011o}\0").as_bytes());
    header[398..410].copy_from_slice(b"00000000004\0");
    header[483..495].copy_from_slice(format!("{SIZE:011o}\0").as_bytes());
    let from_tar = taken(&raw_tar(&[fix_sum(header), padded(b"data")]));
    assert_eq!(node(&from_tar, "holes").kind, node(&from_directory, "holes").kind);
    let chunks: std::collections::BTreeSet<_> = from_tar.objects[0].chunks.iter().collect();
    assert_eq!((from_tar.objects[0].bytes, chunks.len()), (SIZE, 3), "zeros, those around the data, and the end");
}

#[derive(Default)]
struct Problems(Mutex<Vec<String>>);

impl Monitor for Problems {
    fn problem(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn a_tree_that_cannot_be_launched_is_published_with_a_warning() {
    let text = Item { mode: 0o644, ..Item::file("no program") };
    for (model, wanted) in [(Model::new([]), "the tree is empty"), (Model::new([("a", text)]), "no program to start")]
    {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        model.write(&source);
        let problems = Problems::default();
        fixture.publish_with(&source, &PublishOptions::default(), &problems).unwrap();
        let problems = problems.0.into_inner().unwrap();
        assert!(problems.len() == 1 && problems[0].contains(wanted), "{problems:?}");
    }
}
