use super::*;
use crate::manager::bundle::{Gather, parts};
use crate::manager::monitor::Quiet;
use crate::manager::publish::PublishOptions;
use crate::manager::testing::{Fixture, Item, Kind, Model};

fn likely(items: Vec<(&'static str, Item)>, entry_point: &str) -> (Fixture, Manifest, Vec<Metadata>) {
    let fixture = Fixture::new();
    let source = fixture.dir.path().join("source");
    Model::new(items).write(&source);
    let options = PublishOptions { entry_point: Some(entry_point.into()), ..PublishOptions::default() };
    let published = fixture.publish_with(&source, &options, &Quiet).unwrap();
    let tree = fixture.manifest(&published);
    (fixture, tree, vec![published.metadata])
}

/// The objects of touches, in the order of their first ones.
fn objects(touches: &[Touch]) -> Vec<u32> {
    let mut seen = HashSet::new();
    touches.iter().map(|touch| touch.object).filter(|object| seen.insert(*object)).collect()
}

#[test]
fn a_guess_goes_on_from_what_the_loader_reads_to_what_the_program_gets_to() {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let (fixture, tree, records) = likely(vec![("start", Item::file(&program))], "start");
    let loader = guess::touches(&fixture.store, &tree, &records);
    let touches = touches(&fixture.store, &tree, &records);
    assert_eq!(touches[..loader.len()], loader);
    if cfg!(target_arch = "x86_64") {
        assert!(touches.len() > loader.len());
    }
    let pages: u64 = touches.iter().map(|touch| u64::from(touch.count) * u64::from(PAGE_BYTES)).sum();
    assert!(pages <= LIKELY_BYTES_MAX + (4 << 20), "{pages} bytes");
}

#[test]
fn modules_come_as_they_are_imported_and_compiled_where_they_are() {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let directory = || Item::new(Kind::Directory);
    let items = vec![
        ("bin", directory()),
        ("bin/python3", Item::file(&program)),
        ("lib", directory()),
        ("lib/python3", directory()),
        ("lib/python3/__pycache__", directory()),
        ("lib/python3/__pycache__/stat.cpython-3.pyc", Item::file("compiled stat")),
        ("lib/python3/alone.py", Item::file("# alone")),
        ("lib/python3/common.py", Item::file("# common")),
        ("lib/python3/encodings", directory()),
        ("lib/python3/encodings/__init__.py", Item::file("import codecs")),
        ("lib/python3/first.py", Item::file("import common")),
        ("lib/python3/os.py", Item::file("import stat\ndef later():\n    import alone\n")),
        ("lib/python3/stat.py", Item::file("# stat")),
        ("lib/python3/zero.py", Item::file("import common # 0")),
    ];
    let (fixture, tree, records) = likely(items, "bin/python3");
    let object = |content: &str| width::count(tree.object_index(&proto::ObjectId::of(content.as_bytes())).unwrap());
    let expected = [
        "import codecs",
        "import stat\ndef later():\n    import alone\n",
        "compiled stat",
        "# common",
        "# alone",
        "import common",
        "import common # 0",
    ];
    let found = objects(&touches(&fixture.store, &tree, &records));
    assert_eq!(found[1..], expected.map(object), "after the interpreter");
    let mut other = records.clone();
    other[0].entry_point = None;
    assert_eq!(touches(&fixture.store, &tree, &other), []);
}

#[test]
fn what_is_likelier_comes_first_though_its_chunk_has_more() {
    let (_fixture, tree, _) = likely(vec![("data", Item::file(vec![7; 8 << 20]))], "data");
    let touch = |first, count| Touch { object: 0, first, count };
    let touches = [touch(0, 1), touch(100, 1_000), touch(1, 2), touch(0, 3)];
    let first = |gather| {
        let parts = parts(&touches, &tree, gather).unwrap();
        let of_first = parts.iter().filter(|part| part.chunk == 0);
        of_first.map(|part| part.runs.iter().map(|run| run.count).sum::<u16>()).collect::<Vec<_>>()
    };
    assert_eq!(first(Gather::Whole), [3]);
    assert_eq!(first(Gather::Near), [1, 2], "with a proof of their own, and nothing twice");
}
