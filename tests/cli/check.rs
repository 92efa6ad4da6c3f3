//! `stage-metrics check`.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::support::mock_gateway::{Answer, Request};
use super::support::{self, MockGateway, Reply, servers};
use super::{block_on, gateway_with_password, groups, output, run_json};

/// Runs the check. Returns the exit code, and the checks as `subject: result: text`.
#[track_caller]
fn check(variables: &[(&str, &str)]) -> (i32, Vec<String>) {
    let (code, document) = run_json(&["check"], variables);
    assert_eq!(document["ok"], code == 0, "{document}");
    let text = |check: &Value, member: &str| check[member].as_str().unwrap().to_owned();
    let line = |check: &Value| ["subject", "result", "text"].map(|member| text(check, member)).join(": ");
    (code, document["checks"].as_array().unwrap().iter().map(line).collect())
}

#[test]
fn destinations_that_work_are_tried_and_left_as_they_were() {
    let Some(gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let (spool, textfile) = (directory.path().join("spool"), directory.path().join("quant.prom"));
    for format in ["text", "protobuf"] {
        let environment = [
            ("PUSHGATEWAY", &*url),
            ("JOB", "j"),
            ("PUSH_FORMAT", format),
            ("SPOOL_DIR", spool.to_str().unwrap()),
            ("TEXTFILE", textfile.to_str().unwrap()),
        ];
        let expected = [
            "settings: ok: valid".to_owned(),
            format!("text file: ok: {textfile:?} can be written"),
            format!("spool: ok: {spool:?} can be written, and is empty"),
            format!("gateway: ok: {url} accepted a push, showed it, and deleted it"),
        ];
        assert_eq!(check(&environment), (0, expected.to_vec()));
        assert_eq!(groups(&url), [""; 0]);
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [&*spool]);
        assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    }
}

#[test]
fn document_has_each_variable_with_its_source() {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("quant.prom");
    let (code, document) =
        run_json(&["check"], &[("TEXTFILE", textfile.to_str().unwrap()), ("PUSH_INTERVAL", " 1m\n")]);
    let variables = document["variables"].as_array().unwrap();
    let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
    let unset = json!({ "name": "TV_PROMETHEUS_FLUSH_TIMEOUT", "value": null, "default": "5s", "source": "default" });
    assert_eq!(variable("TV_PROMETHEUS_FLUSH_TIMEOUT"), &unset);
    let set = json!({ "name": "TV_PROMETHEUS_PUSH_INTERVAL", "value": "1m", "default": "15s", "source": "variable" });
    assert_eq!(variable("TV_PROMETHEUS_PUSH_INTERVAL"), &set);
    assert!(variables.len() > 10, "{document}");
    let checks = json!([
        { "subject": "settings", "result": "ok", "text": "valid" },
        { "subject": "text file", "result": "ok", "text": format!("{textfile:?} can be written") },
    ]);
    let expected = json!({ "ok": true, "variables": variables, "checks": checks });
    assert_eq!((code, &document), (0, &expected));

    let text = output(0, &["check"], &[("TEXTFILE", textfile.to_str().unwrap()), ("PUSH_INTERVAL", "1m")]);
    assert!(text.contains("\n  TV_PROMETHEUS_PUSH_INTERVAL = 1m\n"), "{text}");
    assert!(text.contains("\n  TV_PROMETHEUS_FLUSH_TIMEOUT is not set: 5s\n"), "{text}");
    assert!(text.ends_with("\n\nall is well\n"), "{text}");
}

