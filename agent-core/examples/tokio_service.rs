//! `http_service.rs` on tokio: `tokio_service --listen ADDRESS`.
//!
//! The library has threads of its own and needs no runtime, nor does it mind one. What an `Intake` does for threads, a
//! `Gate` does here: a task asks it before each connection that it takes.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_core::{Agent, AgentConfig, Gate, Operations, Pass, StateRefused};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// How many requests were answered, since the very first version began.
#[derive(Clone, Default)]
struct Web(Arc<AtomicU32>);

impl Operations for Web {
    fn save_state(&self, _schema: u32) -> Vec<u8> {
        self.0.load(Ordering::SeqCst).to_le_bytes().to_vec()
    }

    fn restore_state(&self, _schema: u32, state: &[u8]) -> Result<(), StateRefused> {
        let bytes = state.try_into().map_err(|_| "want four bytes")?;
        self.0.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        Ok(())
    }
}

impl Web {
    /// Takes connections while the gate is open. None is taken that this version will not answer: the others wait in the
    /// listener's backlog for whoever comes next.
    async fn serve(self, listener: TcpListener, gate: Gate) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        // It is unsound for what closes its descriptor on the way, which a listener does not.
        #[allow(deprecated)]
        let listener = AsyncFd::new(listener)?;
        loop {
            let mut ready = listener.readable().await?;
            // Before there is a connection: whoever closes the gate is certain that none is taken.
            let Some(pass) = gate.try_enter() else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            if let Ok(Ok((stream, _))) = ready.try_io(|listener| listener.get_ref().accept()) {
                tokio::spawn(self.clone().answer(stream, pass));
            }
        }
    }

    /// The pass lives as long as the answer takes: a change-over waits for it.
    async fn answer(self, stream: std::net::TcpStream, pass: Pass) -> std::io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut stream = BufStream::new(TcpStream::from_std(stream)?);
        let (mut request, mut line) = (String::new(), String::new());
        stream.read_line(&mut request).await?;
        while stream.read_line(&mut line).await? > 2 {
            line.clear();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
        if request.starts_with("GET /slow") {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        while request.starts_with("GET /stream") && !pass.is_wanted_back() {
            stream.write_all(b"still here\n").await?;
            stream.flush().await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        stream.write_all(format!("process {} answered {before} before\n", std::process::id()).as_bytes()).await?;
        stream.shutdown().await
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().skip_while(|argument| argument != "--listen").nth(1).ok_or("--listen ADDRESS")?;
    let config = AgentConfig::from_env()?; // before the runtime, which opens descriptors of its own
    let listener = config.inherited().tcp_listener("http", address)?;
    let (gate, web) = (Gate::new()?, Web::default());
    let agent = Agent::start(config.gate(gate.clone()), web.clone())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.spawn(web.serve(listener, gate));
    agent.wait(); // no task waits here: SIGTERM is the library's
    Ok(())
}
