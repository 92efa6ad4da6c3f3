//! Variables that have the prefix of this crate but are not among those that it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use super::env::{known_variables, variable_name};

/// Without a prefix of its own, `PROMETHEUS_…` are variables of other programs too, such as `PROMETHEUS_MULTIPROC_DIR`. A name
/// that differs from a known one in at most so many characters is taken for a misspelling.
const MISSPELLING: usize = 2;

/// Returns the unknown variables among those of an environment, each with the nearest known one. An empty value means unset.
pub(super) fn unknown_variables(
    prefix: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<String, String> {
    let prefix_of_all = variable_name(prefix, "");
    let known = known_variables(prefix);
    let set = environment.filter(|(_, value)| !value.to_string_lossy().trim().is_empty());
    let set: BTreeSet<_> = set.map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    let ours = |name: &&String| name.starts_with(&prefix_of_all) && !known.contains(*name) && !is_service(name, &set);
    let nearest = |name: &String| {
        let typed = name[prefix_of_all.len()..].to_uppercase();
        let distances = known.iter().filter_map(|known| {
            Some((strsim::damerau_levenshtein(&typed, known.strip_prefix(&prefix_of_all)?), known))
        });
        let (distance, nearest) = distances.min()?;
        (!prefix.is_empty() || distance <= MISSPELLING).then(|| (name.clone(), nearest.clone()))
    };
    set.iter().filter(ours).filter_map(nearest).collect()
}

/// Whether Kubernetes sets this variable for a service, for instance one named `tv-prometheus-pushgateway`.
fn is_service(name: &str, set: &BTreeSet<String>) -> bool {
    let hosts = set.iter().filter_map(|name| name.strip_suffix("_SERVICE_HOST"));
    let mut of_service = hosts.filter_map(|service| name.strip_prefix(service));
    of_service.any(|rest| rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_unknown(prefix: &str, set: &[(&str, &str)], expected: &[(&str, &str)]) {
        let set = set.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let expected = expected.iter().map(|(name, nearest)| ((*name).to_owned(), (*nearest).to_owned())).collect();
        assert_eq!(unknown_variables(prefix, set), expected);
    }

    #[test]
    fn unknown_variable_has_the_nearest_known_one() {
        for (prefix, name, nearest) in [
            ("TV_", "TV_PROMETHEUS_PUSHGATWAY", "TV_PROMETHEUS_PUSHGATEWAY"),
            ("TV_", "TV_PROMETHEUS_PUSHGATEWAY_URL", "TV_PROMETHEUS_PUSHGATEWAY"),
            ("TV_", "TV_PROMETHEUS_job", "TV_PROMETHEUS_JOB"),
            ("TV_", "TV_PROMETHEUS_INTERVAL", "TV_PROMETHEUS_PUSH_INTERVAL"),
            ("TV_", "TV_PROMETHEUS_LSITEN", "TV_PROMETHEUS_LISTEN"),
            ("TV_", "TV_PROMETHEUS_", "TV_PROMETHEUS_JOB"),
            ("acme_", "acme_PROMETHEUS_CAFILE", "acme_PROMETHEUS_CA_FILE"),
            ("", "PROMETHEUS_PUSH_GATEWAY", "PROMETHEUS_PUSHGATEWAY"),
        ] {
            assert_unknown(prefix, &[(name, "x")], &[(name, nearest)]);
        }
    }

    #[test]
    fn known_foreign_and_empty_variables_are_not_reported() {
        for known in known_variables("TV_") {
            assert_unknown("TV_", &[(&known, "x")], &[]);
        }
        for feature in ["CA_FILE", "EXEMPLARS", "LISTEN", "NODE"] {
            assert_unknown("TV_", &[(&format!("TV_PROMETHEUS_{feature}"), "x")], &[]);
        }
        let others =
            [("PROMETHEUS_JOBS", "x"), ("ACME_PROMETHEUS_JOBS", "x"), ("TV_JOB", "x"), ("TV_PROMETHEUS_JOBS", " ")];
        assert_unknown("TV_", &others, &[]);
        assert_unknown(
            "",
            &[("PROMETHEUS_MULTIPROC_DIR", "x"), ("PROMETHEUS_URL", "x"), ("PROMETHEUS_PORT", "x")],
            &[],
        );
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_not_reported() {
        let of_service = [
            ("TV_PROMETHEUS_PUSHGATEWAY_SERVICE_HOST", "10.0.0.7"),
            ("TV_PROMETHEUS_PUSHGATEWAY_SERVICE_PORT", "9091"),
            ("TV_PROMETHEUS_PUSHGATEWAY_SERVICE_PORT_HTTP", "9091"),
            ("TV_PROMETHEUS_PUSHGATEWAY_PORT", "tcp://10.0.0.7:9091"),
            ("TV_PROMETHEUS_PUSHGATEWAY_PORT_9091_TCP_ADDR", "10.0.0.7"),
        ];
        assert_unknown("TV_", &of_service, &[]);
        let without_host = ("TV_PROMETHEUS_PUSHGATEWAY_PORT", "TV_PROMETHEUS_PUSHGATEWAY");
        assert_unknown("TV_", &of_service[3..4], &[without_host]);
    }

    #[test]
    #[cfg(unix)]
    fn name_that_is_not_utf_8_is_unknown() {
        use std::os::unix::ffi::OsStringExt as _;
        let name = OsString::from_vec(b"TV_PROMETHEUS_JOB\xff".to_vec());
        let value = OsString::from_vec(b"\xff".to_vec());
        let unknown = unknown_variables("TV_", std::iter::once((name, value)));
        let expected = [("TV_PROMETHEUS_JOB\u{fffd}".to_owned(), "TV_PROMETHEUS_JOB".to_owned())];
        assert_eq!(unknown, expected.into());
    }
}