#[test]
fn no_output_has_a_credential() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (gateway, url) = gateway_with_password(directory.path());
    let base = format!("http://{}/push/gw", gateway.addr());
    let line = format!("gateway: ok: {base} accepted a push, showed it, and deleted it");
    let expected = vec!["settings: ok: valid".to_owned(), line];
    assert_eq!(check(&[("PUSHGATEWAY", &url), ("JOB", "j")]), (0, expected));
    let text = output(0, &["check"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
    assert!(text.contains(&format!("\n  TV_PROMETHEUS_PUSHGATEWAY = {base}\n")), "{text}");
    assert!(!text.contains("pusher") && !text.contains("word"), "{text}");
    for (url, code) in [(url.replace("word", "hush"), 1), ("http://pusher:hush@gw:port".to_owned(), 1)] {
        let text = output(code, &["check"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
        assert!(!text.contains("pusher") && !text.contains("hush"), "{text}");
        assert!(text.contains("\n1 error, 0 warnings\n"), "{text}");
    }
}

/// As with every destination wrong at once.
#[test]
fn each_wrong_destination_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let url = format!("http://{}", support::free_addr());
    let (textfile, spool) = (directory.path().join("no/such/quant.prom"), file.join("spool"));
    let environment = [
        ("PUSHGATEWAY", &*url),
        ("JOB", "j"),
        ("TEXTFILE", textfile.to_str().unwrap()),
        ("SPOOL_DIR", spool.to_str().unwrap()),
    ];
    let (code, checks) = check(&environment);
    let starts = [
        format!("text file: error: cannot write text file {textfile:?}: "),
        format!("spool: error: cannot write to spool directory {spool:?}: "),
        format!("gateway: error: GET {url}/metrics failed: no server answers there"),
    ];
    assert_eq!((code, checks.len()), (1, starts.len()), "{checks:?}");
    for (check, start) in checks.iter().zip(&starts) {
        assert!(check.starts_with(start), "{checks:?}");
    }
}

/// What `install()` finds beside the destinations that are tried.
#[test]
fn every_error_of_an_installation_is_found() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, checks) = check(&[("LISTEN", &address)]);
    assert_eq!((code, checks.len()), (1, 1), "{checks:?}");
    assert!(checks[0].starts_with("settings: error: ") && checks[0].contains(&address), "{checks:?}");

    let (code, checks) = check(&[("PUSHGATEWAY", "gw:9091"), ("PUSH_INTERVAL", "15")]);
    let expected = "settings: error: TV_PROMETHEUS_PUSH_INTERVAL: \"15\" is not a duration: it has no unit; give a number \
        and ms, s, m, h or d, such as 500ms or 15s";
    assert_eq!((code, checks), (1, vec![expected.to_owned()]));
    let (code, checks) = check(&[]);
    let nowhere =
        "settings: error: the variables name no destination, so metrics go nowhere: set TV_PROMETHEUS_PUSHGATEWAY";
    assert_eq!((code, checks), (1, vec![nowhere.to_owned()]));
}

#[test]
fn misspelt_variable_is_in_the_error_of_another() {
    let (code, checks) = check(&[("USERNAME", "me"), ("PASSWORD_FLIE", "/hush")]);
    let expected = "settings: error: TV_PROMETHEUS_USERNAME is set without TV_PROMETHEUS_PASSWORD_FILE: set both; \
        \"TV_PROMETHEUS_PASSWORD_FLIE\" is unknown: the nearest known one is TV_PROMETHEUS_PASSWORD_FILE";
    assert_eq!((code, checks), (1, vec![expected.to_owned()]));
}

#[test]
fn warnings_of_an_installation_are_told() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let environment = [("PUSHGATEWAY", &*url), ("PUSH_FORMAT", "text"), ("NATIVE_HISTOGRAMS", "true")];
    let (code, checks) = check(&environment);
    let warnings: Vec<_> = checks.iter().filter_map(|check| check.strip_prefix("settings: warning: ")).collect();
    assert_eq!((code, warnings.len(), checks.len()), (0, 2, 4), "{checks:?}");
    assert!(warnings[0].starts_with("neither a job nor a grouping is set"), "{checks:?}");
    assert!(warnings[1].starts_with("native histograms are not delivered"), "{checks:?}");
    let text = output(0, &["check"], &environment);
    assert!(text.ends_with("\nall is well, with 2 warnings\n"), "{text}");
}

