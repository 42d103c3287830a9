//! What this project's own programs and tests need of the library beside its interface. It changes as they do, and no
//! version number answers for it: a program of somebody else's has everything it needs at the root.

pub use crate::permits::FILE as PERMITS_FILE;

/// Programs that an adapter ran.
pub mod predecessor {
    pub use crate::predecessor::{ENDING, PROGRAM};
}

/// Evidence against versions.
pub mod bad {
    pub use crate::bad::{evidence, reason, remember, withdraw};
}

/// What an agent tells its stub.
pub mod channel {
    pub use crate::channel::StubMessage;
    pub use crate::inherited::unwell;
}

/// Conversations over local sockets.
pub mod control {
    pub use crate::control::{Client, ControlError, read_frame, write_frame};
}

/// Files that outlive a power cut.
pub mod durable {
    pub use crate::durable::{Durability, create_dir, remove, sync_dir, write};
}

/// The machine that programs run on.
pub mod generation {
    pub use crate::generation::machine;
}

/// What crosses `execve`.
pub mod handoff {
    pub use crate::handoff::{Handoff, variable};
}

/// Checks from outside.
pub mod health {
    pub use crate::health::{Answering, ask, who_listens};
}

/// Whom a host believes, and who it is.
pub mod identity {
    pub use crate::identity::{IdentityFault, PUBLISHERS, directory, mend, publishers, read, write};
}

/// The durable record of what is current.
pub mod journal {
    pub use crate::journal::{Entry, Journal, Phase, Staged, list};
}

/// What the allocator keeps.
pub mod memory {
    pub use crate::sys::memory::{be_frugal, give_back};
}

/// What becomes durable, and what can fail there.
pub mod moments {
    pub use crate::moments::{Moment, Process, at, watch};
}

/// Signed records that versions are started from.
pub mod records {
    pub use crate::records::{RecordError, Verified, load_vouched};
}

/// Reports to the manager.
pub mod report {
    pub use crate::report::unix_ms;
}

/// A host put on a version by hand.
pub mod rescue {
    pub use crate::rescue::{RescueError, rescue};
}

/// The process that starts an agent and watches it.
pub mod stub {
    pub use crate::stub::{Observer, Outlet, StubError, run};
}

/// The link to what is attached.
pub mod swap {
    pub use crate::swap::{current, swap};
}

/// System calls that the standard library has not.
pub mod sys {
    /// Programs that are started.
    pub mod exec {
        pub use crate::sys::exec::{
            Invocation, adopt_orphans, children, descendants, end_children, spawn, spawn_listening,
        };
    }
    /// Which descriptors are open, and which cross `execve`.
    pub mod fd {
        pub use crate::sys::fd::{process_of, take_inherited};
    }
    /// The mount daemon's namespaces.
    pub mod namespace {
        pub use crate::sys::namespace::enter;
    }
    /// Signals that are waited for instead of handled.
    pub mod signal {
        pub use crate::sys::signal::{SignalFd, wake_on_terminate};
    }
    /// Sockets in the file system, and who is at their other end.
    pub mod socket {
        pub use crate::sys::socket::{Peer, bind, connect, peer, replace};
    }
}
