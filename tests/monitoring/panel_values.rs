//! Panel values for states that take time to arise: promtool evaluates the queries over series as a gateway would
//! expose them, one sample a minute.

use std::fmt::Write as _;

use super::dashboard::queries;
use super::files;
use super::render::promtool;
use super::support::servers::installed;

/// Returns the panel's query with every variable set to match all.
#[track_caller]
fn query(title: &str) -> String {
    let dashboard = files::dashboard();
    let query = queries(&dashboard).into_iter().find(|(panel, _)| *panel == title);
    let (_, query) = query.unwrap_or_else(|| panic!("no panel {title}"));
    query.replace("$job", ".*").replace("$profile", ".*").replace("$stage", ".*")
}

/// Asserts through promtool that the panel's query yields these samples, labels and value, at minute 20 of the
/// series.
#[track_caller]
fn assert_shows(title: &str, series: &[(&str, &str)], samples: &[(&str, f64)]) {
    if !installed("promtool") {
        return;
    }
    let mut case = "evaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n".to_owned();
    for (series, values) in series {
        let _ = writeln!(case, "      - {{series: {series:?}, values: {values:?}}}");
    }
    let _ = writeln!(
        case,
        "    promql_expr_test:\n      - expr: {:?}\n        eval_time: 20m\n        exp_samples:",
        query(title)
    );
    for (labels, value) in samples {
        let _ = writeln!(case, "          - {{labels: {labels:?}, value: {value}}}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("panel.test.yml");
    std::fs::write(&file, case).unwrap();
    promtool(&["test", "rules"], &[file]);
}

#[test]
fn outcomes_panel_tells_success_running_failed_and_killed_apart() {
    assert_shows(
        "Outcomes over time",
        &[
            // Succeeded at minute 3.
            ("quant_run_start_timestamp_seconds{job='good'}", "60x20"),
            ("quant_run_last_completion_timestamp_seconds{job='good'}", "180x20"),
            ("quant_run_last_success_timestamp_seconds{job='good'}", "180x20"),
            ("push_time_seconds{job='good'}", "180x20"),
            // Restarted at minute 19.
            ("quant_run_start_timestamp_seconds{job='again'}", "1140x20"),
            ("quant_run_last_completion_timestamp_seconds{job='again'}", "180x20"),
            ("quant_run_last_success_timestamp_seconds{job='again'}", "180x20"),
            ("push_time_seconds{job='again'}", "1140x20"),
            // Started for the first time at minute 19.
            ("quant_run_start_timestamp_seconds{job='first'}", "1140x20"),
            ("push_time_seconds{job='first'}", "1140x20"),
            // Scraped service.
            ("quant_run_start_timestamp_seconds{job='service',instance='a:1'}", "60x20"),
            // Failed after an earlier success; failed at once.
            ("quant_run_start_timestamp_seconds{job='failed'}", "240x20"),
            ("quant_run_last_completion_timestamp_seconds{job='failed'}", "300x20"),
            ("quant_run_last_success_timestamp_seconds{job='failed'}", "180x20"),
            ("quant_run_start_timestamp_seconds{job='never',profile='p'}", "240x20"),
            ("quant_run_last_completion_timestamp_seconds{job='never',profile='p'}", "300x20"),
            // Killed at minute 10.
            ("quant_run_start_timestamp_seconds{job='killed'}", "240x20"),
            ("quant_run_last_completion_timestamp_seconds{job='killed'}", "180x20"),
            ("quant_run_last_success_timestamp_seconds{job='killed'}", "180x20"),
            ("push_time_seconds{job='killed'}", "600x20"),
            // The same with a label of `with_label`, which the gateway's own metrics do not have, and another at work.
            ("quant_run_start_timestamp_seconds{job='killed_labelled',team='x'}", "240x20"),
            ("push_time_seconds{job='killed_labelled'}", "600x20"),
            ("quant_run_start_timestamp_seconds{job='labelled',team='x'}", "240x20"),
            ("push_time_seconds{job='labelled'}", "1140x20"),
        ],
        &[
            ("{job='good'}", 0.0),
            ("{job='again'}", 1.0),
            ("{job='first'}", 1.0),
            ("{job='service', instance='a:1'}", 1.0),
            ("{job='failed'}", 2.0),
            ("{job='never', profile='p'}", 2.0),
            ("{job='killed'}", 3.0),
            ("{job='killed_labelled'}", 3.0),
            ("{job='labelled'}", 1.0),
        ],
    );
}

#[test]
fn active_panel_leaves_out_stages_of_killed_processes() {
    assert_shows(
        "Active stages",
        &[
            ("quant_stage_active{job='killed',stage_id='a',profile='p'}", "1x20"),
            ("push_time_seconds{job='killed'}", "600x20"),
            ("quant_stage_active{job='at_work',stage_id='a',profile='p'}", "2x20"),
            ("push_time_seconds{job='at_work'}", "1140x20"),
            // Two groups of one job.
            ("quant_stage_active{job='grouped',stage_id='a',profile='killed'}", "1x20"),
            ("push_time_seconds{job='grouped',profile='killed'}", "600x20"),
            ("quant_stage_active{job='grouped',stage_id='a',profile='at_work'}", "4x20"),
            ("push_time_seconds{job='grouped',profile='at_work'}", "1140x20"),
            ("quant_stage_active{job='service',instance='a:1',stage_id='a',profile='p'}", "1x20"),
        ],
        &[
            ("{job='at_work', stage_id='a'}", 2.0),
            ("{job='grouped', stage_id='a'}", 4.0),
            ("{job='service', stage_id='a'}", 1.0),
        ],
    );
}

#[test]
fn usage_panel_leaves_out_killed_processes() {
    let series = |labels: &str| format!("quant_engine_resource_usage{{resource_type='cpu',node='n',{labels}}}");
    let [killed, at_work, killed_labelled, labelled, service] =
        ["job='killed'", "job='at_work'", "job='killed_labelled',team='x'", "job='labelled',team='x'", "job='service'"]
            .map(series);
    assert_shows(
        "CPU in use",
        &[
            (&killed, "1x20"),
            ("push_time_seconds{job='killed'}", "600x20"),
            (&at_work, "2x20"),
            ("push_time_seconds{job='at_work'}", "1140x20"),
            (&killed_labelled, "4x20"),
            ("push_time_seconds{job='killed_labelled'}", "600x20"),
            (&labelled, "8x20"),
            ("push_time_seconds{job='labelled'}", "1140x20"),
            (&service, "16x20"),
        ],
        &[(&at_work, 2.0), (&labelled, 8.0), (&service, 16.0)],
    );
}

#[test]
fn periods_panel_counts_days_without_recorded_periods() {
    assert_shows(
        "Time since the last success, in periods",
        &[
            ("quant_run_last_success_timestamp_seconds{job='a'}", "600x20"),
            ("quant:period_seconds{job='a'}", "300x20"),
            ("quant_run_last_success_timestamp_seconds{job='b',profile='p'}", "336x20"),
        ],
        &[("{job='a'}", 2.0), ("{job='b', profile='p'}", 0.01)],
    );
}

#[test]
#[should_panic(expected = "FAILED")]
fn wrong_panel_value_fails_the_assertion() {
    // Without promtool the test panics by itself with the expected text.
    assert!(installed("promtool"), "FAILED");
    assert_shows(
        "Outcomes over time",
        &[("quant_run_start_timestamp_seconds{job='a'}", "60x20")],
        &[("{job='a'}", 2.0)],
    );
}
