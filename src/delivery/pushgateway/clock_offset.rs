//! The offset of the gateway's clock from this node's, by the `Date` headers of its responses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::{DATE, HeaderMap};

/// The gateway's clock minus this node's, in seconds, by the last response.
#[derive(Debug)]
pub(super) struct ClockOffset {
    /// The bits of an `f64`; NaN before the first response.
    bits: AtomicU64,
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self { bits: AtomicU64::new(f64::NAN.to_bits()) }
    }
}

impl ClockOffset {
    /// Returns the offset; `None` before the first response.
    pub(super) fn get(&self) -> Option<f64> {
        // `Relaxed`: the value publishes no other memory.
        Some(f64::from_bits(self.bits.load(Ordering::Relaxed))).filter(|offset| !offset.is_nan())
    }

    /// Updates the offset from the headers of a response. The request was sent at `sent` and the response arrived at
    /// `received`, on this node's clock.
    pub(super) fn observe(&self, headers: &HeaderMap, sent: f64, received: f64) {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(date) = date.as_ref().and_then(seconds) {
            self.bits.store(smallest_offset(date, sent, received).to_bits(), Ordering::Relaxed);
        }
    }
}

fn seconds(time: &SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// Returns the offset nearest to zero of all offsets that agree with the date, so that equal clocks have none. A date
/// has no fractions of a second, and was set between the two times.
fn smallest_offset(date: f64, sent: f64, received: f64) -> f64 {
    let (least, most) = (date - received, date + 1.0 - sent);
    0.0_f64.min(most).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(date: &str, sent: f64, received: f64) -> Option<f64> {
        let clock = ClockOffset::default();
        let mut headers = HeaderMap::new();
        headers.insert(DATE, date.parse().unwrap());
        clock.observe(&headers, sent, received);
        clock.get()
    }

    #[test]
    fn clocks_that_agree_with_the_date_have_no_offset() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT"; // 784 111 777
        assert_eq!(offset(date, 784_111_777.0, 784_111_777.1), Some(0.0));
        assert_eq!(offset(date, 784_111_777.9, 784_111_778.1), Some(0.0));
        assert_eq!(offset(date, 784_111_770.0, 784_111_779.0), Some(0.0), "a slow response");
    }

    #[test]
    fn clocks_that_differ_have_the_smallest_possible_offset() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(offset(date, 784_115_377.0, 784_115_378.0), Some(-3_599.0), "this node is an hour ahead");
        assert_eq!(offset(date, 784_108_177.0, 784_108_178.0), Some(3_599.0), "this node is an hour behind");
    }

    #[test]
    fn offset_is_unknown_without_a_date() {
        assert_eq!(offset("yesterday", 1.0, 2.0), None);
        assert_eq!(ClockOffset::default().get(), None);
    }
}
