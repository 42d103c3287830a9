//! Questions and orders to one host that may be just coming back.

use std::path::Path;
use std::time::Duration;

use proto::agent::{AgentState, AgentStatus};
use proto::message::{Fault, HostReply, ManagerRequest};
use proto::{HostName, Product};
use tokio::time::Instant;

use super::{UpgradeError, Upgrades};
use crate::manager::control::Observation;
use crate::manager::now;
use crate::moments::{self, Moment};
use crate::net::{Link, NetError};

/// How long a host may take to accept a change-over (not to carry it out).
const ACCEPT_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether a host is back.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Upgrades {
    /// Asks the host what it has of the product: an agent that runs, or one that does not.
    pub(super) async fn running(
        &self,
        host: &HostName,
        product: &Product,
        link: Link,
    ) -> Result<Option<AgentStatus>, UpgradeError> {
        let agents = match self.ask_host(host, link, &ManagerRequest::Agents).await? {
            HostReply::Agents(agents) => agents,
            HostReply::Fault(fault) => return Err(UpgradeError::Host(fault)),
            HostReply::Done | HostReply::Outcome(_) | HostReply::Sent(_) => return Err(UpgradeError::NoAgents),
        };
        let seen = Observation::Agents { agents: agents.clone(), at: now() };
        // What it runs is what counts here; that it cannot be written down does not stop an order.
        if let Err(error) = self.state.observations().note(host, vec![seen]).await {
            tracing::warn!(%host, %error, "what runs there is not written down");
        }
        Ok(agents.into_iter().find(|agent| agent.product == *product))
    }

    /// Gives the order, again while the version that runs has not proved itself: one that was started a moment ago takes
    /// orders as soon as it has.
    pub(super) async fn order_host(
        &self,
        host: &HostName,
        product: &Product,
        link: Link,
        request: &ManagerRequest,
    ) -> Result<HostReply, NetError> {
        let begun = Instant::now();
        loop {
            moments::reach(Moment::ChangeSend, Path::new(host.as_str()))
                .map_err(|error| NetError::Closed(error.to_string()))?;
            let reply = self.ask_host(host, link.clone(), request).await?;
            let busy = matches!(reply, HostReply::Fault(Fault::Unavailable(_)));
            if !busy || begun.elapsed() > ACCEPT_DEADLINE {
                return Ok(reply);
            }
            let status = self.running(host, product, link.clone()).await;
            if !status.is_ok_and(|status| status.is_some_and(|status| status.state == AgentState::Probation)) {
                // It may have proved itself between the two questions, or refuses for another reason: one last time.
                return self.ask_host(host, link, request).await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks the host, again if the connection breaks before the answer: its worker may have been replaced. An order may
    /// have broken off between two of its three messages then; the agent answers those that it has had, and follows
    /// them once.
    async fn ask_host(
        &self,
        host: &HostName,
        mut link: Link,
        request: &ManagerRequest,
    ) -> Result<HostReply, NetError> {
        let begun = Instant::now();
        loop {
            let error = match link.request::<_, HostReply>(request, |_| {}, ACCEPT_DEADLINE).await {
                Err(error @ NetError::Closed(_)) => error,
                answered => return answered,
            };
            tracing::info!(%host, %error, "the host is asked again when it is back");
            link = loop {
                if begun.elapsed() > ACCEPT_DEADLINE {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                if let Some(link) = self.connections.control_link(host) {
                    break link;
                }
            };
        }
    }
}
