//! Several askers of one chunk in **every** order in which their steps can come, with requests that fail, threads that die
//! and deadlines that pass. The steps are the very methods that [`Fetcher::fetch_all`] calls, one lock at a time, so what
//! holds here holds for threads.

use std::collections::BTreeMap;

use ::tests::choices::explore;

use super::tests::{Bench, CHUNK, content};
use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Look,
    Depart,
    /// The chunk has come, is verified and in the cache, or held where there is no room.
    Receive,
    Land,
    Fail,
    /// The thread unwinds.
    Die,
    ComeDown,
    HearResult,
    /// A demand takes over from a background request.
    TakeOver,
    DeadlinePasses,
}

/// Where one asker is.
enum At<'f> {
    Looking,
    Missing,
    Asking(Departed<'f>),
    Received(Departed<'f>, FlightState),
    Asked(Departed<'f>, bool),
    Waiting(Arc<Flight>),
    /// With the bytes, or without: then by its own fault.
    Done(bool),
}

struct Asker<'f> {
    urgency: Urgency,
    at: At<'f>,
    faults: u32,
}

/// What may still go wrong.
#[derive(Clone, Copy)]
struct Budget {
    fail: u32,
    die: u32,
    deadline: u32,
}

struct World<'f> {
    bench: &'f Bench,
    bytes: &'f [u8],
    wanted: Wanted<'f>,
    partial: Option<&'f Partial>,
    index: u32,
    askers: Vec<Asker<'f>>,
    left: Budget,
    led: u32,
    asked_again: bool,
}

impl<'f> World<'f> {
    fn possible(&self) -> Vec<(usize, Act)> {
        let mut acts = Vec::new();
        for (n, asker) in self.askers.iter().enumerate() {
            let mut can = |act| acts.push((n, act));
            match &asker.at {
                At::Looking => can(Act::Look),
                At::Missing => can(Act::Depart),
                At::Asking(_) => {
                    can(Act::Receive);
                    if self.left.fail > 0 {
                        can(Act::Fail);
                    }
                    if self.left.die > 0 {
                        can(Act::Die);
                    }
                }
                At::Received(..) => can(Act::Land),
                At::Asked(..) => can(Act::ComeDown),
                At::Waiting(flight) if flight.has_landed() => can(Act::HearResult),
                At::Waiting(flight) => {
                    if flight.urgency == Urgency::Background {
                        can(Act::TakeOver);
                    }
                    if self.left.deadline > 0 {
                        can(Act::DeadlinePasses);
                    }
                }
                At::Done(_) => {}
            }
        }
        acts
    }

    fn take(&mut self, n: usize, act: Act) {
        let urgency = self.askers[n].urgency;
        let at = std::mem::replace(&mut self.askers[n].at, At::Looking);
        self.askers[n].at = match (act, at) {
            (Act::Look, _) if has(self.partial, self.wanted, self.index) => At::Done(true),
            (Act::Look, _) => At::Missing,
            (Act::Depart, _) => self.depart(urgency),
            (Act::Receive, At::Asking(mine)) => {
                let state = self.receive(&mine);
                At::Received(mine, state)
            }
            (Act::Land, At::Received(mine, state)) => {
                mine.flights[0].1.land(state);
                At::Asked(mine, true)
            }
            (Act::Fail, At::Asking(mine)) => {
                self.left.fail -= 1;
                self.askers[n].faults += 1;
                At::Asked(mine, false)
            }
            (Act::Die, At::Asking(mine)) => {
                self.left.die -= 1;
                self.askers[n].faults += 1;
                drop(mine);
                At::Done(false)
            }
            (Act::ComeDown, At::Asked(mine, came)) => {
                mine.come_down();
                let flight = mine.flights[0].1.clone();
                match urgency {
                    Urgency::Background => At::Done(came),
                    // As `Retry` has it, only with fewer tries.
                    Urgency::Demand if self.askers[n].faults > 1 => At::Done(false),
                    Urgency::Demand => self.hear(&flight),
                }
            }
            (Act::HearResult, At::Waiting(flight)) => self.hear(&flight),
            (Act::TakeOver, At::Waiting(flight)) => {
                self.bench.fetcher.abandon(self.wanted.key(self.index), &flight);
                At::Looking
            }
            (Act::DeadlinePasses, At::Waiting(_)) => {
                self.left.deadline -= 1;
                self.askers[n].faults += 1;
                At::Done(false)
            }
            (act, _) => panic!("{act:?} is not possible"),
        };
    }

