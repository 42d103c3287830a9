//! Connections that are not known yet, counted by address.
//!
//! Hundreds of hosts may share one address, and come back at the same moment: they take turns. Whoever sends nothing holds up
//! those of its own address alone, and costs no more than the descriptors of those who wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one address that shake hands and say `Hello` at the same time; others wait in the order in which they came.
const AT_ONCE_MAX: usize = 64;
/// Connections of one address that are not known yet, those that wait included. One more is refused.
const STRANGERS_MAX: usize = 1024;
/// A host that has waited for longer dials again.
const TURN_DEADLINE: Duration = Duration::from_secs(10);

/// All of them.
#[derive(Default)]
pub(super) struct Strangers(Mutex<HashMap<IpAddr, OfAddress>>);

struct OfAddress {
    count: usize,
    turns: Arc<Semaphore>,
}

/// One of them, until it is known or gone.
pub(super) struct Stranger {
    all: Arc<Strangers>,
    address: IpAddr,
    turns: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Strangers {
    /// Counts a new connection; `None` when its address has too many.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || OfAddress { count: 0, turns: Arc::new(Semaphore::new(AT_ONCE_MAX)) };
        let of_address = addresses.entry(address).or_insert_with(new);
        if of_address.count >= STRANGERS_MAX {
            return None;
        }
        of_address.count += 1;
        Some(Stranger { all: Arc::clone(self), address, turns: Arc::clone(&of_address.turns), turn: None })
    }
}

impl Stranger {
    /// Waits until it is this connection's turn; `false` when that takes too long.
    pub(super) async fn take_turn(&mut self) -> bool {
        let turn = tokio::time::timeout(TURN_DEADLINE, Arc::clone(&self.turns).acquire_owned()).await;
        self.turn = turn.ok().and_then(Result::ok);
        self.turn.is_some()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut addresses = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = addresses.get_mut(&self.address) {
            of_address.count -= 1;
            if of_address.count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    /// Whether it is its turn now.
    async fn has_turn(stranger: &mut Stranger) -> bool {
        tokio::time::timeout(Duration::ZERO, stranger.take_turn()).await == Ok(true)
    }

    #[tokio::test]
    async fn an_address_has_so_many_turns_and_whoever_leaves_gives_its_own_to_the_next() {
        let strangers = Arc::new(Strangers::default());
        let mut served = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let mut stranger = strangers.admit(ONE).unwrap();
            assert!(has_turn(&mut stranger).await);
            served.push(stranger);
        }
        let mut waiting = strangers.admit(ONE).unwrap();
        assert!(!has_turn(&mut waiting).await);
        assert!(has_turn(&mut strangers.admit(OTHER).unwrap()).await, "another address is not held up");
        served.pop();
        assert!(has_turn(&mut waiting).await);
    }

    #[test]
    fn too_many_of_one_address_are_refused_and_nothing_is_kept_of_those_that_are_gone() {
        let strangers = Arc::new(Strangers::default());
        let mut all: Vec<_> = (0..STRANGERS_MAX).map(|_| strangers.admit(ONE).unwrap()).collect();
        assert!(strangers.admit(ONE).is_none());
        assert!(strangers.admit(OTHER).is_some());
        all.pop();
        all.push(strangers.admit(ONE).unwrap());
        drop(all);
        assert!(strangers.0.lock().unwrap().is_empty());
    }
}
