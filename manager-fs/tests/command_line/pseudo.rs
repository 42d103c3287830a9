//! Managers and mount daemons that behave badly, on their local sockets.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manager_fs::manager::admin::{AdminReply, AdminRequest, Quick};
use manager_fs::net::{self, Answer, BoxFuture, Handler};
use manager_fs::version;
use proto::codec;
use proto::daemon::{DaemonReply, DaemonRequest};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::Fault;
use serde::Serialize;

/// How somebody behaves who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Nobody is there.
    Gone,
    /// Connections wait in the queue for ever, as with a stopped process.
    NeverAccepts,
    /// And the queue is full.
    QueueIsFull,
    /// Requests are read and not answered.
    NeverAnswers,
    /// The connection ends instead of an answer.
    HangsUp,
    /// Greets as another version, whose answers are other messages.
    OtherVersion,
    /// Another protocol altogether.
    Babbles,
    /// Three times `--silence` of these tests for each answer, which is a refusal; but a sign of life at once.
    Slow,
}

pub(crate) const ALL: [Behaviour; 8] = [
    Behaviour::Gone,
    Behaviour::NeverAccepts,
    Behaviour::QueueIsFull,
    Behaviour::NeverAnswers,
    Behaviour::HangsUp,
    Behaviour::OtherVersion,
    Behaviour::Babbles,
    Behaviour::Slow,
];

/// What the one of another version says that it is.
pub(crate) const OTHER_VERSION: &str = "0.0.7";
/// What the slow one refuses with.
pub(crate) const REFUSAL: &str = "this is refused after a while";
const SLOW: Duration = Duration::from_secs(3);

/// A directory with the sockets of a manager and a daemon that behave so, until it is dropped.
pub(crate) struct Pseudo {
    pub(crate) dir: tempfile::TempDir,
    /// Connections that fill the queue, and listeners that nobody serves.
    _kept: Vec<Box<dyn std::any::Any>>,
    runtime: tokio::runtime::Runtime,
}

impl Pseudo {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut pseudo = Self { dir, _kept: Vec::new(), runtime };
        for name in ["store/manager.sock", "run/mount.sock"] {
            let path = pseudo.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            pseudo.behave(&path, behaviour);
        }
        pseudo
    }

    fn behave(&mut self, path: &Path, behaviour: Behaviour) {
        match behaviour {
            Behaviour::Gone => {}
            Behaviour::NeverAccepts => self._kept.push(Box::new(UnixListener::bind(path).unwrap())),
            Behaviour::QueueIsFull => self.fill(path),
            Behaviour::Babbles => self.babble(path),
            other => self.serve(path, other),
        }
    }

    fn fill(&mut self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let address = rustix::net::SocketAddrUnix::new(path).unwrap();
        loop {
            let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                flags,
                None,
            );
            let socket = socket.unwrap();
            if rustix::net::connect(&socket, &address).is_err() {
                break;
            }
            self._kept.push(Box::new(socket));
        }
        self._kept.push(Box::new(listener));
    }

    fn babble(&mut self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                use std::io::Write;
                let _ = (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
                // Open until the other side has had enough.
                std::mem::forget(stream);
            }
        });
    }

    fn serve(&mut self, path: &Path, behaviour: Behaviour) {
        let path: PathBuf = path.to_owned();
        let listener = {
            let _entered = self.runtime.enter();
            net::bind_unix(&path).unwrap()
        };
        let handler = Arc::new(Bad { behaviour, daemon: path.ends_with("mount.sock") });
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let link = net::start(stream, Arc::clone(&handler) as Arc<dyn Handler>);
                if behaviour == Behaviour::HangsUp {
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        link.close("enough");
                    });
                }
            }
        });
    }
}

struct Bad {
    behaviour: Behaviour,
    daemon: bool,
}

impl Handler for Bad {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let (behaviour, daemon) = (self.behaviour, self.daemon);
        Box::pin(async move {
            let greets = Greeting::read(&body).is_some();
            match behaviour {
                Behaviour::OtherVersion if greets => {
                    drop(answer.finish(&Greeting::new(OTHER_VERSION, [7; 16])).await);
                }
                Behaviour::Slow if greets => drop(answer.finish(&version::greeting()).await),
                Behaviour::OtherVersion => drop(answer.finish(&Later::Variant(u64::MAX)).await),
                Behaviour::Slow if daemon => {
                    let request = codec::decode::<DaemonRequest, MESSAGE_BYTES_MAX>(&body);
                    if matches!(request, Ok(DaemonRequest::Status)) {
                        return drop(answer.finish(&DaemonReply::Status("{}".to_owned())).await);
                    }
                    tokio::time::sleep(SLOW).await;
                    drop(answer.finish(&DaemonReply::Fault(refusal())).await);
                }
                Behaviour::Slow => {
                    let request = codec::decode::<AdminRequest, MESSAGE_BYTES_MAX>(&body);
                    let is_sign_of_life =
                        matches!(request, Ok(AdminRequest::Quick(quick)) if matches!(*quick, Quick::Groups));
                    if !is_sign_of_life {
                        tokio::time::sleep(SLOW).await;
                    }
                    drop(answer.finish(&AdminReply::Fault(refusal())).await);
                }
                _ => std::future::pending().await,
            }
        })
    }
}

fn refusal() -> Fault {
    Fault::Refused(REFUSAL.to_owned())
}

/// A message with many more variants than are known here.
#[derive(Serialize)]
enum Later {
    Variant(u64),
}
