//! What a host and the manager say to each other over their TLS connection.
//!
//! The host dials. Either side may then send requests. Specified in `docs/control-protocol.md`.

use serde::{Deserialize, Serialize};

use crate::agent::{AgentStatus, ChangeId, JobId, JobOrigin, Operation, Outcome, Progress, StepEvent};
use crate::bounded::{Blob, Exact, Line, List, Own, PathText, within};
use crate::bundle::{TOUCHES_MAX, Touch};
pub use crate::fault::{Fault, Unix};
use crate::id::{ObjectId, TreeId};
use crate::limits::{
    AGENTS_MAX, CERTIFICATE_BYTES_MAX, CHUNKS_PER_REQUEST_MAX, CSR_BYTES_MAX, EXPORTS_MAX, PUBLISHERS_MAX,
    RECORD_BYTES_MAX, REPORTS_MAX, SECRET_BYTES_MAX, TREES_MAX, VERSION_BYTES_MAX, WRONG_HASH_BYTES_MAX,
};
use crate::name::{GenerationRef, HostName, Product};

/// The version of the messages; both sides name theirs in `Hello`, and a different one is refused with both numbers.
pub const PROTOCOL: u16 = 2;

/// Which daemon of a host speaks: the same after a restart of the daemon, another one for a copy of its identity that runs
/// elsewhere or after the machine was booted anew. It proves nothing; it tells two daemons with one identity apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance(pub [u8; 16]);

/// A host's request to the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRequest {
    /// First on every connection of an enrolled host.
    Hello {
        /// The protocol that the host speaks ([`PROTOCOL`]); another one is refused.
        protocol: u16,
        /// Version of the host's `manager-fs`.
        #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
        software: String,
        /// What the connection is for.
        role: Role,
        /// Which daemon it is.
        instance: Instance,
    },
    /// The only request that needs no client certificate.
    Enroll {
        /// The protocol that the host speaks ([`PROTOCOL`]); another one is refused.
        protocol: u16,
        /// The secret of the one-time token.
        #[serde(deserialize_with = "within::<_, Blob<SECRET_BYTES_MAX>>")]
        secret: Vec<u8>,
        /// PKCS #10 request, DER; its subject is ignored, the token names the host.
        #[serde(deserialize_with = "within::<_, Blob<CSR_BYTES_MAX>>")]
        csr: Vec<u8>,
    },
    /// A new certificate for the identity of this connection.
    Renew {
        /// PKCS #10 request, DER.
        #[serde(deserialize_with = "within::<_, Blob<CSR_BYTES_MAX>>")]
        csr: Vec<u8>,
    },
    /// What is exported to this host?
    Exports,
    /// The manifest of an exported tree: `Bulk` frames with its bytes (zstd), then the response.
    Manifest {
        /// The tree; it must be exported to this host.
        tree: TreeId,
    },
    /// Chunks of objects of an exported tree: one `Bulk` frame a chunk ([`crate::bulk`]), in any order.
    Chunks {
        /// In which tree; the manager checks the export, and that the objects are the tree's.
        tree: TreeId,
        /// Which; at most [`CHUNKS_PER_REQUEST_MAX`] chunks in all.
        #[serde(deserialize_with = "within::<_, List<Own<ChunkRange>, CHUNKS_PER_REQUEST_MAX>>")]
        wants: Vec<ChunkRange>,
    },
    /// What happened on the host, in order. The manager answers when it is durable.
    Report {
        /// What happened, the oldest first; at least one.
        #[serde(deserialize_with = "within::<_, List<Own<HostReport>, REPORTS_MAX>>")]
        reports: Vec<HostReport>,
    },
    /// What turns a tree that the host has into another one, both exported to it: `Bulk` frames with the delta's bytes
    /// in order ([`crate::delta`], without the trailer), then the response.
    Delta {
        /// The tree that it has.
        from: TreeId,
        /// The tree that it wants.
        to: TreeId,
    },
    /// Everything that a start needs, in one answer: `Bulk` frames with a bundle's bytes in order ([`crate::bundle`],
    /// without the trailer), then the response. May be sent before the answer to `Hello`.
    Start {
        /// Which generation, by any name that the operator may use.
        generation: GenerationRef,
        /// A tree of which this host has every object.
        from: Option<TreeId>,
        /// Whether the manifest is wanted too.
        manifest: bool,
    },
    /// What a tree's entry point touches first, recorded on this host: the manager makes or extends the bundle.
    Profile {
        /// Which tree; it must be exported to this host.
        tree: TreeId,
        /// In the order in which they were touched; at most [`TOUCHES_MAX`].
        #[serde(deserialize_with = "within::<_, List<Own<Touch>, TOUCHES_MAX>>")]
        touches: Vec<Touch>,
    },
    /// What is exported to this host, by the records' ids, and the records of which it does not say that it has them.
    ExportList {
        /// The ids of the records that this host has ([`crate::SignedRecord::id_of`]).
        #[serde(deserialize_with = "within::<_, List<Own<[u8; 32]>, EXPORTS_MAX>>")]
        have: Vec<[u8; 32]>,
    },
    /// `Hello` of a host that says for which machine its programs must be: of a version that is published for several
    /// architectures it is told of the tree of its own.
    HelloFrom {
        /// As of `Hello`.
        protocol: u16,
        /// As of `Hello`.
        #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
        software: String,
        /// As of `Hello`.
        role: Role,
        /// As of `Hello`.
        instance: Instance,
        /// What the machine calls itself, such as `x86_64` (`uname -m`).
        #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
        machine: String,
    },
    /// `Start` of a program of the tree: while nobody has recorded a start, the guess is of this one.
    StartOf {
        /// As of `Start`.
        generation: GenerationRef,
        /// As of `Start`.
        from: Option<TreeId>,
        /// As of `Start`.
        manifest: bool,
        /// What was typed: a path in the tree, or a name that is looked for in [`crate::start_up::PROGRAM_DIRS`].
        #[serde(deserialize_with = "within::<_, PathText>")]
        program: String,
    },
}

