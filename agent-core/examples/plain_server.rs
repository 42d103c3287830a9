//! An ordinary HTTP server that knows nothing of agents, as an adapter runs one: it takes its sockets from
//! `LISTEN_FDS`, or binds for itself with `SO_REUSEPORT`, and ends on SIGTERM when what it has begun is answered.
//!
//! `plain_server TEXT [--bind ADDRESS] [--status NUMBER] [--stubborn] [--lock FILE]`

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_core::internal::sys;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

struct Server {
    text: String,
    status: String,
    under_way: AtomicUsize,
}

fn main() -> io::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.remove(at);
        Some(arguments.remove(at))
    };
    let (bind, status, lock) = (option("--bind"), option("--status"), option("--lock"));
    let is_stubborn = arguments.iter().any(|argument| argument == "--stubborn");
    // As a program that must not be there twice.
    let lock = lock.map(std::fs::File::create).transpose()?;
    if let Some(lock) = &lock {
        rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    }
    let listener = match bind {
        Some(address) => reuse_port(address.parse().map_err(io::Error::other)?)?,
        None => {
            let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
            assert!(ours, "LISTEN_PID names this process");
            TcpListener::from(sys::fd::take_inherited(3)?)
        }
    };
    listener.set_nonblocking(true)?;
    let told = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let end: OwnedFd = told.try_clone()?;
    sys::signal::wake_on_terminate(told)?;
    let text = arguments.into_iter().next().unwrap_or_default();
    let status = status.unwrap_or_else(|| "200".to_owned());
    let server = Arc::new(Server { text, status, under_way: AtomicUsize::new(0) });
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
        if rustix::event::poll(&mut fds, None).is_err() {
            continue;
        }
        if !is_stubborn && !fds[1].revents().is_empty() {
            break;
        }
        // Another process may have been quicker.
        let Ok((stream, _)) = listener.accept() else { continue };
        server.under_way.fetch_add(1, Ordering::AcqRel);
        let server = server.clone();
        std::thread::spawn(move || {
            drop(server.answer(stream));
            server.under_way.fetch_sub(1, Ordering::AcqRel);
        });
    }
    drop(listener);
    while server.under_way.load(Ordering::Acquire) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Server {
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                n => request.extend_from_slice(&bytes[..n]),
            }
        }
        let (status, text) = (&self.status, format!("{}\n", self.text));
        let head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
        stream.write_all((head + &text).as_bytes())
    }
}

fn reuse_port(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket.into())
}
