use super::*;

/// A program of three pages of code and one of pointers; its entry calls a function in the third page by way of a table.
fn program() -> Vec<u8> {
    const DATA: usize = 0x6000;
    let mut file = vec![0; 7 * 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[3, 0, 62, 0, 1]);
    put(24, &0x1000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 3, 0]);
    let mut header = |index: usize, kind: u32, flags: u32, at: usize, bytes: usize| {
        put(64 + index * 56, &kind.to_le_bytes());
        put(64 + index * 56 + 4, &flags.to_le_bytes());
        [at, at, at, bytes, bytes].iter().zip([8, 16, 24, 32, 40]).for_each(|(value, field)| {
            put(64 + index * 56 + field, &(*value as u64).to_le_bytes());
        });
    };
    header(0, 1, 5, 0x1000, 0x4000);
    header(1, 1, 6, DATA, 0x1000);
    header(2, 0x6474_e550, 4, 0x5000, 12 + 4 * 8);
    // Functions at the begin of each page of code.
    put(0x5000, &[1, 0x1b, 0x03, 0x3b]);
    for (index, start) in [0x1000, 0x2000, 0x3000, 0x4000_i32].into_iter().enumerate() {
        put(0x500c + index * 8, &(start - 0x5000).to_le_bytes());
    }
    // lea of a place in the data; there stands where the third function is, which calls the fourth.
    put(0x1000, &[0x48, 0x8d, 0x05]);
    put(0x1003, &(0x6008 - 0x1007_i32).to_le_bytes());
    put(DATA + 8, &0x3000_u64.to_le_bytes());
    put(0x3010, &[0xe8]);
    put(0x3011, &(0x4000 - 0x3015_i32).to_le_bytes());
    file
}

fn reached(file: &[u8], max: usize) -> Vec<u32> {
    pages(std::io::Cursor::new(file), &mut Imports::new(), max)
}

#[test]
fn what_an_entry_leads_to_comes_in_its_order_and_nothing_else() {
    assert_eq!(reached(&program(), 100), [1, 6, 3, 4], "the second function is called by nobody");
    assert_eq!(reached(&program(), 2), [1, 6]);
}

#[test]
fn a_file_that_contradicts_itself_is_followed_no_further() {
    let file = program();
    assert!(reached(&file[..0x2000], 100).is_empty());
    for at in (0..0x200).chain(0x5000..0x502c) {
        let mut damaged = file.clone();
        damaged[at] ^= 0xff;
        assert!(reached(&damaged, 100).len() <= 7);
    }
    assert!(reached(b"#!/bin/sh\n", 100).is_empty());
}

#[test]
fn this_program_reaches_its_own_code() {
    let own = std::fs::read("/proc/self/exe").unwrap();
    let pages = reached(&own, 1 << 20);
    let distinct: HashSet<_> = pages.iter().collect();
    assert_eq!(distinct.len(), pages.len());
    if cfg!(target_arch = "x86_64") {
        assert!(pages.len() > 100, "{} pages", pages.len());
    }
}
