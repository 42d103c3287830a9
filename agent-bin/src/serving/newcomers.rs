//! Connections that have not shown yet that anything here is open to them. Whoever opens many of them and says nothing
//! takes places from nobody but from others that come from the same address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use super::lock;

/// Of one address. A backup has eight connections at most, and each is a newcomer for some round trips.
const OF_ONE_MAX: usize = 16;
/// Of all addresses: half of the places are for those that were let in.
const IN_ALL_MAX: usize = 128;

/// Those that are there.
#[derive(Debug, Default)]
pub(super) struct Newcomers(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    all: Arc<Newcomers>,
    from: IpAddr,
}

impl Newcomers {
    /// Takes one more in, unless there are too many.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Newcomer> {
        let from = network(from);
        let mut all = lock(&self.0);
        if all.values().sum::<usize>() >= IN_ALL_MAX || all.get(&from).is_some_and(|count| *count >= OF_ONE_MAX) {
            return None;
        }
        *all.entry(from).or_default() += 1;
        Some(Newcomer { all: Arc::clone(self), from })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

/// Who has one address of version 6 has 2^64 of them.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(all: &Arc<Newcomers>, from: &str) -> Option<Newcomer> {
        all.enter(from.parse().unwrap())
    }

    #[test]
    fn one_address_has_few_places_and_all_together_have_half() {
        let all = Arc::new(Newcomers::default());
        let mut held: Vec<_> = (0..OF_ONE_MAX).map(|_| enter(&all, "10.0.0.1").unwrap()).collect();
        assert!(enter(&all, "10.0.0.1").is_none() && enter(&all, "::ffff:10.0.0.1").is_none());
        held.pop();
        held.push(enter(&all, "10.0.0.1").unwrap());
        held.extend((0..OF_ONE_MAX).map(|n| enter(&all, &format!("2001:db8::{n:x}")).unwrap()));
        assert!(enter(&all, "2001:db8::ffff").is_none(), "they are of one network");
        held.extend((held.len()..IN_ALL_MAX).map(|n| enter(&all, &format!("10.0.1.{n}")).unwrap()));
        assert!(enter(&all, "10.0.2.1").is_none());
        held.clear();
        assert!(lock(&all.0).is_empty() && enter(&all, "10.0.2.1").is_some());
    }
}
