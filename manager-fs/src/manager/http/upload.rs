//! Publishing at the console: a form with the archive in it becomes a generation, and its page is shown then.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use tokio::time::timeout;

use super::ask::encoded;
use super::edge::Edge;
use super::multipart::Form;
use super::problem::Problem;
use super::received::{SILENCE, WRITTEN_AT_ONCE};
use super::server::Peer;
use crate::manager::admin::long::{self, Asker};
use crate::manager::admin::{AdminEvent, AdminReply, Long, PublishOrder};
use crate::manager::control::api_tokens::Role;
use crate::manager::error::ManagerError;
use crate::manager::store::Upload;
use crate::manager::worker::command;
use crate::net::NetError;

/// Takes the form in, publishes what it brings, and returns the address of the generation's page.
pub(super) async fn publish(edge: &Edge, request: &mut Request<Incoming>, peer: &Peer) -> Result<String, Problem> {
    let caller = edge.door.caller(&edge.manager.state, request.headers(), peer).await?;
    if caller.role < Role::Publisher {
        return Err(Problem::forbidden(Role::Publisher, caller.role));
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let mut form = Form::new(kind)?;
    let _one_of_few = edge.uploads.try_acquire().map_err(|_| Problem::busy())?;
    let store = Arc::clone(&edge.manager.store);
    let mut upload = command(move || Upload::begin(&store).map_err(ManagerError::from)).await?;
    let body = request.body_mut();
    let mut waiting = Vec::new();
    let mut is_ours = false;
    loop {
        let frame = timeout(SILENCE, body.frame()).await.map_err(|_| Problem::too_slow())?;
        let ended = frame.is_none();
        if let Some(frame) = frame {
            let Ok(frame) = frame else { return Err(Problem::bad_request("the form ended before its end")) };
            form.take(&frame.into_data().unwrap_or_default(), &mut waiting)?;
        }
        // Nothing of a file is kept that another site's page has sent.
        if form.has_file() && !is_ours {
            caller.must_have_sent(form.field("form_key"))?;
            is_ours = true;
        }
        if ended || waiting.len() >= WRITTEN_AT_ONCE {
            let piece = std::mem::take(&mut waiting);
            upload = command(move || upload.add(&piece).map(|()| upload).map_err(ManagerError::from)).await?;
        }
        if ended {
            break;
        }
    }
    if !form.is_whole() || !is_ours || upload.is_empty() {
        return Err(Problem::bad_request("there is no archive in the form: choose one, and send it once more"));
    }
    let order = order(&form, &upload)?;
    let name = format!("{}@{}", order.product, order.version);
    let (by, role) = (caller.name.as_str(), caller.role);
    tracing::info!(by, %role, generation = name, "published at the console");
    match long::answer(&edge.manager, Long::Publish(order), &Nobody).await? {
        AdminReply::Published(_) => Ok(format!("/generations/{}", encoded(&name))),
        AdminReply::Fault(fault) => Err(fault.into()),
        _ => Err(Problem::unexpected()),
    }
}

fn order(form: &Form, upload: &Upload) -> Result<PublishOrder, Problem> {
    let text = |name: &str| form.field(name).map(str::trim).unwrap_or_default();
    let wrong = |name: &str, fault: &dyn std::fmt::Display| {
        Problem::bad_request(proto::text::line(&format!("{name}: {fault}"), 400))
    };
    let given = |name: &str| Some(text(name)).filter(|text| !text.is_empty()).map(str::to_owned);
    let onto = given("onto").map(|onto| onto.parse().map_err(|fault| wrong("service pack onto", &fault)));
    Ok(PublishOrder {
        product: text("product").parse().map_err(|fault| wrong("product", &fault))?,
        version: text("version").parse().map_err(|fault| wrong("version", &fault))?,
        source: PublishOrder::source_bytes(upload.path()),
        onto: onto.transpose()?,
        entry_point: given("entrypoint"),
        chunk_bytes: None,
        strict: false,
    })
}

/// A browser, which waits for the page.
struct Nobody;

impl Asker for Nobody {
    async fn event(&self, _: &AdminEvent) -> Result<(), NetError> {
        Ok(())
    }

    async fn cancelled(&self) {
        std::future::pending().await
    }
}
