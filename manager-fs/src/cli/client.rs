//! How commands reach the manager: its local socket, one request, its events and reply.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, Unix};

use crate::config::Dirs;
use crate::manager::admin::{AdminEvent, AdminReply, AdminRequest, Long, Quick};
use crate::net::{self, Incoming, RefuseAll};

use super::out::say;

/// Progress is shown of work that takes longer than this.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// How often a line of progress is printed where it cannot be overwritten.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Asks the manager and waits for its reply, however long that takes; a [`proto::message::Fault`] becomes an error.
pub(super) fn ask(dirs: &Dirs, request: &Long, on: impl FnMut(AdminEvent)) -> anyhow::Result<AdminReply> {
    exchange(dirs, &request.clone().into(), on)
}

/// As [`ask`], of what is answered at once.
pub(super) fn ask_once(dirs: &Dirs, request: &Quick) -> anyhow::Result<AdminReply> {
    exchange(dirs, &request.clone().into(), |_| {})
}

fn exchange(dirs: &Dirs, request: &AdminRequest, mut on: impl FnMut(AdminEvent)) -> anyhow::Result<AdminReply> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = net::start(connect(dirs).await?, Arc::new(RefuseAll));
        let on = |incoming| {
            if let Incoming::Event(body) = incoming
                && let Ok(event) = codec::decode::<AdminEvent, MESSAGE_BYTES_MAX>(&body)
            {
                on(event);
            }
        };
        match link.request(request, on, Duration::MAX).await.context("the manager did not answer")? {
            AdminReply::Fault(Fault::BadRequest(text) | Fault::Failed(text)) => bail!(text),
            AdminReply::Fault(fault) => bail!(fault),
            reply => Ok(reply),
        }
    })
}

/// The error for a reply of the wrong kind: manager and command are of different versions.
pub(super) fn unexpected<T>() -> anyhow::Result<T> {
    bail!("the manager gave an answer that this command does not know; are they of the same version?")
}

/// Where the manager's socket may be: in the store that was named, else in the run directory, else in the default store.
pub(super) fn sockets(dirs: &Dirs) -> Vec<PathBuf> {
    if dirs.store_was_named {
        vec![dirs.manager_socket_in_store()]
    } else {
        vec![dirs.manager_socket_in_run(), dirs.manager_socket_in_store()]
    }
}

async fn connect(dirs: &Dirs) -> anyhow::Result<tokio::net::UnixStream> {
    let mut tried = Vec::new();
    for socket in sockets(dirs) {
        match net::connect_unix(&socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => tried.push(format!("{}: {error}", socket.display())),
        }
    }
    bail!(
        "no manager answers ({}); start one with `manager-fs serve --store {}`, or name its store with --store",
        tried.join("; "),
        dirs.store.display()
    )
}

/// Shows the progress of long work on standard error.
pub(super) struct ProgressLine {
    since: Instant,
    last: Option<Instant>,
    terminal: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), last: None, terminal: std::io::stderr().is_terminal() }
    }

    /// Takes an event; what is no progress is printed as a problem or left to the caller.
    pub(super) fn show(&mut self, event: &AdminEvent) {
        match event {
            AdminEvent::Progress { task, done, total, bytes } => {
                let show = |count: u64| if *bytes { megabytes(count) } else { count.to_string() };
                let of = if *total > 0 { format!(" of {}", show(*total)) } else { String::new() };
                self.line(&format!("{task}: {}{of}", show(*done)));
            }
            AdminEvent::Problem(text) => {
                self.clear();
                eprintln!("manager-fs: {text}");
            }
            AdminEvent::Upgrade(_) | AdminEvent::Job(_) => {}
        }
    }

    /// Shows a line that the next one replaces.
    pub(super) fn line(&mut self, text: &str) {
        let every = if self.terminal { Duration::from_millis(100) } else { LINE_EVERY };
        if self.since.elapsed() < SHOW_AFTER || self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        if self.terminal {
            eprint!("\r\x1b[2K{text}");
        } else {
            eprintln!("{text}");
        }
    }

    /// Removes what stands there, before something else is printed.
    pub(super) fn clear(&mut self) {
        if self.terminal && self.last.take().is_some() {
            eprint!("\r\x1b[2K");
        }
    }
}

/// Bytes for people.
pub(super) fn megabytes(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A moment for people, UTC.
pub(super) fn moment(at: Unix) -> String {
    if at == 0 {
        return String::from("never");
    }
    let time = std::time::UNIX_EPOCH + Duration::from_millis(at);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A table for people: columns as wide as their widest cell.
pub(super) fn print_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        say!("{}", padded.join("  ").trim_end());
    };
    print(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| print(row));
}

/// Prints one JSON document.
pub(super) fn print_json(document: &serde_json::Value) {
    say!("{document:#}");
}
