//! The stub's own socket, `RUN/agents/<product>/stub.sock`: whoever has an order for an agent that does not run brings it
//! here. Served from the stub's one thread, so nothing here waits for whoever asks, and nobody who asks costs more than
//! a bound.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use proto::agent::{AgentReply, AgentRequest};
use proto::codec;
use proto::frame::{FrameHeader, FrameKind, HEADER_BYTES, frame};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::Fault;
use rustix::event::{PollFd, PollFlags};

use crate::sys::socket;

/// The mount daemon is the only one that asks, one message a connection; of more the oldest gives way.
const VISITORS_MAX: usize = 8;
/// What is read of one visitor before others have their turn.
const READ_AT_ONCE: usize = 1 << 20;

/// The socket, and who is in conversation.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    visitors: Vec<Visitor>,
    count: u64,
}

#[derive(Debug)]
struct Visitor {
    number: u64,
    stream: UnixStream,
    /// What has come of the next request.
    came: Vec<u8>,
}

/// A request as it came.
#[derive(Debug)]
pub(super) struct Asked {
    visitor: u64,
    number: u64,
    /// The answer, if there is nothing to decide.
    pub(super) request: Result<AgentRequest, Fault>,
}

impl Door {
    /// Listens, and takes the path from whoever served there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let listener = socket::replace(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, visitors: Vec::new(), count: 0 })
    }

    /// What to poll for: somebody new, or another piece of a request.
    pub(super) fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let visitors = self.visitors.iter().map(|visitor| PollFd::new(&visitor.stream, PollFlags::IN));
        std::iter::once(PollFd::new(&self.listener, PollFlags::IN)).chain(visitors)
    }

    /// The requests that are complete. Never waits.
    pub(super) fn hear(&mut self) -> Vec<Asked> {
        while let Ok((stream, _)) = self.listener.accept() {
            let allowed = socket::peer(stream.as_fd()).is_ok_and(|peer| peer.is_allowed());
            if !allowed || stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.visitors.len() >= VISITORS_MAX {
                self.visitors.remove(0);
            }
            self.count += 1;
            self.visitors.push(Visitor { number: self.count, stream, came: Vec::new() });
        }
        let mut asked = Vec::new();
        self.visitors.retain_mut(|visitor| visitor.read(&mut asked));
        asked
    }

    /// Answers. An answer is small: a visitor whose socket does not take it at once has stopped reading, and is let go.
    pub(super) fn answer(&mut self, asked: &Asked, reply: &AgentReply) {
        let Ok(body) = codec::encode(reply) else { return };
        let bytes = frame(FrameKind::Response, asked.number, &body);
        self.visitors.retain_mut(|visitor| {
            visitor.number != asked.visitor || visitor.stream.write(&bytes).is_ok_and(|n| n == bytes.len())
        });
    }
}

