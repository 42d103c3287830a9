//! Networks to measure on.

use std::time::Duration;

use anyhow::{Context, Result};

/// One network between a host and the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// What it is called in tables.
    pub name: &'static str,
    /// Megabits a second in each direction; `None` for as much as the machine can.
    pub megabits: Option<u32>,
    /// Round trip.
    pub round_trip: Duration,
}

/// From a rack to another continent.
pub const PROFILES: [Profile; 4] = [
    Profile { name: "lan", megabits: None, round_trip: Duration::ZERO },
    Profile { name: "g1", megabits: Some(1000), round_trip: Duration::from_millis(1) },
    Profile { name: "m100", megabits: Some(100), round_trip: Duration::from_millis(20) },
    Profile { name: "m50", megabits: Some(50), round_trip: Duration::from_millis(80) },
];

/// What a connection may have under way at least, bytes.
const WINDOW_BYTES_MIN: usize = 256 << 10;
/// Depth of the shaper's queue, as time.
const QUEUE: &str = "50ms";
/// One segment as the kernel hands it over is up to 64 KiB: a smaller bucket would cut each of them up.
const BURST_BYTES_MIN: u64 = 80 << 10;

impl Profile {
    /// The profile of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        let names = PROFILES.map(|profile| profile.name).join(", ");
        let found = PROFILES.into_iter().find(|profile| profile.name == name);
        found.with_context(|| format!("there is no network '{name}', but {names}"))
    }

    /// Bytes that one connection may have under way in one direction: what the pipe holds, as a window that has grown
    /// allows.
    pub fn window_bytes(&self) -> usize {
        // A megabit a second is a bit a microsecond.
        let bits = u128::from(self.megabits.unwrap_or(0)) * self.round_trip.as_micros();
        usize::try_from(bits / 8).unwrap_or(usize::MAX).max(WINDOW_BYTES_MIN)
    }

    /// Arguments of `tc qdisc add dev X root …`; `None` when nothing is to be shaped.
    pub fn shaper(&self) -> Option<Vec<String>> {
        let megabits = self.megabits?;
        // Two milliseconds' worth, or the timer's granularity would eat bandwidth.
        let burst = (u64::from(megabits) * 1_000_000 / 8 / 500).max(BURST_BYTES_MIN);
        let rate = format!("{megabits}mbit");
        Some(["tbf", "rate", &rate, "burst", &burst.to_string(), "latency", QUEUE].map(str::to_owned).to_vec())
    }

    /// For the table's head.
    pub fn describe(&self) -> String {
        let rate = self.megabits.map_or_else(|| "unlimited".to_owned(), |megabits| format!("{megabits} Mbit/s"));
        format!("{}: {rate}, round trip {} ms", self.name, self.round_trip.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_what_the_pipe_does() {
        assert_eq!(Profile::named("m50").unwrap().window_bytes(), 500_000);
        assert_eq!(Profile::named("lan").unwrap().window_bytes(), WINDOW_BYTES_MIN);
        assert!(Profile::named("modem").is_err());
    }

    #[test]
    fn only_a_limited_network_is_shaped() {
        assert!(Profile::named("lan").unwrap().shaper().is_none());
        let words = Profile::named("g1").unwrap().shaper().unwrap();
        assert_eq!(words[..5].join(" "), "tbf rate 1000mbit burst 250000");
    }
}
