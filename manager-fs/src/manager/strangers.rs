//! Connections that are not known yet, counted by address.
//!
//! Hundreds of hosts may share one address, and come back at the same moment: they take turns. Whoever says nothing holds no
//! turn, whoever is slow loses it to those who wait, and of too many the oldest gives way to the newest: a flood of an
//! address costs its other hosts some time, and nobody else anything.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::sync::lock;

/// Connections of one address that shake hands and say `Hello` at the same time; others wait in the order in which they came.
const AT_ONCE_MAX: usize = 64;
/// Connections of one address that are not known yet, those that wait included.
const STRANGERS_MAX: usize = 1024;
/// A host that has waited for longer dials again.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a turn is safe: some round trips around the world, and the handshakes of all others that have a turn.
const TURN_SAFE: Duration = Duration::from_secs(2);
/// How often somebody who waits looks for a turn that takes too long.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// All of them.
pub(crate) struct Strangers {
    addresses: Mutex<Addresses>,
    /// How many of all addresses together.
    all_max: usize,
}

#[derive(Default)]
struct Addresses {
    of: HashMap<IpAddr, OfAddress>,
    next: u64,
    count: usize,
}

struct OfAddress {
    /// Oldest first.
    strangers: VecDeque<Entry>,
    turns: Arc<Semaphore>,
}

struct Entry {
    number: u64,
    evict: Arc<Notify>,
    turn_since: Option<Instant>,
}

/// One of them, until it is known or gone.
pub(crate) struct Stranger {
    all: Arc<Strangers>,
    address: IpAddr,
    number: u64,
    evict: Arc<Notify>,
    turns: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Strangers {
    /// At most so many of all addresses together.
    pub(crate) fn new(all_max: usize) -> Self {
        Self { addresses: Mutex::default(), all_max }
    }

    /// Counts a new connection. When there are too many, the oldest of its address or of the address that has most gives
    /// way.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Stranger {
        let address = network_of(address);
        let mut addresses = self.addresses();
        if addresses.count >= self.all_max {
            let most = addresses.of.iter().max_by_key(|(_, of)| of.strangers.len()).map(|(address, _)| *address);
            most.into_iter().for_each(|most| addresses.evict(&most, |_| true));
        }
        if addresses.of.get(&address).is_some_and(|of| of.strangers.len() >= STRANGERS_MAX) {
            addresses.evict(&address, |_| true);
        }
        addresses.next += 1;
        addresses.count += 1;
        let (number, evict) = (addresses.next, Arc::new(Notify::new()));
        let new = || OfAddress { strangers: VecDeque::new(), turns: Arc::new(Semaphore::new(AT_ONCE_MAX)) };
        let of = addresses.of.entry(address).or_insert_with(new);
        of.strangers.push_back(Entry { number, evict: Arc::clone(&evict), turn_since: None });
        let turns = Arc::clone(&of.turns);
        Stranger { all: Arc::clone(self), address, number, evict, turns, turn: None }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        lock(&self.addresses)
    }
}

impl Addresses {
    /// Lets the oldest of an address go for which something holds.
    fn evict(&mut self, address: &IpAddr, which: impl Fn(&Entry) -> bool) {
        if let Some(entry) = self.remove(address, which) {
            entry.evict.notify_one();
        }
    }

    fn remove(&mut self, address: &IpAddr, which: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let of = self.of.get_mut(address)?;
        let at = of.strangers.iter().position(which)?;
        self.count -= 1;
        of.strangers.remove(at)
    }
}

impl Stranger {
    /// Is notified when this connection has to give way.
    pub(crate) fn evicted(&self) -> Arc<Notify> {
        Arc::clone(&self.evict)
    }

