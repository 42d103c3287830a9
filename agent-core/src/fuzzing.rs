//! Doors to decoders that nobody else may call, for `tests/fuzz`; built only with `--cfg fuzzing`.

use std::fmt::Debug;

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::inherited::Named;
use crate::jobs::JobRecord;

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

fn stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(read) = codec::decode::<T, MESSAGE_BYTES_MAX>(bytes) else { return false };
    let written = codec::encode(&read).unwrap_or_default();
    assert_eq!(codec::decode::<T, MESSAGE_BYTES_MAX>(&written), Ok(read));
    true
}