    fn depart(&mut self, urgency: Urgency) -> At<'f> {
        let fetcher: &'f Fetcher = &self.bench.fetcher;
        let (mine, mut theirs) = fetcher.depart(self.wanted, self.partial, &[self.index], urgency);
        match (mine.flights.is_empty(), theirs.pop()) {
            (true, Some((_, flight))) if urgency == Urgency::Demand => At::Waiting(flight),
            // A background request leaves it to whoever has it under way.
            (true, Some(_)) => At::Done(true),
            (true, None) => At::Looking,
            (false, _) => {
                assert!(!has(self.partial, self.wanted, self.index), "fetched though it is here");
                let also = |urgency| {
                    let asks = |asker: &&Asker<'_>| matches!(asker.at, At::Asking(_)) && asker.urgency == urgency;
                    self.askers.iter().filter(asks).count()
                };
                assert_eq!(also(Urgency::Demand), 0, "two requests for one chunk");
                assert!(also(Urgency::Background) == 0 || urgency == Urgency::Demand, "beside a background request");
                self.led += 1;
                self.asked_again |= self.led > 1;
                At::Asking(mine)
            }
        }
    }

    fn receive(&self, mine: &Departed<'f>) -> FlightState {
        let start = self.index as usize * CHUNK as usize;
        let plain = self.bytes[start..start + CHUNK as usize].to_vec();
        let leg = Leg { wanted: self.wanted, partial: self.partial, flights: &mine.flights };
        let head = ChunkHead { sequence: 0, encoding: Encoding::Raw, plain_bytes: CHUNK };
        self.bench.fetcher.receive(&leg, self.index, head, plain).unwrap()
    }

    fn hear(&self, flight: &Flight) -> At<'f> {
        let fetcher = &self.bench.fetcher;
        match flight.wait(fetcher.clock(), fetcher.clock().now()) {
            FlightState::Bytes(bytes) => {
                let start = self.index as usize * CHUNK as usize;
                assert_eq!(*bytes, self.bytes[start..start + CHUNK as usize]);
                At::Done(true)
            }
            FlightState::Stored | FlightState::Lost => At::Looking,
            FlightState::InAir => panic!("waited for what has not landed"),
        }
    }

    /// Nothing can happen any more.
    fn check_end(&self) {
        for asker in &self.askers {
            let At::Done(came) = asker.at else { panic!("somebody waits for ever") };
            assert!(came || asker.faults > 0, "one pays for the fault of another");
        }
        assert!(lock(&self.bench.fetcher.flights).is_empty(), "a flight is left that nobody brings down");
    }
}

/// Chunks of one object: a fresh one for each schedule, and a fresh object when they are used up.
const CHUNKS: u32 = 1024;

/// Returns how many schedules there are, and in how many somebody asked again after another.
fn all_orders(urgencies: &[Urgency], left: Budget, with_room: bool) -> BTreeMap<bool, u64> {
    let (mut seen, mut chunks) = (BTreeMap::new(), 0..0);
    let bytes = content(1, (CHUNKS * CHUNK) as usize);
    let mut bench = None;
    explore(|choices| {
        let index = chunks.next().unwrap_or_else(|| {
            bench = Some(Bench::new(std::slice::from_ref(&bytes), None));
            chunks = 1..CHUNKS;
            0
        });
        let bench = bench.as_ref().unwrap();
        let wanted = bench.wanted(&bytes);
        let Ok(Place::Partial(partial)) = bench.fetcher.cache.place(wanted.object, CHUNK) else { panic!("no place") };
        let asker = |urgency: &Urgency| Asker { urgency: *urgency, at: At::Looking, faults: 0 };
        let mut world = World {
            bench,
            bytes: &bytes,
            wanted,
            partial: with_room.then_some(&*partial),
            index,
            askers: urgencies.iter().map(asker).collect(),
            left,
            led: 0,
            asked_again: false,
        };
        loop {
            let possible = world.possible();
            if possible.is_empty() {
                break;
            }
            let (n, act) = choices.pick(&possible);
            world.take(n, act);
        }
        world.check_end();
        *seen.entry(world.asked_again).or_default() += 1;
    });
    println!("{seen:?}");
    seen
}

#[test]
fn in_every_order_two_askers_get_the_chunk_or_their_own_error() {
    let two = [Urgency::Demand, Urgency::Demand];
    for with_room in [true, false] {
        let seen = all_orders(&two, Budget { fail: 1, die: 0, deadline: 1 }, with_room);
        assert!(seen[&true] > 100 && seen[&false] > 10, "{seen:?}");
    }
}

#[test]
fn in_every_order_a_demand_takes_over_from_a_background_request_and_nothing_is_left() {
    let both = [Urgency::Background, Urgency::Demand];
    let seen = all_orders(&both, Budget { fail: 1, die: 0, deadline: 1 }, true);
    assert!(seen[&true] > 10, "{seen:?}");
}

#[test]
fn in_every_order_the_next_one_leads_when_the_leader_dies() {
    let two = [Urgency::Demand; 2];
    let seen = all_orders(&two, Budget { fail: 0, die: 2, deadline: 0 }, true);
    assert!(seen[&true] > 10, "{seen:?}");
}
