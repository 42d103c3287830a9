//! What a worker says, cut into messages: a length of 4 bytes, then so many bytes.

use proto::codec;

use super::inherit::Said;

/// The longest message: an answer to INIT, or a line for the operator.
pub(super) const SAID_BYTES_MAX: usize = 16 << 10;

/// What has come and is not a whole message yet.
#[derive(Debug, Default)]
pub(super) struct Heard(Vec<u8>);

/// Something that is no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotSaid {
    /// Nothing that follows can be understood.
    #[error("a message of {0} bytes, at most {SAID_BYTES_MAX} are taken")]
    TooLong(usize),
    /// The next one may be understood again.
    #[error("{0}")]
    Unknown(String),
}

impl Heard {
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next message; `None` before all of it has come.
    pub(super) fn next(&mut self) -> Result<Option<Said>, NotSaid> {
        let Some((len, body)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > SAID_BYTES_MAX {
            self.0 = Vec::new();
            return Err(NotSaid::TooLong(len));
        }
        let Some(body) = body.get(..len) else { return Ok(None) };
        let said = codec::decode::<Said, SAID_BYTES_MAX>(body);
        self.0.drain(..4 + len);
        said.map(Some).map_err(|fault| NotSaid::Unknown(fault.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(said: &Said) -> Vec<u8> {
        let body = codec::encode(said).unwrap();
        [&proto::width::count(body.len()).to_le_bytes()[..], &body].concat()
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let all = [
            framed(&Said::Answer(vec![1, 2, 3])),
            framed(&Said::Alive),
            vec![1, 0, 0, 0, 99],
            framed(&Said::Ready("serves".to_owned())),
        ]
        .concat();
        for step in 1..=all.len() {
            let (mut heard, mut seen) = (Heard::default(), Vec::new());
            for piece in all.chunks(step) {
                heard.push(piece);
                loop {
                    match heard.next() {
                        Ok(None) => break,
                        Ok(Some(said)) => seen.push(format!("{said:?}")),
                        Err(NotSaid::Unknown(_)) => seen.push("unknown".to_owned()),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert_eq!(seen, ["Answer([1, 2, 3])", "Alive", "unknown", "Ready(\"serves\")"], "{step} at a time");
            assert!(heard.0.is_empty());
        }
    }

    #[test]
    fn the_longest_message_is_waited_for_and_a_longer_one_is_not() {
        let mut heard = Heard::default();
        heard.push(&proto::width::count(SAID_BYTES_MAX).to_le_bytes());
        assert!(matches!(heard.next(), Ok(None)));
        for len in [proto::width::count(SAID_BYTES_MAX) + 1, u32::MAX] {
            let mut heard = Heard::default();
            heard.push(&len.to_le_bytes());
            assert_eq!(heard.next().unwrap_err(), NotSaid::TooLong(len as usize));
            assert!(heard.0.is_empty(), "nothing of it is kept");
        }
    }
}
