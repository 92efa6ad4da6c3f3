//! Panel values for states that take time to arise: promtool evaluates the queries over series as a gateway would
//! expose them.

use std::fmt::Write as _;

use super::dashboard::{interpolate, list, panels, text};
use super::files;
use super::render::promtool;
use super::support::servers::installed;

/// Returns the panel's query with this reference.
#[track_caller]
pub(crate) fn expression(title: &str, reference: &str) -> String {
    let dashboard = files::dashboard();
    let panel = panels(&dashboard).into_iter().find(|panel| text(panel, "title") == title);
    let panel = panel.unwrap_or_else(|| panic!("no panel {title}"));
    let target = list(&panel["targets"]).iter().find(|target| text(target, "refId") == reference);
    text(target.unwrap_or_else(|| panic!("no query {reference} of {title}")), "expr").to_owned()
}

/// The values of the variables: each matches all.
const VARIABLES: [(&str, &str); 5] =
    [("objective", "0.75"), ("job", ".*"), ("profile", ".*"), ("instance", ".*"), ("stage", ".*")];

/// A sample each minute, and the time of the evaluation.
const MINUTES: (&str, &str) = ("1m", "20m");

/// Asserts through promtool that the only query of a panel yields these samples, labels and value, at minute 20 of the
/// series, which have a sample a minute.
#[track_caller]
fn assert_shows(title: &str, series: &[(&str, &str)], samples: &[(&str, f64)]) {
    assert_query_shows(title, "A", MINUTES, series, samples);
}

