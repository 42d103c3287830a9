//! Time zones. Their rules are in the program: the same on every machine, also where there is no `/usr/share/zoneinfo`.

use std::fmt;
use std::sync::OnceLock;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};
use proto::message::Unix;

/// A time zone, by its name in the IANA database.
#[derive(Clone)]
pub struct Zone {
    name: String,
    rules: TimeZone,
}

/// A text is the name of no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time zone: want one such as Europe/Berlin, or UTC")]
pub struct NoZone(String);

impl Zone {
    /// Greenwich without summer time.
    pub fn utc() -> Self {
        Self { name: String::from("UTC"), rules: TimeZone::UTC }
    }

    /// The zone of this name, in whatever case it is typed.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self, NoZone> {
        static BUNDLED: OnceLock<TimeZoneDatabase> = OnceLock::new();
        let rules = BUNDLED.get_or_init(TimeZoneDatabase::bundled).get(name);
        let rules = rules.map_err(|_| NoZone(name.to_owned()))?;
        let name = rules.iana_name().unwrap_or(name).to_owned();
        Ok(Self { name, rules })
    }

    /// As it is written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the clocks on its walls show.
    pub fn wall(&self, at: Unix) -> DateTime {
        self.zoned(at).datetime()
    }

    /// The one moment that this time of a day means: of one that exists twice the first, and of one that does not exist
    /// the moment that is as long after the gap began. None outside of the years that a calendar has.
    pub fn once(&self, date: Date, hour: u8, minute: u8) -> Option<Unix> {
        self.unix(self.rules.to_ambiguous_zoned(wall(date, hour, minute)?).compatible().ok()?.timestamp())
    }

    /// Every moment at which clocks show this time of a day: two of one that exists twice, none of one that does not.
    pub fn each(&self, date: Date, hour: u8, minute: u8) -> Vec<Unix> {
        let Some(wall) = wall(date, hour, minute) else { return Vec::new() };
        let offsets = match self.rules.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Fold { before, after } => vec![before, after],
            AmbiguousOffset::Gap { .. } => Vec::new(),
        };
        offsets.into_iter().filter_map(|offset| self.unix(offset.to_timestamp(wall).ok()?)).collect()
    }

    fn zoned(&self, at: Unix) -> Zoned {
        let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
        at.unwrap_or(Timestamp::MAX).to_zoned(self.rules.clone())
    }

    #[allow(clippy::unused_self, reason = "a moment of a zone is asked of it")]
    fn unix(&self, at: Timestamp) -> Option<Unix> {
        Unix::try_from(at.as_millisecond()).ok()
    }
}

fn wall(date: Date, hour: u8, minute: u8) -> Option<DateTime> {
    let (hour, minute) = (i8::try_from(hour).ok()?, i8::try_from(minute).ok()?);
    let time = jiff::civil::Time::new(hour, minute, 0, 0).ok()?;
    Some(date.to_datetime(time))
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_zone_is_known_by_its_name_in_whatever_case_and_by_no_other() {
        assert_eq!(Zone::named("EUROPE/berlin").unwrap().name(), "Europe/Berlin");
        assert_eq!(Zone::named("utc").unwrap(), Zone::utc());
        assert_ne!(Zone::named("Europe/Berlin"), Zone::named("Europe/Vienna"));
        for wrong in ["", "Europe", "Europe/Berlyn", "../etc/passwd", "+02:00"] {
            let fault = Zone::named(wrong).unwrap_err().to_string();
            assert!(fault.contains("is no time zone"), "{wrong}: {fault}");
        }
    }

    #[test]
    fn a_time_of_a_day_is_one_moment_or_each_that_clocks_show() {
        let berlin = Zone::named("Europe/Berlin").unwrap();
        let hour = 3_600_000;
        let midnight = 1_792_886_400_000;
        // 2026-10-25T00:00:00Z; at one clocks go back from three to two.
        let day = date(2026, 10, 25);
        assert_eq!(berlin.each(day, 2, 30), [midnight + hour / 2, midnight + hour + hour / 2]);
        assert_eq!(berlin.once(day, 2, 30), Some(midnight + hour / 2));
        let spring = date(2026, 3, 29);
        assert_eq!(berlin.each(spring, 2, 30), [] as [Unix; 0]);
        assert_eq!(berlin.once(spring, 2, 30), berlin.once(spring, 3, 30));
        assert_eq!(berlin.wall(midnight).hour(), 2);
        assert_eq!((berlin.once(day, 24, 0), berlin.each(day, 0, 60).len()), (None, 0));
        assert_eq!(Zone::utc().once(date(1969, 12, 31), 0, 0), None, "before all times");
    }
}
