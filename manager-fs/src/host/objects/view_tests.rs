use proto::manifest::{Entry, Manifest};
use proto::{TreeId, TreePath};

use super::*;

/// A root with `count` empty files, one directory in the middle of them, and one file in that.
fn wide(count: usize) -> Tree {
    let node = |kind| Node { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: vec![], kind };
    let mut names: Vec<(String, NodeKind)> =
        (0..count).map(|at| (format!("f{at:06}"), NodeKind::EmptyFile)).collect();
    names.push(("f000500x".to_owned(), NodeKind::Directory));
    names.push(("f000500x/below".to_owned(), NodeKind::EmptyFile));
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let nodes = std::iter::once(NodeKind::Directory).chain(names.iter().map(|(_, kind)| kind.clone())).map(node);
    let below =
        (1..).zip(&names).map(|(at, (name, _))| Entry { path: TreePath::parse(name.as_bytes()).unwrap(), node: at });
    let entries = std::iter::once(Entry { path: TreePath::root(), node: 0 }).chain(below).collect();
    Tree::new(TreeId::of(b"wide"), Manifest { chunk_bytes: 65_536, objects: vec![], nodes: nodes.collect(), entries })
}

/// Lists as the kernel does: some entries, then on from where that ended.
fn listed(tree: &Tree, node: u32, at_once: usize) -> Vec<(String, Ino)> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let before = all.len();
        list_node(tree, 7, node, from, &mut |entry| {
            if all.len() == before + at_once {
                return false;
            }
            all.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino));
            from = entry.next;
            true
        })
        .unwrap();
        if all.len() == before {
            return all;
        }
    }
}

/// Nanoseconds of CPU that this thread has had.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_listing_has_every_name_once_wherever_it_is_cut() {
    let tree = wide(1000);
    let whole = listed(&tree, 0, usize::MAX);
    assert_eq!(whole.len(), 2 + 1000 + 1);
    assert_eq!(whole[..2].iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [".", ".."]);
    for at_once in [1, 7, 100] {
        assert_eq!(listed(&tree, 0, at_once), whole, "{at_once} at once");
    }
    let directory = whole.iter().find(|(name, _)| name == "f000500x").unwrap().1;
    let Ino::Node { node, generation: 7 } = directory else { panic!("{directory:?}") };
    let below: Vec<_> = listed(&tree, node, 1).into_iter().map(|(name, _)| name).collect();
    assert_eq!(below, [".", "..", "below"]);
    assert_eq!(tree.link_count(0), 3);
    assert!(matches!(list_node(&tree, 7, 1, 0, &mut |_| true), Err(FsError::NotADirectory)));
}

#[test]
fn a_long_listing_costs_what_is_taken_of_it() {
    let tree = wide(280_000);
    let before = cpu_ns();
    let names = listed(&tree, 0, 100);
    let took_ms = (cpu_ns() - before) / 1_000_000;
    assert_eq!(names.len(), 280_003);
    // 0.1 s; when each of the 2,800 steps looked at every entry it was more than 60 s.
    assert!(took_ms < 1_000, "{took_ms} ms of CPU");
}
