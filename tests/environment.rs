//! The environment variables, in processes of their own: what they set, what wins, and what a wrong one says.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::Duration;

use support::child::{self, Ended};
use support::{MockGateway, exposition};
use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

/// Not a test: what the children of the tests below do.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder();
    let other = || Pushgateway::new(std::env::var("OTHER_GATEWAY").unwrap(), "of the code").unwrap();
    let set_up = match scenario.as_str() {
        "the environment alone" => builder.with_env(),
        "a prefix" => builder.with_env_prefix("ACME_"),
        "no prefix" => builder.with_env_prefix(""),
        "the code after" => builder.with_env().map(|builder| {
            builder
                .with_pushgateway(other())
                .with_push_interval(Duration::from_secs(7))
                .with_flush_timeout(Duration::from_secs(8))
                .with_textfile("by_code.prom")
                .with_node("of the code")
        }),
        "the code before" => builder
            .with_pushgateway(other())
            .with_push_interval(Duration::from_secs(7))
            .with_flush_timeout(Duration::from_secs(8))
            .with_textfile("by_code.prom")
            .with_node("of the code")
            .with_env(),
        unknown => panic!("no scenario {unknown}"),
    };
    println!();
    match set_up.and_then(run) {
        Ok(()) => println!("it ran"),
        Err(error) => println!("display: {error}\ndebug: {error:?}\nis_config: {}", error.is_config()),
    }
}

fn run(builder: MetricsLayerBuilder) -> Result<(), Error> {
    println!("builder: {builder:?}");
    let (layer, guard) = builder.install()?;
    let log = support::log::Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();
    support::measured::stage("a");
    let ended = guard.shutdown();
    for text in log.own() {
        println!("said: {text}");
    }
    ended
}

#[track_caller]
fn run_with(scenario: &str, variables: &[(&str, &str)]) -> Ended {
    let mut command = child::command("scenarios", scenario);
    command.envs(variables.iter().copied()).current_dir(env!("CARGO_TARGET_TMPDIR"));
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    ended
}

/// The lines of the child that begin so, without it.
fn lines<'a>(ended: &'a Ended, begin: &str) -> Vec<&'a str> {
    ended.stdout.lines().filter_map(|line| line.strip_prefix(begin)).collect()
}

#[track_caller]
fn assert_ran(ended: &Ended) {
    assert!(ended.stdout.contains("it ran\n"), "{ended:?}");
}

/// The text of the error the child must end in, which is one of the configuration.
#[track_caller]
fn fault(variables: &[(&str, &str)]) -> String {
    let ended = run_with("the environment alone", variables);
    assert_eq!(lines(&ended, "is_config: "), ["true"], "{ended:?}");
    let [text] = lines(&ended, "display: ")[..] else { panic!("no error on one line: {ended:?}") };
    text.to_owned()
}

#[test]
fn without_any_nothing_is_pushed_and_all_is_well() {
    for variables in [&[][..], &[("TV_PROMETHEUS_PUSHGATEWAY", ""), ("TV_PROMETHEUS_PUSH_INTERVAL", "")]] {
        let ended = run_with("the environment alone", variables);
        assert_ran(&ended);
        let said = lines(&ended, "builder: ").concat();
        assert!(said.contains("gateway: None") && said.contains("textfile: None"), "{said}");
        assert!(said.contains("push_interval: 15s") && said.contains("flush_timeout: 5s"), "{said}");
    }
}

