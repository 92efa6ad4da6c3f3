//! `stage-metrics groups`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply, servers};
use super::{error, gateway_with_password, groups, output, push, run_json};

#[test]
fn list_has_every_group_with_its_labels_and_age() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let value = "a/b \"c\"\\\n\u{1b}[31mü='";
    push(&url, "j", &[("profile", value), ("instance", "worker-7:4711")]);
    push(&url, "j", &[("profile", "")]);
    push(&url, "k", &[]);
    let (code, mut listed) = run_json(&["groups", "list"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
    for group in listed["groups"].as_array_mut().unwrap() {
        let age = group["age_seconds"].take().as_f64().unwrap();
        assert!((-1.0..30.0).contains(&age), "{age}");
        assert!(group["last_push"].take().as_f64().unwrap() > 1.7e9);
    }
    let group =
        |labels: Value| json!({ "labels": labels, "last_push": null, "last_refused_push": null, "age_seconds": null });
    let expected = [
        group(json!({ "job": "j", "profile": "" })),
        group(json!({ "job": "j", "profile": value, "instance": "worker-7:4711" })),
    ];
    assert_eq!((code, listed), (0, json!({ "groups": expected })));

    let text = output(0, &["groups", "list", "--all"], &[("PUSHGATEWAY", &url)]);
    let lines: Vec<_> = text.lines().map(|line| line.split_once("  ").unwrap().1.trim_start()).collect();
    let escaped = r#"job=j instance=worker-7:4711 profile=$'a/b "c"\\\x0a\x1b[31mü=\''"#;
    assert_eq!(lines, ["GROUP", "job=j profile=", "job=k", escaped], "{text}");
}

#[test]
fn deleted_group_is_gone_when_the_program_ends() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let environment = [("PUSHGATEWAY", &*url), ("JOB", "j")];
    for labels in [&[][..], &[("profile", "a/b")], &[("profile", "")], &[("profile", "x"), ("instance", "i")]] {
        push(&url, "j", labels);
    }
    push(&url, "k", &[]);
    let text = output(0, &["groups", "delete", "instance=i", "profile=x"], &environment);
    assert!(text.ends_with("  job=j instance=i profile=x  deleted\n1 group deleted\n"), "{text}");
    assert_eq!(groups(&url), ["job=j", "job=j profile=", "job=j profile=a/b", "job=k"]);
    output(0, &["groups", "delete", "profile=a/b"], &environment);
    output(0, &["groups", "delete", "profile="], &environment);
    output(0, &["groups", "delete", "job=k"], &environment);
    assert_eq!(groups(&url), ["job=j"]);

    let text = error(1, &["groups", "delete", "profile=a/b"], &environment);
    let missing =
        "stage-metrics: there is no group job=j profile=a/b on the gateway: `groups list` shows what is there\n";
    assert_eq!(text, missing);
    let (code, document) = run_json(&["groups", "delete", "job=k"], &environment);
    let missing = "there is no group job=k on the gateway: `groups list` shows what is there";
    assert_eq!((code, document), (1, json!({ "error": missing })));
    let (code, mut document) = run_json(&["groups", "delete", "job=j"], &environment);
    document["groups"][0].as_object_mut().unwrap().retain(|name, _| name == "labels" || name == "result");
    assert_eq!((code, document), (0, json!({ "groups": [{ "labels": { "job": "j" }, "result": "deleted" }] })));
    assert_eq!(groups(&url), [""; 0]);
    assert_eq!(output(0, &["groups", "list"], &environment), "no groups\n");
}

#[test]
fn prune_deletes_the_selected_groups_alone() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let environment = [("PUSHGATEWAY", &*url), ("JOB", "j")];
    let all = ["job=j", "instance=a job=j", "instance=b job=j", "instance=c job=k"];
    let fill = || {
        push(&url, "j", &[]);
        push(&url, "j", &[("instance", "a")]);
        push(&url, "j", &[("instance", "b")]);
        push(&url, "k", &[("instance", "c")]);
    };
    fill();
    let mut sorted = all;
    sorted.sort();
    let prune = |arguments: &[&str]| output(0, &[&["groups", "prune"], arguments].concat(), &environment);
    assert_eq!(prune(&["--older-than", "1h", "--all"]), "0 groups deleted\n");
    let text = prune(&["--older-than", "1ms", "--all", "--dry-run"]);
    assert!(text.ends_with("\n4 groups would be deleted\n"), "{text}");
    assert_eq!(groups(&url), sorted);
    let text = prune(&["--older-than", "1ms", "--label", "instance"]);
    assert!(text.ends_with("\n2 groups deleted\n"), "{text}");
    assert_eq!(groups(&url), ["instance=c job=k", "job=j"]);
    prune(&["--older-than", "1ms"]);
    assert_eq!(groups(&url), ["instance=c job=k"]);
    fill();
    prune(&["--older-than", "1ms", "--all"]);
    assert_eq!(groups(&url), [""; 0]);
}

