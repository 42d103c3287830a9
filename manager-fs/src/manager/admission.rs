//! Connections that are not known yet, counted by address.
//!
//! Hundreds of hosts may share one address, and come back at the same moment: they take turns. Whoever says nothing holds no
//! turn, and whoever is slow loses it to those who wait. Who of them is next is drawn by lot: where somebody floods, nobody
//! can tell the flood from the hosts behind the same address, but each of them has its chance with every turn. A flood of
//! an address costs its other hosts some time, and nobody else anything.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sync::lock;

/// Connections of one address that shake hands and say `Hello` at the same time; others wait.
const AT_ONCE_MAX: usize = 64;
/// The same in a crowd. Each costs some 50 KiB meanwhile.
const AT_ONCE_IN_A_CROWD: usize = 256;
/// Connections of one address that are not known yet, those that wait included.
const STRANGERS_MAX: usize = 1024;
/// A host that has waited for longer dials again.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a turn is safe: some round trips around the world, and the handshakes of all others that have a turn.
const TURN_SAFE: Duration = Duration::from_secs(2);
/// The same in a crowd: a flood, most likely, in which every turn counts. A round trip around the world, and the
/// handshakes of all others that have a turn.
const TURN_SAFE_IN_A_CROWD: Duration = Duration::from_millis(500);
/// How many are more than that: those that have a turn, and those that wait.
const CROWD: usize = 2 * AT_ONCE_MAX;
/// How often somebody who waits looks for a turn that takes too long.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// All of them.
pub(crate) struct Admission {
    addresses: Mutex<Addresses>,
    /// How many of all addresses together.
    all_max: usize,
}

#[derive(Default)]
struct Addresses {
    of: HashMap<IpAddr, OfAddress>,
    next: u64,
    count: usize,
    random: RandomState,
}

#[derive(Default)]
struct OfAddress {
    /// Connections of the address that have not said `Hello`, the oldest first.
    strangers: VecDeque<Entry>,
    having_a_turn: usize,
    waiting: usize,
}

struct Entry {
    number: u64,
    evict: Arc<Notify>,
    place: Place,
}

/// How far one is.
enum Place {
    /// It has said nothing.
    Silent,
    /// It is notified when its turn has come.
    Waiting(Arc<Notify>),
    /// Since when it has its turn.
    Turn(Instant),
}

/// One of them, until it is known or gone.
pub(crate) struct Stranger {
    all: Arc<Admission>,
    address: IpAddr,
    number: u64,
    evict: Arc<Notify>,
}

impl Admission {
    /// At most so many of all addresses together.
    pub(crate) fn new(all_max: usize) -> Self {
        Self { addresses: Mutex::default(), all_max }
    }

    /// Counts a new connection. When there are too many, one of its address or of the address that has most gives way.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Stranger {
        let address = network_of(address);
        let mut addresses = self.addresses();
        if addresses.count >= self.all_max {
            let most = addresses.of.iter().max_by_key(|(_, of)| of.strangers.len()).map(|(address, _)| *address);
            most.into_iter().for_each(|most| addresses.make_room(&most));
        }
        if addresses.of.get(&address).is_some_and(|of| of.strangers.len() >= STRANGERS_MAX) {
            addresses.make_room(&address);
        }
        addresses.next += 1;
        addresses.count += 1;
        let (number, evict) = (addresses.next, Arc::new(Notify::new()));
        let entry = Entry { number, evict: Arc::clone(&evict), place: Place::Silent };
        addresses.of.entry(address).or_default().strangers.push_back(entry);
        Stranger { all: Arc::clone(self), address, number, evict }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        lock(&self.addresses)
    }
}

impl Addresses {
    /// Lets one of an address go: the oldest that has said nothing, otherwise any.
    fn make_room(&mut self, address: &IpAddr) {
        let any = self.draw(self.of.get(address).map_or(0, |of| of.strangers.len()));
        let Some(of) = self.of.get(address) else { return };
        let silent = of.strangers.iter().position(|entry| matches!(entry.place, Place::Silent));
        self.evict(address, silent.or(any));
    }

