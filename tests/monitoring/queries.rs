//! The queries of `docs/queries.md`: each returns what the page says, over weeks and after real runs.

mod history;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use history::{End, Group, Stage, stage};

use tracing_stage_metrics::MetricsLayer;

use super::Fixture;
use super::support::child::{Running, Signal};
use super::support::measured::{Measured, failing_stage, measured, stage as stage_of_process};
use super::support::servers::{self, Series};
use super::support::{self, Prometheus, http};

/// The questions of the page in order, each with its queries.
#[track_caller]
fn questions() -> Vec<(String, Vec<String>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/queries.md")).unwrap();
    let mut questions: Vec<(String, Vec<String>)> = Vec::new();
    for block in page.split("\n\n") {
        if let Some(question) = block.strip_prefix("**").and_then(|block| block.strip_suffix("**")) {
            questions.push((question.to_owned(), Vec::new()));
        } else if let Some(query) = block.strip_prefix("```promql\n") {
            let (_, queries) = questions.last_mut().unwrap();
            queries.push(query.strip_suffix("\n```").unwrap().to_owned());
        }
    }
    assert!(questions.len() >= 20 && questions.iter().all(|(_, queries)| !queries.is_empty()), "{questions:?}");
    questions
}

/// A file of `tests/monitoring/queries`.
#[track_caller]
fn expected(name: &str) -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/queries");
    std::fs::read_to_string(Path::new(directory).join(name)).unwrap()
}

/// Labels and value of each series, sorted. A Unix time is written as the seconds before `now`.
fn lines(result: &[Series], now: f64) -> Vec<String> {
    let line = |(labels, value): &Series| {
        let labels = labels.iter().filter(|(name, _)| *name != "__name__");
        let labels: String = labels.map(|(name, value)| format!("{name}={value} ")).collect();
        match *value > 1e9 {
            true => format!("{labels}now-{}", now - value),
            false if value.abs() < 0.01 => format!("{labels}{value}"),
            false => format!("{labels}{}", (value * 1e3).round() / 1e3),
        }
    };
    let mut lines: Vec<_> = result.iter().map(line).collect();
    lines.sort();
    if lines.is_empty() {
        lines.push("nothing".to_owned());
    }
    lines
}

