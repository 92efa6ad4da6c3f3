//! `stage-metrics spool`.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};
use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::directory::{names, readdress};
use super::support::measured::{Measured, measured, stage};
use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply};
use super::{error, groups, output, push, run_json};

/// Runs a job whose gateway does not answer. Returns the name of the payload that it leaves.
#[track_caller]
fn leave_payload(url: &str, job: &str, spool: &Path) -> String {
    let before = names(spool);
    let gateway = Pushgateway::new(url, job).unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool);
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    guard.shutdown().unwrap_err();
    let mut names = names(spool);
    names.retain(|name| !before.contains(name));
    assert_eq!(names.len(), 1, "the run leaves its payload: {names:?}");
    names.remove(0)
}

/// The result for each file, after the exit code.
#[track_caller]
fn results(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Vec<(String, String)>) {
    let (code, document) = run_json(arguments, variables);
    let files = document["files"].as_array().unwrap_or_else(|| panic!("{document}"));
    let text = |file: &Value, member: &str| file[member].as_str().unwrap().to_owned();
    (code, files.iter().map(|file| (text(file, "file"), text(file, "result"))).collect())
}

#[test]
fn payloads_of_an_outage_are_listed_and_delivered() {
    let Some(mut gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let spool = directory.path().join("spool");
    let environment = [("SPOOL_DIR", spool.to_str().unwrap()), ("PUSHGATEWAY", &url), ("JOB", "other")];
    gateway.stop();
    let first = leave_payload(&url, "a", &spool);
    let second = leave_payload(&url, "b", &spool);

    let (code, mut document) = run_json(&["spool", "list"], &environment);
    for file in document["files"].as_array_mut().unwrap() {
        assert!(file["written"].take().as_f64().unwrap() > 1.7e9);
        assert!(file["bytes"].take().as_u64().unwrap() > 1_000);
    }
    let file = |name: &str, job: &str| json!({ "file": name, "bytes": null, "state": "waiting", "gateway": url, "labels": { "job": job }, "written": null });
    assert_eq!((code, document), (0, json!({ "files": [file(&first, "a"), file(&second, "b")] })));
    let text = output(0, &["spool", "list"], &environment);
    assert!(text.lines().nth(1).unwrap().ends_with(&format!("  waiting  {url}  job=a  {first}")), "{text}");

    let (code, document) = run_json(&["spool", "replay"], &environment);
    assert_eq!((code, &document["files"][0]["result"]), (1, &json!("failed")), "{document}");
    assert!(document["files"][0]["error"].as_str().unwrap().contains("no server answers there"), "{document}");
    assert_eq!(document["files"][1]["result"], "kept: not tried");
    assert_eq!(names(&spool), [&*first, &*second]);

    gateway.restart();
    let delivered = [(first, "delivered".to_owned()), (second, "delivered".to_owned())];
    assert_eq!(results(&["spool", "replay"], &environment), (0, delivered.to_vec()));
    assert_eq!(groups(&url), ["job=a", "job=b"]);
    let succeeded = "quant_stage_total{instance=\"\",job=\"b\",stage_id=\"a\",status=\"success\"} 1\n";
    assert!(gateway.metrics().contains(succeeded));
    assert_eq!(names(&spool), [""; 0]);
    assert_eq!(output(0, &["spool", "replay"], &environment), "there is nothing to deliver\n");
    assert_eq!(output(0, &["spool", "list"], &environment), "the spool is empty\n");
}

#[test]
fn newer_state_and_other_gateways_are_left_alone() {
    let Some(mut gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let spool = directory.path();
    let environment = [("SPOOL_DIR", spool.to_str().unwrap()), ("PUSHGATEWAY", &url), ("JOB", "a")];
    gateway.stop();
    let outdated = leave_payload(&url, "a", spool);
    let other = leave_payload(&format!("http://{}", support::free_addr()), "a", spool);
    gateway.restart();
    push(&url, "a", &[]);
    let expected = [(outdated, "removed: the gateway has a newer state"), (other.clone(), "kept: for another gateway")];
    let expected = expected.map(|(name, result)| (name, result.to_owned())).to_vec();
    assert_eq!(results(&["spool", "replay"], &environment), (0, expected));
    assert_eq!(names(spool), [other]);
    assert!(!gateway.metrics().contains("quant_stage_total{"), "the newer state stays");
}

#[test]
fn refused_payload_is_reported_listed_and_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let gateway = MockGateway::start([Reply::status(401)]);
    let url = gateway.url();
    let environment = [("SPOOL_DIR", spool.to_str().unwrap()), ("PUSHGATEWAY", &url), ("JOB", "other")];
    let name = leave_payload(&url, "a", spool);
    gateway.set_replies([Reply::Answer(Answer::new(400).with_body("no such metric"))]);
    let (code, document) = run_json(&["spool", "replay"], &environment);
    assert_eq!((code, &document["files"][0]["result"]), (1, &json!("refused")), "{document}");
    assert!(document["files"][0]["error"].as_str().unwrap().contains("no such metric"), "{document}");
    let refused = name.replace(".spool", ".refused");
    assert_eq!(names(spool), [&*refused]);
    let text = output(0, &["spool", "list"], &environment);
    assert!(text.contains("  refused  ") && text.contains(&refused), "{text}");
    assert_eq!(output(0, &["spool", "replay"], &environment), "there is nothing to deliver\n");
    let dropped = output(0, &["spool", "drop", &refused], &environment);
    assert_eq!(dropped, format!("{refused}  job=a  dropped\n"));
    assert_eq!(names(spool), [""; 0]);
}

#[test]
fn payload_that_a_job_works_with_is_left_to_it() {
    let Some(mut gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let spool = directory.path();
    let environment = [("SPOOL_DIR", spool.to_str().unwrap()), ("PUSHGATEWAY", &url), ("JOB", "other")];
    gateway.stop();
    let name = leave_payload(&url, "a", spool);
    gateway.restart();
    let file = File::options().read(true).write(true).open(spool.join(&name)).unwrap();
    file.lock().unwrap();
    let kept = vec![(name.clone(), "kept: not tried".to_owned())];
    assert_eq!(results(&["spool", "replay"], &environment), (0, kept));
    let text = output(1, &["spool", "drop", &name], &environment);
    assert!(text.ends_with(": a job works with it\n"), "{text}");
    assert_eq!(groups(&url), [""; 0]);
    drop(file);
    // A job of the group ends its run: it writes a payload of its own.
    let (_, rest) = name.split_once('-').unwrap();
    let newer = spool.join(format!(".99999999999999999999-{}.tmp", rest.strip_suffix(".spool").unwrap()));
    let file = File::create(&newer).unwrap();
    file.lock().unwrap();
    let kept = vec![(name.clone(), "kept: not tried".to_owned())];
    assert_eq!(results(&["spool", "replay"], &environment), (0, kept));
    fs::remove_file(newer).unwrap();
    drop(file);
    assert_eq!(results(&["spool", "replay"], &environment), (0, vec![(name, "delivered".to_owned())]));
}

/// A job of another node adds to the totals of the group, which its next push would write again.
#[test]
fn totals_wait_for_the_run_of_the_group_that_is_at_work() {
    let Some(gateway) = support::pushgateway() else { return };
    let (url, directory) = (gateway.url(), tempfile::tempdir().unwrap());
    let spool = directory.path();
    let environment = [("SPOOL_DIR", spool.to_str().unwrap()), ("PUSHGATEWAY", &*url), ("JOB", "j")];
    let builder = |url: &str| {
        MetricsLayer::builder().with_pushgateway(Pushgateway::new(url, "j").unwrap()).with_cumulative_totals()
    };
    let away = format!("http://{}", support::free_addr());
    {
        let Measured { guard, log: _, default: _default } = measured(builder(&away).with_spool_dir(spool));
        stage("a");
        guard.shutdown().unwrap_err();
    }
    readdress(spool, &url);
    let [name] = &names(spool)[..] else { panic!("{:?}", names(spool)) };
    let Measured { guard, log: _, default: _default } = measured(builder(&url));
    stage("a");
    guard.flush().unwrap();
    let kept = vec![(name.clone(), "kept: not tried".to_owned())];
    assert_eq!(results(&["spool", "replay"], &environment), (0, kept));
    guard.shutdown().unwrap();
    let (code, replayed) = results(&["spool", "replay"], &environment);
    assert_eq!((code, replayed.len()), (0, 1), "{replayed:?}");
    assert_eq!(names(spool), [""; 0]);
    for name in
        ["runs_total{instance=\"\",job=\"j\"", "stage_runs_total{instance=\"\",job=\"j\",profile=\"\",stage_id=\"a\""]
    {
        assert!(gateway.metrics().contains(&format!("quant_{name},status=\"success\"}} 2\n")), "{}", gateway.metrics());
    }
}

#[test]
fn drop_deletes_files_of_the_spool_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let gateway = MockGateway::start([Reply::status(401)]);
    let [one, two] = ["a", "b"].map(|job| leave_payload(&gateway.url(), job, &spool));
    let environment = [("SPOOL_DIR", spool.to_str().unwrap())];
    let outside = directory.path().join(&one);
    let notes = spool.join("notes.txt");
    fs::write(&outside, "").unwrap();
    fs::write(&notes, "").unwrap();
    let (outside, notes) = (outside.to_str().unwrap(), notes.to_str().unwrap());
    let up = format!("../{one}");
    for path in [outside, notes, "notes.txt", "/etc/passwd", &up, "..", "/"] {
        let text = error(2, &["spool", "drop", &two, path], &environment);
        let expected = format!("stage-metrics: {path:?} is not a file of spool directory {spool:?}: ");
        assert!(text.starts_with(&expected), "{path}: {text}");
    }
    let mut all = vec![one.clone(), "notes.txt".to_owned(), two.clone()];
    all.sort();
    assert_eq!(names(&spool), all);
    assert!(fs::exists(outside).unwrap());

    let path = spool.join("../spool").join(&one);
    let dropped = results(&["spool", "drop", path.to_str().unwrap(), &two], &environment);
    assert_eq!(dropped, (0, [&one, &two].map(|name| (name.clone(), "dropped".to_owned())).to_vec()));
    assert_eq!(names(&spool), ["notes.txt"]);
    let text = output(1, &["spool", "drop", &one], &environment);
    assert!(text.ends_with(": there is no such file\n"), "{text}");
}

/// Another program's file, one of a later version, one that is damaged and one that is not complete.
#[test]
fn files_that_cannot_be_read_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let environment = [("SPOOL_DIR", spool.to_str().unwrap())];
    for (name, content) in [
        ("00000000000000000001-0-1-1.spool", "tracing-stage-metrics spool 9\n\n"),
        ("00000000000000000002-0-1-1.torn", "xyz"),
        (".00000000000000000003-0-1-1.tmp", ""),
        ("notes.txt", "notes"),
    ] {
        fs::write(spool.join(name), content).unwrap();
    }
    let text = output(0, &["spool", "list"], &environment);
    let expected = "WRITTEN  SIZE  STATE          GATEWAY  GROUP  FILE\n\
        ?        31 B  waiting        ?        ?      00000000000000000001-0-1-1.spool\n\
        ?        3 B   damaged        ?        ?      00000000000000000002-0-1-1.torn\n\
        ?        0 B   being written  ?        ?      .00000000000000000003-0-1-1.tmp\n";
    assert_eq!(text, expected);
}

#[test]
fn missing_directory_is_not_created() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let text = error(2, &["spool", "list"], &[("SPOOL_DIR", spool.to_str().unwrap())]);
    assert!(text.starts_with(&format!("stage-metrics: cannot read spool directory {spool:?}: ")), "{text}");
    assert!(!spool.exists());
    let text = error(2, &["spool", "list"], &[]);
    assert_eq!(text, "stage-metrics: TV_PROMETHEUS_SPOOL_DIR is not set: set it as for the job\n");
}
