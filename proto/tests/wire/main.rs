//! Every byte that two versions exchange, against the documents: each sample there (a block ` ```hex NAME `) is decoded, and
//! what was read is encoded and described again; both must be the block, byte for byte and word for word.
//!
//! `MANAGER_FS_WRITE_SAMPLES=1 cargo test -p proto --test wire` writes the blocks anew out of `samples.rs`. What differs then is
//! a change of the protocol: it belongs into a new version, or at the end of a choice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod annotate;
mod document;
mod formats;
mod samples;

use std::collections::{BTreeMap, BTreeSet};

use annotate::{Line, render};
use document::Document;
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::look::{Forget, Found, FoundEntry, FoundSnapshot, Keep, Query, SnapshotFilter};
use samples::Choice;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One block of a document.
pub(crate) struct Case {
    pub(crate) document: &'static str,
    pub(crate) name: String,
    /// As the sample's value gives it.
    pub(crate) fresh: Vec<Line>,
    /// Reads bytes, and describes what was read.
    pub(crate) read: fn(&[u8]) -> Vec<Line>,
}

const MESSAGES: &str = "messages.md";

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Vec<Line> {
    let value = codec::decode::<T, MESSAGE_BYTES_MAX>(bytes).unwrap();
    annotate::lines(&value)
}

/// A block for each variant; all in one where no variant has fields.
fn choice<T: Choice>() -> Vec<Case> {
    let samples = T::samples();
    let bare = samples.iter().all(|sample| codec::encode(sample).unwrap().len() == 4);
    if bare {
        let fresh = samples.iter().flat_map(annotate::lines).collect();
        let read = |bytes: &[u8]| bytes.chunks(4).flat_map(message::<T>).collect();
        return vec![Case { document: MESSAGES, name: T::NAME.to_owned(), fresh, read }];
    }
    let named = |sample: &T| {
        let number = sample.number();
        assert_eq!(codec::encode(sample).unwrap()[..4], number.to_le_bytes(), "{} {number}", T::NAME);
        let (variant, _) = T::VARIANTS.iter().find(|(_, of)| *of == number).unwrap();
        let name = format!("{}::{variant}", T::NAME);
        Case { document: MESSAGES, name, fresh: annotate::lines(sample), read: message::<T> }
    };
    samples.iter().map(named).collect()
}

fn plain<T: Serialize + DeserializeOwned>(name: &str, value: &T) -> Case {
    Case { document: MESSAGES, name: name.to_owned(), fresh: annotate::lines(value), read: message::<T> }
}

