//! Answers that arrive while the work goes on: `text/event-stream`, with the document or the problem as the last event.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use proto::message::Fault;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::body::{Body, pieces};
use super::problem::Problem;
use crate::manager::admin::long::{self, Asker};
use crate::manager::admin::{AdminEvent, AdminReply, Long};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::{
    self, EventDocument, JobDocument, PublishedDocument, RolloutDocument, UpgradedDocument,
};
use crate::manager::whole::Manager;
use crate::net::NetError;

/// Events that may wait for a reader.
const WAITING_MAX: usize = 16;
/// How long a reader may take none of them; then it is gone.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How often something is sent where nothing happens, so that both ends find out that the other is gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Somebody who reads events.
struct Reader {
    sender: mpsc::Sender<Bytes>,
    role: Role,
}

impl Reader {
    async fn send(&self, piece: String) -> Result<(), NetError> {
        match timeout(READ_WITHIN, self.sender.send(Bytes::from(piece))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(NetError::Cancelled),
        }
    }
}

impl Asker for Reader {
    async fn event(&self, event: &AdminEvent) -> Result<(), NetError> {
        let mut document = EventDocument::from(event);
        if let EventDocument::Job(job) = &mut document {
            veil(self.role, job);
        }
        self.send(lines(document.name(), &documents::json(&document))).await
    }

    async fn cancelled(&self) {
        self.sender.closed().await;
    }
}

/// Begins the work; what it answers arrives piece by piece. `turn` is given back when it is over.
pub(super) fn begin(manager: &Arc<Manager>, work: Long, role: Role, turn: OwnedSemaphorePermit) -> Body {
    let (sender, received) = mpsc::channel(WAITING_MAX);
    let (manager, reader) = (Arc::clone(manager), Reader { sender, role });
    tokio::spawn(async move {
        let _turn = turn;
        let mut alive = interval(SIGN_OF_LIFE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut working = std::pin::pin!(long::answer(&manager, work, &reader));
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut working => break ended,
                _ = alive.tick() => drop(reader.sender.try_send(Bytes::from_static(b":\n\n"))),
            }
        };
        let last = match ended {
            Ok(AdminReply::Fault(fault)) => lines("failed", &documents::json(&Problem::from(fault))),
            Ok(reply) => done(reply, role),
            Err(error) => lines("failed", &documents::json(&Problem::from(error))),
        };
        // Whoever is gone by now does not read it.
        let _ = reader.send(last).await;
    });
    pieces(received)
}

fn done(reply: AdminReply, role: Role) -> String {
    let document = match &reply {
        AdminReply::Upgraded(report) => documents::json(&UpgradedDocument::from(report)),
        AdminReply::Rollout(view) => documents::json(&RolloutDocument::from(view.as_ref())),
        AdminReply::Job(job) => {
            let mut job = JobDocument::from(job);
            veil(role, &mut job);
            documents::json(&job)
        }
        AdminReply::Published(report) => documents::json(&PublishedDocument::from(report)),
        AdminReply::Collected(report) => documents::json(report),
        AdminReply::Verified(view) => documents::json(view),
        _ => return lines("failed", &documents::json(&Problem::from(Fault::Failed("no answer".to_owned())))),
    };
    lines("done", &document)
}

/// What was read out of a repository is for those who may order that.
fn veil(role: Role, job: &mut JobDocument) {
    if role < Role::Operator {
        job.found.clear();
    }
}

/// One event; a document has no line ends of its own.
fn lines(name: &str, document: &serde_json::Value) -> String {
    format!("event: {name}\ndata: {document}\n\n")
}
