use std::time::{SystemTime, UNIX_EPOCH};

use tracing_subscriber::prelude::*;

use super::panic_of;
use super::support::log::Log;
use super::support::template;

#[test]
fn text_that_matches_the_template_passes() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let text = format!("a{{b=\"c\"}} 1\nat {now}\ntook 0.25\nmem 2097152\ncpu 0\n");
    template::assert_matches(&text, "a{b=\"c\"} 1\nat <unix>\ntook <seconds>\nmem <bytes>\ncpu <cores>\n");
}

#[test]
fn text_that_differs_from_the_template_fails() {
    for (text, template) in [
        ("a 1\n", "a 2\n"),
        ("a 1\n", "a 1"),
        ("a 1", "a 1\n"),
        ("a 1\nb 1\n", "a 1\n"),
        ("a 0\n", "a <seconds>\n"),
        ("a -1\n", "a <seconds>\n"),
        ("a 1e-9\n", "a <seconds>\n"),
        ("a +Inf\n", "a <seconds>\n"),
        ("a .5\n", "a <seconds>\n"),
        ("b 1\n", "a <seconds>\n"),
        ("a 1 \n", "a <seconds>\n"),
        ("a 1000000000\n", "a <unix>\n"),
        ("a 99999999999\n", "a <unix>\n"),
        ("a 4096\n", "a <bytes>\n"),
        ("a 2097152.5\n", "a <bytes>\n"),
        ("a NaN\n", "a <cores>\n"),
    ] {
        assert!(template::matches(text, template).is_err(), "{text:?} {template:?}");
    }
    let message = panic_of(|| template::assert_matches("a 1\nb 2\n", "a 1\nb 3\n"));
    assert!(message.contains("\"b 2\" is not \"b 3\"") && message.contains("a 1\nb 2\n"), "{message}");
}

#[test]
fn log_records_all_events() {
    let log = Log::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(log.clone()), || {
        tracing::warn!(target: "tracing_stage_metrics", n = 1, s = "x", "event of {}", "ours");
        tracing::trace!(error = ?"why");
    });
    assert_eq!(log.own(), ["event of ours n=1 s=x"]);
    assert_eq!(
        log.text(),
        format!("WARN tracing_stage_metrics: event of ours n=1 s=x\nTRACE {}:  error=\"why\"\n", module_path!())
    );
}
