//! When something is due: a rule and a time zone become moments, *slots*. Nothing is remembered and no clock is read.
//!
//! A rule names times that clocks on the wall show. Each of them is one slot, whatever happens to the clocks: a time that
//! exists twice is the first of the two, and one that does not exist comes as much later as the clocks are put forward.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Weekday};
use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::zone::{NoZone, Zone};
use crate::manager::toml_text::{DurationFault, duration_ms};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The shortest interval: what is shorter than a job's start and end is no schedule.
const EVERY_MS_MIN: u64 = 10_000;
const EVERY_MS_MAX: u64 = 366 * DAY_MS;
/// Times of one day, days of one week or month.
const TIMES_MAX: usize = 24;
/// Days in which every rule of a calendar has a slot, whatever the clocks do.
const DAYS_LOOKED_AT: u32 = 64;

const WEEK: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

/// A time of day, hours and minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay {
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
}

/// When something is due, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    rule: Rule,
    zone: Zone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// Whenever so many milliseconds since 1970 are over, whatever clocks on walls do.
    Every(u64),
    /// At this minute of each hour.
    Hourly(u8),
    /// At these times of each day.
    Daily(BTreeSet<TimeOfDay>),
    /// At these times of these days of each week (0 is Monday).
    Weekly(BTreeSet<u8>, BTreeSet<TimeOfDay>),
    /// At these times of these days of each month. A month that is shorter has its last day in their place.
    Monthly(BTreeSet<u8>, BTreeSet<TimeOfDay>),
}

