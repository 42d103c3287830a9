//! Doors for `tests/fuzz`; not built otherwise.

use proto::{Manifest, codec};

use super::erofs::Plan;
use super::heard::SAID_BYTES_MAX;
use super::inherit::{Greeting, Said};
use super::message::{HelperReply, HelperRequest, MESSAGE_BYTES_MAX};

/// Messages of the processes of one mount.
pub(in crate::host) fn messages(bytes: &[u8]) -> bool {
    codec::decode::<HelperRequest, MESSAGE_BYTES_MAX>(bytes).is_ok()
        | codec::decode::<HelperReply, MESSAGE_BYTES_MAX>(bytes).is_ok()
        | codec::decode::<Said, SAID_BYTES_MAX>(bytes).is_ok()
        | codec::decode::<Greeting, SAID_BYTES_MAX>(bytes).is_ok()
}

/// Writes the image of a tree as long as it is planned.
pub(in crate::host) fn image(manifest: &Manifest) -> bool {
    let Ok(plan) = Plan::new(manifest) else { return false };
    // A few names can make a large one; what is of interest is in the small ones.
    if plan.bytes() <= 1 << 20 {
        let mut image = Vec::new();
        if plan.write(&mut image).is_ok() {
            assert_eq!(image.len() as u64, plan.bytes());
        }
    }
    true
}
