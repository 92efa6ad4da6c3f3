//! How far the gateway's clock is from this node's, from the `Date` headers of its answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::{DATE, HeaderMap};

/// The gateway's clock minus this node's, in seconds, as of the last answer.
#[derive(Debug)]
pub(crate) struct ClockOffset {
    /// The bits of an `f64`; NaN before there was an answer.
    bits: AtomicU64,
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self { bits: AtomicU64::new(f64::NAN.to_bits()) }
    }
}

impl ClockOffset {
    pub(crate) fn get(&self) -> Option<f64> {
        // A value on its own: nothing else is published with it.
        Some(f64::from_bits(self.bits.load(Ordering::Relaxed))).filter(|offset| !offset.is_nan())
    }

    /// Takes in an answer to a request of the time between `sent` and `received`, on this node's clock.
    pub(crate) fn observe(&self, headers: &HeaderMap, sent: f64, received: f64) {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(date) = date.as_ref().and_then(seconds) {
            self.bits.store(smallest_offset(date, sent, received).to_bits(), Ordering::Relaxed);
        }
    }
}

fn seconds(time: &SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// A date has no fractions of a second, and was made somewhere between the two times. Of all offsets that agree with
/// that, the one nearest to zero is taken, so that clocks that agree are compared as they are.
fn smallest_offset(date: f64, sent: f64, received: f64) -> f64 {
    let (least, most) = (date - received, date + 1.0 - sent);
    0.0_f64.min(most).max(least)
}

#[cfg(test)]
mod tests {
    use crate::delivery::pushgateway::clock_offset::*;

    fn offset(date: &str, sent: f64, received: f64) -> Option<f64> {
        let clock = ClockOffset::default();
        let mut headers = HeaderMap::new();
        headers.insert(DATE, date.parse().unwrap());
        clock.observe(&headers, sent, received);
        clock.get()
    }

    #[test]
    fn clocks_that_agree_as_far_as_a_date_tells_have_no_offset() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT"; // 784 111 777
        assert_eq!(offset(date, 784_111_777.0, 784_111_777.1), Some(0.0));
        assert_eq!(offset(date, 784_111_777.9, 784_111_778.1), Some(0.0));
        assert_eq!(offset(date, 784_111_770.0, 784_111_779.0), Some(0.0), "a slow answer");
    }

    #[test]
    fn clocks_that_differ_have_the_least_offset_that_agrees_with_the_date() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(offset(date, 784_115_377.0, 784_115_378.0), Some(-3_599.0), "this node is an hour ahead");
        assert_eq!(offset(date, 784_108_177.0, 784_108_178.0), Some(3_599.0), "this node is an hour behind");
    }

    #[test]
    fn without_a_date_nothing_is_known() {
        assert_eq!(offset("yesterday", 1.0, 2.0), None);
        assert_eq!(ClockOffset::default().get(), None);
    }
}
