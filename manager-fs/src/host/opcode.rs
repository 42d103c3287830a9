//! The requests of the kernel, counted by kind.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! opcodes {
    ($($name:ident = $shown:literal,)+) => {
        /// A kind of request of the kernel.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Opcode {
            $($name,)+
        }

        impl Opcode {
            const ALL: [Opcode; [$($shown),+].len()] = [$(Opcode::$name),+];

            fn name(self) -> &'static str {
                match self {
                    $(Opcode::$name => $shown,)+
                }
            }
        }
    };
}

opcodes! {
    Lookup = "lookup",
    Getattr = "getattr",
    Readlink = "readlink",
    Open = "open",
    Read = "read",
    Statfs = "statfs",
    Release = "release",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Flush = "flush",
    Opendir = "opendir",
    Readdir = "readdir",
    Ioctl = "ioctl",
    Forget = "forget",
}

/// How many requests the kernel has sent, by kind, since this worker started.
#[derive(Debug, Default)]
pub struct RequestCounts([AtomicU64; Opcode::ALL.len()]);

impl RequestCounts {
    /// Name and count of every kind.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        Opcode::ALL.iter().map(|opcode| (opcode.name(), self.of(*opcode))).collect()
    }

    /// All requests, less FORGET, which the kernel sends when it pleases.
    pub fn total(&self) -> u64 {
        Opcode::ALL.iter().filter(|opcode| **opcode != Opcode::Forget).map(|opcode| self.of(*opcode)).sum()
    }

    pub(super) fn count(&self, opcode: Opcode) {
        self.0[opcode as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, opcode: Opcode) -> u64 {
        self.0[opcode as usize].load(Ordering::Relaxed)
    }
}
