//! What two versions of this library exchange, against `docs/swap.md`: the samples are decoded out of the document, and
//! encoded again to the same bytes, so that neither can drift from the other.

use std::path::Path;

use proto::agent::{ChangeId, JobId, Operation, Outcome, Repository, Step, StepEvent, Summary};
use proto::{TreeId, codec};

use crate::channel::{Channel, Received, StubMessage};
use crate::durable::FileFault;
use crate::handoff::Handoff;
use crate::inherited::{self, Named};
use crate::jobs::JobRecord;
use crate::journal::{Entry, Journal, Phase, Staged};
use crate::state::Snapshot;

const DOCUMENT: &str = include_str!("../../docs/swap.md");

/// The bytes of the block that begins with "```hex NAME".
fn sample(name: &str) -> Vec<u8> {
    let fence = format!("```hex {name}\n");
    let start = DOCUMENT.find(&fence).unwrap_or_else(|| panic!("docs/swap.md has no sample {name}")) + fence.len();
    let text = &DOCUMENT[start..start + DOCUMENT[start..].find("```").unwrap()];
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// For whoever changes the document: the block as it has to stand there.
fn block(name: &str, bytes: &[u8]) -> String {
    let lines: Vec<String> =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    format!("```hex {name}\n{}\n```", lines.join("\n"))
}

fn entry(n: u8) -> Entry {
    Entry { version: format!("{n}.0").parse().unwrap(), tree: TreeId::of(&[n]) }
}

fn journal() -> Journal {
    Journal {
        sequence: 7,
        current: entry(2),
        last_good: Some(entry(1)),
        staged: Some(Staged { change: ChangeId(9), entry: entry(3) }),
        phase: Phase::Probation { change: ChangeId(8), attempts: 1, probation_ms: 10_000 },
        reason: "changed over from 1.0".to_owned(),
    }
}

fn step() -> StepEvent {
    StepEvent {
        change: ChangeId(8),
        product: "agent".parse().unwrap(),
        from: Some(entry(1).tree),
        to: entry(2).tree,
        step: Step::Drained,
        at_unix_ms: 1_700_000_000_000,
        duration_us: 12,
        detail: "nothing is under way".to_owned(),
    }
}

fn handoff() -> Handoff {
    Handoff {
        change: ChangeId(8),
        from: entry(1),
        to: entry(2),
        schema: 3,
        state: b"state".to_vec(),
        kept_bytes: None,
        unfinished: vec![JobId(4)],
        timeline: vec![step()],
        drained_us: 1_000_000,
        exec_us: 1_000_500,
    }
}

/// Its state is in a memory file of its own.
fn large() -> Handoff {
    Handoff { state: Vec::new(), kept_bytes: Some(3 << 30), ..handoff() }
}

fn snapshot() -> Snapshot {
    Snapshot { saved_by: entry(1), schema: 3, bytes: 5, saved_unix_ms: 1_700_000_000_000 }
}

fn job() -> JobRecord {
    JobRecord {
        id: JobId(4),
        operation: Operation::Backup {
            repository: Repository { path: "/r".to_owned(), password_file: None },
            sources: vec!["/a".to_owned()],
        },
        resume: Some((3, b"half".to_vec())),
        starts: 1,
        cancelled: false,
        versions: vec![entry(1).version, entry(2).version],
        outcome: Some(Outcome::Done(Summary { files: 1, ..Summary::default() })),
    }
}

fn inherited() -> Vec<Named> {
    let named = |name: &str, number| Named { name: name.parse().unwrap(), number };
    vec![named("http", 7), named("access-log", 9)]
}

fn messages() -> [(&'static str, StubMessage); 7] {
    let executing = StubMessage::Executing {
        change: ChangeId(8),
        from: entry(1),
        to: entry(2),
        probation_ms: 10_000,
        timeline: vec![step()],
    };
    [
        ("stub-serving", StubMessage::Serving),
        ("stub-executing", executing),
        ("stub-exec-returned", StubMessage::ExecReturned),
        ("stub-confirmed", StubMessage::Confirmed),
        ("stub-keep", StubMessage::Keep { name: "http".parse().unwrap() }),
        ("stub-forget", StubMessage::Forget { name: "http".parse().unwrap() }),
        ("stub-unwell", StubMessage::Unwell { why: "status 503".to_owned() }),
    ]
}

/// All that the document has to show.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = vec![
        ("journal-v1", journal().to_bytes(Path::new("x")).unwrap()),
        ("handoff-v1", handoff().to_bytes().unwrap()),
        ("handoff-v2", large().to_bytes().unwrap()),
        ("snapshot-v1", snapshot().to_bytes().unwrap()),
        ("job-v1", job().to_bytes().unwrap()),
        ("inherited-v1", inherited::to_bytes(&inherited()).unwrap()),
    ];
    samples.extend(messages().map(|(name, message)| (name, message.to_bytes().unwrap())));
    samples
}

