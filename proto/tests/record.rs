//! The signed record through its public face.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ed25519_dalek::SigningKey;
use proto::record::{GenerationRecord, HealthContract, Metadata, RecordFault, SchemaRange, SignedRecord};
use proto::{TreeId, TreePath};

fn record() -> GenerationRecord {
    GenerationRecord {
        product: "data-agent".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        sequence: 7,
        tree: TreeId::of(b"tree"),
        manifest_bytes: 4,
        published_unix_ms: 1_790_000_000_000,
        metadata: Metadata {
            entry_point: Some(TreePath::parse(b"bin/agent").unwrap()),
            arguments: vec!["--role".into(), "data".into()],
            architecture: Some("x86_64".into()),
            elf_files: vec![],
            scripts: vec![],
            entry_count: 3,
            file_count: 1,
            content_bytes: 10,
            object_bytes: 10,
            state_schemas: SchemaRange { min: 1, max: 2 },
            drain_deadline_ms: 60_000,
            health: HealthContract { probation_ms: 10_000 },
        },
    }
}

#[test]
fn a_record_is_believed_only_with_its_publishers_signature() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let signed = SignedRecord::sign(&record(), &key).unwrap();
    let bytes = signed.to_bytes().unwrap();
    let read = SignedRecord::from_bytes(&bytes).unwrap();
    assert_eq!(read.verify(&[key.verifying_key()]).unwrap(), record());

    let stranger = SigningKey::from_bytes(&[8; 32]).verifying_key();
    assert!(matches!(read.verify(&[stranger]), Err(RecordFault::UnknownPublisher(_))));

    let mut changed = read.clone();
    let last = changed.payload.len() - 1;
    changed.payload[last] ^= 1;
    assert_eq!(changed.verify(&[key.verifying_key()]), Err(RecordFault::BadSignature));

    let mut impostor = SignedRecord::sign(&record(), &SigningKey::from_bytes(&[8; 32])).unwrap();
    impostor.publisher = key.verifying_key().to_bytes();
    assert_eq!(impostor.verify(&[key.verifying_key()]), Err(RecordFault::BadSignature));
}

#[test]
fn every_single_damaged_byte_is_noticed() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let bytes = SignedRecord::sign(&record(), &key).unwrap().to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let believed = SignedRecord::from_bytes(&damaged).is_ok_and(|r| r.verify(&[key.verifying_key()]).is_ok());
        assert!(!believed, "byte {at}");
    }
}
