//! Frames over a local socket, blocking: the client that asks the mount daemon (or another agent), and the reading and
//! writing that the operations API is served with.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use proto::codec::{self, CodecError};
use proto::frame::{self, FrameFault, FrameHeader, FrameKind, HEADER_BYTES};
use proto::limits::MESSAGE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::socket;

/// A conversation over a local socket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody serves the socket; whoever should may be starting.
    #[error("cannot reach {path}: {source}")]
    Unreachable {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended or failed before the answer.
    #[error("the connection ended before the answer: {0}")]
    Broken(#[source] io::Error),
    /// Nothing came for longer than the caller wanted to wait.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The peer broke the framing.
    #[error("{0}")]
    Frame(#[from] FrameFault),
    /// A message does not encode or decode.
    #[error("{0}")]
    Message(#[from] CodecError),
    /// A frame that has no place here.
    #[error("the peer sent an unexpected {0:?} frame")]
    Unexpected(FrameKind),
}

impl ControlError {
    /// Whether the same request may be sent again on a new connection: the other side was not there, or went away.
    pub fn may_retry(&self) -> bool {
        matches!(self, ControlError::Unreachable { .. } | ControlError::Broken(_))
    }
}

/// One frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether it is a request, an answer or a part of one, or takes a request back.
    pub kind: FrameKind,
    /// The number that the requester gave; the answer bears the same one.
    pub request: u64,
    /// An encoded message, or raw bytes.
    pub body: Vec<u8>,
}

/// Reads one frame; `None` when the peer closed the connection between two.
///
/// # Errors
/// The connection failed or ended within a frame, or the peer broke the framing.
pub fn read_frame(stream: &mut impl Read) -> Result<Option<Frame>, ControlError> {
    let mut bytes = [0; HEADER_BYTES];
    let mut have = 0;
    let header = loop {
        match stream.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ControlError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ControlError::Broken(e)),
        }
        if let Some(header) = FrameHeader::decode(&bytes[..have])? {
            break header;
        }
    };
    // Grown as bytes come, not by what the header claims.
    let mut body = Vec::with_capacity(header.length.min(64 << 10));
    let got = stream.take(header.length as u64).read_to_end(&mut body).map_err(ControlError::Broken)?;
    if got < header.length {
        return Err(ControlError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(Frame { kind: header.kind, request: header.request, body }))
}

/// Writes one frame in one piece.
///
/// # Errors
/// The value does not encode, or the connection failed.
pub fn write_frame<T: Serialize>(
    mut stream: impl Write,
    kind: FrameKind,
    request: u64,
    value: &T,
) -> Result<(), ControlError> {
    let body = codec::encode(value)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(FrameFault::TooLong { kind, length: body.len(), max: MESSAGE_BYTES_MAX }.into());
    }
    stream.write_all(&frame::frame(kind, request, &body)).map_err(ControlError::Broken)
}

/// One connection to a local socket, for one request at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    requests: u64,
}