impl Visitor {
    /// Reads what is there. `false`: the visitor has gone, or does not keep to the rules.
    fn read(&mut self, asked: &mut Vec<Asked>) -> bool {
        let mut piece = [0; 16 << 10];
        let mut read = 0;
        let mut is_over = false;
        while read < READ_AT_ONCE {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    is_over = true;
                    break;
                }
                Ok(n) => {
                    self.came.extend_from_slice(&piece[..n]);
                    read += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        loop {
            // The decoder bounds the length that a header may claim.
            let header = match FrameHeader::decode(&self.came) {
                Ok(Some(header)) if self.came.len() >= HEADER_BYTES + header.length => header,
                Ok(_) => return !is_over,
                Err(_) => return false,
            };
            let body: Vec<u8> = self.came.drain(..HEADER_BYTES + header.length).skip(HEADER_BYTES).collect();
            match header.kind {
                FrameKind::Request => {
                    let request = codec::decode::<AgentRequest, MESSAGE_BYTES_MAX>(&body)
                        .map_err(|e| Fault::BadRequest(format!("the request is not understood: {e}")));
                    asked.push(Asked { visitor: self.number, number: header.request, request });
                }
                // Everything is answered at once, so there is nothing to cancel.
                FrameKind::Cancel => {}
                FrameKind::Response | FrameKind::Event | FrameKind::Bulk => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Client, ControlError};
    use proto::agent::ChangeId;
    use std::time::Duration;

    fn ask(path: &Path, request: AgentRequest) -> std::thread::JoinHandle<Result<AgentReply, ControlError>> {
        let path = path.to_owned();
        std::thread::spawn(move || Client::ask(&path, &request, Duration::from_secs(20)))
    }

    /// Serves until this many requests have been answered.
    fn serve(door: &mut Door, requests: usize) -> Vec<Result<AgentRequest, Fault>> {
        let mut heard = Vec::new();
        while heard.len() < requests {
            let mut fds: Vec<_> = door.fds().collect();
            rustix::event::poll(&mut fds, None).unwrap();
            for asked in door.hear() {
                door.answer(&asked, &AgentReply::Done);
                heard.push(asked.request);
            }
        }
        heard
    }

    #[test]
    fn requests_come_whole_in_whatever_pieces_they_were_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        let mut door = Door::open(&path).unwrap();
        let large = AgentRequest::SaveMetadata { change: ChangeId(1), record: vec![7; 3 << 20] };
        let client = ask(&path, large.clone());
        assert_eq!(serve(&mut door, 1), [Ok(large)]);
        assert_eq!(client.join().unwrap().unwrap(), AgentReply::Done);
        // One byte at a time, two requests on one connection.
        let one = frame(FrameKind::Request, 5, &codec::encode(&AgentRequest::Status).unwrap());
        let mut slow = socket::connect(&path).unwrap();
        let writer = std::thread::spawn(move || {
            for byte in one.iter().chain(&one) {
                slow.write_all(&[*byte]).unwrap();
            }
            slow
        });
        assert_eq!(serve(&mut door, 2), [Ok(AgentRequest::Status), Ok(AgentRequest::Status)]);
        drop(writer.join().unwrap());
    }

    #[test]
    fn nobody_at_the_door_keeps_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        let mut door = Door::open(&path).unwrap();
        let silent: Vec<_> = (0..2 * VISITORS_MAX).map(|_| socket::connect(&path).unwrap()).collect();
        let mut stranger = socket::connect(&path).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n0123456789").unwrap();
        let client = ask(&path, AgentRequest::Status);
        assert_eq!(serve(&mut door, 1), [Ok(AgentRequest::Status)]);
        assert_eq!(client.join().unwrap().unwrap(), AgentReply::Done);
        let mut byte = [0];
        assert_eq!(stranger.read(&mut byte).unwrap_or(0), 0, "what is no request ends the conversation");
        assert!(door.visitors.len() <= VISITORS_MAX);
        drop(silent);
    }

    #[test]
    fn each_answer_goes_to_whoever_asked_and_the_conversation_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        let mut door = Door::open(&path).unwrap();
        let mut other = socket::connect(&path).unwrap();
        let client = ask(&path, AgentRequest::Status);
        assert_eq!(serve(&mut door, 1), [Ok(AgentRequest::Status)]);
        assert_eq!(client.join().unwrap().unwrap(), AgentReply::Done);
        let body = codec::encode(&AgentRequest::Status).unwrap();
        for number in [77, 78] {
            other.write_all(&frame(FrameKind::Request, number, &body)).unwrap();
            assert_eq!(serve(&mut door, 1), [Ok(AgentRequest::Status)]);
            assert_eq!(crate::control::read_frame(&mut other).unwrap().unwrap().request, number);
        }
    }

    #[test]
    fn a_visitor_who_leaves_without_the_answer_is_let_go_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        let mut door = Door::open(&path).unwrap();
        let mut visitor = socket::connect(&path).unwrap();
        visitor.write_all(&frame(FrameKind::Request, 1, &codec::encode(&AgentRequest::Status).unwrap())).unwrap();
        serve(&mut door, 1);
        assert_eq!(door.visitors.len(), 1);
        // What is unread when it closes breaks the connection.
        drop(visitor);
        assert!(door.hear().is_empty() && door.visitors.is_empty());
    }
}