/// Everything that is one of several, a sample for each.
fn choices() -> Vec<Case> {
    use proto::{agent::*, daemon::*, keeping::*, message::*, name::Target};
    [
        choice::<HostRequest>(),
        choice::<ManagerReply>(),
        choice::<ManagerRequest>(),
        choice::<HostReply>(),
        choice::<HostReport>(),
        choice::<AgentRequest>(),
        choice::<AgentReply>(),
        choice::<DaemonRequest>(),
        choice::<DaemonReply>(),
        choice::<Fault>(),
        choice::<Operation>(),
        choice::<HostScope>(),
        choice::<Keeping>(),
        choice::<Refused>(),
        choice::<Outcome>(),
        choice::<proto::restore::Overwrite>(),
        choice::<Query>(),
        choice::<Found>(),
        choice::<Role>(),
        choice::<AgentState>(),
        choice::<Step>(),
        choice::<proto::GenerationRef>(),
        choice::<Target>(),
        choice::<proto::trace::TraceWhat>(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Everything else that messages are made of.
fn plains() -> Vec<Case> {
    use proto::{
        agent::*,
        backup::{BackupCounts, BackupOptions},
        bundle::Touch,
        daemon::*,
        message::*,
        own::Finding,
    };
    vec![
        plain::<ChunkRange>("ChunkRange", &samples::range()),
        plain::<Touch>("Touch", &samples::touch()),
        plain::<BundleFacts>("BundleFacts", &samples::facts()),
        plain::<ChangeOver>("ChangeOver", &samples::change_over()),
        plain::<Repository>("Repository", &samples::repository()),
        plain::<JobOrigin>("JobOrigin", &samples::origin()),
        plain::<SnapshotRef>("SnapshotRef", &samples::snapshot()),
        plain::<Progress>("Progress", &samples::progress()),
        plain::<Summary>("Summary", &samples::summary()),
        plain::<BackupOptions>("BackupOptions", &samples::backup_options()),
        plain::<proto::means::Commands>("Commands", &samples::commands()),
        plain::<proto::means::Pace>("Pace", &samples::pace()),
        plain::<proto::means::Ran>("Ran", &samples::ran()),
        plain::<SnapshotFilter>("SnapshotFilter", &samples::snapshot_filter()),
        plain::<Forget>("Forget", &samples::forget()),
        plain::<Keep>("Keep", &samples::keep()),
        plain::<FoundSnapshot>("FoundSnapshot", &samples::found_snapshot()),
        plain::<FoundEntry>("FoundEntry", &samples::found_entry()),
        plain::<proto::restore::RestoreOptions>("RestoreOptions", &samples::restore_options()),
        plain::<proto::door::Grant>("Grant", &samples::grant()),
        plain::<BackupCounts>("BackupCounts", &samples::backup_counts()),
        plain::<Finding>("Finding", &samples::finding()),
        plain::<AgentStatus>("AgentStatus", &samples::status()),
        plain::<StepEvent>("StepEvent", &samples::step()),
        plain::<Attached>("Attached", &samples::attached()),
        plain::<StageProgress>("StageProgress", &samples::stage_progress()),
        plain::<Making>("Making", &samples::making()),
    ]
}

fn cases() -> Vec<Case> {
    let greeting = plain("Greeting", &proto::local_greeting::Greeting::new("1.4.0", [0xa7; 16]));
    let greeting = Case { document: "control-protocol.md", ..greeting };
    [choices(), plains(), vec![greeting], formats::cases()].into_iter().flatten().collect()
}

/// The documents by name, with the blocks that they have.
fn documents(cases: &[Case]) -> BTreeMap<&'static str, Document> {
    let names: BTreeSet<_> = cases.iter().map(|case| case.document).collect();
    names.into_iter().map(|name| (name, Document::read(name))).collect()
}

#[test]
fn every_sample_of_the_documents_is_what_the_code_reads_and_writes() {
    let cases = cases();
    let mut documents = documents(&cases);
    if std::env::var_os("MANAGER_FS_WRITE_SAMPLES").is_some_and(|set| set == "1") {
        for case in &cases {
            documents.get_mut(case.document).unwrap().write(&case.name, &render(&case.fresh));
        }
        documents.values().for_each(Document::save);
    }
    for case in &cases {
        let block = documents[case.document].block(&case.name);
        let block = block.unwrap_or_else(|| panic!("docs/{} has no block `hex {}`", case.document, case.name));
        let bytes = annotate::parse(block);
        let read = (case.read)(&bytes);
        let again: Vec<u8> = read.iter().flat_map(|line| line.bytes.clone()).collect();
        assert_eq!(again, bytes, "{}: what was read is written otherwise", case.name);
        assert_eq!(render(&read), block, "docs/{}: `hex {}`", case.document, case.name);
    }
}

#[test]
fn every_variant_has_a_sample_and_every_sample_a_variant() {
    fn check<T: Choice>() {
        let covered: BTreeSet<u32> = T::samples().iter().map(Choice::number).collect();
        let all: BTreeSet<u32> = T::VARIANTS.iter().map(|(_, number)| *number).collect();
        assert_eq!(covered, all, "{}", T::NAME);
        assert!(all.iter().copied().eq(0..all.len() as u32), "{}: the numbers have a gap", T::NAME);
        // The next number is nobody's yet: an older version refuses what a later one adds, and says so.
        let beyond = (all.len() as u32).to_le_bytes();
        assert!(codec::decode::<T, 64>(&beyond).is_err(), "{} {}", T::NAME, all.len());
    }
    use proto::{agent::*, daemon::*, message::*, name::Target};
    check::<HostRequest>();
    check::<ManagerReply>();
    check::<ManagerRequest>();
    check::<HostReply>();
    check::<HostReport>();
    check::<AgentRequest>();
    check::<AgentReply>();
    check::<DaemonRequest>();
    check::<DaemonReply>();
    check::<Fault>();
    check::<Operation>();
    check::<HostScope>();
    check::<proto::keeping::Keeping>();
    check::<proto::keeping::Refused>();
    check::<proto::restore::Overwrite>();
    check::<Outcome>();
    check::<Role>();
    check::<AgentState>();
    check::<Step>();
    check::<proto::GenerationRef>();
    check::<Target>();
}

#[test]
fn no_document_has_a_sample_that_nobody_reads() {
    let cases = cases();
    for (name, document) in documents(&cases) {
        for block in document.names() {
            let known = cases.iter().any(|case| case.document == name && case.name == block);
            assert!(known, "docs/{name}: nothing reads `hex {block}`");
        }
    }
}

/// Messages nest: what `samples.rs` has of one type stands in the others too, so cutting any of them anywhere is an error.
#[test]
fn a_message_that_is_cut_or_followed_by_a_byte_is_refused() {
    for case in cases().iter().filter(|case| case.document == MESSAGES && case.name.contains("::")) {
        let bytes: Vec<u8> = case.fresh.iter().flat_map(|line| line.bytes.clone()).collect();
        for end in 0..bytes.len() {
            let cut = std::panic::catch_unwind(|| (case.read)(&bytes[..end]));
            assert!(cut.is_err(), "{} at {end}", case.name);
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(std::panic::catch_unwind(|| (case.read)(&longer)).is_err(), "{}", case.name);
    }
}