    /// Gives a turn to one that waits: where there is room for one more since a crowd has come, or that of one that has
    /// had it for too long.
    fn hurry(&mut self, address: &IpAddr) {
        let Some(of) = self.of.get(address) else { return };
        if of.has_room() {
            return self.give_turn(address);
        }
        let safe = if of.is_crowded() { TURN_SAFE_IN_A_CROWD } else { TURN_SAFE };
        let slow = |entry: &Entry| matches!(entry.place, Place::Turn(since) if since.elapsed() > safe);
        let at = of.strangers.iter().position(slow);
        self.evict(address, at);
    }

    fn evict(&mut self, address: &IpAddr, at: Option<usize>) {
        if let Some(entry) = at.and_then(|at| self.remove(address, at)) {
            entry.evict.notify_one();
        }
    }

    /// Forgets one; its turn, if it had one, goes to one of those that wait, whichever the lot falls on.
    fn remove(&mut self, address: &IpAddr, at: usize) -> Option<Entry> {
        let of = self.of.get_mut(address)?;
        let entry = of.strangers.remove(at)?;
        self.count -= 1;
        match entry.place {
            Place::Silent => {}
            Place::Waiting(_) => of.waiting -= 1,
            Place::Turn(_) => {
                of.having_a_turn -= 1;
                self.give_turn(address);
            }
        }
        if self.of.get(address).is_some_and(|of| of.strangers.is_empty()) {
            self.of.remove(address);
        }
        Some(entry)
    }

    /// Gives a turn to one of those that wait, whichever the lot falls on, if there is room.
    fn give_turn(&mut self, address: &IpAddr) {
        let waiting = self.of.get(address).filter(|of| of.has_room()).map_or(0, |of| of.waiting);
        let lot = self.draw(waiting);
        if let Some(of) = self.of.get_mut(address) {
            of.give_turn(lot);
        }
    }

    /// Any number below this one.
    fn draw(&self, below: usize) -> Option<usize> {
        let drawn = self.random.hash_one((self.next, self.count, Instant::now()));
        usize::try_from(drawn % u64::try_from(below).ok()?.max(1)).ok().filter(|_| below > 0)
    }
}

impl OfAddress {
    fn is_crowded(&self) -> bool {
        self.having_a_turn + self.waiting > CROWD
    }

    fn has_room(&self) -> bool {
        self.having_a_turn < if self.is_crowded() { AT_ONCE_IN_A_CROWD } else { AT_ONCE_MAX }
    }

    /// Gives a turn to one of those that wait.
    fn give_turn(&mut self, lot: Option<usize>) {
        let mut waiting = self.strangers.iter_mut().filter(|entry| matches!(entry.place, Place::Waiting(_)));
        if let Some(entry) = lot.and_then(|lot| waiting.nth(lot))
            && let Place::Waiting(notify) = std::mem::replace(&mut entry.place, Place::Turn(Instant::now()))
        {
            notify.notify_one();
            self.waiting -= 1;
            self.having_a_turn += 1;
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        self.strangers.iter_mut().find(|entry| entry.number == number)
    }

    /// Puts one into line, or gives it its turn at once. `false`: it is gone.
    fn line_up(&mut self, number: u64, notify: &Arc<Notify>) -> bool {
        let free = self.has_room();
        let Some(entry) = self.entry(number) else { return false };
        match &mut entry.place {
            // It has asked before, and its turn came meanwhile.
            Place::Turn(_) => notify.notify_one(),
            Place::Waiting(before) => *before = Arc::clone(notify),
            Place::Silent if free => {
                entry.place = Place::Turn(Instant::now());
                notify.notify_one();
                self.having_a_turn += 1;
            }
            Place::Silent => {
                entry.place = Place::Waiting(Arc::clone(notify));
                self.waiting += 1;
            }
        }
        true
    }
}

impl Stranger {
    /// Is notified when this connection has to give way.
    pub(crate) fn evicted(&self) -> Arc<Notify> {
        Arc::clone(&self.evict)
    }