/// What a host's connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Control and demand reads: the one connection over which the manager reaches the host.
    Control,
    /// Background fetches, so that demand reads never queue behind them.
    Bulk,
}

/// Consecutive chunks of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRange {
    /// The object; it must be of the request's tree.
    pub object: ObjectId,
    /// Index of the first into the chunks of the object.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// The chunks that a request names, in its order, each with the number under which it is answered
/// ([`crate::bulk::ChunkHead::sequence`]), its object and its index in that.
pub fn numbered(wants: &[ChunkRange]) -> impl Iterator<Item = (u32, ObjectId, u32)> + '_ {
    let chunks = |want: &ChunkRange| {
        let object = want.object;
        (want.first..=u32::MAX).take(want.count as usize).map(move |index| (object, index))
    };
    (0..=u32::MAX).zip(wants.iter().flat_map(chunks)).map(|(sequence, (object, index))| (sequence, object, index))
}

/// What the manager answers a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerReply {
    /// To `Hello`: the host may go on asking.
    Welcome {
        /// The name in the certificate.
        host: HostName,
        /// Milliseconds since 1970 on the manager.
        now: Unix,
    },
    /// To `Enroll` and `Renew`.
    Certificate {
        /// The name in the certificate.
        host: HostName,
        /// The host's certificate, PEM.
        #[serde(deserialize_with = "within::<_, Exact<CERTIFICATE_BYTES_MAX>>")]
        certificate: String,
        /// The certificate authority, PEM.
        #[serde(deserialize_with = "within::<_, Exact<CERTIFICATE_BYTES_MAX>>")]
        authority: String,
        /// Public keys whose records the host shall believe.
        #[serde(deserialize_with = "within::<_, List<Own<[u8; 32]>, PUBLISHERS_MAX>>")]
        publishers: Vec<[u8; 32]>,
    },
    /// To `Exports`: every generation exported to the host ([`crate::SignedRecord::to_bytes`]).
    Exports(#[serde(deserialize_with = "within::<_, List<Blob<RECORD_BYTES_MAX>, EXPORTS_MAX>>")] Vec<Vec<u8>>),
    /// To `Manifest`, `Chunks`, `Delta` and `Start`: how many bulk frames came before.
    Sent(u32),
    /// To `Report`; to `Profile`: it counts when another host tells the same.
    Done,
    /// To any request: nothing of it was done.
    Fault(Fault),
    /// To `Profile`: it counts, and this is the bundle that starts get from now on.
    Bundle(BundleFacts),
    /// To `ExportList`: all that is exported, and as many records as fit.
    ExportList {
        /// Grows with every change of the list. A host does not go back to a smaller one.
        number: u64,
        /// The ids of the records of every generation exported to the host.
        #[serde(deserialize_with = "within::<_, List<Own<[u8; 32]>, EXPORTS_MAX>>")]
        ids: Vec<[u8; 32]>,
        /// Those of the records that the host does not have, as many as fit; it asks again for the others.
        #[serde(deserialize_with = "within::<_, List<Blob<RECORD_BYTES_MAX>, EXPORTS_MAX>>")]
        records: Vec<Vec<u8>>,
    },
}

/// An `Event` before the answer to `Delta`: it is still being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    /// For how long so far, milliseconds.
    pub elapsed_ms: u64,
}

/// What a start-up bundle holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFacts {
    /// Bytes of its pages.
    pub plain_bytes: u64,
    /// Bytes of the whole bundle, as it is sent.
    pub bundle_bytes: u64,
    /// Objects of which it holds pages.
    pub objects: u64,
}

