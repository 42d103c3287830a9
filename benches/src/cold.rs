//! Starts of a program on a host that has nothing of it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::start;
use crate::trees::Tree;

/// One start as the client saw it.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Seconds from the first step to the program's first output byte.
    pub seconds: f64,
    /// Bytes received by then.
    pub first_bytes: u64,
    /// Bytes received when the program had ended.
    pub end_bytes: u64,
}

/// Something that starts programs over a network.
pub trait Contender {
    /// What it is called in tables and in `BENCH_RIVALS`.
    fn name(&self) -> &'static str;

    /// What is in memory before a start: its own tools, and what the server serves for this tree.
    fn warm(&self, tree: &Tree) -> Vec<PathBuf>;

    /// Starts the program on a host that has nothing of it, over the lab's present network, and clears up.
    ///
    /// # Errors
    /// The program does not start.
    fn start(&mut self, lab: &Lab, tree: &Tree) -> Result<Start>;
}

/// Drops the machine's caches, warms what the contender names, and starts.
///
/// # Errors
/// Not root, or the start fails.
pub fn measure(contender: &mut dyn Contender, lab: &Lab, tree: &Tree) -> Result<Start> {
    start::drop_caches()?;
    start::warm(&contender.warm(tree))?;
    let started = contender.start(lab, tree);
    started.with_context(|| format!("{} of {} on {}", contender.name(), tree.name, lab.profile().name))
}

/// Runs from the first step of a start.
#[derive(Debug)]
pub struct Stopwatch<'a> {
    lab: &'a Lab,
    since: Instant,
    received: u64,
}

impl<'a> Stopwatch<'a> {
    /// Now.
    ///
    /// # Errors
    /// The interface cannot be read.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let received = lab.received()?;
        Ok(Self { lab, since: Instant::now(), received })
    }

    /// Bytes received since.
    ///
    /// # Errors
    /// The interface cannot be read.
    pub fn received(&self) -> Result<u64> {
        Ok(self.lab.received()? - self.received)
    }

    /// Starts the program, the last step.
    ///
    /// # Errors
    /// It fails or prints nothing.
    pub fn first_byte(&self, command: &mut Command) -> Result<Start> {
        let (seconds, first_bytes) =
            start::first_byte(command, || (self.since.elapsed().as_secs_f64(), self.received()))?;
        Ok(Start { seconds, first_bytes: first_bytes?, end_bytes: self.received()? })
    }
}
