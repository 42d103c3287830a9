//! Archives of a few kilobytes that would cost gigabytes or minutes: each is refused when it has had its share.

use std::io::Read;
use std::time::{Duration, Instant};

use super::odd::refused;
use super::*;

/// What one may take, unoptimised, on a machine that has other work; each took minutes there, or gigabytes.
const SHARE: Duration = Duration::from_secs(60);

fn costs_little(what: &str, archive: &[u8], wanted: &str) {
    assert!(archive.len() < 2 << 20, "{what}: {} bytes", archive.len());
    let begun = Instant::now();
    let error = refused(archive);
    assert!(error.contains(wanted), "{what}: {error}");
    assert!(begun.elapsed() < SHARE, "{what} took {:?}", begun.elapsed());
}

#[test]
fn directories_that_nobody_describes_count_with_their_paths() {
    // Each path names a hundred directories, with two kilobytes to each: gigabytes of a hundred kilobytes.
    let deep = format!("/{}", "a".repeat(30)).repeat(126);
    let entry = |n: u32| {
        let path = record(&format!("path={n:04}{deep}"));
        [pax(&path), raw_header(b"short", b'0', 0, b"")].concat()
    };
    costs_little("a deep tree", &gzip(&raw_tar(&(0..1_200).map(entry).collect::<Vec<_>>())), "256 MiB");
}

#[test]
fn what_holds_for_a_whole_archive_is_counted_for_each_of_its_entries() {
    // A map of thirty thousand pieces of nothing, which is parsed for each entry.
    let map = format!("GNU.sparse.map=0{}", ",0".repeat(29_999));
    let records = [record(&map), record("GNU.sparse.size=0")].concat();
    let global = [raw_header(b"pax", b'g', records.len() as u64, b""), padded(&records)].concat();
    let entries: Vec<u8> = raw_header(b"a", b'0', 0, b"").repeat(100_000);
    costs_little("a sparse map", &gzip(&raw_tar(&[global, entries])), "bomb");
}

#[test]
fn a_stream_of_zeros_ends_at_the_floor() {
    // Of bzip2 a kilobyte unpacks to ten gigabytes, and streams may follow each other.
    let packed = |bytes: &mut dyn Read| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        std::io::copy(bytes, &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let header = raw_header(b"zeros", b'0', 2 << 30, b"");
    let zeros = packed(&mut std::io::repeat(0).take(64 << 20));
    costs_little("bzip2", &[packed(&mut header.as_slice()), zeros.repeat(32)].concat(), "bomb");
}