/// Asserts the samples of a query of a panel, for series with this interval, at this time.
#[track_caller]
fn assert_query_shows(
    title: &str,
    reference: &str,
    (interval, time): (&str, &str),
    series: &[(&str, &str)],
    samples: &[(&str, f64)],
) {
    let query = interpolate(&expression(title, reference), "1h", VARIABLES);
    if !installed("promtool") {
        return;
    }
    let mut case = format!("evaluation_interval: 1m\ntests:\n  - interval: {interval}\n    input_series:\n");
    for (series, values) in series {
        let _ = writeln!(case, "      - {{series: {series:?}, values: {values:?}}}");
    }
    let _ = writeln!(
        case,
        "    promql_expr_test:\n      - expr: {query:?}\n        eval_time: {time}\n        exp_samples:"
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

/// One run: when it started and ended, in minutes; one that succeeded, in `good`.
const RUNS: [(u64, Option<u64>, bool); 4] =
    [(1, Some(2), true), (4, Some(6), false), (8, None, false), (12, Some(13), true)];

/// The series of the metrics of a job with `RUNS`, one sample a minute. `running` adds a run that started at minute 18
/// and still pushes.
fn history(labels: &str, running: bool) -> Vec<(String, String)> {
    let mut series = ["start_timestamp", "last_completion_timestamp", "last_success_timestamp", "duration"]
        .map(|name| (format!("quant_run_{name}_seconds{{{labels}}}"), String::new()));
    let mut push = (format!("push_time_seconds{{{labels}}}"), String::new());
    for minute in 0..=20 {
        let begun = RUNS.iter().rev().find(|(start, ..)| *start <= minute).map(|run| run.0);
        let ended = RUNS.iter().filter_map(|(start, end, good)| end.map(|end| (start, end, good)));
        let ended: Vec<_> = ended.filter(|(_, end, _)| *end <= minute).collect();
        let begun = if running && minute >= 18 { Some(18) } else { begun };
        let last = ended.last();
        let values = [
            begun.map(|start| start * 60),
            last.map(|(_, end, _)| end * 60),
            ended.iter().rfind(|(.., good)| **good).map(|(_, end, _)| end * 60),
            last.map(|(start, end, _)| (end - *start) * 60),
        ];
        for ((_, samples), value) in series.iter_mut().zip(values) {
            let _ = write!(samples, "{} ", value.map_or("_".to_owned(), |value| value.to_string()));
        }
        let _ = write!(push.1, "{} ", minute * 60);
    }
    [&series[..], &[push]].concat()
}

fn borrowed(series: &[(String, String)]) -> Vec<(&str, &str)> {
    series.iter().map(|(labels, values)| (labels.as_str(), values.as_str())).collect()
}

#[test]
fn jobs_panel_compares_the_run_in_progress_with_the_history() {
    let histories = [history("job='a',instance='h'", true), history("job='ended',profile='p'", false)].concat();
    let series = borrowed(&histories);
    let both = |running: f64, ended: f64| [("{job='a', instance='h'}", running), ("{job='ended', profile='p'}", ended)];
    assert_query_shows("Jobs", "D", MINUTES, &series, &both(420.0, 420.0));
    assert_query_shows("Jobs", "E", MINUTES, &series, &[("{job='a', instance='h'}", 120.0)]);
    // The failed run took two minutes. The gateway shows it for as long as the run that was killed after it.
    assert_query_shows("Jobs", "F", MINUTES, &series, &[("{job='a', instance='h'}", 1.0)]);
    assert_query_shows("Jobs", "G", MINUTES, &series, &both(60.0, 60.0));
    assert_query_shows("Jobs", "H", MINUTES, &series, &both(120.0, 120.0));
}

/// The rules remember the longest successful run, which the alert compares with; a job that they do not know yet has the
/// longest run of the time range.
#[test]
fn jobs_panel_compares_with_the_longest_run_of_the_rules() {
    let histories = [history("job='a',instance='h'", true), history("job='new'", true)].concat();
    let mut series = borrowed(&histories);
    series.push(("quant:run_duration_seconds:max{job='a'}", "240x20"));
    for (reference, a, new) in [("F", 0.5, 1.0), ("H", 240.0, 120.0)] {
        let samples = [("{job='a', instance='h'}", a), ("{job='new'}", new)];
        assert_query_shows("Jobs", reference, MINUTES, &series, &samples);
    }
}

/// A group whose pushes were all refused has none that is accepted: its time is zero.
#[test]
fn last_push_is_one_that_was_accepted() {
    for (panel, reference) in [("Jobs", "I"), ("Push health", "A")] {
        let series = [
            ("push_time_seconds{job='killed',profile='p'}", "300x20"),
            ("push_time_seconds{job='refused'}", "0x20"),
            ("push_failure_time_seconds{job='refused'}", "600x20"),
        ];
        assert_query_shows(panel, reference, MINUTES, &series, &[("{job='killed', profile='p'}", 900.0)]);
    }
}

#[test]
fn alerts_panel_has_the_time_since_an_alert_became_active() {
    let since = |labels: &str| format!("ALERTS_FOR_STATE{{{labels}}}");
    let alert = |labels: &str, state: &str| format!("ALERTS{{{labels},alertstate='{state}'}}");
    let [failed, waiting, down, other] = [
        "alertname='BatchRunFailed',severity='critical',job='a',profile='p'",
        "alertname='BatchNoSuccess',severity='critical',job='a'",
        "alertname='BatchGatewayDown',severity='critical',job='pushgateway',instance='g:9091'",
        "alertname='DiskFull',severity='critical',job='a'",
    ];
    assert_shows(
        "Firing alerts",
        &[
            (&since(failed), "_x9 600x10"),
            (&alert(failed, "pending"), "_x9 1x5 stale"),
            (&alert(failed, "firing"), "_x15 1x4"),
            (&since(waiting), "_x9 600x10"),
            (&alert(waiting, "pending"), "_x9 1x10"),
            (&since(down), "900x20"),
            (&alert(down, "firing"), "1x20"),
            (&since(other), "900x20"),
            (&alert(other, "firing"), "1x20"),
        ],
        &[(&format!("{{{failed}}}"), 600.0), (&format!("{{{down}}}"), 300.0)],
    );
}

#[test]
fn jobs_panel_has_the_run_id_in_the_line_of_its_group() {
    let start = "quant_run_start_timestamp_seconds";
    assert_query_shows(
        "Jobs",
        "B",
        MINUTES,
        &[
            (&format!("{start}{{job='plain'}}"), "60x20"),
            ("quant_run_info{job='plain',profile='of_stages',run_id='1'}", "1x20"),
            (&format!("{start}{{job='grouped',profile='p'}}"), "60x20"),
            ("quant_run_info{job='grouped',profile='p',run_id='2'}", "1x20"),
            (&format!("{start}{{job='unknown'}}"), "60x20"),
            ("quant_run_info{job='unknown'}", "1x20"),
        ],
        &[("{job='plain', run_id='1'}", 1.0), ("{job='grouped', profile='p', run_id='2'}", 1.0)],
    );
}

#[test]
fn due_panel_counts_down_to_the_next_success_and_to_the_alert() {
    let series = [
        ("quant:last_success_timestamp_seconds{job='overdue'}", "300x20"),
        ("quant:period_seconds{job='overdue'}", "600x20"),
        ("quant:last_success_timestamp_seconds{job='daily',profile='p'}", "1200x20"),
        ("quant:period_seconds{job='daily',profile='p'}", "86400x20"),
        ("quant:last_success_timestamp_seconds{job='frequent'}", "1200x20"),
        ("quant:period_seconds{job='frequent'}", "7200x20"),
        ("quant:last_success_timestamp_seconds{job='retired'}", "300x20"),
        ("quant:period_seconds{job='retired'}", "_x20 Inf"),
        ("quant:last_success_timestamp_seconds{job='unlisted'}", "300x20"),
    ];
    for (reference, overdue, daily, frequent) in [
        ("A", -300.0, 86_400.0, 7_200.0),
        ("B", 300.0, 86_400.0 + 21_600.0, 7_200.0 + 1_800.0),
        ("C", 900.0, 0.0, 0.0),
        ("D", 600.0, 86_400.0, 7_200.0),
    ] {
        let samples =
            [("{job='overdue'}", overdue), ("{job='daily', profile='p'}", daily), ("{job='frequent'}", frequent)];
        assert_query_shows("Next success due", reference, MINUTES, &series, &samples);
    }
}

#[test]
fn runs_panel_has_each_run_with_its_outcome() {
    let histories = [history("job='a'", true), history("job='ended',profile='p',team='x'", false)].concat();
    let series = borrowed(&histories);
    let line = |job: &str, start: u64, value: f64| (format!("{{{job}, started='{}'}}", start * 60_000), value);
    let shows = |reference: &str, of_both: &[(u64, f64)], of_a: &[(u64, f64)]| {
        let a = of_both.iter().chain(of_a).map(|(start, value)| line("job='a'", *start, *value));
        let ended = of_both.iter().map(|(start, value)| line("job='ended', profile='p'", *start, *value));
        let samples: Vec<_> = a.chain(ended).collect();
        let samples: Vec<_> = samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        assert_query_shows("Last 20 runs of each job", reference, MINUTES, &series, &samples);
    };
    shows("A", &[(1, 0.0), (4, 2.0), (8, 3.0), (12, 0.0)], &[(18, 1.0)]);
    shows("B", &[(1, 60.0), (4, 120.0), (12, 60.0)], &[]);
}

#[test]
fn runs_panel_has_the_latest_twenty_of_each_job() {
    let start = "quant_run_start_timestamp_seconds{job='often'}";
    // A run every minute, for 30 minutes.
    let series = [(start, "60+60x30"), ("quant_run_start_timestamp_seconds{job='once'}", "60x30")];
    let labels: Vec<_> = (12..=31).map(|run| format!("{{job='often', started='{}'}}", run * 60_000)).collect();
    let mut samples: Vec<_> = labels.iter().map(|labels| (labels.as_str(), 3.0)).collect();
    // A job without pushes, like a scraped service, is running.
    samples[19].1 = 1.0;
    samples.push(("{job='once', started='60000'}", 1.0));
    assert_query_shows("Last 20 runs of each job", "A", ("1m", "30m"), &series, &samples);
}

#[test]
fn runs_panel_has_the_run_id_of_each_run() {
    let start = "quant_run_start_timestamp_seconds";
    assert_query_shows(
        "Last 20 runs of each job",
        "C",
        MINUTES,
        &[
            (&format!("{start}{{job='plain',team='x'}}"), "60x9 600x10"),
            ("quant_run_info{job='plain',team='x',profile='of_stages',run_id='1'}", "1x9 stale"),
            ("quant_run_info{job='plain',team='x',profile='of_stages',run_id='2'}", "_x10 1x10"),
            (&format!("{start}{{job='grouped',profile='p'}}"), "120x20"),
            ("quant_run_info{job='grouped',profile='p',run_id='3'}", "1x20"),
            (&format!("{start}{{job='grouped',profile='q'}}"), "180x20"),
            ("quant_run_info{job='grouped',profile='q',run_id='4'}", "1x20"),
        ],
        &[
            ("{job='plain', started='60000', run_id='1'}", 1.0),
            ("{job='plain', started='600000', run_id='2'}", 1.0),
            ("{job='grouped', profile='p', started='120000', run_id='3'}", 1.0),
            ("{job='grouped', profile='q', started='180000', run_id='4'}", 1.0),
        ],
    );
}

#[test]
fn failed_stages_panel_counts_runs_and_not_failures() {
    let start = "quant_run_start_timestamp_seconds";
    let failures = |labels: &str| format!("quant_stage_failures_total{{{labels},reason='error'}}");
    assert_shows(
        "Failed stages across runs",
        &[
            // Three runs. In the first the stage fails twice, in the second never, in the third once.
            (&format!("{start}{{job='plain'}}"), "60x4 360x4 660x10"),
            (&failures("job='plain',profile='of_stages',stage_id='s'"), "0 1 2 2 2 0 0 0 0 0 0 1x9"),
            (&failures("job='plain',profile='of_stages',stage_id='never'"), "0x20"),
            // Two hosts, with a run each.
            (&format!("{start}{{job='hosts',instance='a',profile='p'}}"), "60x20"),
            (&format!("{start}{{job='hosts',instance='b',profile='p'}}"), "120x20"),
            (&failures("job='hosts',instance='a',profile='p',stage_id='s'"), "1x20"),
            (&failures("job='hosts',instance='b',profile='p',stage_id='s'"), "1x20"),
        ],
        &[
            ("{job='plain', profile='of_stages', stage_id='s', reason='error'}", 2.0),
            ("{job='hosts', profile='p', stage_id='s', reason='error'}", 2.0),
        ],
    );
}

/// Totals of jobs over 40 days, successes and failures, two samples an hour. `old` has run since long before; `new` has a
/// first sample ten days before the end, and no run since; `reset` has a gateway that lost its state five days before the
/// end; `rare` last ran 20 days before the end.
const TOTALS: [(&str, &str, &str); 4] = [
    ("old", "100x1439 100+1x479", "10x1439 10x383 20x96"),
    ("new", "_x1440 8x479", "_x1440 2x479"),
    ("reset", "500x1439 500x240 9x239", "50x1439 50x240 1x239"),
    ("rare", "1x960 3x960", "1x960 1x960"),
];

#[test]
fn success_panel_has_ratio_and_budget_of_the_totals() {
    let series = TOTALS.iter().flat_map(|(job, success, failure)| {
        [("success", success), ("failure", failure)].map(|(status, values)| {
            (format!("quant_runs_total{{job='{job}',status='{status}'}}"), (*values).to_owned())
        })
    });
    let series: Vec<_> = series.collect();
    let shows = |reference: &str, samples: &[(&str, f64)]| {
        let titled = "Success and error budget";
        assert_query_shows(titled, reference, ("30m", "959h30m"), &borrowed(&series), samples);
    };
    // 479 runs in ten days, of which 336 in the last seven, and ten failures two days ago.
    shows("A", &[("{job='old'}", 336.0 / 346.0), ("{job='reset'}", 0.9)]);
    shows("B", &[("{job='old'}", 479.0 / 489.0), ("{job='new'}", 0.8), ("{job='reset'}", 0.9), ("{job='rare'}", 1.0)]);
    shows("C", &[("{job='old'}", 10.0), ("{job='new'}", 2.0), ("{job='reset'}", 1.0), ("{job='rare'}", 0.0)]);
    // Three of four should succeed.
    let left = |failed: f64, runs: f64| 1.0 - failed / runs / 0.25;
    shows(
        "D",
        &[
            ("{job='old'}", left(10.0, 489.0)),
            ("{job='new'}", left(2.0, 10.0)),
            ("{job='reset'}", left(1.0, 10.0)),
            ("{job='rare'}", 1.0),
        ],
    );
}

#[test]
fn stages_panel_compares_the_last_duration_with_the_usual_one() {
    let last = |labels: &str| format!("quant_stage_last_duration_seconds{{job='a',stage_id='s',{labels}}}");
    assert_query_shows(
        "Stages of the last run",
        "F",
        MINUTES,
        &[
            (&last("profile='p',instance='h'"), "30x20"),
            ("quant:stage_usual_duration_seconds{job='a',stage_id='s',profile='p'}", "10x20"),
            (&last("profile='q'"), "100x20"),
            ("quant:stage_usual_duration_seconds{job='a',stage_id='s',profile='q'}", "100x20"),
        ],
        &[("{job='a', stage_id='s'}", 3.0)],
    );
}

#[test]
fn stages_panel_has_the_stages_that_are_open_or_were_when_the_process_was_killed() {
    let series = [
        ("quant_stage_active{job='a',stage_id='s',profile='p',instance='1'}", "2x20"),
        ("quant_stage_active{job='a',stage_id='s',profile='p',instance='2'}", "1x20"),
        ("push_time_seconds{job='a',instance='1'}", "60x20"),
        ("quant_stage_active{job='a',stage_id='closed',profile='p'}", "0x20"),
    ];
    let samples = [("{job='a', stage_id='s'}", 3.0), ("{job='a', stage_id='closed'}", 0.0)];
    assert_query_shows("Stages of the last run", "K", MINUTES, &series, &samples);
}

#[test]
fn stages_panel_has_the_last_success_of_a_stage_that_the_gateway_shows_no_more() {
    let series = [
        // The last run of `a` skipped the stage before the time range; the rules know no stage of `unruled`.
        ("quant:stage_last_success_timestamp_seconds{job='a',stage_id='s',profile='p'}", "300x180"),
        ("quant_stage_last_success_timestamp_seconds{job='a',stage_id='t',profile='p',instance='1'}", "_x150 9600x30"),
        ("quant:stage_last_success_timestamp_seconds{job='a',stage_id='t',profile='p'}", "300x180"),
        ("quant_stage_last_success_timestamp_seconds{job='unruled',stage_id='s'}", "_x130 7200x10 stale"),
    ];
    let samples = [
        ("{job='a', stage_id='s'}", 10_500.0),
        ("{job='a', stage_id='t'}", 1_200.0),
        ("{job='unruled', stage_id='s'}", 3_600.0),
    ];
    assert_query_shows("Stages of the last run", "H", ("1m", "180m"), &series, &samples);
}

#[test]
fn stages_panel_has_the_mean_of_the_totals() {
    let labels = "job='a',stage_id='s',profile='p'";
    assert_query_shows(
        "Stages of the last run",
        "J",
        ("30m", "959h30m"),
        &[
            (&format!("quant_stage_run_seconds_total{{{labels}}}"), "1000x959 1000x479 1060x480"),
            (&format!("quant_stage_runs_total{{{labels},status='success'}}"), "100x959 100x479 105x480"),
            (&format!("quant_stage_runs_total{{{labels},status='failure'}}"), "100x959 100x479 101x480"),
        ],
        &[("{job='a', stage_id='s'}", 10.0)],
    );
}

#[test]
fn pushes_panel_has_the_clock_of_the_host() {
    let run = |name: &str, labels: &str| format!("quant_run_{name}_timestamp_seconds{{{labels}}}");
    assert_query_shows(
        "Push health",
        "I",
        MINUTES,
        &[
            (&run("start", "job='ahead',team='x'"), "600x20"),
            (&run("last_completion", "job='ahead',team='x'"), "900x20"),
            ("push_time_seconds{job='ahead'}", "300x20"),
            // The completion is that of the run before.
            (&run("start", "job='running'"), "1000x20"),
            (&run("last_completion", "job='running'"), "300x20"),
            ("push_time_seconds{job='running'}", "1140x20"),
        ],
        &[("{job='ahead'}", 600.0)],
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
