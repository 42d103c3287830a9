//! The life of the mount.
