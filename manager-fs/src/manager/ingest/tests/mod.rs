use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proto::limits::CHUNK_BYTES;
use proto::manifest::NodeKind;
use rustix::fs::{Mode, XattrFlags};

use super::budget::BombLimit;
use crate::manager::monitor::{Monitor, Quiet, Task};
use crate::manager::publish::{PublishOptions, publish};
use crate::manager::testing::*;

mod bombs;
mod given;
mod odd;

const CHUNK: u32 = 4096;

fn small_chunks() -> PublishOptions {
    PublishOptions { chunk_bytes: Some(CHUNK), ..PublishOptions::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// The three ways to hand a tree over give the same tree, and it is the tree that was meant.
    #[test]
    fn directory_tar_and_package_give_the_tree_that_was_written(model in any_model()) {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        model.write(&source);
        let tar = model.to_tar();
        let (expected, id) = model.manifest(CHUNK).encode().unwrap();

        let directory = fixture.publish_with(&source, &small_chunks(), &Quiet).unwrap();
        prop_assert_eq!(fixture.manifest(&directory), model.manifest(CHUNK));
        prop_assert_eq!(directory.tree, id);
        prop_assert_eq!(directory.manifest_bytes, expected.len() as u64);
        let archives = [
            tar.clone(), gzip(&tar), xz(&tar), zstd::bulk::compress(&tar, 3).unwrap(), deb("data.tar.xz", &xz(&tar)),
        ];
        for bytes in archives {
            let path = fixture.dir.path().join("archive");
            fs::write(&path, bytes).unwrap();
            let published = fixture.publish_with(&path, &small_chunks(), &Quiet).unwrap();
            prop_assert_eq!(published.tree, id);
            prop_assert_eq!(published.stats.new_chunks, 0);
        }
        prop_assert_eq!(fixture.store.verify(&Quiet).unwrap().problems, vec![]);
    }

    /// Whatever bytes come, they are refused or taken in; nothing panics, and what is refused leaves nothing.
    #[test]
    fn damaged_archives_never_panic(
        model in any_model(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let fixture = Fixture::new();
        let tar = model.to_tar();
        let before = list(&fixture.dir.path().join("store"));
        for mut bytes in [gzip(&tar), xz(&tar), deb("data.tar", &tar), zip_of(&model), tar] {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            if fixture.publish_bytes(&bytes).is_err() {
                prop_assert_eq!(&list(&fixture.dir.path().join("store")), &before);
            } else {
                fixture.store.gc(&std::collections::BTreeSet::new(), false, &Quiet).unwrap();
                let left = list(&fixture.dir.path().join("store"));
                prop_assert!(left.iter().all(|path| !path.ends_with(".pack")), "{:?}", left);
                return Ok(());
            }
        }
    }
}

/// Files, directories and symlinks as a zip archive.
fn zip_of(model: &Model) -> Vec<u8> {
    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, item) in model.0.iter().filter(|(path, _)| !path.is_empty()) {
        let options = ::zip::write::SimpleFileOptions::default().unix_permissions(item.mode);
        match &item.kind {
            Kind::Directory => zip.add_directory(path.as_str(), options).unwrap(),
            Kind::Symlink(target) => zip.add_symlink(path.as_str(), target.as_str(), options).unwrap(),
            Kind::File(bytes) => {
                zip.start_file(path.as_str(), options).unwrap();
                zip.write_all(bytes).unwrap();
            }
            Kind::Link(_) => {}
        }
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn a_second_machine_gives_the_same_tree() {
    let model = Model::new([("b", Item::file("2")), ("a", Item::file("1")), ("a.d", Item::new(Kind::Directory))]);
    let mut trees = Vec::new();
    for _ in 0..2 {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        model.write(&source);
        trees.push(fixture.publish(&source).unwrap().tree);
    }
    assert_eq!(trees[0], trees[1]);
}

#[test]
fn attributes_that_have_no_meaning_elsewhere_are_dropped_and_overlay_refused() {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    let mut file = Item::file("x");
    file.xattrs.insert("user.kept".into(), b"yes".to_vec());
    Model::new([("file", file)]).write(&source);
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(source.join("file"), name, value, XattrFlags::empty()).map_err(|error| error.to_string())
    };
    let names = |published: &crate::manager::publish::Published| -> Vec<String> {
        let nodes = fixture.manifest(published).nodes;
        nodes.iter().flat_map(|node| &node.xattrs).map(|xattr| proto::path::printable(&xattr.name)).collect()
    };
    if ::tests::needs::root() {
        set("trusted.dropped", b"1").unwrap();
        // VFS_CAP_REVISION_2 with cap_net_bind_service.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set("security.capability", &capability).unwrap();
        assert_eq!(names(&fixture.publish(&source).unwrap()), ["security.capability", "user.kept"]);
        set("trusted.overlay.redirect", b"/x").unwrap();
        let error = fixture.publish(&source).unwrap_err().to_string();
        assert!(error.contains("'file'") && error.contains("trusted.overlay.redirect"), "{error}");
        rustix::fs::removexattr(source.join("file"), "trusted.overlay.redirect").unwrap();
    }
    // user::rw-, user:12:r--, group::r--, mask::r--, other::r--
    let acl: Vec<u8> = [2_u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain([(1, 6, u32::MAX), (2, 4, 12), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)].map(
            |(tag, bits, id): (u16, u16, u32)| {
                [tag.to_le_bytes().to_vec(), bits.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()].concat()
            },
        ))
        .flatten()
        .collect();
    set("system.posix_acl_access", &acl).unwrap();
    let published = fixture.publish(&source).unwrap();
    assert!(names(&published).contains(&"system.posix_acl_access".into()));
    let manifest = fixture.manifest(&published);
    let kept = manifest.nodes.iter().flat_map(|node| &node.xattrs).find(|xattr| xattr.name.starts_with(b"system"));
    assert_eq!(kept.unwrap().value, acl);
    let text =
        super::acl::from_text(b"SCHILY.acl.access", b"user::rw-,user:joe:r--:12,group::r--,mask::r--,other::r--");
    assert_eq!(text.unwrap().as_ref(), kept);

    set("user.overlay.metacopy", b"").unwrap();
    let error = fixture.publish(&source).unwrap_err().to_string();
    assert!(error.contains("user.overlay.metacopy"), "{error}");
}

#[test]
fn names_need_not_be_text() {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join(odd_name()), "x").unwrap();
    let manifest = fixture.manifest(&fixture.publish(&source).unwrap());
    assert_eq!(manifest.entries[1].path.as_bytes(), b"odd\xff\x01name");
}

#[test]
fn devices_sockets_and_pipes_are_refused() {
    let make: [fn(&Path); 2] = [
        |path| drop(UnixListener::bind(path).unwrap()),
        |path| {
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0)
                .unwrap()
        },
    ];
    for make in make {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        fs::create_dir(&source).unwrap();
        make(&source.join("odd"));
        let error = fixture.publish(&source).unwrap_err().to_string();
        assert!(error.contains("'odd'") && error.contains("pipes"), "{error}");
    }
}

