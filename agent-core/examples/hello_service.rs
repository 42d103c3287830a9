//! The smallest service that changes its version without losing anybody: `hello_service ADDRESS`.

use std::io::{Read, Write};

use agent_core::{Agent, AgentConfig, Intake, Operations};

struct Hello;

impl Operations for Hello {} // it performs no operations for the manager, and has no state to hand over

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = AgentConfig::from_env()?; // first: it takes over what the stub, or the version before, left open
    let address = std::env::args().nth(1).ok_or("usage: hello_service ADDRESS")?;
    let intake = Intake::new(config.inherited().tcp_listener("http", address)?)?;
    let agent = Agent::start(config.gate(intake.gate()), Hello)?;
    let text = format!("HTTP/1.0 200 OK\r\n\r\nhello from version {}\n", agent.status().version);
    std::thread::spawn(move || {
        loop {
            let Ok((mut stream, pass)) = intake.accept() else { continue };
            let text = text.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]); // what is left unread would reset the connection
                let _ = stream.write_all(text.as_bytes());
                drop((stream, pass)); // a change-over waits until here
            });
        }
    });
    agent.wait(); // until SIGTERM
    Ok(())
}
