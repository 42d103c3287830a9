//! Answers that arrive while the work goes on: `text/event-stream`, with the document or the problem as the last event.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use proto::message::Fault;
use tokio::sync::mpsc;
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

/// Begins the work; what it answers arrives piece by piece. What it needs is held until it is over.
pub(super) fn begin(manager: &Arc<Manager>, work: Long, role: Role, held: impl Send + 'static) -> Body {
    let (sender, received) = mpsc::channel(WAITING_MAX);
    let (manager, reader) = (Arc::clone(manager), Reader { sender, role });
    tokio::spawn(async move {
        let _held = held;
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

#[cfg(test)]
mod tests {
    use proto::agent::{JobId, Operation, Outcome, Repository, Summary};
    use proto::look::Found;
    use serde_json::{Value, json};

    use super::*;
    use crate::manager::control::jobs::{JobRecord, JobState};

    /// The events of a stream, as a reader of `text/event-stream` takes them.
    fn read(text: &str) -> Vec<(String, Value)> {
        let events = text.split_terminator("\n\n").map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let (name, data) = (name.strip_prefix("event: ").unwrap(), data.strip_prefix("data: ").unwrap());
            (name.to_owned(), serde_json::from_str(data).unwrap())
        });
        events.collect()
    }

    #[test]
    fn a_text_with_line_ends_is_one_event_and_not_two() {
        let hostile = "a\n\nevent: done\ndata: {}\r\n\r\u{85}\u{2028}\0";
        let document = json!({ "reason": hostile, hostile: [hostile] });
        let text = lines("job", &document);
        assert_eq!(read(&text), [("job".to_owned(), document)]);
        assert_eq!(text.matches(['\n', '\r']).count(), 3, "{text:?}");
    }

    fn job() -> JobRecord {
        let found = vec![Found::Content(b"of a file".to_vec())];
        JobRecord {
            id: JobId(7),
            host: "web".parse().unwrap(),
            product: "data-agent".parse().unwrap(),
            operation: Operation::Check {
                repository: Repository { path: "/r".into(), password_file: None },
                read_data: false,
            },
            run: None,
            state: JobState::Done,
            created: 1,
            started: None,
            ended: None,
            progress: None,
            outcome: Some(Outcome::Found { summary: Summary::default(), found, left_out: 0 }),
            waiting: None,
            cancel: false,
            sent: 0,
        }
    }

    #[test]
    fn what_was_read_out_of_a_repository_is_not_for_viewers() {
        let found = |role| {
            let (name, document) = read(&done(AdminReply::Job(job()), role)).remove(0);
            (name, document["found"].as_array().map_or(0, Vec::len))
        };
        assert_eq!(found(Role::Viewer), ("done".to_owned(), 0));
        assert_eq!(found(Role::Operator), ("done".to_owned(), 1));
    }

    #[test]
    fn the_last_event_of_what_has_no_answer_is_a_problem() {
        let all = read(&done(AdminReply::Done, Role::Admin));
        assert_eq!((all[0].0.as_str(), &all[0].1["status"]), ("failed", &json!(500)));
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_known_to_be() {
        let (sender, received) = mpsc::channel(WAITING_MAX);
        let reader = Reader { sender, role: Role::Viewer };
        reader.send(String::from("x")).await.unwrap();
        drop(received);
        reader.cancelled().await;
        assert!(matches!(reader.send(String::from("x")).await, Err(NetError::Cancelled)));
    }
}
