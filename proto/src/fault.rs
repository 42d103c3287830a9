//! Why a request failed, as everyone who answers says it; and the clock that all messages share.

use serde::{Deserialize, Serialize};

use crate::bounded::{Line, within};
use crate::limits::FAULT_BYTES_MAX;

/// Milliseconds since 1970, UTC, by the clock of whoever says it.
pub type Unix = u64;

/// Why a request failed, in a form that a machine can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// The asker may not see or do this. The same answer whether the thing exists or not.
    #[error("not exported to this host: {0}")]
    NotExported(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// Authentication or authorisation failed.
    #[error("refused: {0}")]
    Refused(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// There is no such thing, said to those who may know it.
    #[error("not found: {0}")]
    NotFound(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// The request makes no sense as it stands.
    #[error("bad request: {0}")]
    BadRequest(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// The agent takes no new operation; ask again after its change-over.
    #[error("the agent is draining; it takes operations again after its change-over")]
    Draining,
    /// The other side is not reachable or too slow; asking again may help.
    #[error("unavailable: {0}")]
    Unavailable(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// The answering side failed.
    #[error("failed: {0}")]
    Failed(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
}

impl Fault {
    /// The fault without its kind, for a sentence that says that already.
    pub fn reason(&self) -> String {
        match self {
            Self::Refused(why) | Self::Unavailable(why) => why.clone(),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_kind_and_a_reason_does_so_where_the_sentence_does_not() {
        let why = || String::from("why");
        let texts = [
            (Fault::NotExported(why()), "not exported to this host: why", None),
            (Fault::Refused(why()), "refused: why", Some("why")),
            (Fault::NotFound(why()), "not found: why", None),
            (Fault::BadRequest(why()), "bad request: why", None),
            (Fault::Draining, "the agent is draining; it takes operations again after its change-over", None),
            (Fault::Unavailable(why()), "unavailable: why", Some("why")),
            (Fault::Failed(why()), "failed: why", None),
        ];
        for (fault, text, reason) in texts {
            assert_eq!(fault.to_string(), text);
            assert_eq!(fault.reason(), reason.unwrap_or(text));
        }
    }
}
