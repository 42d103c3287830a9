//! Progress of long work, thinned out to what people can read.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::message::AdminEvent;
use crate::manager::monitor::{Monitor, Task};
use crate::sync::lock;

const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A [`Monitor`] that sends events.
pub(crate) struct Reporter {
    events: mpsc::UnboundedSender<AdminEvent>,
    last: Mutex<Option<(Task, Instant)>>,
}

impl Reporter {
    pub(crate) fn new(events: mpsc::UnboundedSender<AdminEvent>) -> Self {
        Self { events, last: Mutex::default() }
    }
}

impl Monitor for Reporter {
    fn progress(&self, task: Task, done: u64, total: u64) {
        let mut last = lock(&self.last);
        if last.is_some_and(|(of, at)| of == task && at.elapsed() < REPORT_EVERY) {
            return;
        }
        *last = Some((task, Instant::now()));
        let (name, bytes) = match task {
            Task::Read => ("reading, hashing and compressing", true),
            Task::Inspect => ("looking into executables", false),
            Task::Verify => ("checking", true),
            Task::Collect => ("collecting packs", false),
            Task::Repair => ("looking for lost chunks", false),
            Task::Copy => ("copying", true),
            Task::Chunks => ("copying chunks", false),
        };
        let _ = self.events.send(AdminEvent::Progress { task: name.to_owned(), done, total, bytes });
    }

    fn problem(&self, text: &str) {
        tracing::warn!(text, "problem");
        let _ = self.events.send(AdminEvent::Problem(text.to_owned()));
    }
}
