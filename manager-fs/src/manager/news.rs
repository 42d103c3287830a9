//! What happens on each host, for whoever waits for it. All of it is in the control state as well.

use std::collections::HashMap;
use std::sync::Mutex;

use proto::HostName;
use proto::agent::{ChangeId, JobId};
use tokio::sync::broadcast;

use crate::sync::lock;

/// News of one host that a slow listener may be behind before it must look at the state instead.
const NEWS_MAX: usize = 64;
/// News of all hosts that whoever listens to all may be behind.
const ALL_NEWS_MAX: usize = 8192;

/// Something that happened on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Its control connection is there.
    Connected,
    /// Its control connection is gone.
    Disconnected,
    /// A step of this change-over is recorded.
    Step(ChangeId),
    /// Something was ordered there by a target.
    Ordered,
    /// It told what its agents are doing.
    Agents,
    /// This job's record or progress has changed.
    Job(JobId),
}

/// Where news is told. Whoever listens hears of one host alone, so that a thousand hosts that change over at once do not
/// wake each other's listeners.
pub(crate) struct NewsBoard {
    /// Only of hosts that somebody listens to.
    hosts: Mutex<HashMap<HostName, broadcast::Sender<News>>>,
    all: broadcast::Sender<(HostName, News)>,
}

impl Default for NewsBoard {
    fn default() -> Self {
        Self { hosts: Mutex::default(), all: broadcast::Sender::new(ALL_NEWS_MAX) }
    }
}

/// Hears the news of one host from the moment it was made.
pub(crate) struct Listener {
    received: broadcast::Receiver<News>,
    /// Keeps the channel open, so that [`Listener::next`] never returns for want of a sender.
    _open: broadcast::Sender<News>,
}

impl NewsBoard {
    /// Listens to what happens on a host from now on.
    pub(crate) fn of(&self, host: &HostName) -> Listener {
        let mut hosts = lock(&self.hosts);
        hosts.retain(|_, sender| sender.receiver_count() > 0);
        let sender = hosts.entry(host.clone()).or_insert_with(|| broadcast::Sender::new(NEWS_MAX));
        Listener { received: sender.subscribe(), _open: sender.clone() }
    }

    /// Listens to what happens on all hosts from now on: for the few who look after all of them.
    pub(crate) fn of_all(&self) -> broadcast::Receiver<(HostName, News)> {
        self.all.subscribe()
    }

    /// Tells whoever listens to this host, or to all.
    pub(crate) fn tell(&self, host: &HostName, news: News) {
        if self.all.receiver_count() > 0 {
            let _ = self.all.send((host.clone(), news));
        }
        let hosts = lock(&self.hosts);
        if let Some(sender) = hosts.get(host) {
            // Fails only when nobody listens any more.
            let _ = sender.send(news);
        }
    }
}

impl Listener {
    /// The next news; `None` when some was missed: look at the state.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.received.recv().await.ok()
    }

    /// Waits for the first news for which `wanted` holds, or until some was missed.
    pub(crate) async fn until(&mut self, wanted: impl Fn(News) -> bool) {
        while let Some(news) = self.next().await {
            if wanted(news) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_hears_its_host_alone_and_is_told_when_it_missed_something() {
        let board = NewsBoard::default();
        let (one, other): (HostName, HostName) = ("one".parse().unwrap(), "other".parse().unwrap());
        let mut listener = board.of(&one);
        board.tell(&other, News::Agents);
        board.tell(&one, News::Step(ChangeId(1)));
        assert_eq!(listener.next().await, Some(News::Step(ChangeId(1))));
        for _ in 0..=NEWS_MAX {
            board.tell(&one, News::Agents);
        }
        assert_eq!(listener.next().await, None);
        assert_eq!(listener.next().await, Some(News::Agents));
        drop(listener);
        board.of(&other);
        assert_eq!(board.hosts.lock().unwrap().len(), 1, "hosts that nobody listens to are forgotten");
    }
}
