//! A TCP relay between a host and the manager that counts bytes and can misbehave on demand.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    corrupt: AtomicBool,
    to_host_bytes: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

/// Listens on a loopback port and relays to `target`.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// Starts relaying.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        let (state, target) = (Arc::new(State::default()), target.to_owned());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for inbound in listener.incoming().map_while(Result::ok) {
                if shared.cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(outbound) = TcpStream::connect(&target) else { continue };
                let (Ok(in2), Ok(out2)) = (inbound.try_clone(), outbound.try_clone()) else { continue };
                if let (Ok(a), Ok(b)) = (inbound.try_clone(), outbound.try_clone()) {
                    shared.streams.lock().unwrap().extend([a, b]);
                }
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                std::thread::spawn(move || pump(inbound, outbound, &up, false));
                std::thread::spawn(move || pump(out2, in2, &down, true));
            }
        });
        Self { address, state }
    }

    /// Where hosts dial.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts every connection and accepts no new one, until [`Proxy::heal`].
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Flips a bit in whatever goes to the host, until [`Proxy::heal`].
    pub fn corrupt(&self) {
        self.state.corrupt.store(true, Ordering::SeqCst);
    }

    /// Relays faithfully again.
    pub fn heal(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
        self.state.corrupt.store(false, Ordering::SeqCst);
    }

    /// Bytes that went to the host so far.
    pub fn to_host_bytes(&self) -> u64 {
        self.state.to_host_bytes.load(Ordering::SeqCst)
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State, to_host: bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to_host {
            state.to_host_bytes.fetch_add(length as u64, Ordering::SeqCst);
            if state.corrupt.load(Ordering::SeqCst) {
                buffer[length / 2] ^= 1;
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
