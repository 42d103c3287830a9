//! What an agent tells its stub, over a socket pair that both inherit: where it is on its way, so that the stub knows
//! when to look at the journal. The journal is the truth; a message that is lost costs time and nothing else.
//!
//! One `SOCK_SEQPACKET` message each: format byte, then the `proto::codec` encoding. A stub passes over what it does
//! not know, since agents may be newer than it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::agent::{ChangeId, StepEvent};
use proto::codec;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::journal::Entry;

const FORMAT: u8 = 1;
const BYTES_MAX: usize = 64 << 10;

/// From the agent to the stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StubMessage {
    /// The operations API is served.
    Serving,
    /// `execve` is next; the intent is in the journal. The stub's clock for the probation runs from here.
    Executing {
        /// Which change-over.
        change: ChangeId,
        /// Where from.
        from: Entry,
        /// Where to.
        to: Entry,
        /// From exec to confirmation at most, milliseconds.
        probation_ms: u64,
        /// The steps so far, for the evidence.
        timeline: Vec<StepEvent>,
    },
    /// `execve` came back; the version before is at work.
    ExecReturned,
    /// The running version is believed; the journal says so.
    Confirmed,
}

impl StubMessage {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, codec::CodecError> {
        let mut bytes = vec![FORMAT];
        bytes.extend(codec::encode(self)?);
        Ok(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Received {
        let body = bytes.strip_prefix(&[FORMAT]);
        let message = body.and_then(|body| codec::decode::<StubMessage, BYTES_MAX>(body).ok());
        message.map_or(Received::Unknown, Received::Known)
    }
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends, closed by `execve`: the stub's and the agent's.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// Sends one message; never waits.
    ///
    /// # Errors
    /// The other end is gone, or does not read.
    pub fn send(&self, message: &StubMessage) -> io::Result<()> {
        self.send_bytes(&message.to_bytes().map_err(io::Error::other)?)
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Receives what is there; never waits. `Ok(None)`: nothing now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is gone.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = vec![0; BYTES_MAX];
        let length = match rustix::net::recv(&self.0, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => length.min(BYTES_MAX),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(Some(StubMessage::from_bytes(&bytes[..length])))
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// One of ours.
    Known(StubMessage),
    /// Of a later format.
    Unknown,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_unknown_ones_are_passed_over() {
        let (ours, theirs) = Channel::pair().unwrap();
        assert_eq!(ours.receive().unwrap(), None);
        theirs.send(&StubMessage::Serving).unwrap();
        rustix::net::send(&theirs, &[9, 9, 9], SendFlags::empty()).unwrap();
        theirs.send(&StubMessage::Confirmed).unwrap();
        drop(theirs);
        assert_eq!(ours.receive().unwrap(), Some(Received::Known(StubMessage::Serving)));
        assert_eq!(ours.receive().unwrap(), Some(Received::Unknown));
        assert_eq!(ours.receive().unwrap(), Some(Received::Known(StubMessage::Confirmed)));
        assert_eq!(ours.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
