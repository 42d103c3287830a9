//! Power cuts: what running programs do to their directories is recorded system call by system call, and any moment of
//! it can be put back as a disk might have it that lost its power then.
//!
//! ```text
//! trace.rs       strace of the running programs ──> operations, each with its time
//! recording.rs   all of them, and the moments at which the power may go
//! disk.rs        what is synced and what is not yet: a cut keeps the first, and of the second what it likes
//! ```

mod disk;
mod recording;
mod trace;

pub use disk::Unsynced;
pub use recording::{Moment, Recording};
pub use trace::{Trace, now};