/// Does something once, when the first file has been read.
struct Once<F: Fn() + Send + Sync>(AtomicBool, F);

impl<F: Fn() + Send + Sync> Monitor for Once<F> {
    fn progress(&self, task: Task, _done: u64, _total: u64) {
        if task == Task::Read && !self.0.swap(true, Ordering::SeqCst) {
            (self.1)();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    Model::new([("a", Item::file("before")), ("b", Item::file("b"))]).write(&source);
    let file = source.join("a");
    let before = list(&fixture.dir.path().join("store"));
    let append = Once(AtomicBool::new(false), || {
        fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"!").unwrap();
        set_mtime(&file, (1_700_000_000, 123_456_789));
    });
    let error = fixture.publish_with(&source, &PublishOptions::default(), &append).unwrap_err().to_string();
    assert!(error.contains("'a'") && error.contains("changed while it was read"), "{error}");

    let add = Once(AtomicBool::new(false), || fs::write(source.join("new"), "x").unwrap());
    let error = fixture.publish_with(&source, &PublishOptions::default(), &add).unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
    assert_eq!(list(&fixture.dir.path().join("store")), before);
}

#[test]
fn giving_up_leaves_nothing() {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    Model::new([("a", Item::file(vec![7; 3 << 20])), ("b", Item::file("b"))]).write(&source);
    let before = list(&fixture.dir.path().join("store"));
    let cancelled = AtomicBool::new(false);
    let stop = Once(AtomicBool::new(false), || cancelled.store(true, Ordering::SeqCst));
    let error = publish(&fixture.store, &source, &PublishOptions::default(), &stop, &cancelled).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert_eq!(list(&fixture.dir.path().join("store")), before);
}

fn tar_of(items: &[(&str, Item)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, item) in items {
        append(&mut builder, path, item);
    }
    builder.into_inner().unwrap()
}

/// A header that no library would write.
fn raw_header(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn raw_tar(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// `key=value` as a pax record.
fn record(text: &str) -> Vec<u8> {
    let bare = text.len() + 2;
    let length = (1..9).map(|digits| bare + digits).find(|length| length.to_string().len() + bare == *length);
    format!("{} {text}\n", length.unwrap()).into_bytes()
}

/// A pax extended header with these records.
fn pax(records: &[u8]) -> Vec<u8> {
    [raw_header(b"pax", b'x', records.len() as u64, b""), padded(records)].concat()
}

fn link_with(size: u64) -> Vec<u8> {
    [raw_header(b"a", b'0', 0, b""), raw_header(b"b", b'1', size, b"a")].concat()
}

fn over_directory() -> Vec<u8> {
    let directory = || Item::new(Kind::Directory);
    tar_of(&[("a", directory()), ("a/b", directory()), ("a", Item::file("x"))])
}

fn link_over_directory() -> Vec<u8> {
    tar_of(&[("x", Item::file("x")), ("a/b", Item::file("y")), ("a", Item::new(Kind::Link("x".into())))])
}

#[test]
#[allow(clippy::too_many_lines)] // One table of archives, and one loop over it.
fn hostile_archives_are_refused_by_name_and_leave_nothing() {
    let file = || Item::file("x");
    let symlink = |target: &str| Item::new(Kind::Symlink(target.into()));
    let good = tar_of(&[("a", file())]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute", raw_tar(&[raw_header(b"/etc/passwd", b'0', 0, b"")]), "absolute"),
        ("dots", raw_tar(&[raw_header(b"../../etc/passwd", b'0', 0, b"")]), ".."),
        ("inner dots", raw_tar(&[raw_header(b"a/../../b", b'0', 0, b"")]), ".."),
        ("no name", raw_tar(&[raw_header(b"", b'0', 0, b"")]), "without a name"),
        ("NUL in pax path", raw_tar(&[pax(&record("path=a\0b")), raw_header(b"x", b'0', 0, b"")]), "NUL"),
        ("file over directory", tar_of(&[("a/b", file()), ("a", file())]), "must be a directory"),
        ("file over a described directory", over_directory(), "must be a directory"),
        ("link over a full directory", link_over_directory(), "must be a directory"),
        ("link with content", raw_tar(&[link_with(5), padded(b"12345")]), "content of its own"),
        ("through a symlink", tar_of(&[("a", symlink("/etc")), ("a/passwd", file())]), "not a directory"),
        ("through a file", tar_of(&[("a", file()), ("a/b", file())]), "not a directory"),
        ("root is a file", raw_tar(&[raw_header(b"./", b'2', 0, b"/etc")]), "must be a directory"),
        ("character device", raw_tar(&[raw_header(b"null", b'3', 0, b"")]), "devices"),
        ("block device", raw_tar(&[raw_header(b"sda", b'4', 0, b"")]), "devices"),
        ("pipe", raw_tar(&[raw_header(b"pipe", b'6', 0, b"")]), "pipes"),
        ("unknown type", raw_tar(&[raw_header(b"odd", b'M', 0, b"")]), "unknown type 'M'"),
        ("link to nothing", raw_tar(&[raw_header(b"b", b'1', 0, b"a")]), "hard link to 'a'"),
        ("link out", raw_tar(&[raw_header(b"b", b'1', 0, b"../a")]), ".."),
        (
            "link to directory",
            raw_tar(&[raw_header(b"d", b'5', 0, b""), raw_header(b"b", b'1', 0, b"d")]),
            "directory",
        ),
        ("empty symlink", raw_tar(&[raw_header(b"b", b'2', 0, b"")]), "symlink"),
        ("cut in a file", good[..1024 + 512].to_vec(), "cut off"),
        ("cut after an entry", good[..good.len() - 1024].to_vec(), "cut off"),
        ("cut gzip", gzip(&tar_of(&[("a", Item::file(vec![1; 100_000]))]))[..60].to_vec(), "reading"),
        ("huge extension", raw_tar(&[raw_header(b"pax", b'x', 1 << 40, b"")]), "more than 4 MiB"),
        ("huge long name", raw_tar(&[raw_header(b"name", b'L', 1 << 40, b"")]), "more than 4 MiB"),
        ("negative pax length", raw_tar(&[pax(b"-9 path=a\n"), raw_header(b"x", b'0', 0, b"")]), "does not parse"),
        ("long pax length", raw_tar(&[pax(b"99 path=a\n"), raw_header(b"x", b'0', 0, b"")]), "does not parse"),
        ("dangling extension", raw_tar(&[pax(&record("path=a"))]), "cut off"),
        (
            "overlay attribute",
            raw_tar(&[pax(&record("SCHILY.xattr.trusted.overlay.redirect=/x")), raw_header(b"x", b'0', 0, b"")]),
            "overlay",
        ),
        (
            "too deep",
            raw_tar(&[pax(&record(&format!("path={}x", "d/".repeat(200)))), raw_header(b"x", b'0', 0, b"")]),
            "deep",
        ),
        ("odd size", raw_tar(&[pax(&record("size=-1")), raw_header(b"x", b'0', 0, b"")]), "size"),
        (
            "wrong sum",
            {
                let mut tar = good.clone();
                tar[1024 + 1] ^= 1;
                tar
            },
            "checksum",
        ),
        ("nothing", Vec::new(), "is empty"),
        ("text", b"#!/bin/sh\n".repeat(100), "no archive"),
        ("gzip of text", gzip(&b"hello ".repeat(500)), "checksum"),
        (
            "ar without package",
            [
                b"!<arch>\n".to_vec(),
                format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", "x/", 0, 0, 0, 644, 0).into_bytes(),
            ]
            .concat(),
            "no Debian package",
        ),
        ("package without data", deb("other.tar", &good), "no data.tar"),
        (
            "package cut",
            {
                let deb = deb("data.tar", &good);
                deb[..deb.len() - 700].to_vec()
            },
            "cut off",
        ),
        ("zip of nothing", b"PK\x03\x04 and then some".to_vec(), "does not parse"),
    ];
    let fixture = Fixture::new();
    let before = list(&fixture.dir.path().join("store"));
    for (name, bytes, wanted) in cases {
        let error = fixture.publish_bytes(&bytes).expect_err(name).to_string();
        assert!(error.contains(wanted), "{name}: {error}");
        assert!(error.contains("archive"), "{name} is not named: {error}");
        assert_eq!(list(&fixture.dir.path().join("store")), before, "{name}");
    }
}

fn within(fixture: &Fixture, bytes: &[u8], limit: BombLimit) -> Result<u64, super::IngestError> {
    let path = fixture.dir.path().join("archive");
    fs::write(&path, bytes).unwrap();
    let (guard, cancelled) = (fixture.store.guard(), AtomicBool::new(false));
    let read = fixture.store.write_contents(65536, &guard, &Quiet, &cancelled, |writer| {
        super::read_source_within(&path, super::Reading::default(), writer, limit)
    });
    read.map(|(_, contents)| contents.bytes)
}

#[test]
fn bombs_are_refused() {
    let fixture = Fixture::new();
    let limit = BombLimit { floor_bytes: 1 << 20, holes_floor_bytes: 1 << 20, ratio: 50 };
    let zeros = tar_of(&[("zeros", Item::file(vec![0; 4 << 20]))]);
    for bomb in
        [gzip(&zeros), xz(&zeros), zstd::bulk::compress(&zeros, 3).unwrap(), deb("data.tar.gz", &gzip(&zeros))]
    {
        let error = within(&fixture, &bomb, limit).unwrap_err().to_string();
        assert!(error.contains("bomb"), "{error}");
    }
    assert_eq!(within(&fixture, &gzip(&zeros), BombLimit::DEFAULT).unwrap(), 4 << 20);
    assert_eq!(within(&fixture, &zeros, limit).unwrap(), 4 << 20, "an archive that is large itself is no bomb");

    let mut holes = raw_header(b"holes", b'S', 0, b"");
    holes[483..495].copy_from_slice(b"077777777777");
    let bomb = fix_sum(holes);
    let error = within(&fixture, &raw_tar(&[bomb]), limit).unwrap_err().to_string();
    assert!(error.contains("bomb"), "{error}");

    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("zeros", ::zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&vec![0; 4 << 20]).unwrap();
    let error = within(&fixture, &zip.finish().unwrap().into_inner(), limit).unwrap_err().to_string();
    assert!(error.contains("bomb"), "{error}");
}

fn fix_sum(mut header: Vec<u8>) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn sparse_files_of_every_format_are_whole() {
    let mut expected = vec![0; 10_000];
    expected[4096..4099].copy_from_slice(b"abc");
    expected[9000..9002].copy_from_slice(b"de");
    let data = padded(b"abcde");
    let mut gnu = raw_header(b"sparse", b'S', 5, b"");
    gnu[386..398].copy_from_slice(b"00000010000\0");
    gnu[398..410].copy_from_slice(b"00000000003\0");
    gnu[410..422].copy_from_slice(b"00000021450\0");
    gnu[422..434].copy_from_slice(b"00000000002\0");
    gnu[483..495].copy_from_slice(b"00000023420\0");
    let old = raw_tar(&[fix_sum(gnu), data.clone()]);

    let map = padded(b"2\n4096\n3\n9000\n2\n");
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", "10000"),
    ];
    let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(&format!("{key}={value}"))).collect();
    let stored = raw_header(b"GNUSparseFile.1/sparse", b'0', 512 + 5, b"");
    let new = raw_tar(&[pax(&records), stored, map, data.clone()]);

    let records = [("GNU.sparse.size", "10000"), ("GNU.sparse.name", "sparse"), ("GNU.sparse.map", "4096,3,9000,2")];
    let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(&format!("{key}={value}"))).collect();
    let middle = raw_tar(&[pax(&records), raw_header(b"GNUSparseFile.1/sparse", b'0', 5, b""), data]);