/// The manager's request to a host.
#[allow(clippy::large_enum_variant, reason = "a request is made, sent and dropped; none is kept in a list")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerRequest {
    /// Ask for `Exports` again.
    ExportsChanged,
    /// Relay messages A, B and C to the product's running agent.
    ChangeOver(ChangeOver),
    /// Relay to the product's running agent. `Event`s carry [`Progress`], the response [`HostReply::Outcome`].
    Run {
        /// The product whose agent is meant.
        product: Product,
        /// The manager's number of the job.
        job: JobId,
        /// Whose snapshots it makes or means.
        origin: JobOrigin,
        /// What is done on the host.
        operation: Operation,
    },
    /// Relay to the product's running agent.
    Cancel {
        /// The product whose agent is meant.
        product: Product,
        /// The manager's number of the job.
        job: JobId,
    },
    /// What runs here? Answered by [`HostReply::Agents`].
    Agents,
    /// Are you there? Answered by `Done` at once.
    Alive,
    /// The manifest of a tree, if the host has it: one zstd frame in `Bulk` frames, then [`HostReply::Sent`].
    Manifest {
        /// The tree whose manifest is wanted.
        tree: TreeId,
    },
    /// Those of these chunks that the host has, raw: one `Bulk` frame a chunk ([`crate::bulk`]), then [`HostReply::Sent`].
    Chunks {
        /// The tree of whose objects they are.
        tree: TreeId,
        /// Which; at most [`CHUNKS_PER_REQUEST_MAX`] chunks in all.
        #[serde(deserialize_with = "within::<_, List<Own<ChunkRange>, CHUNKS_PER_REQUEST_MAX>>")]
        wants: Vec<ChunkRange>,
    },
}

/// What the manager tells a running agent, by way of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeOver {
    /// The manager's number of the change-over, which all reports on it bear.
    pub change: ChangeId,
    /// The product whose agent changes over.
    pub product: Product,
    /// The signed record of the new generation (message A).
    #[serde(deserialize_with = "within::<_, Blob<RECORD_BYTES_MAX>>")]
    pub record: Vec<u8>,
    /// The new tree (message B).
    pub attach: TreeId,
    /// Change over before every object is local.
    pub lazy: bool,
    /// How long ongoing operations may take to finish, milliseconds (message C).
    pub drain_deadline_ms: u64,
    /// Try a generation that this host remembers as bad.
    pub retry_bad: bool,
}

/// What a host answers the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostReply {
    /// To every request that answers nothing else: it is taken, and reports tell what comes of it.
    Done,
    /// To `Agents`: every agent of the host, also those that stand still.
    Agents(#[serde(deserialize_with = "within::<_, List<Own<AgentStatus>, AGENTS_MAX>>")] Vec<AgentStatus>),
    /// To `Run`: how the operation ended.
    Outcome(Outcome),
    /// To any request: nothing of it was done.
    Fault(Fault),
    /// To `Manifest` and `Chunks`: how many bulk frames came before.
    Sent(u32),
}

/// Something that happened on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostReport {
    /// A step of a change-over.
    Step(StepEvent),
    /// What runs now (all agents of the host).
    Agents(#[serde(deserialize_with = "within::<_, List<Own<AgentStatus>, AGENTS_MAX>>")] Vec<AgentStatus>),
    /// Progress of a job that was resumed after its `Run` had been cut off.
    JobProgress {
        /// The manager's number of the job.
        job: JobId,
        /// How far it is, of all its units.
        progress: Progress,
    },
    /// End of a job whose `Run` had been cut off.
    JobOutcome {
        /// The manager's number of the job.
        job: JobId,
        /// How it ended; told until the manager has it.
        outcome: Outcome,
    },
    /// The trees attached on this host (all of them); `unexport` asks.
    Attached(#[serde(deserialize_with = "within::<_, List<Own<TreeId>, TREES_MAX>>")] Vec<TreeId>),
    /// Bytes came with a wrong hash; they were neither served nor kept.
    WrongHash {
        /// What the bytes should have been, and whence they came: a line for people.
        #[serde(deserialize_with = "within::<_, Line<WRONG_HASH_BYTES_MAX>>")]
        what: String,
    },
    /// What the first start of a generation touched that came without a bundle.
    Touched {
        /// The tree whose manifest is wanted.
        tree: TreeId,
        /// In the order in which they were touched.
        #[serde(deserialize_with = "within::<_, List<Own<Touch>, TOUCHES_MAX>>")]
        touches: Vec<Touch>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_numbered_through_all_that_a_request_names() {
        let object = |name: &[u8]| ObjectId::of(name);
        let range = |name, first, count| ChunkRange { object: object(name), first, count };
        let wants = [range(b"a", 2, 2), range(b"b", 7, 0), range(b"c", 0, 1), range(b"d", u32::MAX, 9)];
        let wanted = [(0, object(b"a"), 2), (1, object(b"a"), 3), (2, object(b"c"), 0), (3, object(b"d"), u32::MAX)];
        assert_eq!(numbered(&wants).collect::<Vec<_>>(), wanted, "and none past the last that there can be");
        assert_eq!(numbered(&[]).count(), 0);
    }
}
