//! The mount daemon's local socket (`RUN/mount.sock`): for agents, the stub and the command line of the same host.
//!
//! Peer credentials are checked: root and the daemon's own user may ask.

use serde::{Deserialize, Serialize};

use crate::agent::StepEvent;
use crate::bounded::{Blob, Exact, List, Own, PathText, within};
use crate::bundle::{TOUCHES_MAX, Touch};
use crate::id::{ObjectId, TreeId};
use crate::limits::{RECORD_BYTES_MAX, STATUS_BYTES_MAX, WRONG_OBJECTS_MAX};
use crate::message::{BundleFacts, Fault};
use crate::name::{GenerationRef, Product};
use crate::trace::Trace;

/// A request to the mount daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DaemonRequest {
    /// Everything that `manager-fs status` shows, as a JSON document. Never blocks.
    Status,
    /// The record that this host would launch of a product: the newest exported one.
    Newest {
        /// The product, of which this host may be shown several versions.
        product: Product,
    },
    /// Attach a generation (lazily, if its objects are not local) and keep it until `Release`.
    Attach {
        /// By name, tree id, or the start of one; it must be exported to this host.
        generation: GenerationRef,
    },
    /// Drop what `Attach` keeps.
    Release {
        /// By name, tree id, or the start of one; it must be exported to this host.
        generation: GenerationRef,
    },
    /// Attach for as long as this connection stays open: `exec`, and the stub while it starts an agent.
    Hold {
        /// By name, tree id, or the start of one; it must be exported to this host.
        generation: GenerationRef,
    },
    /// Make every object of these trees local, mount and warm the first. `Event`s carry [`StageProgress`], the response
    /// is `Attached`. What is staged stays until the change-over is over (the agents' journals tell).
    Stage {
        /// The tree to change over to.
        tree: TreeId,
        /// The running tree, the future last-good.
        running: Option<TreeId>,
        /// Mount and warm at once, before every object is local.
        lazy: bool,
    },
    /// Something happened to an agent: tell the manager, now or when it can be reached.
    Report {
        /// The step as it ended; kept on disk until the manager has it.
        event: StepEvent,
    },
    /// An agent swapped, started or ended: look at the journals and links again, collect what is no longer needed.
    Changed {
        /// The product of that agent.
        product: Product,
    },
    /// End the daemon and unmount (`manager-fs unmount`).
    Unmount,
    /// Give the manager what a tree's entry point touches first; answered by `Bundle`, or by `Done` where that counts only
    /// when another host tells the same.
    Profile {
        /// The tree that the program ran from.
        tree: TreeId,
        /// In the order in which they were touched.
        #[serde(deserialize_with = "within::<_, List<Own<Touch>, TOUCHES_MAX>>")]
        touches: Vec<Touch>,
    },
    /// Hash every object of the cache and remove what is wrong. `Event`s carry [`StageProgress`], of bytes hashed; the
    /// response is `Checked`.
    Check {
        /// Fetch again what was wrong.
        repair: bool,
    },
    /// As `Hold`, of a tree whose manifest is on this host. Nobody waits for the manager: of any other tree the answer is
    /// `Unavailable`, at once. For the stub, which has something else to start then.
    HoldLocal {
        /// The tree, by its whole id.
        tree: TreeId,
    },
    /// As `Hold`, for this program of the tree.
    HoldFor {
        /// As of `Hold`.
        generation: GenerationRef,
        /// What was typed: a path in the tree, or a name that is looked for in [`crate::start_up::PROGRAM_DIRS`].
        #[serde(deserialize_with = "within::<_, PathText>")]
        program: String,
    },
    /// Note from now on what starts ask for and what comes, until `TraceEnd` or the end of this connection.
    TraceBegin,
    /// Stop noting; answered by `Traced`.
    TraceEnd,
}

/// What the mount daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DaemonReply {
    /// To every request that answers nothing else.
    Done,
    /// To `Status`: the JSON document of `docs/command-line.md`.
    Status(#[serde(deserialize_with = "within::<_, Exact<STATUS_BYTES_MAX>>")] String),
    /// To `Newest`: the signed record.
    Record(#[serde(deserialize_with = "within::<_, Blob<RECORD_BYTES_MAX>>")] Vec<u8>),
    /// To `Attach`, `Hold`, `HoldFor`, `HoldLocal` and `Stage`.
    Attached(Attached),
    /// To any request: nothing of it was done.
    Fault(Fault),
    /// To `Profile`: the bundle that the manager has made.
    Bundle(BundleFacts),
    /// To `Check`, after the last object.
    Checked(CacheReport),
    /// To `TraceEnd`.
    Traced(Trace),
}

/// What a check of the cache found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// Objects of the cache, each of which was hashed.
    pub objects: u64,
    /// Bytes of these objects.
    pub bytes: u64,
    /// Objects that were wrong; removed.
    pub wrong: u64,
    /// Of these, those that were fetched again.
    pub fetched: u64,
    /// The others, the first of them.
    #[serde(deserialize_with = "within::<_, List<Own<ObjectId>, WRONG_OBJECTS_MAX>>")]
    pub missing: Vec<ObjectId>,
}

/// A generation that is ready for use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The tree that the generation's name led to.
    pub tree: TreeId,
    /// Absolute path of its root directory.
    #[serde(deserialize_with = "within::<_, PathText>")]
    pub path: String,
    /// Process whose user and mount namespaces hold that path, when it is not valid outside of them.
    pub namespace_pid: Option<u32>,
    /// The signed record, when the generation was found by name or has only one.
    #[serde(deserialize_with = "within::<_, Option<Blob<RECORD_BYTES_MAX>>>")]
    pub record: Option<Vec<u8>>,
    /// How long warming took, microseconds; 0 if nothing was warmed.
    pub warm_us: u64,
}

/// How far staging is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// Bytes of the objects that are local.
    pub local_bytes: u64,
    /// Bytes of all objects of the trees.
    pub object_bytes: u64,
}
