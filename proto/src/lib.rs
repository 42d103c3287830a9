//! The vocabulary that the manager, the hosts and the agents share.
//!
//! Everything here is bytes in, bytes out: no I/O, no clock, no task, no `unsafe`. The manager, the mount daemon and
//! every agent read the same ids, manifests, records and messages through this crate, so neither side depends on the
//! other. What comes from a network, an archive or a disk becomes one of these types only by being bounded, parsed
//! and checked.
//!
//! ```text
//! received files ──> Manifest ──(BLAKE3)──> TreeId ──┐
//!                       │                            ├─> GenerationRecord ──(ed25519)──> SignedRecord
//!                       └─ Object ─> ChunkId …       │
//!                                   Metadata ────────┘
//! ```
//!
//! Formats: `docs/tree-format.md`; messages and limits: `docs/control-protocol.md`.

#![forbid(unsafe_code)]

pub mod adapter;
mod address;
pub mod agent;
pub mod backup;
pub mod bounded;
pub mod bulk;
pub mod bundle;
pub mod codec;
pub mod daemon;
pub mod delta;
pub mod door;
pub mod fault;
pub mod frame;
pub mod health;
pub mod id;
pub mod keeping;
pub mod limits;
pub mod local_greeting;
pub mod location;
pub mod look;
pub mod manifest;
pub mod means;
pub mod message;
pub mod name;
pub mod number;
pub mod operation;
pub mod outcome;
pub mod own;
pub mod path;
pub mod preamble;
pub mod proof;
pub mod publisher;
pub mod record;
pub mod recovery;
pub mod relative;
pub mod restore;
pub mod snapshot;
pub mod start_up;
pub mod text;
mod text_form;
pub mod token;
pub mod trace;
pub mod width;

pub use id::{ChunkId, ObjectId, TreeId};
pub use manifest::Manifest;
pub use name::{
    ArgumentName, CommandName, GenerationRef, GroupName, HostName, OperationKind, PolicyName, Product,
    RepositoryName, Version,
};
pub use path::TreePath;
pub use publisher::{PublisherKey, Publishers};
pub use record::{GenerationRecord, Metadata, SignedRecord};