/// Asserts that each query of the page has these results. `expected` has a paragraph for each question of the page: the
/// question, and the lines of each query, with `--` between queries. `*` stands for any label value or positive number,
/// `~3` for a number that rounds to 3, and `6 x ` for six such lines.
#[track_caller]
fn assert_answers(expected: &str, results: impl Fn(&str) -> Vec<String>) {
    let mut expected = expected.trim_end().split("\n\n");
    let mut differences = Vec::new();
    for (question, queries) in questions() {
        let results: Vec<_> = queries.iter().map(|query| results(query).join("\n")).collect();
        let answer = format!("{question}\n{}", results.join("\n--\n"));
        let expected = expected.next().unwrap_or_default();
        let lines: Vec<_> = expected.lines().flat_map(repeated).collect();
        let are_like = answer.lines().zip(&lines).all(|(result, expected)| is_like(result, expected));
        if answer.lines().count() != lines.len() || !are_like {
            differences.push(format!("{answer}\nexpected:\n{expected}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    assert_eq!(expected.next(), None, "a question that the page does not have");
}

/// The line as many times as its prefix says, such as `6 x `.
fn repeated(line: &str) -> Vec<&str> {
    match line.split_once(" x ") {
        Some((count, line)) => vec![line; count.parse().unwrap()],
        None => vec![line],
    }
}

fn is_like(result: &str, expected: &str) -> bool {
    let is_positive = |value: &str| value.parse::<f64>().is_ok_and(|value| value > 0.0 && value.is_finite());
    let is_like = |(result, expected): (&str, &str)| match (expected.strip_suffix('*'), expected.strip_prefix('~')) {
        (Some(prefix), _) => result.strip_prefix(prefix).is_some_and(|rest| prefix.ends_with('=') || is_positive(rest)),
        (None, Some(rounded)) => result.parse::<f64>().is_ok_and(|value| rounded.parse() == Ok(value.round())),
        (None, None) => result == expected,
    };
    result.split(' ').count() == expected.split(' ').count() && result.split(' ').zip(expected.split(' ')).all(is_like)
}

#[test]
fn expected_lines_match_labels_and_values() {
    assert!(is_like("job=a 3", "job=a 3") && is_like("job=a 1e-9", "job=a *"));
    assert!(is_like("job=a stage_id=b 1", "job=a stage_id=* 1") && is_like("job=a now-2", "job=a now-*"));
    assert!(is_like("job=a 3.2", "job=a ~3") && is_like("nothing", "nothing"));
    for expected in ["job=a 4", "job=b 3", "job=a now-3", "nothing", "job=a ~4", "job=b *", ""] {
        assert!(!is_like("job=a 3", expected), "{expected}");
    }
    assert!(!is_like("job=a 0", "job=a *") && !is_like("job=a NaN", "job=a *") && !is_like("nothing", "job=a *"));
}

const DAY: u64 = 86_400;
const HOUR: u64 = 3_600;
const MINUTE: u64 = 60;
/// Tuesday, 31 March 2026, 00:00 UTC.
const TODAY: u64 = 1_774_915_200;
const NOW: u64 = TODAY + 9 * HOUR;

/// Five weeks of a daily job with totals. Ingest takes 20 minutes, training 40.
fn nightly() -> Group {
    let mut group = Group::new("nightly", "p", TODAY - 34 * DAY).with_cumulative_totals();
    let (ingest, train) =
        (Stage { cpu: 600.0, ..stage("ingest", 1_200) }, Stage { cpu: 7_200.0, ..stage("train", 2_400) });
    for days in (0..=34).rev() {
        let start = TODAY - days * DAY + 2 * HOUR;
        let run_id = format!("n-{days}");
        match days {
            3 => group.run(start, &run_id, &[ingest.failed("panic")], &["train"], End::Failure),
            10 => group.run(start, &run_id, &[ingest, train], &[], End::Killed(start + 30 * MINUTE)),
            0 | 5 | 6 | 20 => group.run(start, &run_id, &[ingest, train.failed("error")], &[], End::Failure),
            _ => group.run(start, &run_id, &[ingest, train], &[], End::Success),
        }
    }
    let slow = Stage { cpu: 9_000.0, ..stage("train", 3_000) };
    group.run(TODAY + 4 * HOUR, "n-0-again", &[ingest, slow], &[], End::Success);
    group
}

/// The samples of all jobs.
fn samples() -> String {
    let mut weekly = Group::new("weekly", "", TODAY - 16 * DAY);
    weekly.run(TODAY - 16 * DAY + 3 * HOUR, "w-1", &[stage("report", 7_200)], &[], End::Success);
    weekly.run(TODAY - 9 * DAY + 3 * HOUR, "w-2", &[stage("report", 7_200).failed("error")], &[], End::Failure);
    weekly.run(TODAY - 2 * DAY + 3 * HOUR, "w-3", &[stage("report", 7_200)], &[], End::Success);

    let mut first = Group::new("first", "p", TODAY);
    first.run(TODAY + 8 * HOUR + 30 * MINUTE, "f-1", &[stage("ingest", DAY)], &["train"], End::Success);

    let mut again = Group::new("again", "", TODAY - 4 * DAY);
    again.run(TODAY - 4 * DAY + 8 * HOUR, "a-0", &[stage("load", 2_700)], &[], End::Success);
    again.run(TODAY - 2 * DAY + 8 * HOUR, "a-1", &[stage("load", 1_800)], &[], End::Success);
    again.run(
        TODAY - DAY + 8 * HOUR,
        "a-2",
        &[stage("load", 1_800)],
        &[],
        End::Killed(TODAY - DAY + 8 * HOUR + 10 * MINUTE),
    );
    again.run(TODAY + 8 * HOUR, "a-3", &[stage("check", 600), stage("load", DAY)], &[], End::Success);

    let mut killed = Group::new("killed", "", TODAY - DAY);
    killed.run(TODAY - DAY + 7 * HOUR, "k-1", &[stage("copy", 1_800)], &[], End::Success);
    let start = TODAY + 8 * HOUR + 30 * MINUTE;
    killed.run(start, "k-2", &[stage("copy", 1_800)], &[], End::Killed(start + 10 * MINUTE));

    let mut gone = Group::new("gone", "", TODAY - 9 * DAY);
    gone.run(TODAY - 9 * DAY + 6 * HOUR, "g-1", &[stage("old", 600)], &[], End::Success);
    gone.delete(TODAY - 8 * DAY);

    // Has no run ids.
    let mut never = Group::new("never", "", TODAY - 2 * DAY);
    for days in (0..=2).rev() {
        let start = TODAY - days * DAY + 5 * HOUR;
        never.run(start, "", &[stage("extract", 300).failed("error")], &["publish"], End::Failure);
    }

    let mut flaky = Group::new("flaky", "", TODAY - DAY);
    flaky.run(TODAY - DAY + 6 * HOUR, "y-1", &[stage("fetch", 600)], &[], End::Success);
    let retried = Stage { failures: 2, ..stage("fetch", 600) };
    flaky.run(TODAY + 6 * HOUR, "y-2", &[retried], &[], End::Success);
    flaky.set("quant_stage_failures_total", ",stage_id=\"fetch\",profile=\"\",reason=\"panic\"", 1.0);
    flaky.set("quant_telemetry_spool_files", "", 3.0);
    flaky.set("push_failure_time_seconds", "", (TODAY + 8 * HOUR) as f64);

    // Two profiles in turn.
    let mut desks = Group::new("desks", "crypto", TODAY - DAY);
    for days in [1, 0] {
        let start = TODAY - days * DAY + HOUR;
        desks.profile = "crypto";
        let crypto = stage("model", 1_200).failed("interrupted");
        desks.run(start, &format!("c-{days}"), &[crypto], &[], End::Failure);
        desks.profile = "equities";
        desks.run(start + HOUR, &format!("e-{days}"), &[stage("model", 600)], &[], End::Success);
    }

    // The totals alone of a job with eleven runs, whose gateway comes back after the tenth with the state after the eighth.
    let mut restored = Group::new("restored", "", TODAY - 12 * DAY);
    for (days, runs) in (0..=11).rev().zip([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 8]) {
        restored.wait_until(TODAY - days * DAY);
        restored.set("quant_runs_total", ",status=\"success\"", f64::from(runs));
        restored.set("quant_runs_total", ",status=\"failure\"", 0.0);
    }
    restored.wait_until(TODAY + 2 * HOUR);
    restored.set("quant_runs_total", ",status=\"success\"", 9.0);

    let mut samples = String::new();
    for mut group in [nightly(), weekly, first, again, killed, gone, never, flaky, desks, restored] {
        group.wait_until(NOW + 1);
        // A run that is in progress now ends later.
        let past = |line: &&str| line.rsplit_once(' ').is_some_and(|(_, time)| time.parse::<u64>().unwrap() <= NOW);
        group.samples.lines().filter(past).for_each(|line| samples.extend([line, "\n"]));
    }
    samples + "# EOF\n"
}

#[test]
fn queries_over_weeks_have_the_results_that_the_page_says() {
    if !servers::installed(servers::PROMETHEUS) || !servers::installed("promtool") {
        return;
    }
    let prometheus = Prometheus::start_on_samples(&samples(), Duration::from_secs(history::STEP));
    let query = |query: &str| lines(&prometheus.query_at(NOW as f64, query), NOW as f64);
    assert_answers(&expected("over_weeks.txt"), query);

    let (_, shares) =
        questions().into_iter().find(|(question, _)| question.starts_with("What share of the runs")).unwrap();
    for share in shares {
        let of_week = query(&share.replace("[30d]", "[7d]"));
        assert!(of_week.contains(&"job=nightly 0.5".to_owned()), "{of_week:?}");
    }
}

/// The examples, and Prometheus with and without native histograms.
struct Runs {
    fixture: Fixture,
    native: Prometheus,
}

impl Runs {
    fn both(&self) -> [&Prometheus; 2] {
        [&self.fixture.prometheus, &self.native]
    }

    #[track_caller]
    fn start(&self, job: &str, run_id: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let common = [
            ("TV_PROMETHEUS_JOB", job),
            ("TV_PROMETHEUS_PUSH_INTERVAL", "100ms"),
            ("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true"),
            ("TV_PROMETHEUS_STAGE_CPU", "true"),
        ];
        self.fixture.start(run_id, arguments, &[&common[..], variables].concat())
    }

    #[track_caller]
    fn run(&self, job: &str, run_id: &str, arguments: &[&str], variables: &[(&str, &str)]) {
        self.start(job, run_id, arguments, variables).wait();
        self.await_end(run_id);
    }

    #[track_caller]
    fn await_end(&self, run_id: &str) {
        self.await_data(&format!(
            "quant_run_info{{run_id={run_id:?}}} and on (job) \
             quant_run_last_completion_timestamp_seconds >= quant_run_start_timestamp_seconds"
        ));
    }

    #[track_caller]
    fn await_data(&self, query: &str) {
        for prometheus in self.both() {
            prometheus.await_query(query, |series| !series.is_empty());
        }
    }

    /// Starts a run that reads its prices from a pipe, and waits for its first scrape. Returns the pipe.
    #[track_caller]
    fn start_stuck(
        &self,
        job: &str,
        run_id: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> (Running, PathBuf) {
        let prices = self.fixture.directory.path().join(run_id);
        assert!(Command::new("mkfifo").arg(&prices).status().unwrap().success());
        let arguments = [&["--data", prices.to_str().unwrap()], arguments].concat();
        let run = self.start(job, run_id, &arguments, variables);
        self.await_data(&format!("quant_run_info{{run_id={run_id:?}}} and on (job) quant_stage_active == 1"));
        (run, prices)
    }
}

/// The seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The runs take seconds in the place of days: so do steps of subqueries, offsets and the silence of a killed run.
#[test]
fn queries_after_real_runs_have_the_results_that_the_page_says() {
    let Some(gateway) = support::pushgateway() else { return };
    if !servers::installed(servers::PROMETHEUS) {
        return;
    }
    let start = |features| Prometheus::start_with_features(&[("gateway", gateway.addr(), true)], &[], features);
    let (prometheus, native) = (start(""), start("native-histograms"));
    let directory = tempfile::tempdir().unwrap();
    let runs = Runs { fixture: Fixture { gateway, prometheus, directory, variables: &[] }, native };
    let gateway = &runs.fixture.gateway;

    runs.run("killed", "k-1", &[], &[]);
    let (killed, _) = runs.start_stuck("killed", "k-2", &[], &[]);
    killed.signal(Signal::KILL);
    assert_eq!(killed.wait().status.signal(), Some(Signal::KILL.as_raw()));
    let _first = runs.start_stuck("first", "f-1", &[], &[]);
    runs.run("again", "a-1", &[], &[]);
    let _again = runs.start_stuck("again", "a-2", &[], &[]);
    runs.run("desks", "c-1", &["--profile", "crypto", "--fail", "alpha.policy"], &[]);
    runs.run("desks", "e-1", &["--profile", "equities"], &[]);

    // Two attempts of a stage.
    let group = tracing_stage_metrics::Pushgateway::new(gateway.url(), "flaky").unwrap();
    let Measured { guard, log: _, default } =
        measured(MetricsLayer::builder().with_pushgateway(group).with_native_histograms());
    tracing::info_span!("run", run_id = "y-1")
        .in_scope(|| [failing_stage, stage_of_process].map(|attempt| attempt("fetch")));
    guard.finish(Ok::<_, std::io::Error>(())).unwrap();
    drop(default);

    // The first run reaches no gateway, so that its payload waits during the second one.
    let spool = runs.fixture.directory.path().join("of another job");
    let nowhere = format!("http://{}", support::free_addr());
    let spool = [("TV_PROMETHEUS_SPOOL_DIR", spool.to_str().unwrap())];
    let unreachable = [spool[0], ("TV_PROMETHEUS_PUSHGATEWAY", &nowhere), ("TV_PROMETHEUS_FLUSH_TIMEOUT", "200ms")];
    runs.start("spooled", "s-1", &[], &unreachable).wait();
    runs.run("spooled", "s-2", &["--fail", "alpha.policy"], &spool);

    for (job, kind, status) in [("other", "gauge", 200), ("refused", "counter", 400)] {
        let body = format!("# TYPE rows {kind}\nrows 1\n");
        let pushed =
            http::request(gateway.addr(), "POST", &format!("/metrics/job/{job}"), &[], body.as_bytes()).unwrap();
        assert_eq!(pushed.status, status);
    }

    let totals = [("TV_PROMETHEUS_CUMULATIVE_TOTALS", "true")];
    let (run, prices) = runs.start_stuck("nightly", "n-1", &["--fail", "alpha.policy"], &totals);
    std::fs::copy(support::workspace().join("examples/data/daily_closes.csv"), prices).unwrap();
    run.wait();
    runs.await_end("n-1");
    let week_before = unix_time();
    for (number, arguments) in [&[][..], &["--panic", "risk.optimize"], &[], &[], &[], &["--fail", "alpha.policy"], &[]]
        .into_iter()
        .enumerate()
    {
        runs.run("nightly", &format!("n-{}", number + 2), arguments, &totals);
    }

    let in_seconds = |query: &str, offset: f64| {
        let query = query.replace("time() - 300", "time() - 8").replace("offset 7d", &format!("offset {offset:.0}ms"));
        ["1d", "14d", "30d"].iter().fold(query, |query, days| query.replace(&format!("[{days}:1m]"), "[5m:150ms]"))
    };
    let (_, killed) = questions().into_iter().find(|(question, _)| question == "Which run was killed?").unwrap();
    runs.await_data(&in_seconds(&killed[0], 0.0));

    // A step of the subqueries later.
    let now = unix_time().ceil() + 1.0;
    let expected = expected("after_runs.txt");
    let quantiles =
        expected.split("\n\n").find_map(|part| part.strip_prefix("What did 95 %")?.split_once("\n--\nnative"));
    let (_, classic) = quantiles.unwrap().0.split_once('\n').unwrap();
    let of_native = if servers::is_prometheus_3() { classic } else { "nothing" };
    let expected = expected.replace("native", of_native);
    for prometheus in runs.both() {
        let results = |query: &str| {
            // Each kind of histogram is in one of them.
            let of_native = query.contains("histogram_quantile") && !query.contains("_bucket");
            let prometheus = match query.contains("histogram_quantile") {
                true => runs.both()[usize::from(of_native)],
                false => prometheus,
            };
            lines(&prometheus.query_at(now, &in_seconds(query, (now - week_before) * 1e3)), now)
        };
        assert_answers(&expected, results);
    }
}
