use proptest::prelude::*;

use super::*;

fn schedule(text: &str) -> Schedule {
    Schedule::parse(text, None).unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

/// A moment as people write it, in milliseconds since 1970.
fn at(text: &str) -> Unix {
    let at: jiff::Timestamp = text.parse().unwrap();
    Unix::try_from(at.as_millisecond()).unwrap()
}

/// The slots after a moment, as moments of Greenwich.
fn slots(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = at(after);
    for _ in 0..count {
        from = schedule.next(from).expect("a slot");
        found.push(jiff::Timestamp::from_millisecond(i64::try_from(from).unwrap()).unwrap().to_string());
    }
    found
}

#[test]
fn a_time_that_does_not_exist_or_exists_twice_is_one_slot() {
    let nightly = schedule("daily 02:30 Europe/Berlin");
    let spring = ["2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"];
    assert_eq!(slots(&nightly, "2026-03-28T00:00:00Z", 3), spring, "the clocks go from 02:00 to 03:00");
    let autumn = ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
    assert_eq!(slots(&nightly, "2026-10-24T00:00:00Z", 3), autumn, "the clocks go from 03:00 to 02:00");
    // Two times that become the same moment are one.
    let twice = schedule("daily 02:30,03:30 Europe/Berlin");
    let once = ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z", "2026-03-30T01:30:00Z"];
    assert_eq!(slots(&twice, "2026-03-28T12:00:00Z", 3), once);
    // Samoa left out a whole day.
    let samoa = schedule("daily 02:00 Pacific/Apia");
    let skipped = ["2011-12-29T12:00:00Z", "2011-12-30T12:00:00Z", "2011-12-31T12:00:00Z"];
    assert_eq!(slots(&samoa, "2011-12-29T11:00:00Z", 3), skipped);
    // An hour that comes twice is two hours of work.
    let hourly = schedule("hourly :15 Europe/Berlin");
    let hours = ["2026-10-24T23:15:00Z", "2026-10-25T00:15:00Z", "2026-10-25T01:15:00Z", "2026-10-25T02:15:00Z"];
    assert_eq!(slots(&hourly, "2026-10-24T23:00:00Z", 4), hours);
}

#[test]
fn weeks_and_months_have_their_days() {
    let weekly = schedule("weekly sat,monday 03:00 America/New_York");
    let days = ["2026-11-02T08:00:00Z", "2026-11-07T08:00:00Z", "2026-11-09T08:00:00Z"];
    assert_eq!(slots(&weekly, "2026-11-01T12:00:00Z", 3), days);
    let monthly = schedule("monthly 31 04:00");
    let last = ["2027-01-31T04:00:00Z", "2027-02-28T04:00:00Z", "2027-03-31T04:00:00Z", "2027-04-30T04:00:00Z"];
    assert_eq!(slots(&monthly, "2027-01-30T00:00:00Z", 4), last, "a month that is shorter has its last day");
    let every = schedule("every 6h");
    assert_eq!(slots(&every, "2026-01-01T05:59:59Z", 2), ["2026-01-01T06:00:00Z", "2026-01-01T12:00:00Z"]);
}

#[test]
fn what_is_not_said_is_as_the_first_schedule_says_it() {
    let first = schedule("daily 02:00,14:00 Europe/Berlin");
    let like = |text: &str| Schedule::parse(text, Some(&first)).unwrap().to_string();
    assert_eq!(like("weekly"), "weekly sunday 02:00 Europe/Berlin");
    assert_eq!(like("weekly wed,tuesday"), "weekly tuesday,wednesday 02:00 Europe/Berlin");
    assert_eq!(like("monthly"), "monthly 1 02:00 Europe/Berlin");
    assert_eq!(like("monthly 15,1 05:30 utc"), "monthly 1,15 05:30 UTC");
    assert_eq!(like("HOURLY"), "hourly :00 Europe/Berlin");
    assert_eq!(schedule("daily").to_string(), "daily 00:00 UTC");
    assert_eq!(schedule("daily 2:00 europe/berlin").to_string(), "daily 02:00 Europe/Berlin");
    assert_eq!(schedule("every 90m").to_string(), "every 1h 30m");
}

#[test]
fn a_refusal_says_what_is_wanted() {
    let cases = [
        ("", "is no schedule"),
        ("nightly", "is no schedule"),
        ("daily 24:00", "no time of day"),
        ("daily 02:60", "no time of day"),
        ("daily 02:0", "no time of day"),
        ("daily 02:00 Europe/Berlyn", "is no time zone"),
        ("daily 02:00 UTC 03:00", "goes on"),
        ("weekly someday", "is no time zone"),
        ("monthly 32", "no day of a month"),
        ("monthly 0", "no day of a month"),
        ("hourly :60", "no minute"),
        ("hourly :", "no minute"),
        ("every 5s", "10s"),
        ("every 500d", "366d"),
        ("every now and then", "every"),
    ];
    for (text, fault) in cases {
        let error = Schedule::parse(text, None).unwrap_err().to_string();
        assert!(error.contains(fault) || text.contains(fault), "{text}: {error}");
    }
    let window = |text: &str| text.parse::<Window>().unwrap_err().to_string();
    assert!(window("22:00").contains("22:00-06:00") && window("06:00-06:00").contains("never open"));
}

#[test]
fn a_window_may_go_over_midnight_and_opens_in_summer_time_too() {
    let (window, berlin): (Window, _) = ("22:00-06:00".parse().unwrap(), Zone::named("Europe/Berlin").unwrap());
    let open = |text: &str| window.is_open(&berlin, at(text));
    assert!(open("2026-07-01T20:00:00Z") && open("2026-07-02T03:59:59Z"));
    assert!(!open("2026-07-01T19:59:59Z") && !open("2026-07-02T04:00:00Z"));
    assert_eq!(window.opens(&berlin, at("2026-07-02T04:00:00Z")), Some(at("2026-07-02T20:00:00Z")));
    assert_eq!(window.opens(&berlin, at("2026-12-02T05:00:00Z")), Some(at("2026-12-02T21:00:00Z")));
    let day: Window = "08:00-18:30".parse().unwrap();
    assert!(day.is_open(&berlin, at("2026-12-02T17:29:00Z")) && !day.is_open(&berlin, at("2026-12-02T17:30:00Z")));
    assert_eq!(day.to_string(), "08:00-18:30");
}

#[test]
fn the_longest_time_between_two_slots_is_known() {
    let hour = |text: &str| schedule(text).gap_ms() / HOUR_MS;
    assert_eq!((hour("daily 02:00"), hour("daily 02:00,10:00"), hour("hourly"), hour("every 6h")), (24, 16, 1, 6));
    assert_eq!((hour("weekly"), hour("weekly mon,tue 03:00"), hour("monthly")), (168, 144, 744));
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    let zone = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Asia/Kathmandu",
        "Africa/Casablanca",
        "America/St_Johns",
        "Antarctica/Troll",
        "Pacific/Chatham",
        "Asia/Gaza",
        "Africa/Cairo",
    ]);
    let times = prop::collection::vec((0_u8..24, 0_u8..60), 1..4).prop_map(|times| {
        times.iter().map(|(hour, minute)| format!("{hour:02}:{minute:02}")).collect::<Vec<_>>().join(",")
    });
    let days = prop::collection::vec(prop::sample::select(vec!["mon", "wed", "sat", "sun"]), 1..4);
    let of_month = prop::collection::vec(1_u8..=31, 1..4);
    (0_u8..4, times, days, of_month, zone).prop_map(|(kind, times, days, of_month, zone)| {
        let of_month = of_month.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        schedule(&match kind {
            0 => format!("hourly :{} {zone}", &times[3..5]),
            1 => format!("daily {times} {zone}"),
            2 => format!("weekly {} {times} {zone}", days.join(",")),
            _ => format!("monthly {of_month} {times} {zone}"),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// From 1990 to 2060, whatever governments did to their clocks.
    #[test]
    fn slots_are_in_order_and_none_is_between_the_last_and_the_next(
        schedule in any_schedule(), from in 631_152_000_000_u64..2_840_140_800_000,
    ) {
        let mut now = from;
        for _ in 0..40 {
            let (last, next) = (schedule.last(now).unwrap(), schedule.next(now).unwrap());
            prop_assert!(last <= now && now < next, "{last} {now} {next}");
            prop_assert_eq!(schedule.next(last), Some(next));
            prop_assert_eq!(schedule.last(next), Some(next));
            prop_assert_eq!(schedule.last(next - 1), Some(last));
            // A day that was left out, and the hours that clocks are put.
            prop_assert!(next - last <= schedule.gap_ms() + 25 * HOUR_MS);
            now = next;
        }
        prop_assert_eq!(Schedule::parse(&schedule.to_string(), None), Ok(schedule));
    }

    /// One slot a day, whatever the day.
    #[test]
    fn every_day_has_its_slot(hour in 0_u8..24, minute in 0_u8..60, zone in prop::sample::select(vec![
        "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca",
    ])) {
        let daily = schedule(&format!("daily {hour:02}:{minute:02} {zone}"));
        let zone = Zone::named(zone).unwrap();
        let mut now = at("2026-01-01T00:00:00Z");
        let mut day = zone.wall(daily.next(now).unwrap()).date();
        for _ in 0..740 {
            now = daily.next(now).unwrap();
            // One that clocks are put over midnight falls on the day after, but in none of these zones.
            prop_assert_eq!(zone.wall(now).date(), day);
            day = day.tomorrow().unwrap();
        }
    }
}
