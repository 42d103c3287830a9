//! Gives the shared library the name under which programs look for it.

fn main() {
    // The number changes with an incompatible header.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libagent_core.so.0");
    println!("cargo:rerun-if-changed=build.rs");
}