    for (name, tar) in [("old", old), ("1.0", new), ("0.1", middle)] {
        let fixture = Fixture::new();
        let manifest =
            fixture.manifest(&fixture.publish_bytes(&tar).unwrap_or_else(|error| panic!("{name}: {error}")));
        assert_eq!(manifest.entries[1].path.to_string(), "sparse", "{name}");
        assert_eq!(manifest.nodes[1].kind, NodeKind::File(proto::ObjectId::of(&expected)), "{name}");
    }
}

#[test]
fn a_zip_keeps_modes_links_and_times() {
    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = || {
        ::zip::write::SimpleFileOptions::default()
            .last_modified_time(::zip::DateTime::from_date_and_time(2024, 2, 29, 12, 30, 58).unwrap())
    };
    zip.start_file("bin/tool", options().unix_permissions(0o755)).unwrap();
    zip.write_all(b"#!/bin/sh\n").unwrap();
    zip.add_symlink("bin/alias", "tool", options()).unwrap();
    zip.start_file("package.data/scripts/tool", options()).unwrap();
    zip.write_all(b"script").unwrap();
    let fixture = Fixture::new();
    let published = fixture.publish_bytes(&zip.finish().unwrap().into_inner()).unwrap();
    let manifest = fixture.manifest(&published);
    let node = |path: &str| manifest.node(manifest.entry(&tree_path(path)).unwrap());
    assert_eq!((node("bin/tool").mode, node("bin/tool").mtime_s), (0o755, 1_709_209_858));
    assert_eq!(node("bin/alias").kind, NodeKind::Symlink(b"tool".to_vec()));
    assert_eq!((node("bin").mode, node("bin").mtime_s, node("bin").uid), (0o755, 0, 0));
    assert_eq!(node("package.data/scripts/tool").kind, NodeKind::File(proto::ObjectId::of(b"script")));
    assert_eq!(published.metadata.entry_point, Some(tree_path("bin/tool")));
}

