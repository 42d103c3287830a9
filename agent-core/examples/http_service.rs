//! A web service that changes its version without refusing or cutting anybody: `http_service --listen ADDRESS`.
//!
//! `/` answers with the process id and how many were answered before; `/slow` takes a while; `/stream` sends a line
//! every now and then until the client goes, or a change-over asks it to end in good order.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use agent_core::{Agent, AgentConfig, Intake, Operations, Pass, StateRefused};

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
    fn answer(&self, mut stream: TcpStream, pass: &Pass) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        if request.starts_with("GET /slow") {
            thread::sleep(Duration::from_millis(300));
        }
        while request.starts_with("GET /stream") && !pass.is_wanted_back() {
            stream.write_all(b"still here\n")?;
            thread::sleep(Duration::from_millis(10));
        }
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        writeln!(stream, "process {} answered {before} before", std::process::id())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().skip_while(|argument| argument != "--listen").nth(1).ok_or("--listen ADDRESS")?;
    let config = AgentConfig::from_env()?;
    let intake = Intake::new(config.inherited().tcp_listener("http", address)?)?;
    let web = Web::default();
    let agent = Agent::start(config.gate(intake.gate()), web.clone())?;
    thread::spawn(move || {
        loop {
            match intake.accept() {
                Ok((stream, pass)) => {
                    let web = web.clone();
                    // The pass lives as long as the answer takes: a change-over waits for it.
                    thread::spawn(move || web.answer(stream, &pass));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    });
    agent.wait();
    Ok(())
}
