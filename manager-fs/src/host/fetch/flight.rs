//! Chunks on their way, so that two readers of one chunk ask for it once.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use proto::ObjectId;

use super::{Fetcher, Urgency, Wanted};
use crate::clock::Clock;
use crate::host::cache::Partial;
use crate::sync::lock;

/// Object, chunk size, chunk index.
pub(super) type FlightKey = (ObjectId, u32, u32);

/// One chunk on its way.
pub(super) struct Flight {
    pub(super) urgency: Urgency,
    state: Mutex<FlightState>,
    landed: Condvar,
}

#[derive(Clone)]
pub(super) enum FlightState {
    InAir,
    /// In the cache.
    Stored,
    /// The cache did not take it.
    Bytes(Arc<Vec<u8>>),
    /// Whoever still wants it asks again.
    Lost,
}

impl Flight {
    pub(super) fn new(urgency: Urgency) -> Self {
        Self { urgency, state: Mutex::new(FlightState::InAir), landed: Condvar::new() }
    }

    /// The first result counts.
    pub(super) fn land(&self, result: FlightState) {
        let mut state = lock(&self.state);
        if matches!(*state, FlightState::InAir) {
            *state = result;
            self.landed.notify_all();
        }
    }

    pub(super) fn has_landed(&self) -> bool {
        !matches!(*lock(&self.state), FlightState::InAir)
    }

    /// The result, or `InAir` when it did not come by then.
    pub(super) fn wait(&self, clock: &Clock, until: Instant) -> FlightState {
        let mut state = lock(&self.state);
        while matches!(*state, FlightState::InAir) {
            match clock.wait_until(&self.landed, state, until) {
                Some(again) => state = again,
                None => return FlightState::InAir,
            }
        }
        state.clone()
    }
}

/// Flights that one thread has to bring down. Dropping it ends them whatever happened, so that nobody waits for ever.
pub(super) struct Departed<'f> {
    pub(super) fetcher: &'f Fetcher,
    pub(super) object: ObjectId,
    pub(super) chunk_bytes: u32,
    pub(super) flights: Vec<(u32, Arc<Flight>)>,
}

impl Departed<'_> {
    /// What has not come by now is lost, and whoever still wants it asks again. To be done before waiting for flights of
    /// other threads: those who want these ones must not wait for them too.
    pub(super) fn come_down(&self) {
        let mut flights = lock(&self.fetcher.flights);
        for (index, flight) in &self.flights {
            flight.land(FlightState::Lost);
            let key = (self.object, self.chunk_bytes, *index);
            if flights.get(&key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
                flights.remove(&key);
            }
        }
    }
}

impl Drop for Departed<'_> {
    fn drop(&mut self) {
        self.come_down();
    }
}

/// The part of one request that is about one object.
pub(super) struct Leg<'a> {
    pub(super) wanted: Wanted<'a>,
    pub(super) partial: Option<&'a Partial>,
    pub(super) flights: &'a [(u32, Arc<Flight>)],
}
