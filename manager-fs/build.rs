//! Names the messages that this program is built with, for the greeting of local sockets: a hash of the sources that they
//! are declared in. Command and manager understand each other for certain only when they were built of the same.

use std::path::{Path, PathBuf};

/// Messages of the command line to the manager carry types of all of these.
const SOURCES: [&str; 2] = ["../proto/src", "src/manager"];

fn main() {
    // FNV-1a with 128 bits: it tells builds apart, it guards nothing.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for directory in SOURCES {
        println!("cargo:rerun-if-changed={directory}");
        for path in files(Path::new(directory)) {
            let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for byte in text {
                hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
            }
        }
    }
    println!("cargo:rustc-env=MANAGER_FS_MESSAGES={hash:032x}");
}

/// Every file below a directory, always in the same order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries.map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
