//! The signed record through its public face.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ed25519_dalek::{Signer, SigningKey};
use proto::adapter::{Adapter, Drain, DrainSignal, Handover};
use proto::record::{Format, GenerationRecord, HealthContract, Metadata, RecordFault, SchemaRange, SignedRecord};
use proto::{PublisherKey, Publishers, TreeId, TreePath};

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
            ..Metadata::default()
        },
    }
}

/// The same as in the table of `docs/product-file.md`.
#[test]
fn a_product_without_a_file_has_these_values() {
    let metadata = Metadata::default();
    assert_eq!(metadata.state_schemas, SchemaRange { min: 1, max: 1 });
    assert_eq!(
        (metadata.drain_deadline_ms, metadata.health),
        (60_000, HealthContract { probation_ms: 10_000, check: None })
    );
    assert_eq!((metadata.entry_point, metadata.arguments.len(), metadata.entry_count), (None, 0, 1));
}

#[test]
fn a_record_is_believed_only_with_its_publishers_signature() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let signed = SignedRecord::sign(&record(), &key).unwrap();
    let bytes = signed.to_bytes().unwrap();
    let read = SignedRecord::from_bytes(&bytes).unwrap();
    assert_eq!(read.verify(&[key.verifying_key().into()]).unwrap(), record());

    let stranger = SigningKey::from_bytes(&[8; 32]).verifying_key().into();
    assert!(matches!(read.verify(&[stranger]), Err(RecordFault::UnknownPublisher(_))));

    let mut changed = read.clone();
    let last = changed.payload.len() - 1;
    changed.payload[last] ^= 1;
    assert_eq!(changed.verify(&[key.verifying_key().into()]), Err(RecordFault::BadSignature));

    let mut impostor = SignedRecord::sign(&record(), &SigningKey::from_bytes(&[8; 32])).unwrap();
    impostor.publisher = key.verifying_key().to_bytes();
    assert_eq!(impostor.verify(&[key.verifying_key().into()]), Err(RecordFault::BadSignature));
}

#[test]
fn every_single_damaged_byte_is_noticed() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let bytes = SignedRecord::sign(&record(), &key).unwrap().to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let believed =
            SignedRecord::from_bytes(&damaged).is_ok_and(|r| r.verify(&[key.verifying_key().into()]).is_ok());
        assert!(!believed, "byte {at}");
    }
}

#[test]
fn a_record_file_has_its_magic_its_name_and_its_id() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let bytes = SignedRecord::sign(&record(), &key).unwrap().to_bytes().unwrap();
    assert_eq!(&bytes[..8], b"MFSREC\0\x01");
    assert_eq!(record().name(), "data-agent@1.0");
    assert_eq!(SignedRecord::id_of(&bytes), *TreeId::of(&bytes).as_bytes(), "the BLAKE3 of its bytes");
    for cut in 0..8 {
        assert_eq!(SignedRecord::from_bytes(&bytes[..cut]), Err(RecordFault::NotARecord));
    }
    let mut newer = bytes.clone();
    newer[7] = 3;
    assert_eq!(SignedRecord::from_bytes(&newer), Err(RecordFault::NotARecord));
    for cut in 8..bytes.len() {
        assert!(matches!(SignedRecord::from_bytes(&bytes[..cut]), Err(RecordFault::Damaged(_))), "{cut} bytes");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(SignedRecord::from_bytes(&longer), Err(RecordFault::Damaged(_))));
}