#[test]
fn every_variable_is_heeded() {
    let server = MockGateway::ok();
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("job.prom");
    let url = format!("http://me:pass%40word@{}/prefix", server.addr());
    let ended = run_with(
        "the environment alone",
        &[
            ("TV_PROMETHEUS_PUSHGATEWAY", &url),
            ("TV_PROMETHEUS_JOB", "quant pipeline"),
            ("TV_PROMETHEUS_GROUPING", r"profile=a\,b,team=x/y"),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "90m"),
            ("TV_PROMETHEUS_FLUSH_TIMEOUT", "1500ms"),
            ("TV_PROMETHEUS_TEXTFILE", textfile.to_str().unwrap()),
            ("TV_PROMETHEUS_LISTEN", "0"),
            ("TV_PROMETHEUS_NODE", "worker-7"),
        ],
    );
    assert_ran(&ended);
    assert_eq!(
        lines(&ended, "builder: "),
        [format!(
            "MetricsLayerBuilder {{ namespace: \"quant\", policy: ErrorEvents, gateway: Some(Pushgateway {{ url: \
             \"http://{}/prefix\", job: \"quant pipeline\", grouping: [(\"profile\", \"a,b\"), (\"team\", \"x/y\")], \
             headers: [\"authorization\"], timeout: 10s, connect_timeout: 5s }}), push_interval: 5400s, \
             flush_timeout: 1.5s, textfile: Some({textfile:?}), listen: Some(127.0.0.1:0), .. }}",
            server.addr()
        )]
    );
    let last = server.requests().pop().unwrap();
    assert_eq!(last.path, "/prefix/metrics/job/quant%20pipeline/profile/a%2Cb/team@base64/eC95");
    // me:pass@word
    assert_eq!(last.header("authorization"), Some("Basic bWU6cGFzc0B3b3Jk"));
    assert!(last.text().contains("node=\"worker-7\""), "{}", last.text());
    assert!(last.text().contains("quant_stage_active{stage_id=\"a\",profile=\"a,b\"} 0\n"), "{}", last.text());
    let file = exposition::parse(&std::fs::read_to_string(textfile).unwrap());
    let group = [("job", "quant pipeline"), ("team", "x/y")];
    // The gateway puts the label over that of the stages.
    let mut pushed = exposition::parse(last.text());
    let samples = pushed.families.iter_mut().flat_map(|family| &mut family.samples);
    samples.for_each(|sample| drop(sample.labels.insert("profile".to_owned(), "a,b".to_owned())));
    assert_eq!(file.without(&group), pushed, "the file is what was pushed, and its group");
    assert_eq!(lines(&ended, "said: "), [""; 0], "with a job there is nothing to warn of");
}

#[test]
fn host_and_port_mean_http() {
    let server = MockGateway::ok();
    let url = server.addr().to_string();
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("TV_PROMETHEUS_JOB", "j")];
    assert_ran(&run_with("the environment alone", &variables));
    assert_eq!(server.requests().pop().unwrap().path, "/metrics/job/j");
}

#[test]
fn another_prefix_reads_other_names() {
    let (server, other) = (MockGateway::ok(), MockGateway::ok());
    for (scenario, prefix) in [("a prefix", "ACME_"), ("no prefix", "")] {
        let name = |rest: &str| format!("{prefix}PROMETHEUS_{rest}");
        let (gateway, job) = (name("PUSHGATEWAY"), name("JOB"));
        let variables = [
            (gateway.as_str(), server.url()),
            (job.as_str(), scenario.to_owned()),
            ("TV_PROMETHEUS_PUSHGATEWAY", other.url()),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "wrong".to_owned()),
        ];
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_ran(&run_with(scenario, &variables));
        let path = format!("/metrics/job/{}", scenario.replace(' ', "%20"));
        assert_eq!(server.requests().pop().unwrap().path, path);
    }
    assert_eq!(other.requests(), []);
}