/// Why a text says no time at which something is due.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSchedule {
    /// It begins with none of the words of a rule.
    #[error(
        "'{0}' is no schedule: want such as \"daily 02:00 Europe/Berlin\", \"weekly sunday 03:00\", \"monthly 1 04:00\", \
         \"hourly :15\" or \"every 6h\""
    )]
    Unknown(String),
    /// An interval that is none.
    #[error(transparent)]
    Interval(#[from] DurationFault),
    /// An interval that is too short or too long.
    #[error("'{0}': want an interval from 10s to 366d")]
    IntervalOutOfBounds(String),
    /// No hour and minute of a day.
    #[error("'{0}' is no time of day: want one from 00:00 to 23:59")]
    TimeOfDay(String),
    /// No minute of an hour.
    #[error("':{0}' is no minute of an hour: want :00 to :59")]
    Minute(String),
    /// No day of a month.
    #[error("'{0}' is no day of a month: want 1 to 31")]
    DayOfMonth(String),
    /// More times or days than one rule has.
    #[error("'{0}' names more than {TIMES_MAX}")]
    TooMany(String),
    /// No time zone.
    #[error(transparent)]
    Zone(#[from] NoZone),
    /// Something stands behind the time zone.
    #[error("'{text}' goes on after the time zone: '{more}'")]
    GoesOn {
        /// All of it.
        text: String,
        /// The first word too many.
        more: String,
    },
    /// No window.
    #[error("'{0}' is no window: want one such as 22:00-06:00")]
    Window(String),
    /// A window without a moment.
    #[error("'{0}' is never open: it ends when it begins")]
    NeverOpen(String),
}

impl Schedule {
    /// Reads a schedule: `every 6h`, `hourly :15`, `daily 02:00,14:00`, `weekly sunday 03:00`, `monthly 1,15 04:00`, each
    /// with a time zone behind it, UTC by default. What is not said is taken from `like`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, like: Option<&Schedule>) -> Result<Self, NoSchedule> {
        let mut words = text.split_whitespace().peekable();
        let kind = words.next().unwrap_or_default().to_ascii_lowercase();
        let like_zone = || like.map_or_else(Zone::utc, |like| like.zone.clone());
        if kind == "every" {
            let rest: Vec<&str> = words.collect();
            let ms = duration_ms(&rest.join(" "))?;
            if !(EVERY_MS_MIN..=EVERY_MS_MAX).contains(&ms) {
                return Err(NoSchedule::IntervalOutOfBounds(text.to_owned()));
            }
            return Ok(Self { rule: Rule::Every(ms), zone: like_zone() });
        }
        let begins_with_digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let days = match kind.as_str() {
            "weekly" => match words.next_if(|word| weekdays(word).is_some()) {
                Some(word) => weekdays(word).unwrap_or_default(),
                None => BTreeSet::from([6]),
            },
            "monthly" => match words.next_if(|word| begins_with_digit(word) && !word.contains(':')) {
                Some(word) => list(word, day_of_month)?,
                None => BTreeSet::from([1]),
            },
            _ => BTreeSet::new(),
        };
        let rule = match kind.as_str() {
            "hourly" => match words.next_if(|word| word.starts_with(':')) {
                Some(word) => Rule::Hourly(minute(&word[1..])?),
                None => Rule::Hourly(0),
            },
            "daily" | "weekly" | "monthly" => {
                let times = match words.next_if(begins_with_digit) {
                    Some(word) => list(word, str::parse)?,
                    None => like.and_then(Schedule::times).unwrap_or(BTreeSet::from([TimeOfDay::MIDNIGHT])),
                };
                match kind.as_str() {
                    "daily" => Rule::Daily(times),
                    "weekly" => Rule::Weekly(days, times),
                    _ => Rule::Monthly(days, times),
                }
            }
            _ => return Err(NoSchedule::Unknown(text.to_owned())),
        };
        let zone = match words.next() {
            Some(name) => Zone::named(name)?,
            None => like_zone(),
        };
        match words.next() {
            Some(more) => Err(NoSchedule::GoesOn { text: text.to_owned(), more: more.to_owned() }),
            None => Ok(Self { rule, zone }),
        }
    }

    /// Where its times are shown by clocks.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The first slot after a moment; none after the end of the calendar.
    pub fn next(&self, after: Unix) -> Option<Unix> {
        if let Rule::Every(ms) = self.rule {
            return (after / ms + 1).checked_mul(ms);
        }
        let first = self.zone.wall(after).date().yesterday().ok()?;
        self.days(first).find_map(|date| self.slots(date).into_iter().find(|slot| *slot > after))
    }

    /// The last slot at or before a moment.
    pub fn last(&self, at: Unix) -> Option<Unix> {
        if let Rule::Every(ms) = self.rule {
            return Some(at / ms * ms);
        }
        let mut date = self.zone.wall(at).date().tomorrow().ok()?;
        for _ in 0..DAYS_LOOKED_AT {
            if let Some(slot) = self.slots(date).into_iter().rev().find(|slot| *slot <= at) {
                return Some(slot);
            }
            date = date.yesterday().ok()?;
        }
        None
    }

    /// The longest time from one slot to the next, but for the hour that clocks are put back, milliseconds.
    pub fn gap_ms(&self) -> u64 {
        let longest = |marks: Vec<u64>, round: u64| {
            let next = marks.iter().skip(1).copied().chain(marks.first().map(|first| first + round));
            marks.iter().zip(next).map(|(mark, next)| next - mark).max().unwrap_or(round)
        };
        let marks = |days: &[u64], times: &BTreeSet<TimeOfDay>| -> Vec<u64> {
            let of_day = |day: &u64| times.iter().map(move |time| day * DAY_MS + time.ms()).collect::<Vec<_>>();
            days.iter().flat_map(of_day).collect()
        };
        match &self.rule {
            Rule::Every(ms) => *ms,
            Rule::Hourly(_) => HOUR_MS,
            Rule::Daily(times) => longest(marks(&[0], times), DAY_MS),
            Rule::Weekly(days, times) => {
                let days: Vec<u64> = days.iter().map(|day| u64::from(*day)).collect();
                longest(marks(&days, times), 7 * DAY_MS)
            }
            Rule::Monthly(days, times) => {
                let days: Vec<u64> = days.iter().map(|day| u64::from(*day)).collect();
                longest(marks(&days, times), 31 * DAY_MS)
            }
        }
    }

    fn times(&self) -> Option<BTreeSet<TimeOfDay>> {
        match &self.rule {
            Rule::Every(_) | Rule::Hourly(_) => None,
            Rule::Daily(times) | Rule::Weekly(_, times) | Rule::Monthly(_, times) => {
                times.first().map(|first| BTreeSet::from([*first]))
            }
        }
    }

    fn days(&self, first: Date) -> impl Iterator<Item = Date> {
        std::iter::successors(Some(first), |date| date.tomorrow().ok()).take(DAYS_LOOKED_AT as usize)
    }

    /// The slots of a day, in order.
    fn slots(&self, date: Date) -> BTreeSet<Unix> {
        let times = match &self.rule {
            Rule::Every(_) => return BTreeSet::new(),
            Rule::Hourly(minute) => return (0..24).flat_map(|hour| self.zone.each(date, hour, *minute)).collect(),
            Rule::Daily(times) => times,
            Rule::Weekly(days, times) => {
                if !days.contains(&place_in_week(date.weekday())) {
                    return BTreeSet::new();
                }
                times
            }
            Rule::Monthly(days, times) => {
                let last = date.days_in_month();
                let is_day = |day: &u8| i8::try_from(*day).unwrap_or(last).min(last) == date.day();
                if !days.iter().any(is_day) {
                    return BTreeSet::new();
                }
                times
            }
        };
        times.iter().filter_map(|time| self.zone.once(date, time.hour, time.minute)).collect()
    }
}

impl TimeOfDay {
    const MIDNIGHT: TimeOfDay = TimeOfDay { hour: 0, minute: 0 };

