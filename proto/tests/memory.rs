//! What a hostile peer can make a reader take of the machine's memory: nothing on its word alone. The one test of this
//! file has its process for itself, since it looks at all that the process ever took.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use proto::agent::{AgentReply, AgentRequest, Progress, StepEvent};
use proto::daemon::{DaemonReply, DaemonRequest};
use proto::delta;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::manifest::Manifest;
use proto::message::{HostReply, HostRequest, ManagerReply, ManagerRequest};
use proto::relative::Part;
use proto::{GenerationRecord, SignedRecord, TreeId, bundle, codec};
use serde::de::DeserializeOwned;

/// A field of proc_pid_status(5), bytes.
fn status_bytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Address space that the process has ever had at once.
fn peak_bytes() -> u64 {
    status_bytes("VmPeak:")
}

/// A variant's number, then claims of lengths of every size: nothing of what is claimed is there.
fn claims() -> Vec<Vec<u8>> {
    let lengths = [1_u64 << 20, (16 << 20) - 64, 1 << 32, 1 << 40, 1 << 62, u64::MAX];
    let mut claims = Vec::new();
    for variant in 0..14_u32 {
        for length in lengths {
            for skip in [0, 1, 8, 32, 40] {
                let front = [variant.to_le_bytes().as_slice(), &vec![1; skip]].concat();
                claims.push([front, length.to_le_bytes().to_vec()].concat());
            }
        }
    }
    claims
}

fn hostile<T: DeserializeOwned>(claims: &[Vec<u8>]) {
    for claim in claims {
        drop(codec::decode::<T, MESSAGE_BYTES_MAX>(claim));
    }
}

#[test]
fn claimed_lengths_take_no_memory() {
    let claims = claims();
    let tree = Manifest { chunk_bytes: 4096, objects: vec![], nodes: vec![], entries: vec![] };
    // As much as there ever was, so that whatever comes on top is seen.
    let ballast = black_box(vec![1_u8; usize::try_from(peak_bytes() - status_bytes("VmSize:")).unwrap()]);
    let before = peak_bytes();
    hostile::<HostRequest>(&claims);
    hostile::<HostReply>(&claims);
    hostile::<ManagerRequest>(&claims);
    hostile::<ManagerReply>(&claims);
    hostile::<AgentRequest>(&claims);
    hostile::<AgentReply>(&claims);
    hostile::<DaemonRequest>(&claims);
    hostile::<DaemonReply>(&claims);
    hostile::<Progress>(&claims);
    hostile::<StepEvent>(&claims);
    hostile::<GenerationRecord>(&claims);
    let part = Part::default();
    let id = TreeId::of(b"");
    let delta_header = delta::Header { from: id, to: id, manifest: part, index: part, frames_bytes: 0 };
    let bundle_header = bundle::Header {
        tree: id,
        from: None,
        origin: bundle::Origin::Recorded,
        fast: false,
        manifest: part,
        index: part,
        proofs_bytes: 0,
        frames_bytes: 0,
    };
    for claim in &claims {
        drop(SignedRecord::from_bytes(&[b"MFSREC\0\x01", claim.as_slice()].concat()));
        let manifest = [b"MFSTREE\0\x01\0\0\0\0\0\0\0\0\0\0\x10\0\0", &claim[4..]].concat();
        drop(Manifest::decode(&manifest, &TreeId::of(&manifest)));
        drop(delta::decode_index(&claim[4..], &delta_header, &tree, &tree));
        drop(bundle::decode_index(&claim[4..], &bundle_header, None, &tree));
    }
    let taken = peak_bytes() - before;
    assert!(taken <= 8 << 20, "{taken} bytes for claims of nothing");
    // The measure sees what it is there for.
    let some = black_box(vec![1_u8; 64 << 20]);
    assert!(peak_bytes() - before >= 60 << 20, "{} {}", some.len(), ballast.len());
    drop((some, ballast));
}