#[test]
fn the_job_is_the_programs_name_with_a_warning_where_nothing_tells_jobs_apart() {
    let server = MockGateway::ok();
    let url = server.url();
    let ended = run_with("the environment alone", &[("TV_PROMETHEUS_PUSHGATEWAY", &url)]);
    let program = std::env::current_exe().unwrap();
    let program = program.file_stem().unwrap().to_str().unwrap();
    assert_eq!(server.requests().pop().unwrap().path, format!("/metrics/job/{program}"));
    assert_eq!(
        lines(&ended, "said: "),
        [format!(
            "neither a job nor a grouping is set, so the metrics go to the group of the program's name, {program:?}: \
             give it a job (TV_PROMETHEUS_JOB), since jobs that share a group overwrite each other job={program}"
        )]
    );
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("TV_PROMETHEUS_GROUPING", "team=x")];
    let ended = run_with("the environment alone", &variables);
    assert_eq!(server.requests().pop().unwrap().path, format!("/metrics/job/{program}/team/x"));
    assert_eq!(lines(&ended, "said: "), [""; 0], "a grouping tells them apart");
}

const OF_THE_ENVIRONMENT: [(&str, &str); 6] = [
    ("TV_PROMETHEUS_JOB", "of the environment"),
    ("TV_PROMETHEUS_GROUPING", "team=of the environment"),
    ("TV_PROMETHEUS_PUSH_INTERVAL", "17s"),
    ("TV_PROMETHEUS_FLUSH_TIMEOUT", "18s"),
    ("TV_PROMETHEUS_TEXTFILE", "by_environment.prom"),
    ("TV_PROMETHEUS_NODE", "of the environment"),
];

