//! Hours of the day in which work may begin, in the time zone of those who work then: `22:00-06:00 Europe/Berlin`.

use std::fmt;
use std::str::FromStr;

use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::policy::schedule::{NoSchedule, Window};
use super::policy::zone::Zone;

/// A window of each day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    window: Window,
    zone: Zone,
}

impl Hours {
    /// Since when they have been open; `None`: they are not.
    pub fn open_since(&self, at: Unix) -> Option<Unix> {
        // Where clocks are put forward over the very beginning, it is reckoned from the moment that is asked about.
        self.window.is_open(&self.zone, at).then(|| self.window.opened(&self.zone, at).unwrap_or(at))
    }

    /// When they begin next.
    pub fn opens(&self, after: Unix) -> Option<Unix> {
        self.window.opens(&self.zone, after)
    }
}

impl FromStr for Hours {
    type Err = NoSchedule;

    /// Without a time zone: UTC.
    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let mut words = text.split_whitespace();
        let window = words.next().unwrap_or_default().parse()?;
        let zone = words.next().map_or(Ok(Zone::utc()), Zone::named)?;
        match words.next() {
            Some(more) => Err(NoSchedule::GoesOn { text: text.to_owned(), more: more.to_owned() }),
            None => Ok(Self { window, zone }),
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.window, self.zone.name())
    }
}

impl Serialize for Hours {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Unix = 3_600_000;
    /// 2026-10-25T00:00:00Z, a Sunday; at one clocks go back in Berlin from three to two.
    const MIDNIGHT: Unix = 1_792_886_400_000;

    #[test]
    fn hours_are_open_from_their_beginning_to_their_end_also_over_midnight() {
        let day: Hours = "9:00-17:00".parse().unwrap();
        assert_eq!(day.open_since(MIDNIGHT + 9 * HOUR - 1), None);
        assert_eq!(day.open_since(MIDNIGHT + 9 * HOUR), Some(MIDNIGHT + 9 * HOUR));
        assert_eq!(day.open_since(MIDNIGHT + 17 * HOUR - 1), Some(MIDNIGHT + 9 * HOUR));
        assert_eq!(day.open_since(MIDNIGHT + 17 * HOUR), None);
        assert_eq!(day.opens(MIDNIGHT + 9 * HOUR), Some(MIDNIGHT + 33 * HOUR));
        let night: Hours = "22:00-06:00".parse().unwrap();
        assert_eq!(night.open_since(MIDNIGHT), Some(MIDNIGHT - 2 * HOUR));
        assert_eq!(night.opens(MIDNIGHT), Some(MIDNIGHT + 22 * HOUR));
    }

    #[test]
    fn a_night_in_which_clocks_go_back_is_an_hour_longer() {
        let night: Hours = "22:00-06:00 Europe/Berlin".parse().unwrap();
        // It began at 22:00 of summer time, which is 20:00 in Greenwich, and ends at 06:00 of winter time.
        for at in [MIDNIGHT - 4 * HOUR, MIDNIGHT + HOUR / 2, MIDNIGHT + 5 * HOUR - 1] {
            assert_eq!(night.open_since(at), Some(MIDNIGHT - 4 * HOUR), "{at}");
        }
        assert_eq!(night.open_since(MIDNIGHT + 5 * HOUR), None);
        assert_eq!(night.opens(MIDNIGHT), Some(MIDNIGHT + 21 * HOUR));
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else_is() {
        let hours: Hours = "22:00-06:00  europe/berlin".parse().unwrap();
        assert_eq!(hours.to_string(), "22:00-06:00 Europe/Berlin");
        let bytes = proto::codec::encode(&hours).unwrap();
        assert_eq!(proto::codec::decode::<Hours, 256>(&bytes).unwrap(), hours);
        for wrong in ["", "22:00", "22:00-22:00", "25:00-06:00", "22:00-06:00 Mars", "22:00-06:00 UTC now"] {
            assert!(wrong.parse::<Hours>().is_err(), "{wrong}");
        }
    }
}