#[test]
fn an_adapter_makes_it_a_record_of_format_2_and_nothing_else_does() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let trusted = [PublisherKey::from(key.verifying_key())];
    let mut adapted = record();
    adapted.metadata.adapter = Some(Adapter {
        handover: Handover::Restart,
        listen: vec![],
        drain: Drain { signal: DrainSignal::Int, deadline_ms: 1 },
        environment: vec![],
    });
    let signed = SignedRecord::sign(&adapted, &key).unwrap();
    let bytes = signed.to_bytes().unwrap();
    assert_eq!(&bytes[..8], b"MFSREC\0\x02");
    let read = SignedRecord::from_bytes(&bytes).unwrap();
    assert_eq!(read.verify(&trusted), Ok(adapted.clone()));
    assert_eq!(Metadata::from_bytes(&adapted.metadata.to_bytes().unwrap()), Ok(adapted.metadata));
    // The same payload is of one format only: the signature says which.
    let mut as_one = bytes;
    as_one[7] = 1;
    let as_one = SignedRecord::from_bytes(&as_one).unwrap();
    assert_eq!(as_one.verify(&trusted), Err(RecordFault::BadSignature));
    for (format, rest) in [(Format::One, vec![0_u8, 0]), (Format::Two, vec![]), (Format::Two, vec![0, 0])] {
        let number = if format == Format::One { 1 } else { 2 };
        let payload = [proto::codec::encode(&record()).unwrap(), rest].concat();
        let context = format!("manager-fs generation record {number}\0");
        let signature = key.sign(&[context.as_bytes(), &payload].concat()).to_bytes().to_vec();
        let forged = SignedRecord { format, publisher: trusted[0].to_bytes(), payload, signature };
        assert!(matches!(forged.verify(&trusted), Err(RecordFault::Damaged(_))), "{format:?}");
    }
}

#[test]
fn a_signature_is_of_the_context_the_payload_and_one_key() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let trusted = [PublisherKey::from(key.verifying_key())];
    let signed = SignedRecord::sign(&record(), &key).unwrap();
    assert_eq!(signed.publisher, trusted[0].to_bytes());
    for length in [0, 63, 65] {
        let mut other = signed.clone();
        other.signature.resize(length, 0);
        assert_eq!(other.verify(&trusted), Err(RecordFault::BadSignature), "{length} bytes");
    }
    // Signed by the right key, but not as a record.
    let mut bare = signed.clone();
    bare.signature = key.sign(&signed.payload).to_bytes().to_vec();
    assert_eq!(bare.verify(&trusted), Err(RecordFault::BadSignature));
    // Signed as a record, and none.
    let mut odd = signed.clone();
    odd.payload = vec![1, 2, 3];
    odd.signature = key.sign(b"manager-fs generation record 1\0\x01\x02\x03").to_bytes().to_vec();
    assert!(matches!(odd.verify(&trusted), Err(RecordFault::Damaged(_))));
    let unknown = signed.verify(&[]).unwrap_err().to_string();
    let hex: String = signed.publisher.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(unknown, format!("the generation record is signed by publisher {hex}, which is not trusted here"));
    // The one that signed is found among several.
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key().into();
    assert_eq!(signed.verify(&[other, trusted[0]]), Ok(record()));
}

#[test]
fn the_list_of_publishers_names_its_first_bad_line() {
    let key = |n: u8| SigningKey::from_bytes(&[n; 32]).verifying_key();
    let publishers = Publishers::from_keys(&[key(7).to_bytes(), key(8).to_bytes()]).unwrap();
    let text = publishers.to_text();
    assert_eq!(text.lines().count(), 2);
    let bad = |text: &str| Publishers::parse(text).unwrap_err().line;
    assert_eq!(bad("x"), 1);
    assert_eq!(bad(&format!("{text}\n# a comment\n \nx\ny")), 6);
    assert_eq!(bad(&text.to_uppercase()), 1);
    assert_eq!(Publishers::parse(&format!("  {text}#\n")), Ok(publishers.clone()));
    assert_eq!(Publishers::parse(""), Ok(Publishers::default()));
    // Not every 32 bytes are a point of the curve.
    let no_key = (0..=u8::MAX).map(|n| [n; 32]).find(|key| Publishers::from_keys(&[*key]).is_err()).unwrap();
    let refused = Publishers::from_keys(&[key(7).to_bytes(), no_key]).unwrap_err();
    assert_eq!(refused.to_string(), "line 2 is not an ed25519 public key: want 64 lowercase hex digits");
}

#[test]
fn architectures_are_compared_with_the_machine() {
    let runs = |architecture, machine| proto::record::runs_on(architecture, machine);
    assert!(runs("x86_64", "x86_64") && runs("x86", "x86_64") && runs("x86", "i686") && runs("s390x", "s390x"));
    assert!(runs("arm", "aarch64") && runs("arm", "armv7l") && runs("powerpc64", "ppc64le"));
    assert!(!runs("aarch64", "x86_64") && !runs("x86_64", "aarch64") && !runs("x86_64", "i686"));
}
