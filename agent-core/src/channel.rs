//! What an agent tells its stub, over a socket pair that both inherit: where it is on its way, so that the stub knows
//! when to look at the journal. The journal is the truth; a message that is lost costs time and nothing else.
//!
//! One `SOCK_SEQPACKET` message each: format byte, then the `proto::codec` encoding. A stub passes over what it does
//! not know, since agents may be newer than it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::agent::{ChangeId, StepEvent};
use proto::limits::REASON_BYTES_MAX;
use proto::{codec, text};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::descriptor_name::DescriptorName;
use crate::journal::Entry;

const FORMAT: u8 = 1;
const BYTES_MAX: usize = 64 << 10;
/// A stub that is stopped does not hold the program up for longer.
const SEND_PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// From the agent to the stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StubMessage {
    /// The operations API is served.
    Serving,
    /// `execve` is next; the intent is in the journal. The stub's clock for the probation runs from here.
    Executing {
        /// The manager's number of it.
        change: ChangeId,
        /// The version that leaves.
        from: Entry,
        /// The version that comes, and whose probation begins.
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
    /// The descriptor that comes with this message is to be held under this name.
    Keep {
        /// In the place of what had it before.
        name: DescriptorName,
    },
    /// Nothing is to be held under this name any more.
    Forget {
        /// The name under which it was kept; forgetting one that is not there is no error.
        name: DescriptorName,
    },
    /// It has not proved itself yet. If it never does, this is why.
    Unwell {
        /// What keeps it from that, a line for people; the last one counts.
        why: String,
    },
}

impl StubMessage {
    /// What keeps a version from proving itself, cleaned and cut.
    pub(crate) fn unwell(why: &str) -> Self {
        Self::Unwell { why: text::line(why, REASON_BYTES_MAX) }
    }

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
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends, closed by `execve`: the stub's and the agent's.
    ///
    /// # Errors
    /// No descriptor left.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// Sends one message; never waits.
    ///
    /// # Errors
    /// The other end is gone, or does not read.
    pub(crate) fn send(&self, message: &StubMessage) -> io::Result<()> {
        self.send_bytes(&message.to_bytes().map_err(io::Error::other)?)
    }

    /// Sends one message with a duplicate of a descriptor. Waits a while for a stub that has much to read.
    ///
    /// # Errors
    /// As of [`Channel::send`].
    pub(crate) fn send_with(&self, message: &StubMessage, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = message.to_bytes().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        rustix::event::poll(&mut fds, Some(&SEND_PATIENCE))?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let rights: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        if !rights.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&rights));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// [`Channel::receive_with`] without the descriptor.
    #[cfg(test)]
    pub(crate) fn receive(&self) -> io::Result<Option<Received>> {
        Ok(self.receive_with()?.map(|(received, _)| received))
    }

    /// Receives what is there, with the descriptor that came along; never waits. `Ok(None)`: nothing now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end is gone.
    pub(crate) fn receive_with(&self) -> io::Result<Option<(Received, Option<OwnedFd>)>> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(message) if message.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(message) => message.bytes.min(BYTES_MAX),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        Ok(Some((StubMessage::from_bytes(&bytes[..length]), descriptor)))
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
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

    #[test]
    fn a_stub_that_does_not_read_holds_nobody_up() {
        let (_stub, ours) = Channel::pair().unwrap();
        let fault = loop {
            if let Err(fault) = ours.send(&StubMessage::Serving) {
                break fault;
            }
        };
        assert_eq!(fault.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(ours.send_with(&StubMessage::Serving, None).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