    /// Waits until it is this connection's turn; `false` when that takes too long.
    pub(crate) async fn take_turn(&mut self) -> bool {
        let turn = Arc::new(Notify::new());
        let lined_up = |all: &Admission| {
            let mut addresses = all.addresses();
            addresses.of.get_mut(&self.address).is_some_and(|of| of.line_up(self.number, &turn))
        };
        if !lined_up(&self.all) {
            return false;
        }
        let waits = async {
            while tokio::time::timeout(LOOK_AGAIN, turn.notified()).await.is_err() {
                self.all.addresses().hurry(&self.address);
            }
        };
        tokio::time::timeout(TURN_DEADLINE, waits).await.is_ok()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut addresses = self.all.addresses();
        // It is known by now, or gone: nobody is told.
        let at =
            addresses.of.get(&self.address).and_then(|of| of.strangers.iter().position(|e| e.number == self.number));
        if let Some(at) = at {
            addresses.remove(&self.address, at);
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

    fn admission() -> Arc<Admission> {
        Arc::new(Admission::new(2 * STRANGERS_MAX))
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
        let admission = admission();
        let mut served = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let mut stranger = admission.admit(ONE);
            assert!(has_turn(&mut stranger).await);
            served.push(stranger);
        }
        let mut waiting = admission.admit(ONE);
        assert!(!has_turn(&mut waiting).await);
        assert!(has_turn(&mut admission.admit(OTHER)).await, "another address is not held up");
        served.pop();
        assert!(has_turn(&mut waiting).await);
    }

    #[tokio::test]
    async fn a_slow_one_loses_its_turn_to_those_who_wait() {
        let admission = admission();
        let mut slow = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let mut stranger = admission.admit(ONE);
            assert!(has_turn(&mut stranger).await);
            slow.push(stranger);
        }
        let begun = Instant::now();
        let mut waiting = admission.admit(ONE);
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
        let admission = admission();
        let all: Vec<_> = (0..=STRANGERS_MAX).map(|_| admission.admit(ONE)).collect();
        assert!(is_evicted(&all[0]).await && !is_evicted(&all[1]).await);
        let others: Vec<_> = (0..STRANGERS_MAX).map(|_| admission.admit(OTHER)).collect();
        assert_eq!(admission.addresses().count, 2 * STRANGERS_MAX);
        let third = admission.admit("2001:db8::1".parse().unwrap());
        assert!(is_evicted(&all[1]).await || is_evicted(&others[0]).await, "of all addresses together");
        assert_eq!(admission.addresses().count, 2 * STRANGERS_MAX);
        drop((all, others, third));
        let addresses = admission.addresses();
        assert!(addresses.of.is_empty() && addresses.count == 0);
    }

    /// Nine hundred that begin to say who they are, never end, and come back whenever they have lost their turn: hosts among
    /// them get theirs soon all the same.
    #[tokio::test]
    async fn in_a_flood_of_an_address_its_hosts_get_their_turns() {
        let admission = admission();
        let flood: Vec<_> = (0..900)
            .map(|_| {
                let admission = Arc::clone(&admission);
                tokio::spawn(async move {
                    loop {
                        let mut stranger = admission.admit(ONE);
                        let evicted = stranger.evicted();
                        tokio::select! {
                            _ = async {
                                stranger.take_turn().await;
                                std::future::pending::<()>().await;
                            } => {}
                            () = evicted.notified() => {}
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(TURN_SAFE).await;
        let mut hosts = tokio::task::JoinSet::new();
        for _ in 0..51 {
            let admission = Arc::clone(&admission);
            hosts.spawn(async move {
                let begun = Instant::now();
                // As a host does: it dials again.
                while !admission.admit(ONE).take_turn().await {}
                begun.elapsed()
            });
        }
        let mut took = hosts.join_all().await;
        took.sort();
        let (median, most) = (took[25], took[50]);
        println!("a turn among 900: {median:?} at the median of 51, {most:?} at most");
        // Two seconds are what is promised; the machine that runs the tests may be busy.
        assert!(median < Duration::from_secs(4), "{median:?}");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
