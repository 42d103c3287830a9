//! Whatever an honest peer may send arrives as it was sent; whatever else comes is refused, or becomes something that
//! is within its bounds and stays as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod any;

use std::fmt::Debug;

use proptest::prelude::*;
use proto::agent::{AgentReply, AgentRequest, Outcome, Progress, StepEvent};
use proto::daemon::{DaemonReply, DaemonRequest};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{HostReply, HostReport, HostRequest, ManagerReply, ManagerRequest};
use proto::{GenerationRecord, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes to be changed: where, and into what.
type Changes = Vec<(prop::sample::Index, u8)>;

fn changes() -> impl Strategy<Value = Changes> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)
}

fn arrived<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, codec::CodecError> {
    codec::decode::<T, MESSAGE_BYTES_MAX>(bytes)
}

fn arrives_as_sent<T: Serialize + DeserializeOwned + PartialEq + Debug>(sent: &T) -> Result<(), TestCaseError> {
    let bytes = codec::encode(sent).unwrap();
    let got = arrived::<T>(&bytes);
    prop_assert_eq!(got.as_ref(), Ok(sent));
    prop_assert!(arrived::<T>(&[bytes.as_slice(), &[0]].concat()).is_err(), "a byte too many");
    prop_assert!(arrived::<T>(&bytes[..bytes.len() - 1]).is_err(), "a byte too few");
    Ok(())
}

/// What is taken of any bytes is written and read again the same, and costs no more than it brought: text for people
/// may grow while it is cleaned, fourfold at most.
fn is_stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = arrived::<T>(bytes) {
        let written = codec::encode(&value).unwrap();
        prop_assert!(written.len() <= 4 * bytes.len(), "{} bytes out of {}", written.len(), bytes.len());
        prop_assert_eq!(arrived::<T>(&written), Ok(value));
    }
    Ok(())
}

fn changed<T: Serialize>(sent: &T, changes: &Changes) -> Vec<u8> {
    let mut bytes = codec::encode(sent).unwrap();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    bytes
}

macro_rules! every_message {
    ($($name:ident: $kind:ty = $any:ident),* $(,)?) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(sent in any::$any(), changes in changes()) {
                    arrives_as_sent::<$kind>(&sent)?;
                    is_stable::<$kind>(&changed(&sent, &changes))?;
                }
            )*

            /// The number of a variant is four bytes, so of quite random ones hardly any would get further.
            #[test]
            fn any_bytes_are_refused_or_stay_as_they_were_read(
                variant in 0..14_u32,
                rest in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..200),
            ) {
                let bytes = [variant.to_le_bytes().as_slice(), &rest].concat();
                $( is_stable::<$kind>(&bytes)?; )*
            }
        }
    };
}

every_message! {
    host_requests: HostRequest = host_request,
    host_reports: HostReport = host_report,
    host_replies: HostReply = host_reply,
    manager_requests: ManagerRequest = manager_request,
    manager_replies: ManagerReply = manager_reply,
    agent_requests: AgentRequest = agent_request,
    agent_replies: AgentReply = agent_reply,
    daemon_requests: DaemonRequest = daemon_request,
    daemon_replies: DaemonReply = daemon_reply,
    progress: Progress = progress,
    step_events: StepEvent = step_event,
    outcomes: Outcome = outcome,
    records: GenerationRecord = record,
}

proptest! {
    #[test]
    fn small_messages(
        stage in any::stage_progress(),
        generation in any::generation(),
        target in any::target(),
        operation in any::operation(),
    ) {
        arrives_as_sent(&stage)?;
        arrives_as_sent(&generation)?;
        arrives_as_sent(&target)?;
        arrives_as_sent(&operation)?;
        prop_assert_eq!(generation.to_string().parse(), Ok(generation), "also as people type it");
        prop_assert_eq!(target.to_string().parse(), Ok(target));
    }
}
