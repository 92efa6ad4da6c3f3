//! A calendar date, as written in the price file.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Date {
    year: i64,
    month: i64,
    day: i64,
}

impl Date {
    /// The date `days` after 1970-01-01 (Howard Hinnant's `civil_from_days`: years begin in March, so that the leap
    /// day is the last of its year).
    pub(crate) fn from_days(days: i64) -> Self {
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self { year: year_of_era + era * 400 + i64::from(month <= 2), month, day }
    }

    /// Days since 1970-01-01, the inverse of [`Date::from_days`].
    pub(crate) fn days(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let from_march = if self.month > 2 { self.month - 3 } else { self.month + 9 };
        let day_of_year = (153 * from_march + 2) / 5 + self.day - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    pub(crate) fn same_month(self, other: Self) -> bool {
        (self.year, self.month) == (other.year, other.month)
    }
}

impl FromStr for Date {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let digits = |range: std::ops::Range<usize>| {
            let part = text.get(range)?;
            if part.bytes().all(|byte| byte.is_ascii_digit()) { part.parse::<i64>().ok() } else { None }
        };
        let fields = match (text.len(), text.get(4..5), text.get(7..8)) {
            (10, Some("-"), Some("-")) => digits(0..4).zip(digits(5..7)).zip(digits(8..10)),
            _ => None,
        };
        fields
            .map(|((year, month), day)| Self { year, month, day })
            // A day that does not exist, such as February 30, comes back as another one. (A month above 12 too.)
            .filter(|date| Self::from_days(date.days()) == *date)
            .ok_or_else(|| DateError { text: text.to_owned() })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// A text that is no date.
#[derive(Debug)]
pub(crate) struct DateError {
    text: String,
}

impl fmt::Display for DateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a date, expected a day that exists as YYYY-MM-DD", self.text)
    }
}

impl std::error::Error for DateError {}

/// A moment in UTC as `YYYYMMDD-HHMMSS`: sorts by time, and is short enough for a label.
pub(crate) fn utc_stamp(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let date = Date::from_days((seconds / SECONDS_PER_DAY).try_into().unwrap_or(i64::MAX / 2));
    let of_day = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{:04}{:02}{:02}-{hour:02}{minute:02}{second:02}", date.year, date.month, date.day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_counted_from_1970() {
        for (text, days) in [("1970-01-01", 0), ("1969-12-31", -1), ("2000-02-29", 11_016), ("2018-12-31", 17_896)] {
            let date: Date = text.parse().unwrap();
            assert_eq!(date.days(), days, "{text}");
            assert_eq!(Date::from_days(days).to_string(), text);
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back_and_follows_the_one_before() {
        let mut before = Date::from_days(-150_000);
        for days in -149_999..0 {
            let date = Date::from_days(days);
            assert_eq!(date.days(), days);
            assert!(before < date, "{before} {date}");
            before = date;
        }
    }

    #[test]
    fn what_is_no_date_is_refused_with_its_text() {
        for text in ["", "2018-02-29", "2018-13-01", "2018-00-10", "2018-1-01", "2018/01/01", "+018-01-01", "201é-01-1"]
        {
            let error = text.parse::<Date>().expect_err(text);
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn a_stamp_is_utc() {
        let moment = UNIX_EPOCH + Duration::from_secs(1_767_640_412);
        assert_eq!(utc_stamp(moment), "20260105-191332");
    }
}