    /// Waits until it is this connection's turn; `false` when that takes too long.
    pub(crate) async fn take_turn(&mut self) -> bool {
        let waits = async {
            loop {
                let turn = Arc::clone(&self.turns).acquire_owned();
                if let Ok(turn) = tokio::time::timeout(LOOK_AGAIN, turn).await {
                    return turn.ok();
                }
                let slow = |entry: &Entry| entry.turn_since.is_some_and(|since| since.elapsed() > TURN_SAFE);
                self.all.addresses().evict(&self.address, slow);
            }
        };
        self.turn = tokio::time::timeout(TURN_DEADLINE, waits).await.ok().flatten();
        if let Some(of) = self.all.addresses().of.get_mut(&self.address) {
            let this = of.strangers.iter_mut().find(|entry| entry.number == self.number);
            this.into_iter().for_each(|entry| entry.turn_since = self.turn.as_ref().map(|_| Instant::now()));
        }
        self.turn.is_some()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut addresses = self.all.addresses();
        // It is known by now, or gone: nobody is told.
        addresses.remove(&self.address, |entry| entry.number == self.number);
        if addresses.of.get(&self.address).is_some_and(|of| of.strangers.is_empty()) {
            addresses.of.remove(&self.address);
        }
    }
}

/// What counts as one address: of IPv6 the network that one customer is given.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn strangers() -> Arc<Strangers> {
        Arc::new(Strangers::new(2 * STRANGERS_MAX))
    }

    /// Whether it is its turn now.
    async fn has_turn(stranger: &mut Stranger) -> bool {
        tokio::time::timeout(Duration::from_millis(5), stranger.take_turn()).await == Ok(true)
    }

    async fn is_evicted(stranger: &Stranger) -> bool {
        tokio::time::timeout(Duration::ZERO, stranger.evict.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn an_address_has_so_many_turns_and_whoever_leaves_gives_its_own_to_the_next() {
        let strangers = strangers();
        let mut served = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let mut stranger = strangers.admit(ONE);
            assert!(has_turn(&mut stranger).await);
            served.push(stranger);
        }
        let mut waiting = strangers.admit(ONE);
        assert!(!has_turn(&mut waiting).await);
        assert!(has_turn(&mut strangers.admit(OTHER)).await, "another address is not held up");
        served.pop();
        assert!(has_turn(&mut waiting).await);
    }

    #[tokio::test]
    async fn a_slow_one_loses_its_turn_to_those_who_wait() {
        let strangers = strangers();
        let mut slow = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let mut stranger = strangers.admit(ONE);
            assert!(has_turn(&mut stranger).await);
            slow.push(stranger);
        }
        let begun = Instant::now();
        let mut waiting = strangers.admit(ONE);
        // As the connection's task does: it ends, and with it its turn.
        let first = slow.remove(0);
        tokio::spawn(async move {
            first.evict.notified().await;
            drop(first);
        });
        assert!(waiting.take_turn().await);
        assert!(begun.elapsed() >= TURN_SAFE, "a turn is safe for a while: {:?}", begun.elapsed());
        assert!(!is_evicted(&slow[0]).await, "no more than are needed");
    }

    #[tokio::test]
    async fn of_too_many_the_oldest_gives_way_and_nothing_is_kept_of_those_that_are_gone() {
        let strangers = strangers();
        let all: Vec<_> = (0..=STRANGERS_MAX).map(|_| strangers.admit(ONE)).collect();
        assert!(is_evicted(&all[0]).await && !is_evicted(&all[1]).await);
        let others: Vec<_> = (0..STRANGERS_MAX).map(|_| strangers.admit(OTHER)).collect();
        assert_eq!(strangers.addresses().count, 2 * STRANGERS_MAX);
        let third = strangers.admit("2001:db8::1".parse().unwrap());
        assert!(is_evicted(&all[1]).await || is_evicted(&others[0]).await, "of all addresses together");
        assert_eq!(strangers.addresses().count, 2 * STRANGERS_MAX);
        drop((all, others, third));
        let addresses = strangers.addresses();
        assert!(addresses.of.is_empty() && addresses.count == 0);
    }
}