/// Runs the shell commands of the page for the job `fleet`, with another age.
#[track_caller]
fn clean_up(url: &str, age: &str) {
    let page = include_str!("../../docs/fleets.md");
    let (_, script) = page.split_once("```sh\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    assert_eq!(script.matches("stage-metrics groups prune --older-than 1d").count(), 2);
    let script = script.replace("stage-metrics", "\"$0\"").replace(" 1d", &format!(" {age}"));
    let mut command = support::example::isolated("sh");
    command.args(["-euc", &script, env!("CARGO_BIN_EXE_stage-metrics")]);
    command.env("TV_PROMETHEUS_PUSHGATEWAY", url).env("TV_PROMETHEUS_JOB", "fleet");
    let ended = support::child::start(command).wait();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

/// The label values have the special characters of URLs, shells and base64.
#[test]
fn commands_of_the_page_delete_stale_instance_groups_alone() {
    let Some(gateway) = support::pushgateway() else { return };
    let url = gateway.url();
    let unusual =
        ["a/b", "/", "..", "ü ?#%+&=", "\"'\\ $(false) `false`", "line\nfeed", "\u{3fb}\u{ff}>>>???", "{a,b}[1-2]"];
    for value in unusual {
        push(&url, "fleet", &[("team", value)]);
        push(&url, value, &[("instance", value)]);
    }
    let kept = groups(&url);
    for value in unusual {
        push(&url, "fleet", &[("instance", value), ("_x9", value), ("team", "")]);
    }
    let all = groups(&url);
    assert_eq!((kept.len(), all.len()), (2 * unusual.len(), 3 * unusual.len()));
    clean_up(&url, "1d");
    assert_eq!(groups(&url), all);
    clean_up(&url, "1ms");
    assert_eq!(groups(&url), kept);
}

#[test]
fn gateway_below_a_path_with_a_password() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (gateway, url) = gateway_with_password(directory.path());
    push(&url, "j", &[("profile", "a")]);
    assert_eq!(groups(&url), ["job=j profile=a"]);
    let deleted = output(0, &["groups", "prune", "--older-than", "1ms", "--all"], &[("PUSHGATEWAY", &url)]);
    assert!(deleted.ends_with("\n1 group deleted\n"), "{deleted}");
    assert_eq!(groups(&url), [""; 0]);

    let wrong = format!("http://pusher:hush-hush@{}/push/gw", gateway.addr());
    let text = error(1, &["groups", "list", "--all"], &[("PUSHGATEWAY", &wrong)]);
    let base = format!("http://{}/push/gw", gateway.addr());
    let expected = format!(
        "stage-metrics: GET {base}/metrics was refused with 401 Unauthorized: check the user and the password: \
        Unauthorized\n"
    );
    assert_eq!(text, expected);
    assert!(!text.contains("hush"));
    let (code, document) = run_json(&["groups", "list", "--all"], &[("PUSHGATEWAY", &wrong)]);
    assert_eq!((code, document), (1, json!({ "error": expected["stage-metrics: ".len()..].trim_end() })));
}

#[test]
fn group_stays_deleted_when_a_gateway_with_persistence_restarts() {
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = format!("--persistence.file={}", directory.path().join("metrics").display());
    let mut gateway = support::Pushgateway::start_with(&[&file, "--persistence.interval=10ms"]);
    let url = gateway.url();
    push(&url, "j", &[("instance", "a")]);
    push(&url, "j", &[]);
    output(0, &["groups", "delete", "instance=a"], &[("PUSHGATEWAY", &url), ("JOB", "j")]);
    gateway.restart();
    assert_eq!(groups(&url), ["job=j"]);
}

#[test]
fn ten_thousand_groups_are_listed_and_deleted() {
    const GROUPS: usize = 10_000;
    if !servers::installed(servers::PUSHGATEWAY) {
        return;
    }
    // With the check every push is compared with all that is stored.
    let gateway = support::Pushgateway::start_with(&["--push.disable-consistency-check"]);
    let url = gateway.url();
    let body: String = (0..5).map(|n| format!("zz_application_metric_{n} 1\n")).collect();
    let addr = gateway.addr();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let body = &body;
            scope.spawn(move || {
                for n in (worker..GROUPS).step_by(4) {
                    let path = format!("/metrics/job/fleet/instance/worker-{n}");
                    let response = support::http::request(addr, "POST", &path, &[], body.as_bytes()).unwrap();
                    assert_eq!(response.status, 202, "{response:?}");
                }
            });
        }
    });
    let environment = [("PUSHGATEWAY", &*url), ("JOB", "fleet")];
    let text = output(0, &["groups", "list"], &environment);
    assert_eq!(text.lines().count(), GROUPS + 1);
    let text = output(0, &["groups", "prune", "--older-than", "1ms", "--label", "instance"], &environment);
    assert!(text.ends_with("\n10000 groups deleted\n"), "{:?}", text.lines().last());
    assert_eq!(groups(&url), [""; 0]);
}

