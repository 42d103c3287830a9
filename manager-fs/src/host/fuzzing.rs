//! Doors to decoders that nobody else may call, for `tests/fuzz`; built only with `--cfg fuzzing`.

/// The reports that wait on a host's disk. Checksums are put right, so that chance reaches what they protect.
pub fn spool(bytes: &[u8]) {
    super::control::spool::read_any(bytes);
}
