//! Doors to decoders that nobody else may call, for `tests/fuzz`; built only with `--cfg fuzzing`.

use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;

use crate::jobs::JobRecord;

/// The record of a job, without the checksum that hides its body from chance; whether it is one.
///
/// # Panics
/// What was read is written otherwise.
pub fn job_record(bytes: &[u8]) -> bool {
    let Ok(record) = codec::decode::<JobRecord, MESSAGE_BYTES_MAX>(bytes) else { return false };
    let written = codec::encode(&record).unwrap_or_default();
    assert_eq!(codec::decode::<JobRecord, MESSAGE_BYTES_MAX>(&written), Ok(record));
    true
}
