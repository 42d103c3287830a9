//! Small archives that other tools take and we did not, or the other way round, as files: each has its one right answer.

use super::odd::{node, paths, refused, taken};

/// The bytes of one in `samples/`.
macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("samples/", $name)).as_slice()
    };
}

/// A sample by its name, and every path of the tree that it is, with its mode.
type Taken<'a> = (&'a str, &'a [u8], &'a [(&'a str, u32)]);

#[test]
fn each_archive_that_is_taken_is_the_tree_that_other_tools_make_of_it() {
    let taken_in: [Taken<'_>; 6] = [
        ("acl_bsd.tar", sample!("acl_bsd.tar"), &[("", 0o755), ("a", 0o750)]),
        (
            "gz_zeropad.tar.gz",
            sample!("gz_zeropad.tar.gz"),
            &[("", 0o755), ("d", 0o755), ("d/a", 0o755), ("d/b", 0o644)],
        ),
        ("hlsize.tar", sample!("hlsize.tar"), &[("", 0o755), ("a", 0o644), ("h", 0o644), ("z", 0o644)]),
        ("m_time.zip", sample!("m_time.zip"), &[("", 0o755), ("AAA", 0o600)]),
        (
            "backslash.zip",
            sample!("backslash.zip"),
            &[("", 0o755), ("dir", 0o755), ("dir/sub", 0o755), ("dir/sub/a.txt", 0o600), ("dir/sub2", 0o755)],
        ),
        ("volabel.tar", sample!("volabel.tar"), &[("", 0o755), ("d", 0o755), ("d/a", 0o755), ("d/b", 0o644)]),
    ];
    for (name, bytes, wanted) in taken_in {
        let tree = taken(bytes);
        let found: Vec<(String, u32)> =
            paths(&tree).into_iter().map(|path| (path.clone(), node(&tree, &path).mode)).collect();
        let wanted: Vec<(String, u32)> = wanted.iter().map(|(path, mode)| ((*path).to_owned(), *mode)).collect();
        assert_eq!(found, wanted, "{name}");
    }
    assert_eq!(node(&taken(sample!("acl_bsd.tar")), "a").xattrs.len(), 1, "and the user that it names may run it");
    let links = taken(sample!("hlsize.tar"));
    assert_eq!(links.entries[1].node, links.entries[2].node, "'h' is another name of 'a'");
    let time = node(&taken(sample!("m_time.zip")), "AAA").mtime_s;
    assert_eq!(time, 1_704_164_646, "2024-01-02 03:04:06, which the central directory says");
}

#[test]
fn each_archive_that_no_host_could_attach_is_refused_by_the_name_of_its_entry() {
    let refusals: [(&str, &[u8], &str); 3] = [
        ("acl_file_default.tar", sample!("acl_file_default.tar"), "default access control list"),
        ("bad_acl.tar", sample!("bad_acl.tar"), "no access control list"),
        ("xattr64k.tar", sample!("xattr64k.tar"), "ext4"),
    ];
    for (name, bytes, wanted) in refusals {
        let error = refused(bytes);
        assert!(error.contains("'a'") && error.contains(wanted), "{name}: {error}");
    }
}