impl Client {
    /// Connects to whoever serves the socket at `path`.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let unreachable = |source| ControlError::Unreachable { path: path.display().to_string(), source };
        let stream = socket::connect(path).map_err(unreachable)?;
        Ok(Self { stream, requests: 0 })
    }

    /// The connection, so that another thread can end it while a request waits.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a request and waits for its response; `on_event` gets the events on the way. `silence` bounds the wait
    /// for each next frame, not for all of them, so that long work that shows progress is not cut off; `None` waits
    /// as long as the connection lives. After an error the connection is of no further use.
    ///
    /// # Errors
    /// Whatever [`ControlError`] names. A refusal is not an error here: it is part of the reply's type.
    pub fn request<Request, Event, Reply>(
        &mut self,
        request: &Request,
        silence: Option<Duration>,
        mut on_event: impl FnMut(Event),
    ) -> Result<Reply, ControlError>
    where
        Request: Serialize,
        Event: DeserializeOwned,
        Reply: DeserializeOwned,
    {
        self.send(request, silence)?;
        self.receive(silence, &mut on_event)
    }

    /// Sends a request whose response [`Client::receive`] takes; until then there is no other one on this connection.
    pub(crate) fn send(&mut self, request: &impl Serialize, silence: Option<Duration>) -> Result<(), ControlError> {
        self.requests += 1;
        self.stream.set_write_timeout(silence).map_err(ControlError::Broken)?;
        write_frame(&self.stream, FrameKind::Request, self.requests, request)
    }

    /// The rest of [`Client::request`].
    pub(crate) fn receive<Event, Reply>(
        &mut self,
        silence: Option<Duration>,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Reply, ControlError>
    where
        Event: DeserializeOwned,
        Reply: DeserializeOwned,
    {
        self.stream.set_read_timeout(silence).map_err(ControlError::Broken)?;
        loop {
            let frame = match read_frame(&mut self.stream) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(ControlError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Err(ControlError::Broken(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ControlError::Silent(silence.unwrap_or_default()));
                }
                Err(e) => return Err(e),
            };
            match frame.kind {
                // The answer to a request that an earlier error left behind cannot come: the connection is closed then.
                _ if frame.request != self.requests => return Err(ControlError::Unexpected(frame.kind)),
                FrameKind::Event => on_event(codec::decode::<_, MESSAGE_BYTES_MAX>(&frame.body)?),
                FrameKind::Response => return Ok(codec::decode::<_, MESSAGE_BYTES_MAX>(&frame.body)?),
                kind @ (FrameKind::Request | FrameKind::Bulk | FrameKind::Cancel) => {
                    return Err(ControlError::Unexpected(kind));
                }
            }
        }
    }

    /// Keeps the connection open in the program that this process executes next: what the other side ties to the
    /// connection (a lease) then lives as long as that program.
    ///
    /// # Errors
    /// Of `fcntl(2)`.
    pub fn keep_across_exec(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.stream, rustix::io::FdFlags::empty())?)
    }

    /// [`Client::request`] of something that has no events, on a connection of its own.
    ///
    /// # Errors
    /// As [`Client::connect`] and [`Client::request`].
    pub fn ask<Request: Serialize, Reply: DeserializeOwned>(
        path: &Path,
        request: &Request,
        silence: Duration,
    ) -> Result<Reply, ControlError> {
        Self::connect(path)?.request(request, Some(silence), |_: ()| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    fn answer(mut server: UnixStream, frames: Vec<(FrameKind, u64, Vec<u8>)>) {
        std::thread::spawn(move || {
            let request = read_frame(&mut server).unwrap().unwrap();
            for (kind, shift, body) in frames {
                server.write_all(&frame::frame(kind, request.request + shift, &body)).unwrap();
            }
            read_frame(&mut server).unwrap();
        });
    }

    fn pair() -> (Client, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = socket::bind(&path).unwrap();
        let client = Client::connect(&path).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn events_come_before_the_response() {
        let (mut client, server) = pair();
        let number = |n: u32| codec::encode(&n).unwrap();
        answer(server, vec![(FrameKind::Event, 0, number(1)), (FrameKind::Response, 0, number(2))]);
        let mut events = Vec::new();
        let reply: u32 = client.request(&7u32, None, |e: u32| events.push(e)).unwrap();
        assert_eq!((events, reply), (vec![1], 2));
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_named() {
        let (mut client, server) = pair();
        answer(server, vec![(FrameKind::Response, 1, vec![])]);
        let wrong = client.request::<_, (), u32>(&7u32, None, |()| {}).unwrap_err();
        assert!(matches!(wrong, ControlError::Unexpected(FrameKind::Response)), "{wrong}");

        let (mut client, mut server) = pair();
        server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let wrong = client.request::<_, (), u32>(&7u32, None, |()| {}).unwrap_err();
        assert!(matches!(wrong, ControlError::Frame(FrameFault::Magic(_))), "{wrong}");
    }

    #[test]
    fn silence_and_an_end_are_told_apart() {
        let (mut client, server) = pair();
        let silence = Some(Duration::from_millis(20));
        let error = client.request::<_, (), u32>(&7u32, silence, |()| {}).unwrap_err();
        assert!(matches!(error, ControlError::Silent(_)) && !error.may_retry(), "{error}");
        drop(server);

        let (mut client, server) = pair();
        drop(server);
        assert!(client.request::<_, (), u32>(&7u32, None, |()| {}).unwrap_err().may_retry());
    }

    /// Gives these pieces one after the other, and an interruption before each.
    struct Pieces(Vec<Vec<u8>>, bool);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            into[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_frame_comes_whole_in_any_pieces_or_not_at_all() {
        let whole = frame::frame(FrameKind::Event, 5, b"body");
        let wanted = Frame { kind: FrameKind::Event, request: 5, body: b"body".to_vec() };
        let bytes = whole.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(read_frame(&mut Pieces(bytes, false)).unwrap(), Some(wanted));
        assert_eq!(read_frame(&mut io::empty()).unwrap(), None);
        for length in 1..whole.len() {
            let fault = read_frame(&mut &whole[..length]).unwrap_err();
            assert!(matches!(fault, ControlError::Broken(_)), "{length}: {fault}");
        }
    }

    #[test]
    fn the_largest_message_is_sent_and_a_larger_one_is_refused_here() {
        let largest = "x".repeat(MESSAGE_BYTES_MAX - codec::encode(&"").unwrap().len());
        write_frame(io::sink(), FrameKind::Request, 1, &largest).unwrap();
        let fault = write_frame(io::sink(), FrameKind::Request, 1, &(largest + "x")).unwrap_err();
        assert!(matches!(fault, ControlError::Frame(FrameFault::TooLong { .. })), "{fault}");
    }

    #[test]
    fn each_request_has_a_number_of_its_own() {
        let (mut client, mut server) = pair();
        client.send(&1u32, None).unwrap();
        client.send(&2u32, None).unwrap();
        let numbers = [(); 2].map(|()| read_frame(&mut server).unwrap().unwrap().request);
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn an_end_within_a_frame_is_no_silence() {
        let (mut client, mut server) = pair();
        server.write_all(&frame::frame(FrameKind::Response, 1, b"body")[..20]).unwrap();
        drop(server);
        let fault = client.receive::<(), u32>(Some(Duration::from_secs(60)), &mut |()| {}).unwrap_err();
        assert!(matches!(fault, ControlError::Broken(_)), "{fault}");
    }

    #[test]
    fn a_connection_that_is_kept_stays_open_in_the_next_program() {
        let (client, _server) = pair();
        let flags = || rustix::io::fcntl_getfd(client.stream()).unwrap();
        assert!(flags().contains(rustix::io::FdFlags::CLOEXEC));
        client.keep_across_exec().unwrap();
        assert!(!flags().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