/// The time of day of a mock, 1994.
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const NOW: f64 = 784_111_777.0;

/// A gateway in 1994 with these groups: instance, and seconds since the last push and the last refused one. `on_delete`
/// replies to deletions.
fn mock(
    groups: &[(&str, Option<f64>, Option<f64>)],
    on_delete: impl Fn() -> Reply + Send + 'static,
) -> (MockGateway, Arc<Mutex<String>>) {
    let time = |ago: Option<f64>| ago.map_or(0.0, |ago| NOW - ago);
    let mut page = String::new();
    for (instance, pushed, failed) in groups {
        page.push_str(&format!("push_failure_time_seconds{{instance=\"{instance}\",job=\"j\"}} {}\n", time(*failed)));
        page.push_str(&format!("push_time_seconds{{instance=\"{instance}\",job=\"j\"}} {}\n", time(*pushed)));
    }
    page.push_str("pushgateway_build_info 1\n");
    let page = Arc::new(Mutex::new(page));
    let shown = Arc::clone(&page);
    let gateway = MockGateway::start_with(move |request| match &*request.method {
        "GET" => Reply::Answer(Answer::new(200).with_header("Date", DATE).with_body(&shown.lock().unwrap())),
        _ => on_delete(),
    });
    (gateway, page)
}

#[test]
fn age_is_on_the_gateways_clock_and_a_refused_push_counts() {
    let (gateway, _) = mock(
        &[
            ("old", Some(180_000.0), None),
            ("young", Some(160_000.0), None),
            ("refused", Some(900_000.0), Some(93_700.0)),
            ("empty", None, Some(200_000.0)),
            ("unknown", None, None),
        ],
        Reply::ok,
    );
    let environment = [("PUSHGATEWAY", &*gateway.url()), ("JOB", "j")];
    let text = output(0, &["groups", "list"], &environment);
    let expected = "LAST PUSH                   GROUP\n\
        never, refused 2d 7h ago    job=j instance=empty\n\
        2d 2h                       job=j instance=old\n\
        10d 10h, refused 1d 2h ago  job=j instance=refused\n\
        never                       job=j instance=unknown\n\
        1d 20h                      job=j instance=young\n";
    assert_eq!(text, expected);
    let text = output(0, &["groups", "prune", "--older-than", "2d", "--dry-run"], &environment);
    let pruned: Vec<_> = text.lines().filter_map(|line| line.split("instance=").nth(1)).collect();
    assert_eq!(pruned, ["empty  would be deleted", "old    would be deleted"], "{text}");
    let (_, listed) = run_json(&["groups", "list"], &environment);
    let ages = listed["groups"].as_array().unwrap().iter().map(|group| &group["age_seconds"]);
    assert_eq!(ages.filter(|age| age.is_null()).count(), 1, "{listed}");
}

