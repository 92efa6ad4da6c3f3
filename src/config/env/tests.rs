use super::*;
use crate::config::variable_tables as tables;
use crate::process::lookup_in;
use proptest::prelude::*;

fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
    EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup: lookup_in(variables) }.read()
}

fn message(variables: &[(&str, &str)]) -> String {
    let error = read(variables).unwrap_err();
    assert!(error.is_config());
    error.to_string()
}

#[test]
fn the_documentation_lists_every_variable_that_is_read_and_no_other() {
    let read = |set: &[(&str, &str)]| {
        looked_up(set, |lookup| {
            let _ = EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read();
        })
    };
    let mut listed = tables::variables("Environment variables");
    // A test of `otlp::settings` compares the other variables of OpenTelemetry.
    listed.insert("OTEL_SDK_DISABLED".to_owned());
    assert_eq!(read(&[]), listed);
    // Some variables are read only if another one is set.
    for (name, value) in [("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("OTEL_METRICS_EXPORTER", "otlp")] {
        let names = read(&[(name, value)]);
        assert!(names.is_subset(&listed), "{names:?}");
    }
}

#[test]
fn unset_and_empty_variables_set_nothing() {
    for empty in ["", " ", "\n", " \t\r\n"] {
        let variables = [("TV_PROMETHEUS_PUSHGATEWAY", empty), ("TV_PROMETHEUS_PUSH_INTERVAL", empty)];
        let environment = read(&variables).unwrap();
        assert!(environment.gateway.is_none() && environment.push_interval.is_none(), "{empty:?}");
        assert_eq!(environment.default_job, None);
    }
}

/// Tests every variable, so that a new one cannot be forgotten.
#[test]
fn white_space_around_a_value_is_ignored() {
    let values = [
        ("TV_PROMETHEUS_PUSHGATEWAY", "http://gateway:9091/x"),
        ("TV_PROMETHEUS_JOB", "quant"),
        ("TV_PROMETHEUS_GROUPING", "a= b c ,d=e f"),
        ("TV_PROMETHEUS_LABELS", "g= h i "),
        ("TV_PROMETHEUS_USERNAME", "a user"),
        ("TV_PROMETHEUS_PASSWORD_FILE", "/tmp/a password"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CA_FILE", "/tmp/an authority"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CERT_FILE", "/tmp/a certificate"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_KEY_FILE", "/tmp/a key"),
        ("TV_PROMETHEUS_NAMESPACE", "acme"),
        ("TV_PROMETHEUS_FAILURE_POLICY", "errors-within"),
        ("TV_PROMETHEUS_RUN_ID_LABEL", "true"),
        ("TV_PROMETHEUS_INSTANCE_GROUPING", "true"),
        ("TV_PROMETHEUS_CUMULATIVE_TOTALS", "true"),
        ("TV_PROMETHEUS_STAGE_CPU", "true"),
        ("TV_PROMETHEUS_FLUSH_ON_SIGNALS", "true"),
        ("TV_PROMETHEUS_PUSH_FORMAT", "protobuf"),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
        ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
        ("TV_PROMETHEUS_TEXTFILE", "/tmp/x y.prom"),
        ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
        ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true"),
        #[cfg(feature = "http")]
        ("TV_PROMETHEUS_LISTEN", "localhost:9464"),
        #[cfg(feature = "resource-usage")]
        ("TV_PROMETHEUS_NODE", "worker 7"),
        #[cfg(feature = "otlp")]
        ("OTEL_METRICS_EXPORTER", "otlp"),
        #[cfg(feature = "trace-id")]
        ("TV_PROMETHEUS_EXEMPLARS", "true"),
    ];
    // A request has one authorization.
    let token = [("TV_PROMETHEUS_BEARER_TOKEN_FILE", "/tmp/a token")];
    #[cfg(all(feature = "http", feature = "resource-usage", feature = "otlp", feature = "tls", feature = "trace-id"))]
    for name in tables::variables("Environment variables") {
        assert!(values.iter().chain(&token).any(|(known, _)| *known == name), "{name} is missing here");
    }
    for values in [&values[..], &token[..]] {
        let plain = format!("{:?}", read(values).unwrap());
        for (before, after) in [("", "\n"), ("", " \r\n"), (" \t", ""), ("\n\n", " \u{a0}\n")] {
            let padded = values.iter().map(|(name, value)| (*name, format!("{before}{value}{after}")));
            let padded: Vec<_> = padded.collect();
            let padded: Vec<_> = padded.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(format!("{:?}", read(&padded).unwrap()), plain, "{before:?} {after:?}");
        }
    }
    let plain = format!("{:?}", read(&values).unwrap());
    assert!(
        plain.contains(r#"("a", " b c "), ("d", "e f")"#),
        "white space within the list belongs to its values: {plain}"
    );
}

#[test]
fn every_variable_sets_its_setting() {
    let environment = read(&[
        ("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"),
        ("TV_PROMETHEUS_JOB", "quant"),
        ("TV_PROMETHEUS_GROUPING", r"profile=a\,b,team=x"),
        ("TV_PROMETHEUS_LABELS", r"env=prod,region=a\,b"),
        ("TV_PROMETHEUS_BEARER_TOKEN_FILE", "/tmp/token"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CA_FILE", "/tmp/authority"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CERT_FILE", "/tmp/certificate"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_KEY_FILE", "/tmp/key"),
        ("TV_PROMETHEUS_NAMESPACE", "acme"),
        ("TV_PROMETHEUS_FAILURE_POLICY", "proven-success"),
        ("TV_PROMETHEUS_RUN_ID_LABEL", "false"),
        ("TV_PROMETHEUS_INSTANCE_GROUPING", "true"),
        ("TV_PROMETHEUS_CUMULATIVE_TOTALS", "false"),
        ("TV_PROMETHEUS_STAGE_CPU", "true"),
        ("TV_PROMETHEUS_FLUSH_ON_SIGNALS", "false"),
        ("TV_PROMETHEUS_PUSH_FORMAT", "protobuf"),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "1m"),
        ("TV_PROMETHEUS_FLUSH_TIMEOUT", "500ms"),
        ("TV_PROMETHEUS_TEXTFILE", "/tmp/x.prom"),
        ("TV_PROMETHEUS_SPOOL_DIR", "/tmp/spool"),
        ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "false"),
        #[cfg(feature = "http")]
        ("TV_PROMETHEUS_LISTEN", "[::1]:9464"),
        #[cfg(feature = "resource-usage")]
        ("TV_PROMETHEUS_NODE", "worker-7"),
        #[cfg(feature = "trace-id")]
        ("TV_PROMETHEUS_EXEMPLARS", "true"),
    ])
    .unwrap();
    let gateway = environment.gateway.unwrap();
    assert_eq!(gateway.grouping().job(), "quant");
    assert_eq!(gateway.grouping().get("profile"), Some("a,b"));
    assert_eq!(gateway.grouping().get("team"), Some("x"));
    let files = environment.gateway_files.paths();
    let files: Vec<_> = files.iter().map(|(variable, path)| (variable.as_str(), path.to_str().unwrap())).collect();
    let expected = [
        ("TV_PROMETHEUS_BEARER_TOKEN_FILE", "/tmp/token"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CA_FILE", "/tmp/authority"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_CERT_FILE", "/tmp/certificate"),
        #[cfg(feature = "tls")]
        ("TV_PROMETHEUS_KEY_FILE", "/tmp/key"),
    ];
    assert_eq!(files, expected);
    let labels = [("env", "prod"), ("region", "a,b")];
    assert_eq!(environment.labels, labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(environment.namespace.as_deref(), Some("acme"));
    assert_eq!(environment.policy, Some(FailurePolicy::ProvenSuccess));
    assert_eq!((environment.run_id_label, environment.instance_grouping), (Some(false), Some(true)));
    assert_eq!((environment.cumulative_totals, environment.stage_cpu), (Some(false), Some(true)));
    assert_eq!(environment.flush_on_signals, Some(false));
    assert_eq!(environment.push_format, Some(PushFormat::Protobuf));
    assert_eq!(environment.push_interval, Some(Duration::from_secs(60)));
    assert_eq!(environment.flush_timeout, Some(Duration::from_millis(500)));
    assert_eq!(environment.textfile, Some(PathBuf::from("/tmp/x.prom")));
    assert_eq!(environment.spool_directory, Some(PathBuf::from("/tmp/spool")));
    assert_eq!(environment.native_histograms, Some(false));
    #[cfg(feature = "http")]
    assert_eq!(environment.listen, Some("[::1]:9464".parse().unwrap()));
    #[cfg(feature = "resource-usage")]
    assert_eq!(environment.node.as_deref(), Some("worker-7"));
    #[cfg(feature = "trace-id")]
    assert_eq!(environment.exemplars, Some(true));
    assert_eq!(environment.default_job, None);
}

#[test]
fn variables_that_need_or_exclude_each_other_are_named() {
    let user = ("TV_PROMETHEUS_USERNAME", "hush");
    let password = ("TV_PROMETHEUS_PASSWORD_FILE", "/x");
    let token = ("TV_PROMETHEUS_BEARER_TOKEN_FILE", "/x");
    let url = ("TV_PROMETHEUS_PUSHGATEWAY", "http://hush:hush@gateway");
    let both = "TV_PROMETHEUS_USERNAME and TV_PROMETHEUS_BEARER_TOKEN_FILE are set, but a request has one authorization: \
                unset one of them";
    let cases: &[(&[_], &str)] = &[
        (&[user], "TV_PROMETHEUS_USERNAME is set without TV_PROMETHEUS_PASSWORD_FILE: set both"),
        (&[password], "TV_PROMETHEUS_PASSWORD_FILE is set without TV_PROMETHEUS_USERNAME: set both"),
        (&[user, token], "TV_PROMETHEUS_USERNAME is set without TV_PROMETHEUS_PASSWORD_FILE: set both"),
        (&[user, password, token], both),
        (
            &[url, user, password],
            "the URL in TV_PROMETHEUS_PUSHGATEWAY has credentials, and TV_PROMETHEUS_PASSWORD_FILE is set: give one of them",
        ),
        (
            &[url, token],
            "the URL in TV_PROMETHEUS_PUSHGATEWAY has credentials, and TV_PROMETHEUS_BEARER_TOKEN_FILE is set: give one of \
             them",
        ),
        (
            &[("TV_PROMETHEUS_USERNAME", "hu:sh"), password],
            "TV_PROMETHEUS_USERNAME: the user name has a colon in it, which basic authentication cannot carry: give user \
             and password apart from each other",
        ),
        #[cfg(feature = "tls")]
        (
            &[("TV_PROMETHEUS_CERT_FILE", "/x")],
            "TV_PROMETHEUS_CERT_FILE is set without TV_PROMETHEUS_KEY_FILE: set both",
        ),
        #[cfg(feature = "tls")]
        (
            &[("TV_PROMETHEUS_KEY_FILE", "/x")],
            "TV_PROMETHEUS_KEY_FILE is set without TV_PROMETHEUS_CERT_FILE: set both",
        ),
    ];
    for (variables, expected) in cases {
        assert_eq!(message(variables), *expected);
    }
}

#[test]
fn job_defaults_to_the_program_name() {
    let environment = read(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091")]).unwrap();
    assert_eq!(environment.default_job.as_deref(), Some("TV_PROMETHEUS_JOB"));
    assert!(environment.gateway.unwrap().grouping().job().starts_with("tracing_stage_metrics"));
}

#[test]
fn error_names_the_variable_and_quotes_the_value() {
    for (variable, value) in [
        ("TV_PROMETHEUS_PUSHGATEWAY", "ftp://gateway"),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "15"),
        ("TV_PROMETHEUS_PUSH_INTERVAL", "s"),
        ("TV_PROMETHEUS_FLUSH_TIMEOUT", "5 days"),
        ("TV_PROMETHEUS_PUSH_FORMAT", "Protobuf"),
        ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "yes"),
        ("TV_PROMETHEUS_LABELS", "env"),
        ("TV_PROMETHEUS_NAMESPACE", "1st"),
        ("TV_PROMETHEUS_FAILURE_POLICY", "ErrorEvents"),
        ("TV_PROMETHEUS_RUN_ID_LABEL", "1"),
        ("TV_PROMETHEUS_INSTANCE_GROUPING", "on"),
        ("TV_PROMETHEUS_CUMULATIVE_TOTALS", "on"),
        ("TV_PROMETHEUS_STAGE_CPU", "on"),
        ("TV_PROMETHEUS_FLUSH_ON_SIGNALS", "TRUE"),
    ] {
        let message = message(&[(variable, value)]);
        assert!(message.starts_with(&format!("{variable}: ")) && message.contains(value), "{message}");
    }
    let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", "gateway:9091"), ("TV_PROMETHEUS_GROUPING", "1st=x")]);
    assert!(message.starts_with("TV_PROMETHEUS_GROUPING: ") && message.contains("1st"), "{message}");
    let message = self::message(&[("TV_PROMETHEUS_LABELS", "a=1,b=2,a=3")]);
    assert_eq!(message, "TV_PROMETHEUS_LABELS: constant label \"a\" is given twice: give it once");
    let message = self::message(&[("TV_PROMETHEUS_LABELS", "stage_id=x")]);
    assert!(message.starts_with("TV_PROMETHEUS_LABELS: constant label \"stage_id\" "), "{message}");
}

#[test]
#[cfg(feature = "http")]
fn port_alone_is_on_the_loopback_address() {
    for (text, address) in [
        ("9464", "127.0.0.1:9464"),
        (":9464", "127.0.0.1:9464"),
        ("localhost:9464", "127.0.0.1:9464"),
        ("0.0.0.0:0", "0.0.0.0:0"),
        ("[::]:9464", "[::]:9464"),
    ] {
        assert_eq!(parse_listen(text).unwrap(), address.parse().unwrap(), "{text}");
    }
    for text in
        ["localhost", "localhost9464", "::9464", "127.0.0.1", "65536", "-1", "worker-7:9464", "http://0.0.0.0:1"]
    {
        let message = message(&[("TV_PROMETHEUS_LISTEN", text)]);
        assert!(
            message.contains(&format!("TV_PROMETHEUS_LISTEN: {text:?} is not an address to listen on")),
            "{message}"
        );
    }
}

#[test]
#[cfg(not(all(
    feature = "http",
    feature = "resource-usage",
    feature = "otlp",
    feature = "tls",
    feature = "trace-id"
)))]
fn variable_of_a_missing_feature_names_the_feature() {
    for (name, feature) in [
        #[cfg(not(feature = "http"))]
        ("TV_PROMETHEUS_LISTEN", "http"),
        #[cfg(not(feature = "resource-usage"))]
        ("TV_PROMETHEUS_NODE", "resource-usage"),
        #[cfg(not(feature = "otlp"))]
        ("OTEL_METRICS_EXPORTER", "otlp"),
        #[cfg(not(feature = "tls"))]
        ("TV_PROMETHEUS_CA_FILE", "tls"),
        #[cfg(not(feature = "tls"))]
        ("TV_PROMETHEUS_CERT_FILE", "tls"),
        #[cfg(not(feature = "tls"))]
        ("TV_PROMETHEUS_KEY_FILE", "tls"),
        #[cfg(not(feature = "trace-id"))]
        ("TV_PROMETHEUS_EXEMPLARS", "trace-id"),
    ] {
        let message = message(&[(name, "otlp")]);
        assert!(message.starts_with(&format!("{name} is \"otlp\"")), "{message}");
        assert!(message.contains(&format!("the feature `{feature}`")), "{message}");
    }
}

