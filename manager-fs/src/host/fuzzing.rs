//! Doors to decoders that nobody else may call, for `tests/fuzz` and its replay (`fuzz_replay.rs`); not built otherwise. Each says
//! whether the bytes were taken for something.

/// The reports that wait on a host's disk. Checksums are put right, so that chance reaches what they protect.
pub fn spool(bytes: &[u8]) -> bool {
    super::control::spool::read_any(bytes)
}

/// What the worker, the helper and the holder say to each other, and the numbers that one worker leaves to the next.
pub fn local_messages(bytes: &[u8]) -> bool {
    super::mount::fuzzing::messages(bytes) | super::objects::numbers::read_any(bytes)
}

/// An image of a tree's metadata, for any manifest that was believed.
pub fn image(manifest: &proto::Manifest) -> bool {
    super::mount::fuzzing::image(manifest)
}