/// The probe goes out as a push of the job does: its format, its credentials.
#[test]
fn probe_is_pushed_as_the_job_pushes() {
    let gateway = MockGateway::ok();
    let url = gateway.url().replace("http://", "http://me:secret@");
    check(&[("PUSHGATEWAY", &url), ("JOB", "j"), ("NATIVE_HISTOGRAMS", "true")]);
    assert!(gateway.requests().iter().all(|request| request.method == "GET"), "a page without metrics is no gateway");
    let gateway = MockGateway::start_with(|request: &Request| match &*request.method {
        "GET" => Reply::Answer(Answer::new(200).with_body("pushgateway_build_info 1\n")),
        _ => Reply::ok(),
    });
    let url = gateway.url().replace("http://", "http://me:secret@");
    let (code, checks) = check(&[("PUSHGATEWAY", &url), ("JOB", "j"), ("NATIVE_HISTOGRAMS", "true")]);
    assert!(code == 1 && checks[1].contains("accepted a push and does not show it"), "{checks:?}");
    let push = gateway.await_request(|request| request.method == "POST");
    assert!(push.path.starts_with("/metrics/job/stage_metrics_check/instance/"), "{}", push.path);
    assert_eq!(push.header("Authorization"), Some("Basic bWU6c2VjcmV0"));
    assert!(push.header("Content-Type").unwrap().starts_with("application/vnd.google.protobuf"));
    gateway.await_request(|request| request.method == "DELETE" && request.path == push.path);
}

/// A gateway keeps the group of a push that it refused.
#[test]
fn probe_that_fails_is_deleted() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let other = tracing_stage_metrics::Pushgateway::new(&url, "other").unwrap();
    block_on(other.push_add("# TYPE stage_metrics_check counter\nstage_metrics_check 1\n")).unwrap();
    let (code, checks) = check(&[("PUSHGATEWAY", &url), ("JOB", "j")]);
    assert!(code == 1 && checks[1].contains("was refused with 400 Bad Request"), "{checks:?}");
    support::await_true("the probe is gone", || groups(&url) == ["job=other"]);

    let listing = |status| Reply::Answer(Answer::new(status).with_body("pushgateway_build_info 1\n"));
    let gateway = MockGateway::ok();
    // The first listing, the push, and the listing that should show it.
    gateway.set_replies([listing(200), Reply::ok(), listing(500)]);
    let (code, checks) = check(&[("PUSHGATEWAY", &gateway.url()), ("JOB", "j")]);
    assert!(code == 1 && checks[1].contains("was refused with 500"), "{checks:?}");
    let methods: Vec<_> = gateway.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["GET", "POST", "GET", "DELETE"]);
}

/// A program without a start of its own must not say that metrics go somewhere.
#[test]
fn settings_that_are_hardly_intended_are_warnings() {
    let Some(gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let textfile = directory.path().join("quant.txt");
    let environment =
        [("PUSHGATEWAY", &*url), ("JOBS", "hush"), ("GROUPING", "run_id=7"), ("TEXTFILE", textfile.to_str().unwrap())];
    let (code, checks) = check(&environment);
    let starts = [
        "settings: warning: the variable \"TV_PROMETHEUS_JOBS\" is unknown and has no effect: the nearest known one is \
         TV_PROMETHEUS_JOB",
        "settings: warning: the grouping has the label `run_id`",
        &format!("settings: warning: the name of the text file {textfile:?} does not end in .prom"),
        "settings: ok: valid",
        "text file: ok: ",
        "gateway: ok: ",
    ];
    assert_eq!((code, checks.len()), (0, starts.len()), "{checks:?}");
    for (check, start) in checks.iter().zip(starts) {
        assert!(check.starts_with(start), "{checks:?}");
    }
    let text = output(0, &["check"], &environment);
    assert!(text.ends_with("\nall is well, with 3 warnings\n"), "{text}");
    assert!(!text.contains("hush") && !text.contains("metrics go "), "{text}");
}
