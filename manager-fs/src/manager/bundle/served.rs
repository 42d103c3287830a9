//! A bundle at hand.

use proto::bundle::Header;

use super::BundleError;
use crate::patch;

/// A bundle as it is sent, without its trailer.
pub(super) struct Served {
    pub(super) header: Header,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn served(bytes: Vec<u8>) -> Result<Served, BundleError> {
    Ok(Served { header: served_header(&bytes)?, bytes })
}

pub(super) fn served_header(bytes: &[u8]) -> Result<Header, BundleError> {
    let header = bytes.first_chunk().map(Header::decode);
    match header {
        Some(Ok(header)) => Ok(header),
        _ => Err(BundleError::Make(patch::PatchError::Malformed("a header of another format").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_header_of_this_format_is_not_served() {
        for bytes in [vec![], vec![0; proto::bundle::HEADER_BYTES - 1], vec![7; proto::bundle::HEADER_BYTES + 9]] {
            assert!(matches!(served(bytes), Err(BundleError::Make(_))));
        }
    }
}