#[test]
fn group_that_is_pushed_to_while_others_are_deleted_stays() {
    let names: Vec<_> = (0..9).map(|n| format!("i{n}")).collect();
    let listed: Vec<_> = names.iter().map(|name| (&**name, Some(900_000.0), None)).collect();
    // Eight deletions take longer than the list of groups counts as new.
    let slow = || Reply::Trickled(Answer::new(202), Duration::from_millis(80));
    let (gateway, page) = mock(&listed, slow);
    let environment = [("PUSHGATEWAY", &*gateway.url()), ("JOB", "j")];
    let (code, document) = std::thread::scope(|scope| {
        let program = scope.spawn(|| run_json(&["groups", "prune", "--older-than", "2d"], &environment));
        gateway.await_request(|request| request.method == "DELETE");
        // The last one is pushed to, and the others are deleted as the gateway has said.
        *page.lock().unwrap() =
            format!("push_time_seconds{{instance=\"i8\",job=\"j\"}} {NOW}\npushgateway_build_info 1\n");
        program.join().unwrap()
    });
    assert_eq!(code, 0, "{document}");
    let results = document["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["labels"]["instance"].as_str().unwrap(), group["result"].as_str().unwrap()));
    let expected = names.iter().map(|name| (&**name, if name == "i8" { "pushed again" } else { "deleted" }));
    assert_eq!(results.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert!(gateway.requests().iter().all(|request| !request.path.ends_with("i8")));
}

#[test]
fn failed_deletions_are_reported() {
    let (gateway, _) = mock(&[("a", Some(1e6), None), ("b", Some(1e6), None)], || Reply::status(500));
    let environment = [("PUSHGATEWAY", &*gateway.url()), ("JOB", "j")];
    let text = output(1, &["groups", "prune", "--older-than", "2d"], &environment);
    assert!(text.ends_with("\n0 groups deleted, 2 failed\n"), "{text}");
    let failed = format!("failed: DELETE {}/metrics/job/j/instance/a was refused with 500", gateway.url());
    assert!(text.contains(&failed), "{text}");
    let (code, document) = run_json(&["groups", "delete", "instance=b"], &environment);
    assert_eq!((code, &document["groups"][0]["result"]), (1, &json!("failed")));
}

/// A gateway that accepts a deletion and does nothing, as one behind a proxy that answers itself.
#[test]
fn group_that_is_still_shown_is_a_failure() {
    let (gateway, _) = mock(&[("a", Some(1e6), None)], || Reply::status(202));
    let environment = [("PUSHGATEWAY", &*gateway.url()), ("JOB", "j")];
    let text = output(1, &["groups", "delete", "instance=a"], &environment);
    assert!(text.contains("failed: the gateway accepted the deletion, and still shows the group\n"), "{text}");
}

#[test]
fn missing_and_wrong_settings_are_usage_errors() {
    let list = ["groups", "list"];
    let text = error(2, &list, &[]);
    assert_eq!(text, "stage-metrics: TV_PROMETHEUS_PUSHGATEWAY is not set: set it as for the job\n");
    let text = error(2, &list, &[("PUSHGATEWAY", "gw:9091")]);
    assert_eq!(text, "stage-metrics: TV_PROMETHEUS_JOB is not set: set it, or give --all for every job\n");
    let text = error(2, &["groups", "delete", "a=b"], &[("PUSHGATEWAY", "gw:9091")]);
    assert_eq!(text, "stage-metrics: TV_PROMETHEUS_JOB is not set: set it, or give job=NAME\n");
    let text = error(2, &["groups", "list", "--env-prefix", "ACME_"], &[("PUSHGATEWAY", "gw:9091")]);
    assert_eq!(text, "stage-metrics: ACME_PROMETHEUS_PUSHGATEWAY is not set: set it as for the job\n");
    let text = error(2, &list, &[("PUSHGATEWAY", "http://me:hush@gw:port")]);
    assert!(text.starts_with("stage-metrics: TV_PROMETHEUS_PUSHGATEWAY: ") && !text.contains("hush"), "{text}");
    for arguments in [
        &["groups", "prune"][..],
        &["groups", "prune", "--older-than", "2"],
        &["groups", "delete"],
        &["groups", "delete", "a"],
        &["groups", "delete", "a=b", "a=c"],
        &["groups", "delete", "job="],
        &["groups", "delete", "a-b=c"],
        &["nothing"],
    ] {
        let text = error(2, arguments, &[("PUSHGATEWAY", "gw:9091"), ("JOB", "j")]);
        assert!(text.starts_with("stage-metrics: "), "{arguments:?}: {text}");
    }
    let (code, document) = run_json(&["groups", "prune"], &[]);
    assert_eq!(code, 2);
    assert!(document["error"].as_str().unwrap().contains("--older-than <DURATION>"), "{document}");
}
