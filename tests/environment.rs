//! Environment variables, in child processes: the settings they make, their precedence, and the errors of wrong values.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

#[path = "environment/install_events.rs"]
mod install_events;

use std::time::Duration;

use support::child::{self, Ended};
use support::{MockGateway, exposition};
use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

/// Not a test: the scenarios of the child processes.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder();
    let gateway_of_code = || Pushgateway::new(std::env::var("GATEWAY_OF_CODE").unwrap(), "of the code").unwrap();
    let configured = match scenario.as_str() {
        "the environment alone" => builder.with_env(),
        "a prefix" => builder.with_env_prefix("ACME_"),
        "no prefix" => builder.with_env_prefix(""),
        "no environment" => Ok(builder),
        "the code after" => builder.with_env().map(|builder| {
            builder
                .with_pushgateway(gateway_of_code())
                .with_push_interval(Duration::from_secs(7))
                .with_flush_timeout(Duration::from_secs(8))
                .with_textfile("by_code.prom")
                .with_node("of the code")
        }),
        "the code before" => builder
            .with_pushgateway(gateway_of_code())
            .with_push_interval(Duration::from_secs(7))
            .with_flush_timeout(Duration::from_secs(8))
            .with_textfile("by_code.prom")
            .with_node("of the code")
            .with_env(),
        unknown => panic!("unknown scenario: {unknown}"),
    };
    println!();
    match configured.and_then(run) {
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
    let listening = guard.listen_addr();
    let ended = guard.shutdown();
    for text in log.own() {
        println!("event: {text}");
    }
    for entry in log.starts() {
        println!("start: {} {}", entry.level, entry.text);
    }
    println!("listening: {listening:?}");
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

/// The lines of the child with this prefix, without the prefix.
fn lines<'a>(ended: &'a Ended, prefix: &str) -> Vec<&'a str> {
    ended.stdout.lines().filter_map(|line| line.strip_prefix(prefix)).collect()
}

#[track_caller]
fn assert_ran(ended: &Ended) {
    assert!(ended.stdout.contains("it ran\n"), "{ended:?}");
}

/// Returns the text of the child's configuration error. Panics if there is none.
#[track_caller]
fn config_error(variables: &[(&str, &str)]) -> String {
    let ended = run_with("the environment alone", variables);
    assert_eq!(lines(&ended, "is_config: "), ["true"], "{ended:?}");
    let [text] = lines(&ended, "display: ")[..] else { panic!("one line has the error: {ended:?}") };
    text.to_owned()
}

#[test]
fn no_variable_means_the_defaults_and_no_push() {
    for variables in [&[][..], &[("TV_PROMETHEUS_PUSHGATEWAY", ""), ("TV_PROMETHEUS_PUSH_INTERVAL", "")]] {
        let ended = run_with("the environment alone", variables);
        assert_ran(&ended);
        let builder = lines(&ended, "builder: ").concat();
        assert!(builder.contains("gateway: None") && builder.contains("textfile: None"), "{builder}");
        assert!(builder.contains("push_interval: 15s") && builder.contains("flush_timeout: 5s"), "{builder}");
    }
}

#[test]
fn variables_set_the_builder() {
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
    // The grouping label overwrites the label of the stages on the gateway.
    let mut pushed = exposition::parse(last.text());
    let samples = pushed.families.iter_mut().flat_map(|family| &mut family.samples);
    samples.for_each(|sample| drop(sample.labels.insert("profile".to_owned(), "a,b".to_owned())));
    assert_eq!(file.without(&group), pushed, "the file has the pushed series and the labels of the group");
    assert_eq!(lines(&ended, "event: "), [""; 0], "a configured job gives no warning");
}

#[test]
fn variables_set_names_labels_and_rules() {
    let server = MockGateway::ok();
    let ended = run_with(
        "the environment alone",
        &[
            ("TV_PROMETHEUS_PUSHGATEWAY", server.url().as_str()),
            ("TV_PROMETHEUS_JOB", "j"),
            ("TV_PROMETHEUS_NAMESPACE", "acme"),
            // A stage of a plain span proves no success.
            ("TV_PROMETHEUS_FAILURE_POLICY", "proven-success"),
            ("TV_PROMETHEUS_RUN_ID_LABEL", "false"),
            ("TV_PROMETHEUS_INSTANCE_GROUPING", "true"),
        ],
    );
    let last = server.requests().pop().unwrap();
    let (_, instance) = last.path.split_once("/metrics/job/j/instance/").unwrap();
    assert!(instance.contains("%3A"), "host name and process id: {instance}");
    let metrics = exposition::parse(last.text());
    let labels = [("stage_id", "a"), ("profile", ""), ("reason", "cancelled")];
    assert_eq!(metrics.expect("acme_stage_failures_total", &labels), 1.0);
    assert!(!last.text().contains("run_id="), "{}", last.text());
    assert_ran(&ended);
}