    fn ms(self) -> u64 {
        u64::from(self.hour) * HOUR_MS + u64::from(self.minute) * MINUTE_MS
    }
}

impl FromStr for TimeOfDay {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let wrong = || NoSchedule::TimeOfDay(text.to_owned());
        let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
        let hour = hours.parse().ok().filter(|hour| *hour < 24 && hours.len() <= 2).ok_or_else(wrong)?;
        Ok(Self { hour, minute: minute(minutes).map_err(|_| wrong())? })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

fn minute(text: &str) -> Result<u8, NoSchedule> {
    let read = text.parse().ok().filter(|minute| *minute < 60 && text.len() == 2);
    read.ok_or_else(|| NoSchedule::Minute(text.to_owned()))
}

fn day_of_month(text: &str) -> Result<u8, NoSchedule> {
    let read = text.parse().ok().filter(|day| (1..=31).contains(day));
    read.ok_or_else(|| NoSchedule::DayOfMonth(text.to_owned()))
}

fn weekdays(text: &str) -> Option<BTreeSet<u8>> {
    let day = |word: &str| {
        let word = word.to_ascii_lowercase();
        let place = WEEK.iter().position(|(name, _)| word.len() >= 3 && name.starts_with(&word))?;
        u8::try_from(place).ok()
    };
    text.split(',').map(day).collect()
}

fn place_in_week(day: Weekday) -> u8 {
    let place = WEEK.iter().position(|(_, of)| *of == day).unwrap_or_default();
    u8::try_from(place).unwrap_or_default()
}

fn list<T: Ord>(text: &str, read: impl Fn(&str) -> Result<T, NoSchedule>) -> Result<BTreeSet<T>, NoSchedule> {
    let all: BTreeSet<T> = text.split(',').map(read).collect::<Result<_, _>>()?;
    if all.len() > TIMES_MAX { Err(NoSchedule::TooMany(text.to_owned())) } else { Ok(all) }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(",");
        let times = |of: &BTreeSet<TimeOfDay>| joined(&mut of.iter().map(TimeOfDay::to_string));
        match &self.rule {
            Rule::Every(ms) => {
                return write!(f, "every {}", humantime::format_duration(std::time::Duration::from_millis(*ms)));
            }
            Rule::Hourly(minute) => write!(f, "hourly :{minute:02}")?,
            Rule::Daily(at) => write!(f, "daily {}", times(at))?,
            Rule::Weekly(days, at) => {
                let name = |day: &u8| WEEK.get(usize::from(*day)).map_or("", |(name, _)| name).to_owned();
                write!(f, "weekly {} {}", joined(&mut days.iter().map(name)), times(at))?;
            }
            Rule::Monthly(days, at) => {
                write!(f, "monthly {} {}", joined(&mut days.iter().map(u8::to_string)), times(at))?;
            }
        }
        write!(f, " {}", self.zone.name())
    }
}

impl Serialize for Schedule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?, None).map_err(serde::de::Error::custom)
    }
}

/// The hours of each day in which work may begin; they may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: TimeOfDay,
    to: TimeOfDay,
}

impl Window {
    /// Whether it is open when the clocks of a zone show this.
    pub fn is_open(&self, zone: &Zone, at: Unix) -> bool {
        let wall = zone.wall(at);
        let ms = |part: i8, unit: u64| u64::try_from(part).unwrap_or_default() * unit;
        let now = ms(wall.hour(), HOUR_MS) + ms(wall.minute(), MINUTE_MS);
        let (from, to) = (self.from.ms(), self.to.ms());
        if from < to { (from..to).contains(&now) } else { now >= from || now < to }
    }

    /// When it opened last.
    pub fn opened(&self, zone: &Zone, at: Unix) -> Option<Unix> {
        let first = zone.wall(at).date().tomorrow().ok()?;
        let days = std::iter::successors(Some(first), |date| date.yesterday().ok()).take(4);
        days.filter_map(|date| zone.once(date, self.from.hour, self.from.minute)).find(|opened| *opened <= at)
    }

    /// When it opens next.
    pub fn opens(&self, zone: &Zone, after: Unix) -> Option<Unix> {
        let first = zone.wall(after).date().yesterday().ok()?;
        let days = std::iter::successors(Some(first), |date| date.tomorrow().ok()).take(4);
        days.filter_map(|date| zone.once(date, self.from.hour, self.from.minute)).find(|opens| *opens > after)
    }
}

impl FromStr for Window {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let wrong = || NoSchedule::Window(text.to_owned());
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to): (TimeOfDay, TimeOfDay) = (from.trim().parse()?, to.trim().parse()?);
        if from == to { Err(NoSchedule::NeverOpen(text.to_owned())) } else { Ok(Self { from, to }) }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

impl Serialize for Window {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
