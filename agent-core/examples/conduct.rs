//! A program that does what a test tells it to, well or badly: `conduct ADDRESS NOTES VERSION [--FLAG [VALUE]]...`
//!
//! There is one in each language (`conduct.c`, `conduct.py`); `tests/tests/behaviours.rs` asks all of them the same. It
//! answers `VERSION answered N`, and adds a line to the file NOTES for whatever happens to it.
//!
//! `--sick`: says that it is not healthy. `--fails CALLBACK`, `--blocks CALLBACK`: this one fails, or never comes back.
//! `--without-extra`: it knows nothing of the descriptor of that name. `--large KIB`: its state goes through a memory file,
//! and is so large.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent_core::{Agent, AgentConfig, Halt, Inherited, Intake, Kinds, NotHealthy, OperationContext, Operations};
use agent_core::{Results, StateRefused};

struct Conduct {
    notes: PathBuf,
    version: String,
    sick: bool,
    fails: Option<String>,
    blocks: Option<String>,
    /// Bytes that the state has behind the number, in a memory file.
    large: usize,
    answered: AtomicU64,
}

impl Conduct {
    fn note(&self, word: &str) {
        let file = File::options().append(true).create(true).open(&self.notes);
        drop(file.and_then(|mut file| file.write_all(format!("{} {word}\n", self.version).as_bytes())));
    }

    fn called(&self, callback: &str) {
        self.note(callback);
        assert!(self.fails.as_deref() != Some(callback), "told to fail");
        while self.blocks.as_deref() == Some(callback) {
            thread::park();
        }
    }

    /// Takes the descriptor twice, or makes it: the notes themselves.
    fn extra(&self, inherited: &Inherited) -> Result<(), Box<dyn std::error::Error>> {
        for time in ["once", "twice"] {
            match inherited.take("extra") {
                Some(kept) => {
                    File::from(kept).write_all(format!("{} took extra {time}\n", self.version).as_bytes())?
                }
                None => inherited.keep("extra", File::options().append(true).create(true).open(&self.notes)?)?,
            }
        }
        Ok(())
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let before = self.answered.fetch_add(1, Ordering::SeqCst);
        let text = format!("{} answered {before}\n", self.version);
        stream.write_all(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text}").as_bytes())
    }
}

struct Shared(Arc<Conduct>);

impl Operations for Shared {
    fn quiesce(&self, _until: Instant) {
        self.0.called("quiesce");
    }

    fn resume(&self) {
        self.0.called("resume");
    }

    fn save_state(&self, _schema: u32) -> Vec<u8> {
        self.0.called("save_state");
        self.0.answered.load(Ordering::SeqCst).to_le_bytes().to_vec()
    }

    fn restore_state(&self, _schema: u32, state: &[u8]) -> Result<(), StateRefused> {
        self.0.called("restore_state");
        let (bytes, _) = state.split_first_chunk().ok_or("want eight bytes")?;
        self.0.answered.store(u64::from_le_bytes(*bytes), Ordering::SeqCst);
        Ok(())
    }

    fn save_state_to(&self, schema: u32, file: &mut File) -> std::io::Result<()> {
        if self.0.large == 0 {
            return file.write_all(&self.save_state(schema));
        }
        self.0.called("save_state_to");
        file.write_all(&self.0.answered.load(Ordering::SeqCst).to_le_bytes())?;
        file.write_all(&pattern(self.0.large))
    }

    fn restore_state_from(&self, schema: u32, mut file: &File) -> Result<(), StateRefused> {
        let mut state = Vec::new();
        file.read_to_end(&mut state).map_err(|e| e.to_string())?;
        if self.0.large == 0 {
            return self.restore_state(schema, &state);
        }
        self.0.called("restore_state_from");
        let (bytes, rest) = state.split_first_chunk().ok_or("want eight bytes")?;
        self.0.answered.store(u64::from_le_bytes(*bytes), Ordering::SeqCst);
        if rest == pattern(rest.len()) { Ok(()) } else { Err("these are other bytes".into()) }
    }

    fn healthy(&self) -> Result<(), NotHealthy> {
        if self.0.sick { Err("told to be sick".into()) } else { Ok(()) }
    }

    fn confirmed(&self) {
        self.0.called("confirmed");
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[derive(serde::Deserialize)]
struct Count {
    units: u32,
    #[serde(default)]
    pause_ms: u64,
}

fn count(wanted: &Count, context: &OperationContext) -> Result<Results, Halt> {
    for done in 0..wanted.units {
        context.go_on()?;
        thread::sleep(Duration::from_millis(wanted.pause_ms));
        context.units(done + 1, wanted.units, "counting");
    }
    Ok(Results::new().with("units", wanted.units))
}

fn serve(intake: &Intake<TcpListener>, conduct: &Arc<Conduct>) {
    loop {
        let Ok((stream, pass)) = intake.accept() else { continue };
        let conduct = conduct.clone();
        thread::spawn(move || {
            drop(conduct.answer(stream));
            drop(pass);
        });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, notes, version, flags @ ..] = &arguments[..] else { return Err("ADDRESS NOTES VERSION".into()) };
    let value = |name: &str| flags.iter().skip_while(|flag| *flag != name).nth(1).cloned();
    let has = |name: &str| flags.iter().any(|flag| flag == name);
    let conduct = Arc::new(Conduct {
        notes: notes.into(),
        version: version.clone(),
        sick: has("--sick"),
        fails: value("--fails"),
        blocks: value("--blocks"),
        large: value("--large").map_or(Ok(0), |kib| kib.parse::<usize>())? << 10,
        answered: AtomicU64::new(0),
    });
    let config = AgentConfig::from_env()?;
    if !has("--without-extra") {
        conduct.extra(config.inherited())?;
    }
    let intake = Intake::new(config.inherited().tcp_listener("http", address)?)?;
    let kinds = Kinds::new().on("count", |wanted: Count, context| count(&wanted, context));
    let agent = Agent::start(config.gate(intake.gate()).kinds(kinds), Shared(conduct.clone()))?;
    let serving = conduct.clone();
    thread::spawn(move || serve(&intake, &serving));
    agent.wait();
    conduct.note("ended");
    Ok(())
}