/// Not a test: a job that waits for a signal.
#[test]
fn job_that_waits() {
    let Some(_) = child::scenario() else { return };
    let (layer, _guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    let _stage = tracing::info_span!("stage", stage_id = "a").entered();
    println!("\nruns");
    loop {
        std::thread::park();
    }
}

#[test]
fn variable_makes_the_final_flush_on_signals() {
    use std::os::unix::process::ExitStatusExt as _;
    for (value, is_flushed) in [("true", true), ("false", false)] {
        let server = MockGateway::ok();
        let mut command = child::command("job_that_waits", "job");
        command.env("TV_PROMETHEUS_PUSHGATEWAY", server.url()).env("TV_PROMETHEUS_FLUSH_ON_SIGNALS", value);
        let mut job = child::start(command);
        job.await_line("runs");
        server.await_requests(1);
        job.signal(child::Signal::TERM);
        let ended = job.wait();
        assert_eq!(ended.status.signal(), Some(child::Signal::TERM.as_raw()), "{ended:?}");
        let last = server.requests().pop().unwrap();
        assert_eq!(last.text().contains("reason=\"interrupted\"} 1\n"), is_flushed, "{}", last.text());
    }
}

#[test]
fn address_without_a_scheme_is_http() {
    let server = MockGateway::ok();
    let url = server.addr().to_string();
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("TV_PROMETHEUS_JOB", "j")];
    assert_ran(&run_with("the environment alone", &variables));
    assert_eq!(server.requests().pop().unwrap().path, "/metrics/job/j");
}

#[test]
fn prefix_selects_the_variables() {
    let (server, ignored) = (MockGateway::ok(), MockGateway::ok());
    for (scenario, prefix) in [("a prefix", "ACME_"), ("no prefix", "")] {
        let name = |rest: &str| format!("{prefix}PROMETHEUS_{rest}");
        let (gateway, job) = (name("PUSHGATEWAY"), name("JOB"));
        let variables = [
            (gateway.as_str(), server.url()),
            (job.as_str(), scenario.to_owned()),
            ("TV_PROMETHEUS_PUSHGATEWAY", ignored.url()),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "wrong".to_owned()),
        ];
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_ran(&run_with(scenario, &variables));
        let path = format!("/metrics/job/{}", scenario.replace(' ', "%20"));
        assert_eq!(server.requests().pop().unwrap().path, path);
    }
    assert_eq!(ignored.requests(), []);
}

#[test]
fn job_defaults_to_the_program_name_with_a_warning() {
    let server = MockGateway::ok();
    let url = server.url();
    let program = std::env::current_exe().unwrap();
    let program = program.file_stem().unwrap().to_str().unwrap();
    for (scenario, prefix) in [("the environment alone", "TV_"), ("a prefix", "ACME_"), ("no prefix", "")] {
        let ended = run_with(scenario, &[(&format!("{prefix}PROMETHEUS_PUSHGATEWAY"), &url)]);
        assert_eq!(server.requests().pop().unwrap().path, format!("/metrics/job/{program}"));
        assert_eq!(
            lines(&ended, "event: "),
            [format!(
                "neither a job nor a grouping is set, so the metrics go to the group of the program's name, {program:?}: \
                 set {prefix}PROMETHEUS_JOB, since jobs that share a group overwrite each other job={program}"
            )]
        );
    }
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("TV_PROMETHEUS_GROUPING", "team=x")];
    let ended = run_with("the environment alone", &variables);
    assert_eq!(server.requests().pop().unwrap().path, format!("/metrics/job/{program}/team/x"));
    assert_eq!(lines(&ended, "event: "), [""; 0], "a configured grouping gives no warning");
}