#[test]
fn other_exporters_are_ignored() {
    for exporters in ["none", "prometheus", "console,prometheus", "otlp2"] {
        let environment = read(&[("OTEL_METRICS_EXPORTER", exporters), ("OTEL_EXPORTER_OTLP_ENDPOINT", "x")]).unwrap();
        assert!(environment.gateway.is_none());
        #[cfg(feature = "otlp")]
        assert!(!environment.otlp, "{exporters}");
    }
}

#[test]
fn disabled_opentelemetry_selects_no_exporter() {
    let environment = read(&[("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_SDK_DISABLED", "TRUE")]).unwrap();
    assert!(environment.gateway.is_none());
    #[cfg(feature = "otlp")]
    assert!(!environment.otlp);
}

#[test]
#[cfg(feature = "otlp")]
fn otlp_is_selected_among_other_exporters() {
    for exporters in ["otlp", " otlp ", "prometheus,otlp"] {
        assert!(read(&[("OTEL_METRICS_EXPORTER", exporters)]).unwrap().otlp, "{exporters}");
    }
}

#[test]
fn error_hides_the_password_of_a_wrong_url() {
    for url in ["ftp://me:secret@gateway", "http://me:secret@", "http://me:secret@gateway:99999", "me:secret@"] {
        let message = message(&[("TV_PROMETHEUS_PUSHGATEWAY", url)]);
        assert!(!message.contains("secret"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn error_hides_a_value_that_is_not_utf_8() {
    use std::os::unix::ffi::OsStringExt;
    let value = std::ffi::OsString::from_vec(b"http://me:secr\xe4t@gateway".to_vec());
    let lookup = |name: &str| match name {
        "TV_PROMETHEUS_PUSHGATEWAY" => Err(VarError::NotUnicode(value.clone())),
        _ => Err(VarError::NotPresent),
    };
    let error = EnvReader { prefix: DEFAULT_ENV_PREFIX.to_owned(), lookup }.read().unwrap_err();
    assert_eq!(error.to_string(), "TV_PROMETHEUS_PUSHGATEWAY is not UTF-8: set it to text that is");
}

#[test]
fn wrong_durations_are_explained() {
    assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1_500));
    assert_eq!(parse_duration("2h").unwrap(), Duration::from_secs(7_200));
    for (text, why) in [
        ("15", "it has no unit"),
        ("15 sec", "the unit is unknown"),
        ("s", "it does not begin with a number"),
        ("1.2.3s", "it does not begin with a number"),
        ("-1s", "the unit is unknown"),
        ("99999999999999999999h", "it is too long"),
        ("0s", "it must be above zero and at most a year"),
        ("9999h", "it must be above zero and at most a year"),
    ] {
        let expected =
            format!("{text:?} is not a duration: {why}; give a number and ms, s, m, h or d, such as 500ms or 15s");
        assert_eq!(parse_duration(text).unwrap_err().to_string(), expected);
    }
}

proptest! {
    #[test]
    fn durations_round_trip(n in 1..500_000_u64) {
        prop_assert_eq!(parse_duration(&format!("{n}ms")).unwrap(), Duration::from_millis(n));
        prop_assert_eq!(parse_duration(&format!("{n}s")).unwrap(), Duration::from_secs(n));
        prop_assert_eq!(parse_duration(&format!("{n}m")).unwrap(), Duration::from_secs(n * 60));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,20}") {
        let _ = parse_duration(&text);
    }
}
