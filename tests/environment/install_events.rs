//! The events of `install()`, in a subscriber that is made after it.

use super::support::MockGateway;
use super::support::child::{self, Ended};
use super::{assert_ran, lines, run_with};

const UNKNOWN: &str = "is unknown and has no effect: the nearest known one is";

/// Returns level and text of the event that says where the metrics go. Panics if it is missing, or emitted twice.
#[track_caller]
fn start(ended: &Ended) -> &str {
    let [start] = lines(ended, "start: ")[..] else { panic!("one line has the event: {ended:?}") };
    start
}

#[test]
fn start_says_where_the_metrics_go() {
    let server = MockGateway::ok();
    let directory = tempfile::tempdir().unwrap();
    let (textfile, spool) = (directory.path().join("job.prom"), directory.path().join("spool"));
    let url = server.url();
    let with_password = url.replace("http://", "http://me:hush@");
    let (gateway, job) = (("PUSHGATEWAY", &*with_password), ("JOB", "quant pipeline"));
    let textfile_variable = ("TEXTFILE", textfile.to_str().unwrap());
    for (variables, expected) in [
        (&[gateway, job][..], format!("the gateway gateway={url} group=/metrics/job/quant%20pipeline interval=15s")),
        (
            &[
                gateway,
                job,
                ("GROUPING", "profile=p"),
                ("PUSH_INTERVAL", "90s"),
                ("SPOOL_DIR", spool.to_str().unwrap()),
                textfile_variable,
            ],
            format!(
                "the gateway and the text file gateway={url} group=/metrics/job/quant%20pipeline/profile/p spool={spool:?} \
                 textfile={textfile:?} interval=90s"
            ),
        ),
        (&[textfile_variable], format!("the text file textfile={textfile:?} interval=15s")),
        (&[("LISTEN", "0")], "scrapes of /metrics listener=".to_owned()),
    ] {
        let named: Vec<_> = variables.iter().map(|(name, value)| (format!("TV_PROMETHEUS_{name}"), *value)).collect();
        let named: Vec<_> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let ended = run_with("the environment alone", &named);
        assert_ran(&ended);
        let address = lines(&ended, "listening: Some(").concat();
        assert_eq!(start(&ended), format!("INFO metrics go to {expected}{}", address.trim_end_matches(')')));
        assert!(
            variables[0].0 != "LISTEN" || (!address.is_empty() && !address.starts_with("127.0.0.1:0")),
            "{address}"
        );
        assert!(!format!("{ended:?}").contains("hush"), "{ended:?}");
    }
}

#[test]
#[cfg(feature = "otlp")]
fn start_names_the_collector() {
    let server = MockGateway::ok();
    let url = server.url();
    let variables = [("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url)];
    let ended = run_with("the environment alone", &variables);
    assert_eq!(start(&ended), format!("INFO metrics go to the collector collector={url}/v1/metrics interval=15s"));
    let ended = run_with("the environment alone", &[&variables[..], &[("OTEL_SDK_DISABLED", "true")]].concat());
    assert_eq!(start(&ended), "INFO metrics go nowhere: set TV_PROMETHEUS_PUSHGATEWAY");
}

#[test]
fn start_names_the_setting_without_which_metrics_go_nowhere() {
    for (scenario, remedy) in [
        ("the environment alone", "set TV_PROMETHEUS_PUSHGATEWAY"),
        ("a prefix", "set ACME_PROMETHEUS_PUSHGATEWAY"),
        ("no prefix", "set PROMETHEUS_PUSHGATEWAY"),
        ("no environment", "call `with_pushgateway`, or `with_env` to read the settings from the environment"),
    ] {
        assert_eq!(start(&run_with(scenario, &[])), format!("INFO metrics go nowhere: {remedy}"));
    }
}

#[test]
fn unknown_variables_are_warnings_without_their_values() {
    for (scenario, prefix) in [("the environment alone", "TV_"), ("a prefix", "ACME_"), ("no prefix", "")] {
        let name = |rest: &str| format!("{prefix}PROMETHEUS_{rest}");
        let (gateway, job) = (name("PUSHGATWAY"), name("JOBS"));
        let others = [("PROMETHEUS_MULTIPROC_DIR", "hush"), ("OTHER_PROMETHEUS_JOBS", "hush")];
        let ended = run_with(scenario, &[&[(&*gateway, "http://me:hush@gw"), (&*job, "hush")], &others[..]].concat());
        let expected = [("JOBS", "JOB"), ("PUSHGATWAY", "PUSHGATEWAY")].map(|(unknown, nearest)| {
            let (unknown, nearest) = (name(unknown), name(nearest));
            format!("the variable {unknown:?} {UNKNOWN} {nearest} variable={unknown} nearest={nearest}")
        });
        assert_eq!(lines(&ended, "event: "), expected);
        assert!(!format!("{ended:?}").contains("hush"), "{ended:?}");
    }
}

#[test]
#[cfg(unix)]
fn environment_that_is_not_utf_8_is_no_error() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = child::command("scenarios", "the environment alone");
    command.env(OsStr::from_bytes(b"TV_PROMETHEUS_JOB\xff"), OsStr::from_bytes(b"\xff"));
    command.env(OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xff"));
    let ended = child::start(command).wait();
    assert_ran(&ended);
    let events = lines(&ended, "event: ");
    assert!(events.len() == 1 && events[0].contains(&format!("{UNKNOWN} TV_PROMETHEUS_JOB ")), "{events:?}");
}

#[test]
fn run_id_in_the_grouping_of_a_gateway_is_a_warning() {
    let server = MockGateway::ok();
    let victoria_metrics = format!("{}/api/v1/import/prometheus", server.url());
    let warning = "the grouping has the label `run_id`, so each run makes a group that the gateway keeps until it is deleted: \
                   leave the label out of the grouping, and set the field `run_id` on a span";
    for (gateway, expected) in [(&*server.url(), &[warning][..]), (&victoria_metrics, &[]), ("", &[])] {
        let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway), ("TV_PROMETHEUS_GROUPING", "run_id=7")];
        assert_eq!(lines(&run_with("the environment alone", &variables), "event: "), expected, "{gateway}");
    }
}

#[test]
fn text_file_that_node_exporter_does_not_read_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    for (name, is_read) in
        [("job.prom", true), (".prom", true), ("job.txt", false), ("job.prom.txt", false), ("prom", false)]
    {
        let path = directory.path().join(name);
        let ended = run_with("the environment alone", &[("TV_PROMETHEUS_TEXTFILE", path.to_str().unwrap())]);
        let warning =
            format!("the name of the text file {path:?} does not end in .prom: node_exporter does not read it");
        let expected: &[&str] = if is_read { &[] } else { &[&warning] };
        assert_eq!(lines(&ended, "event: "), expected);
    }
}