const VARIABLES: [(&str, &str); 6] = [
    ("TV_PROMETHEUS_JOB", "of the environment"),
    ("TV_PROMETHEUS_GROUPING", "team=of the environment"),
    ("TV_PROMETHEUS_PUSH_INTERVAL", "17s"),
    ("TV_PROMETHEUS_FLUSH_TIMEOUT", "18s"),
    ("TV_PROMETHEUS_TEXTFILE", "by_environment.prom"),
    ("TV_PROMETHEUS_NODE", "of the environment"),
];

#[test]
fn later_setters_override_the_environment() {
    let (by_environment, by_code) = (MockGateway::ok(), MockGateway::ok());
    let (url, url_of_code) = (by_environment.url(), by_code.url());
    let mut variables = VARIABLES.to_vec();
    variables.extend([("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("GATEWAY_OF_CODE", url_of_code.as_str())]);
    let ended = run_with("the code after", &variables);
    assert_ran(&ended);
    let builder = lines(&ended, "builder: ").concat();
    assert!(builder.contains("push_interval: 7s, flush_timeout: 8s, textfile: Some(\"by_code.prom\")"), "{builder}");
    assert_eq!(by_environment.requests(), []);
    let last = by_code.requests().pop().unwrap();
    assert_eq!(last.path, "/metrics/job/of%20the%20code", "the grouping of the environment is replaced too");
    assert!(last.text().contains("node=\"of the code\""), "{}", last.text());
}

#[test]
fn environment_overrides_earlier_setters() {
    let (by_environment, by_code) = (MockGateway::ok(), MockGateway::ok());
    let (url, url_of_code) = (by_environment.url(), by_code.url());
    let mut variables = VARIABLES.to_vec();
    variables.extend([("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("GATEWAY_OF_CODE", url_of_code.as_str())]);
    let ended = run_with("the code before", &variables);
    assert_ran(&ended);
    let builder = lines(&ended, "builder: ").concat();
    let expected = "push_interval: 17s, flush_timeout: 18s, textfile: Some(\"by_environment.prom\")";
    assert!(builder.contains(expected), "{builder}");
    assert_eq!(by_code.requests(), []);
    let path = "/metrics/job/of%20the%20environment/team/of%20the%20environment";
    assert_eq!(by_environment.requests().pop().unwrap().path, path);

    // Job and grouping of the environment have no effect without its gateway address.
    variables.retain(|(name, _)| *name != "TV_PROMETHEUS_PUSHGATEWAY");
    assert_ran(&run_with("the code before", &variables));
    assert_eq!(by_code.requests().pop().unwrap().path, "/metrics/job/of%20the%20code");
}

/// As every variable, it overrides earlier setters; later ones override it.
#[test]
fn push_format_is_that_of_the_gateway_that_is_set() {
    let server = MockGateway::ok();
    let url = server.url();
    let protobuf = ("TV_PROMETHEUS_PUSH_FORMAT", "protobuf");
    for (scenario, address, format, is_protobuf) in [
        ("the environment alone", "TV_PROMETHEUS_PUSHGATEWAY", protobuf, true),
        ("the code before", "GATEWAY_OF_CODE", protobuf, true),
        ("the code after", "GATEWAY_OF_CODE", protobuf, false),
        ("the environment alone", "TV_PROMETHEUS_PUSHGATEWAY", ("TV_PROMETHEUS_PUSH_FORMAT", "text"), false),
    ] {
        assert_ran(&run_with(scenario, &[(address, url.as_str()), ("TV_PROMETHEUS_JOB", "j"), format]));
        let last = server.requests().pop().unwrap();
        let content_type = last.header("content-type").unwrap();
        assert_eq!(content_type.starts_with("application/vnd.google.protobuf"), is_protobuf, "{scenario}");
    }
    // Nothing is pushed.
    assert_ran(&run_with("the environment alone", &[protobuf]));
}

/// A format that is set counts, and exemplars in text are one warning.
#[cfg(feature = "trace-id")]
#[test]
fn exemplars_are_pushed_in_protobuf_unless_a_format_is_set() {
    let server = MockGateway::ok();
    let url = server.url();
    let of_format = |format| ("TV_PROMETHEUS_PUSH_FORMAT", format);
    for (exemplars, format, is_protobuf, warnings) in [
        ("true", of_format(""), true, 0),
        ("true", of_format("protobuf"), true, 0),
        ("true", of_format("text"), false, 1),
        ("false", of_format(""), false, 0),
        ("", of_format(""), false, 0),
    ] {
        let exemplars = ("TV_PROMETHEUS_EXEMPLARS", exemplars);
        let gateway = [("TV_PROMETHEUS_PUSHGATEWAY", url.as_str()), ("TV_PROMETHEUS_JOB", "j")];
        let ended = run_with("the environment alone", &[&gateway[..], &[exemplars, format]].concat());
        assert_ran(&ended);
        let last = server.requests().pop().unwrap();
        let content_type = last.header("content-type").unwrap();
        assert_eq!(
            content_type.starts_with("application/vnd.google.protobuf"),
            is_protobuf,
            "{exemplars:?} {format:?}"
        );
        let events = lines(&ended, "event: ");
        assert_eq!(events.len(), warnings, "{events:?}");
        assert!(events.iter().all(|event| event.contains("exemplars are not delivered")), "{events:?}");
    }
    // Where nothing is pushed, no format is missing.
    let ended = run_with("the environment alone", &[("TV_PROMETHEUS_EXEMPLARS", "true")]);
    assert_ran(&ended);
    assert_eq!(lines(&ended, "event: "), [""; 0]);
}

#[test]
fn wrong_value_is_quoted_with_its_variable() {
    let gateway = ("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091");
    let duration = "give a number and ms, s, m, h or d, such as 500ms or 15s";
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
            "the list of labels \"team\" has no `=` in \"team\": write it as name=value,name=value".to_owned(),
        ),
        (
            "TV_PROMETHEUS_GROUPING",
            "le=1",
            "grouping label \"le\" is reserved by Prometheus: choose another name".to_owned(),
        ),
        ("TV_PROMETHEUS_PUSH_FORMAT", "xml", "\"xml\" is not a format of a push: give text or protobuf".to_owned()),
        #[cfg(feature = "trace-id")]
        ("TV_PROMETHEUS_EXEMPLARS", "yes", "\"yes\" is neither true nor false".to_owned()),
        (
            "TV_PROMETHEUS_LISTEN",
            "everywhere",
            "\"everywhere\" is not an address to listen on: give an IP address and a port, such as 127.0.0.1:9464, or \
             0.0.0.0:9464 for every network of the machine; a port alone is on 127.0.0.1"
                .to_owned(),
        ),
    ] {
        assert_eq!(config_error(&[gateway, (name, value)]), format!("{name}: {wrong}"));
    }
}

/// The builder refuses a value that parses and is out of range. The error names the variable as well.
#[test]
fn zero_duration_is_quoted_with_its_variable() {
    for name in ["TV_PROMETHEUS_PUSH_INTERVAL", "TV_PROMETHEUS_FLUSH_TIMEOUT"] {
        let text = config_error(&[(name, "0s")]);
        assert!(text.contains(name) && text.contains("\"0s\""), "{text}");
    }
}

#[test]
fn unwritable_text_file_is_named() {
    let text = config_error(&[("TV_PROMETHEUS_TEXTFILE", "/no/such/directory/job.prom")]);
    let wanted =
        "cannot write text file \"/no/such/directory/job.prom\": check that its directory exists, and its permissions";
    assert_eq!(text, wanted);
}

#[test]
#[cfg(unix)]
fn value_that_is_not_utf8_names_its_variable() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = child::command("scenarios", "the environment alone");
    command.env("TV_PROMETHEUS_NODE", std::ffi::OsStr::from_bytes(b"w\xff"));
    let ended = child::start(command).wait();
    assert_eq!(lines(&ended, "display: "), ["TV_PROMETHEUS_NODE is not UTF-8: set it to text that is"], "{ended:?}");
}

#[test]
fn credentials_of_the_environment_are_redacted_everywhere() {
    let server = MockGateway::start([support::Reply::status(403)]);
    let refused = format!("http://me-hush:pass-hush@{}", server.addr());
    for url in [
        refused.as_str(),
        "ftp://me-hush:pass-hush@gateway",
        "http://me-hush:pass-hush@gateway:x",
        "me-hush:pass-hush@",
    ] {
        let ended = run_with("the environment alone", &[("TV_PROMETHEUS_PUSHGATEWAY", url)]);
        assert!(ended.stdout.contains("display: "), "{url}: the child ends in an error: {ended:?}");
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!output.contains("hush"), "{url}: {output}");
    }
    assert!(server.requests().iter().all(|request| request.header("authorization").is_some()));
}

/// Kubernetes secrets, here-documents and files read without a shell end in a line feed.
#[test]
fn white_space_around_a_value_is_trimmed() {
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
