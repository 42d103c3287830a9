//! Objects on the host's disk.