#[test]
fn the_document_shows_what_is_written() {
    let wrong: Vec<String> = samples()
        .into_iter()
        .filter(|(name, bytes)| !DOCUMENT.contains(&block(name, bytes)))
        .map(|(name, bytes)| block(name, &bytes))
        .collect();
    assert!(wrong.is_empty(), "docs/swap.md has to have these:\n{}", wrong.join("\n"));
}

#[test]
fn what_the_document_shows_is_read() {
    let path = Path::new("sample");
    assert_eq!(Journal::from_bytes(&sample("journal-v1"), path).unwrap(), journal());
    assert_eq!(Handoff::from_bytes(&sample("handoff-v1")).unwrap(), handoff());
    assert_eq!(Handoff::from_bytes(&sample("handoff-v2")).unwrap(), large());
    assert_eq!(Snapshot::from_bytes(&sample("snapshot-v1")).unwrap(), snapshot());
    assert_eq!(JobRecord::from_bytes(&sample("job-v1"), path).unwrap(), job());
    assert_eq!(inherited::from_bytes(&sample("inherited-v1")).unwrap(), inherited());
    for (name, message) in messages() {
        assert_eq!(StubMessage::from_bytes(&sample(name)), Received::Known(message), "{name}");
    }
}

/// The answers that the document gives to what a later version may write.
#[test]
fn what_is_not_known_gets_the_answer_that_the_document_says() {
    let path = Path::new("sample");
    let later = |name: &str| {
        let mut bytes = sample(name);
        bytes[7] += 1;
        bytes
    };
    assert!(matches!(Journal::from_bytes(&later("journal-v1"), path), Err(FileFault::Format { .. })));
    assert!(matches!(Handoff::from_bytes(&later("handoff-v2")), Err(FileFault::Format { .. })));
    assert!(matches!(Snapshot::from_bytes(&later("snapshot-v1")), Err(FileFault::Format { .. })));
    assert!(matches!(JobRecord::from_bytes(&later("job-v1"), path), Err(FileFault::Format { .. })));
    assert!(matches!(inherited::from_bytes(&later("inherited-v1")), Err(FileFault::Format { .. })));
    // An unknown variant, and bytes behind the value: whole by its checksum, and not understood.
    let with_body = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let bytes = sample(name);
        let mut body = bytes[40..].to_vec();
        change(&mut body);
        crate::durable::seal(bytes[..8].try_into().unwrap(), &body)
    };
    let phase = codec::encode(&journal().phase).unwrap();
    let unknown_phase = with_body("journal-v1", &|body| {
        let at = body.windows(phase.len()).position(|window| window == phase).unwrap();
        body[at] = 99;
    });
    assert!(matches!(Journal::from_bytes(&unknown_phase, path), Err(FileFault::Damaged { .. })));
    for name in ["journal-v1", "handoff-v1", "handoff-v2", "snapshot-v1", "job-v1", "inherited-v1"] {
        let longer = with_body(name, &|body| body.push(0));
        let refused = match name {
            "journal-v1" => Journal::from_bytes(&longer, path).is_err(),
            "handoff-v1" | "handoff-v2" => Handoff::from_bytes(&longer).is_err(),
            "snapshot-v1" => Snapshot::from_bytes(&longer).is_err(),
            "inherited-v1" => inherited::from_bytes(&longer).is_err(),
            _ => JobRecord::from_bytes(&longer, path).is_err(),
        };
        assert!(refused, "{name} with a byte too many");
    }
    // The stub passes over what it does not know, and goes on listening.
    let (ours, theirs) = Channel::pair().unwrap();
    for unknown in [&[2, 0, 0, 0, 0][..], &[1, 99, 0, 0, 0], &[1]] {
        theirs.send_bytes(unknown).unwrap();
        assert_eq!(ours.receive().unwrap(), Some(Received::Unknown));
    }
}
