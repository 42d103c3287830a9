//! Packs and manifests on disk.