#[test]
fn a_service_pack_changes_adds_and_deletes() {
    let fixture = Fixture::new();
    let base = Model::new([
        ("bin", Item::new(Kind::Directory)),
        ("bin/agent", Item::file("version 1")),
        ("bin/agent-link", Item::new(Kind::Link("bin/agent".into()))),
        ("lib", Item::new(Kind::Directory)),
        ("lib/keep", Item::file("keep")),
        ("lib/gone", Item::file("gone")),
        ("old", Item::new(Kind::Directory)),
        ("old/a", Item::file("a")),
        ("old/sub", Item::new(Kind::Directory)),
        ("old/sub/b", Item::file("b")),
        ("tree", Item::new(Kind::Directory)),
        ("tree/x", Item::file("x")),
    ]);
    base.write(&fixture.dir.path().join("base"));
    let base = fixture.publish(&fixture.dir.path().join("base")).unwrap();
    let pack = tar_of(&[
        ("bin/agent", Item::file("version 2")),
        ("lib/.wh.gone", Item::file("")),
        ("lib/new", Item::file("new")),
        ("lib/keep-link", Item::new(Kind::Link("lib/keep".into()))),
        ("old", Item::new(Kind::Directory)),
        ("old/.wh..wh..opq", Item::file("")),
        ("old/c", Item::file("c")),
        (".wh.tree", Item::file("")),
    ]);
    let source = fixture.dir.path().join("pack");
    fs::write(&source, gzip(&pack)).unwrap();
    let options = PublishOptions { onto: Some(base.tree), ..PublishOptions::default() };
    let published = fixture.publish_with(&source, &options, &Quiet).unwrap();

    let mut expected = Model::new([
        ("bin", Item::new(Kind::Directory)),
        ("bin/agent", Item::file("version 2")),
        ("bin/agent-link", Item::file("version 1")),
        ("lib", Item::new(Kind::Directory)),
        ("lib/keep", Item::file("keep")),
        ("lib/keep-link", Item::new(Kind::Link("lib/keep".into()))),
        ("lib/new", Item::file("new")),
        ("old", Item::new(Kind::Directory)),
        ("old/c", Item::file("c")),
    ]);
    assert_eq!(fixture.manifest(&published), expected.manifest(CHUNK_BYTES));

    // The same pack as a directory: its own directories are described, so their attributes change too.
    let dir = fixture.dir.path().join("pack-dir");
    let mut bin = Item::new(Kind::Directory);
    bin.mode = 0o711;
    Model::new([("bin", bin.clone()), ("bin/agent", Item::file("version 3")), (".wh.old", Item::file(""))])
        .write(&dir);
    let options = PublishOptions { onto: Some(published.tree), ..PublishOptions::default() };
    let third = fixture.publish_with(&dir, &options, &Quiet).unwrap();
    expected.0.insert("bin".into(), bin);
    expected.0.insert("bin/agent".into(), Item::file("version 3"));
    expected.0.retain(|path, _| !path.starts_with("old"));
    assert_eq!(fixture.manifest(&third), expected.manifest(CHUNK_BYTES));

    for (items, wanted) in [
        (vec![(".wh.nothing", Item::file(""))], "another version"),
        (vec![(".wh.lib", Item::file("not empty"))], "empty file"),
        (vec![("bin/agent/below", Item::file(""))], "no directory"),
    ] {
        fs::write(&source, tar_of(&items)).unwrap();
        let error = fixture.publish_with(&source, &options, &Quiet).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let unknown = PublishOptions { onto: Some(proto::TreeId::of(b"?")), ..PublishOptions::default() };
    assert!(fixture.publish_with(&source, &unknown, &Quiet).unwrap_err().to_string().contains("no tree"));
}
