//! One change-over that is recorded: it is told to its host, again if need be.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use proto::message::{ChangeOver, Fault, HostReply, ManagerRequest};
use proto::{HostName, Product};

use super::order::{HostEnd, Verdict};
use super::{Accepted, Upgrades};
use crate::manager::control::ControlError;
use crate::manager::control::changes::{ChangeEnd, ChangeRecord, EndedBy};
use crate::manager::control::generations::Generation;
use crate::manager::news::Listener;
use crate::manager::now;
use crate::net::Link;
use crate::sync::lock;

/// How a host changes over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Before every object is local.
    pub(crate) lazy: bool,
    /// How long operations may take to finish, milliseconds; `None`: what the generation says.
    pub(crate) drain_deadline_ms: Option<u64>,
    /// Also to a generation that the host remembers as bad.
    pub(crate) retry_bad: bool,
}

/// What came of telling a host.
#[derive(Debug)]
pub(crate) enum Told {
    /// It changes over; its steps will tell.
    Accepted,
    /// The version runs there already.
    Already,
    /// It is away. The order is recorded, and told when it comes.
    Away,
    /// It is not tried, for this reason.
    Refused(String),
}

/// Hosts that are being told of a product, so that nobody else tells them something older.
#[derive(Debug, Default)]
pub(crate) struct Telling(Mutex<HashSet<(HostName, Product)>>);

/// Being told; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    of: (HostName, Product),
    telling: Arc<Telling>,
}

impl Telling {
    /// `None`: somebody else does.
    pub(crate) fn begin(self: &Arc<Self>, host: &HostName, product: &Product) -> Option<Turn> {
        let of = (host.clone(), product.clone());
        let new = lock(&self.0).insert(of.clone());
        new.then(|| Turn { of, telling: Arc::clone(self) })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.telling.0).remove(&self.of);
    }
}

impl Upgrades {
    /// Tells a host of a change-over that has been recorded a moment ago, and of which it knows nothing. The record goes
    /// when there is nothing to tell.
    pub(crate) async fn tell_first(&self, change: &ChangeRecord, generation: &Generation, manner: &Manner) -> Told {
        let host = &change.order.host;
        // It is never closed.
        let _turn = self.at_once.acquire().await.ok();
        let told = match self.may_be_ordered(host, generation).await {
            Ok(link) => {
                let news = self.news.of(host);
                return self.told(self.tell(change.clone(), generation, manner, link, news).await);
            }
            Err(end) => self.told(Err(end)),
        };
        if let Told::Already | Told::Refused(_) = &told
            && let Err(error) = self.state.drop_change(change.id).await
        {
            tracing::warn!(%host, change = %change.id, %error, "an order that was not given stays recorded");
        }
        told
    }

    /// Tells a host of a change-over that it may know of already.
    pub(crate) async fn tell_again(&self, change: &ChangeRecord, generation: &Generation, manner: &Manner) -> Told {
        let host = &change.order.host;
        // It is never closed.
        let _turn = self.at_once.acquire().await.ok();
        let Some(link) = self.connections.control_link(host) else { return Told::Away };
        let news = self.news.of(host);
        self.told(self.tell(change.clone(), generation, manner, link, news).await)
    }

    fn told(&self, told: Result<Accepted, HostEnd>) -> Told {
        match told {
            Ok(_) => Told::Accepted,
            Err(end) => match end.verdict {
                Verdict::Already => Told::Already,
                Verdict::Away => Told::Away,
                _ => Told::Refused(end.reason),
            },
        }
    }

    /// Tells the host of a recorded change-over; else how it ends there. `news` is from before it was recorded, or told.
    pub(super) async fn tell(
        &self,
        change: ChangeRecord,
        generation: &Generation,
        manner: &Manner,
        link: Link,
        mut news: Listener,
    ) -> Result<Accepted, HostEnd> {
        let host = change.order.host.clone();
        let record = &generation.record;
        let failed = |error: ControlError| HostEnd::refused(&host, error);
        let request = ManagerRequest::ChangeOver(ChangeOver {
            change: change.id,
            product: record.product.clone(),
            record: generation.signed.clone(),
            attach: record.tree,
            lazy: manner.lazy,
            drain_deadline_ms: manner.drain_deadline_ms.unwrap_or(record.metadata.drain_deadline_ms),
            retry_bad: manner.retry_bad,
        });
        let reply = self.order_host(&host, &record.product, link, &request).await;
        let reason = match reply {
            Ok(HostReply::Done) => return Ok(Accepted { change, news }),
            // The verdict says already that it is refused.
            Ok(HostReply::Fault(Fault::Refused(reason))) => reason,
            Ok(HostReply::Fault(fault)) => fault.to_string(),
            Ok(HostReply::Agents(_) | HostReply::Outcome(_) | HostReply::Sent(_)) => {
                String::from("the host gave an answer that makes no sense")
            }
            // It may have accepted all the same: its steps will tell.
            Err(error) if self.begins(&change, &mut news).await.map_err(failed)? => {
                tracing::warn!(%host, %error, "no answer to the change-over, but it has begun");
                return Ok(Accepted { change, news });
            }
            Err(error) => no_answer(&host, &error),
        };
        let end = ChangeEnd { confirmed: false, at: now(), reason: reason.clone(), by: EndedBy::Manager };
        self.state.end_change(change.id, end).await.map_err(failed)?;
        Err(HostEnd { change: Some(change.id), ..HostEnd::refused(&host, reason) })
    }
}

fn no_answer(host: &HostName, error: &crate::net::NetError) -> String {
    format!("{host} did not answer ({error}) and has not begun to change over")
}