#[test]
fn what_the_code_calls_later_wins_and_a_gateway_replaces_the_other_as_a_whole() {
    let (by_environment, by_code) = (MockGateway::ok(), MockGateway::ok());
    let (url, other) = (by_environment.url(), by_code.url());
    let mut variables = OF_THE_ENVIRONMENT.to_vec();
    variables.extend([("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("OTHER_GATEWAY", other.as_str())]);
    let ended = run_with("the code after", &variables);
    assert_ran(&ended);
    let said = lines(&ended, "builder: ").concat();
    assert!(said.contains("push_interval: 7s, flush_timeout: 8s, textfile: Some(\"by_code.prom\")"), "{said}");
    assert_eq!(by_environment.requests(), []);
    let last = by_code.requests().pop().unwrap();
    assert_eq!(last.path, "/metrics/job/of%20the%20code", "no grouping of the other");
    assert!(last.text().contains("node=\"of the code\""), "{}", last.text());
}

#[test]
fn the_environment_wins_over_what_the_code_called_before() {
    let (by_environment, by_code) = (MockGateway::ok(), MockGateway::ok());
    let (url, other) = (by_environment.url(), by_code.url());
    let mut variables = OF_THE_ENVIRONMENT.to_vec();
    variables.extend([("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("OTHER_GATEWAY", other.as_str())]);
    let ended = run_with("the code before", &variables);
    assert_ran(&ended);
    let said = lines(&ended, "builder: ").concat();
    assert!(said.contains("push_interval: 17s, flush_timeout: 18s, textfile: Some(\"by_environment.prom\")"), "{said}");
    assert_eq!(by_code.requests(), []);
    let path = "/metrics/job/of%20the%20environment/team/of%20the%20environment";
    assert_eq!(by_environment.requests().pop().unwrap().path, path);

    // Job and grouping belong to the address of the environment, and say nothing without it.
    variables.retain(|(name, _)| *name != "TV_PROMETHEUS_PUSHGATEWAY");
    assert_ran(&run_with("the code before", &variables));
    assert_eq!(by_code.requests().pop().unwrap().path, "/metrics/job/of%20the%20code");
}

#[test]
fn a_wrong_value_names_its_variable_and_is_quoted() {
    let gateway = ("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091");
    let duration = "give a number and ms, s, m or h, such as 500ms or 15s";
    for (name, value, wrong) in [
        (
            "TV_PROMETHEUS_PUSHGATEWAY",
            "ftp://gateway",
            "gateway address \"ftp://gateway\" has the scheme \"ftp\": only http and https can be pushed to".to_owned(),
        ),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "15", format!("\"15\" is not a duration: it has no unit; {duration}")),
        (
            "TV_PROMETHEUS_FLUSH_TIMEOUT",
            "5 days",
            format!("\"5 days\" is not a duration: the unit is unknown; {duration}"),
        ),
        (
            "TV_PROMETHEUS_GROUPING",
            "team",
            "the grouping \"team\" has no `=` in \"team\": write it as name=value,name=value".to_owned(),
        ),
        (
            "TV_PROMETHEUS_GROUPING",
            "le=1",
            "grouping label \"le\" is reserved by Prometheus: choose another name".to_owned(),
        ),
        (
            "TV_PROMETHEUS_LISTEN",
            "everywhere",
            "\"everywhere\" is not an address to listen on: give an IP address and a port, such as 127.0.0.1:9464, or \
             0.0.0.0:9464 for every network of the machine; a port alone is on 127.0.0.1"
                .to_owned(),
        ),
    ] {
        assert_eq!(fault(&[gateway, (name, value)]), format!("{name}: {wrong}"));
    }
}

/// A value that can be read and makes no sense is as bad as one that cannot be read.
#[test]
fn a_zero_duration_names_its_variable_too() {
    for name in ["TV_PROMETHEUS_PUSH_INTERVAL", "TV_PROMETHEUS_FLUSH_TIMEOUT"] {
        let text = fault(&[(name, "0s")]);
        assert!(text.contains(name) && text.contains("\"0s\""), "{text}");
    }
}

#[test]
fn a_text_file_that_cannot_be_written_is_named() {
    let text = fault(&[("TV_PROMETHEUS_TEXTFILE", "/no/such/directory/job.prom")]);
    let wanted =
        "cannot write text file \"/no/such/directory/job.prom\": check that its directory exists, and its permissions";
    assert_eq!(text, wanted);
}

#[test]
#[cfg(unix)]
fn a_value_that_is_no_text_names_its_variable() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = child::command("scenarios", "the environment alone");
    command.env("TV_PROMETHEUS_NODE", std::ffi::OsStr::from_bytes(b"w\xff"));
    let ended = child::start(command).wait();
    assert_eq!(lines(&ended, "display: "), ["TV_PROMETHEUS_NODE is not UTF-8: set it to text that is"], "{ended:?}");
}

#[test]
fn credentials_of_the_environment_are_in_no_text() {
    let server = MockGateway::start([support::Reply::status(403)]);
    let refused = format!("http://me-hush:pass-hush@{}", server.addr());
    for url in [
        refused.as_str(),
        "ftp://me-hush:pass-hush@gateway",
        "http://me-hush:pass-hush@gateway:x",
        "me-hush:pass-hush@",
    ] {
        let ended = run_with("the environment alone", &[("TV_PROMETHEUS_PUSHGATEWAY", url)]);
        assert!(ended.stdout.contains("display: "), "{url}: every one of them ends in an error: {ended:?}");
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!all.contains("hush"), "{url}: {all}");
    }
    assert!(server.requests().iter().all(|request| request.header("authorization").is_some()));
}

/// As `$(cat file)` without a shell, secrets of Kubernetes and here-documents have it.
#[test]
fn white_space_around_a_value_is_dropped() {
    let server = MockGateway::ok();
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("job.prom");
    let (url, file) = (format!(" {}\r\n", server.url()), format!("\t{}\n", textfile.display()));
    let ended = run_with(
        "the environment alone",
        &[
            ("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()),
            ("TV_PROMETHEUS_JOB", "x\n"),
            ("TV_PROMETHEUS_GROUPING", "a=b \r\n"),
            ("TV_PROMETHEUS_TEXTFILE", &file),
            ("TV_PROMETHEUS_NODE", " worker-7\n"),
            ("TV_PROMETHEUS_SPOOL_DIR", " \n"),
        ],
    );
    assert_ran(&ended);
    let last = server.requests().pop().unwrap();
    assert_eq!(last.path, "/metrics/job/x/a/b");
    assert!(last.text().contains("node=\"worker-7\""), "{}", last.text());
    assert!(textfile.is_file());
}
