//! What a storage answers that an agent keeps a repository in: listings and refusals of S3, packets of SFTP.

#[allow(dead_code, reason = "only what reads is called here")]
#[path = "../../../agent-bin/src/engine/s3/answers.rs"]
mod answers;
#[allow(dead_code, reason = "only what reads is called here")]
#[path = "../../../agent-bin/src/engine/sftp/packet.rs"]
mod packet;

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    // Whoever the server is.
    ("s3_answer", s3_answer),
    ("sftp_packet", sftp_packet),
];

fn s3_answer(bytes: &[u8]) -> bool {
    let refused = answers::refused(bytes);
    let said = refused.code.len() + refused.message.len() + refused.region.len();
    // What stands there can only become shorter.
    assert!(said <= 3 * bytes.len());
    let Ok(page) = answers::page(bytes) else { return !refused.code.is_empty() };
    assert!(page.objects.iter().all(|(key, _)| key.len() <= bytes.len()) && page.objects.len() <= bytes.len());
    true
}

fn sftp_packet(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut taken = false;
    while let Ok(packet) = packet::next(&mut rest) {
        taken |= packet::hello(&packet).is_ok();
        if let Ok((_, reply)) = packet::reply(&packet) {
            taken = true;
            let held = match reply {
                packet::Reply::Status { message, .. } => message.len() / 3,
                packet::Reply::Handle(bytes) | packet::Reply::Data(bytes) => bytes.len(),
                packet::Reply::Names(names) => names.iter().map(|named| named.name.len() + 12).sum(),
                packet::Reply::Attributes(_) => 0,
            };
            assert!(held <= packet.len());
        }
    }
    taken
}
