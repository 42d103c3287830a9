//! The mount daemon's worker as the control path sees it: its parts, and what the manager may ask of them.

use std::sync::Arc;

use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostReply, ManagerRequest};
use proto::{HostName, codec};
use tokio::sync::watch;

use super::exports::{ASK_DEADLINE, Exports};
use super::give::Giver;
use super::relay::Relay;
use crate::clock::Clock;
use crate::host::data::link::ManagerLink;
use crate::host::data::plane::DataPlane;
use crate::host::generations::Generations;
use crate::host::generations::records::Records;
use crate::host::timeline::Timeline;
use crate::net::{Answer, BoxFuture, Handler};

/// The parts that [`Daemon`] answers from.
pub(crate) struct DaemonParts {
    /// The name in the certificate.
    pub(crate) host: HostName,
    pub(crate) data: Arc<DataPlane>,
    pub(crate) records: Arc<Records>,
    pub(crate) generations: Arc<Generations>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) manager: Arc<ManagerLink>,
    pub(crate) timeline: Arc<Timeline>,
}

/// The mount daemon's worker.
pub(crate) struct Daemon {
    pub(crate) host: HostName,
    pub(crate) started_unix_ms: u64,
    pub(crate) data: Arc<DataPlane>,
    pub(crate) records: Arc<Records>,
    pub(crate) generations: Arc<Generations>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) manager: Arc<ManagerLink>,
    pub(crate) timeline: Arc<Timeline>,
    giver: Giver,
    /// Becomes true when someone asked for the end of the daemon.
    unmount: watch::Sender<bool>,
}

impl Daemon {
    /// Puts the parts together; nothing runs yet.
    pub(crate) fn new(parts: DaemonParts) -> Arc<Self> {
        let DaemonParts { host, data, records, generations, relay, manager, timeline } = parts;
        let (asked, known) = (Arc::clone(&manager), Arc::clone(&records));
        let exports = Exports::new(asked, known, Arc::clone(&data), Arc::clone(&generations));
        data.set_view(&records.all());
        let giver = Giver::new(Arc::clone(data.objects()));
        Arc::new(Self {
            host,
            started_unix_ms: manager.clock().unix_ms(),
            data,
            records,
            generations,
            exports: Arc::new(exports),
            relay,
            manager,
            timeline,
            giver,
            unmount: watch::Sender::new(false),
        })
    }

    /// The one clock of the worker.
    pub(crate) fn clock(&self) -> &Clock {
        self.manager.clock()
    }

    /// Starts everything that runs by itself. Must be called inside the runtime.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        self.generations.start()?;
        self.manager.start(Arc::new(FromManager(Arc::clone(self))));
        tokio::spawn(Arc::clone(&self.relay).watch_agents());
        tokio::spawn(Arc::clone(&self.relay).report_for_ever(Arc::clone(&self.manager)));
        tokio::spawn(Arc::clone(&self.exports).follow_connection());
        Ok(())
    }

    /// Asks the holder to end: `manager-fs unmount`.
    pub(crate) fn unmount(&self) {
        self.unmount.send_replace(true);
    }

    /// Resolves when someone asked for the end.
    pub(crate) async fn unmount_wanted(&self) {
        // The sender is in `self`, so this cannot fail while anyone waits.
        let _ = self.unmount.subscribe().wait_for(|wanted| *wanted).await;
    }
}

/// Answers the manager.
struct FromManager(Arc<Daemon>);

impl Handler for FromManager {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let daemon = Arc::clone(&self.0);
        Box::pin(async move {
            let reply = match codec::decode::<ManagerRequest, MESSAGE_BYTES_MAX>(&body) {
                Err(error) => HostReply::Fault(Fault::BadRequest(error.to_string())),
                Ok(ManagerRequest::ExportsChanged) => {
                    let refreshed = daemon.exports.refresh(ASK_DEADLINE).await;
                    refreshed.map_or_else(HostReply::Fault, |()| HostReply::Done)
                }
                Ok(ManagerRequest::ChangeOver(order)) => daemon.relay.change_over(order).await,
                Ok(ManagerRequest::Run { product, job, origin, operation }) => {
                    return daemon.relay.jobs.run(product, job, origin, operation, answer).await;
                }
                Ok(ManagerRequest::Cancel { product, job }) => daemon.relay.cancel(&product, job).await,
                Ok(ManagerRequest::Agents) => HostReply::Agents(daemon.relay.look().await),
                Ok(ManagerRequest::Alive) => HostReply::Done,
                Ok(ManagerRequest::Manifest { tree }) => {
                    daemon.giver.manifest(tree, &answer).await.unwrap_or_else(HostReply::Fault)
                }
                Ok(ManagerRequest::Chunks { tree, wants }) => {
                    daemon.giver.chunks(tree, &wants, &answer).await.unwrap_or_else(HostReply::Fault)
                }
            };
            if let Err(error) = answer.finish(&reply).await {
                tracing::debug!(%error, "the manager did not wait for an answer");
            }
        })
    }
}
