//! Doors to decoders that nobody else may call, for `tests/fuzz`; built only with `--cfg fuzzing`.

use std::fmt::Debug;

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable;
use crate::handoff::Handoff;
use crate::inherited::Named;
use crate::jobs::JobRecord;
use crate::state::Snapshot;

/// The record of a job, without the checksum that hides its body from chance; whether it is one.
///
/// # Panics
/// What was read is written otherwise.
pub fn job_record(bytes: &[u8]) -> bool {
    stable::<JobRecord>(bytes)
}

/// The table of inherited descriptors, likewise.
///
/// # Panics
/// What was read is written otherwise.
pub fn inherited(bytes: &[u8]) -> bool {
    stable::<Vec<Named>>(bytes)
}

/// What is said about a saved state, likewise.
///
/// # Panics
/// What was read is written otherwise.
pub fn snapshot(bytes: &[u8]) -> bool {
    stable::<Snapshot>(bytes)
}

/// A handoff of either format, its checksum made to fit.
///
/// # Panics
/// What was read is written otherwise.
pub fn handoff(bytes: &[u8]) -> bool {
    let either = [b"MFSHND\0\x01", b"MFSHND\0\x02"].map(|magic| Handoff::from_bytes(&durable::seal(magic, bytes)));
    either.into_iter().flatten().fold(false, |_, read| {
        let written = read.to_bytes().unwrap_or_default();
        assert_eq!(Handoff::from_bytes(&written).ok(), Some(read));
        true
    })
}

fn stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(read) = codec::decode::<T, MESSAGE_BYTES_MAX>(bytes) else { return false };
    let written = codec::encode(&read).unwrap_or_default();
    assert_eq!(codec::decode::<T, MESSAGE_BYTES_MAX>(&written), Ok(read));
    true
}
