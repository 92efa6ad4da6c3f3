//! Times and durations as scenarios write them. Time zero, the start of each scenario, is a Thursday: 1 January 1970.

use std::fmt;

pub(crate) const MINUTE: i64 = 60;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Reads `"Sat 02:00"`, `"Sat+1 02:00"` (a week later) or `"day 40 02:00"` as seconds since the start.
#[track_caller]
pub(crate) fn at(text: &str) -> i64 {
    let (day, clock) = text.rsplit_once(' ').unwrap_or_else(|| panic!("no time: {text:?}"));
    let day = match day.strip_prefix("day ") {
        Some(number) => number.parse().unwrap(),
        None => {
            let (weekday, week) = day.split_once('+').unwrap_or((day, "0"));
            i64::from(weekday_index(weekday)) + 7 * week.parse::<i64>().unwrap()
        }
    };
    day * DAY + clock_time(clock)
}

/// The weekday of a time, in days after a Thursday.
pub(crate) fn weekday(at: i64) -> u8 {
    at.div_euclid(DAY).rem_euclid(7) as u8
}

/// Days after a Thursday.
#[track_caller]
pub(crate) fn weekday_index(name: &str) -> u8 {
    WEEKDAYS.iter().position(|weekday| *weekday == name).unwrap_or_else(|| panic!("no weekday: {name:?}")) as u8
}

/// Reads `"02:30"` as seconds since midnight.
#[track_caller]
pub(crate) fn clock_time(text: &str) -> i64 {
    let (hours, minutes) = text.split_once(':').unwrap_or_else(|| panic!("no time of day: {text:?}"));
    hours.parse::<i64>().unwrap() * HOUR + minutes.parse::<i64>().unwrap() * MINUTE
}

/// Reads `"90s"`, `"20m"`, `"3h"`, `"2d"` or `"1h 30m"` as seconds; a minus in front makes it negative.
#[track_caller]
pub(crate) fn duration(text: &str) -> i64 {
    let (sign, positive) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let part = |part: &str| {
        let (number, unit) = part.split_at(part.len() - 1);
        let seconds = match unit {
            "s" => 1,
            "m" => MINUTE,
            "h" => HOUR,
            "d" => DAY,
            _ => panic!("no duration: {text:?}"),
        };
        number.parse::<i64>().unwrap() * seconds
    };
    sign * positive.split(' ').map(part).sum::<i64>()
}

/// Shows a time as a scenario writes it.
pub(crate) struct Shown(pub(crate) i64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (day, clock) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        write!(f, "{}", WEEKDAYS[usize::from(weekday(self.0))])?;
        if day >= 7 {
            write!(f, "+{}", day / 7)?;
        }
        write!(f, " {:02}:{:02}", clock / HOUR, clock % HOUR / MINUTE)
    }
}

#[test]
fn times_read_back_as_shown() {
    for text in ["Thu 00:00", "Sat 02:05", "Wed 23:59", "Thu+1 00:00", "Mon+12 02:30"] {
        assert_eq!(Shown(at(text)).to_string(), text);
    }
    assert_eq!(at("day 40 02:00"), at("Tue+5 02:00"));
    assert_eq!((duration("1h 30m"), duration("-10m"), duration("2d")), (5400, -600, 172_800));
}
