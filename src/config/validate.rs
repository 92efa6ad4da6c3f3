//! The checks of the settings.

use std::collections::HashSet;
use std::time::Duration;

use super::builder::MetricsLayerBuilder;
use crate::delivery::{Grouping, Pushgateway, check_label_name};
use crate::error::Error;
use crate::schema::{PROFILE, RUN_ID};
use crate::series::MAX_MAX_SERIES;

/// The longest interval or timeout. Clocks can add it without overflow.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3_600);

impl MetricsLayerBuilder {
    /// Checks all settings that can be checked before a part is built.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_namespace(&self.namespace)?;
        check_buckets("the stage duration", &self.buckets)?;
        for (histogram, bounds) in &self.histogram_buckets {
            check_buckets(&format!("histogram `{histogram}`"), bounds)?;
        }
        let different = self.expected_stages.iter().collect::<HashSet<_>>().len();
        if self.max_series < different.max(1) || self.max_series > MAX_MAX_SERIES {
            return Err(Error::config(format!(
                "the limit on label sets is {}: it must be at least 1, at least the number of expected stages \
                 ({different}), and at most {MAX_MAX_SERIES}",
                self.max_series
            )));
        }
        let durations = [
            ("push interval", self.push_interval),
            ("flush timeout", self.flush_timeout),
            #[cfg(feature = "resource-usage")]
            ("interval of the resource usage", self.resource_interval),
        ];
        for (what, duration) in durations {
            if duration.is_zero() || duration > MAX_DURATION {
                return Err(Error::config(format!(
                    "the {what} is {duration:?}: it must be above zero and at most a year"
                )));
            }
        }
        self.check_labels()?;
        self.gateway.as_ref().map_or(Ok(()), Pushgateway::check)
    }

    /// Checks the job and the constant labels.
    fn check_labels(&self) -> Result<(), Error> {
        if let Some(job) = &self.job {
            Grouping::new(job)?;
        }
        for (name, value) in &self.labels {
            check_constant_label(name)?;
            let of_group = match &self.gateway {
                Some(gateway) => gateway.grouping().get(name),
                None => self.grouping.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str()),
            };
            let of_group = of_group.or((name == "instance" && self.instance_grouping).then_some("of each process"));
            if let Some(grouped) = of_group {
                return Err(Error::config(format!(
                    "label {name:?} is a constant label, {value:?}, and a grouping label, {grouped:?}: leave one of them out"
                )));
            }
        }
        Ok(())
    }
}

/// Checks the name of a label that all series get.
pub(super) fn check_constant_label(name: &str) -> Result<(), Error> {
    check_label_name("constant label", name)?;
    if name == PROFILE || name == RUN_ID {
        return Err(Error::config(format!(
            "constant label {name:?} is a label of the stages: set it on the span that encloses them, or in the grouping"
        )));
    }
    Ok(())
}

pub(crate) fn check_namespace(namespace: &str) -> Result<(), Error> {
    let mut characters = namespace.chars();
    let begins = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if begins && characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Ok(());
    }
    Err(Error::config(format!(
        "the namespace {namespace:?} cannot begin a metric name: use letters, digits and underscores, and no digit first"
    )))
}

/// Checks bucket bounds: at least one, all finite, strictly ascending. `of` names them in the error.
fn check_buckets(of: &str, bounds: &[f64]) -> Result<(), Error> {
    if bounds.is_empty() {
        return Err(Error::config(format!("the buckets of {of} are empty: give at least one upper bound")));
    }
    if let Some(bound) = bounds.iter().find(|bound| !bound.is_finite()) {
        return Err(Error::config(format!(
            "the buckets of {of} contain {bound}: every upper bound must be finite, the last bucket (+Inf) is added"
        )));
    }
    if let Some(pair) = bounds.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::config(format!(
            "the buckets of {of} are not in ascending order: {} stands before {}",
            pair[0], pair[1]
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS};

    #[test]
    fn bucket_bounds_must_be_finite_and_ascending() {
        let message = |bounds: &[f64]| check_buckets("`x`", bounds).unwrap_err().to_string();
        assert_eq!(message(&[]), "the buckets of `x` are empty: give at least one upper bound");
        assert_eq!(
            message(&[1.0, f64::INFINITY]),
            "the buckets of `x` contain inf: every upper bound must be finite, the last bucket (+Inf) is added"
        );
        assert_eq!(message(&[2.0, 1.0]), "the buckets of `x` are not in ascending order: 2 stands before 1");
        assert_eq!(message(&[1.0, 1.0]), "the buckets of `x` are not in ascending order: 1 stands before 1");
        check_buckets("default", &DEFAULT_BUCKETS).unwrap();
        check_buckets("default", &DEFAULT_HISTOGRAM_BUCKETS).unwrap();
    }
}
