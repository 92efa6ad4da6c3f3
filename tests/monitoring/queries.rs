//! The queries of `docs/queries.md`: each returns what the page says, over weeks and after real runs.

mod history;
mod jobs;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use jobs::{NOW, samples};

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

#[test]
fn queries_over_weeks_have_the_results_that_the_page_says() {
    if !servers::installed(servers::PROMETHEUS) || !servers::installed("promtool") {
        return;
    }
    let prometheus = Prometheus::start_on_samples(&samples(), Duration::from_secs(history::STEP));
    // The history has a scrape every five minutes.
    let query = |query: &str| lines(&prometheus.query_at(NOW as f64, &query.replace("[5m]", "[15m]")), NOW as f64);
    assert_answers(&expected("over_weeks.txt"), query);

    let (_, shares) =
        questions().into_iter().find(|(question, _)| question.starts_with("What share of the runs")).unwrap();
    for share in shares {
        let of_week = query(&share.replace("[30d]", "[7d]").replace("30 *", "7 *"));
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
        let info = format!("quant_run_info{{run_id={run_id:?}}}");
        self.await_data(&format!(
            "({info} or group without (profile) ({info})) and ignoring (run_id) \
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

    // Two workers with a label of their own beside the grouping, and two profiles in the grouping.
    for (run_id, worker, arguments) in [("w-1", "worker=a", &[][..]), ("w-2", "worker=b", &["--fail", "alpha.policy"])]
    {
        let variables = [("TV_PROMETHEUS_GROUPING", worker), ("TV_PROMETHEUS_LABELS", "team=risk")];
        runs.run("fleet", run_id, arguments, &variables);
    }
    for (run_id, profile, arguments) in [("o-1", "crypto", &["--fail", "alpha.policy"][..]), ("o-2", "equities", &[])] {
        let grouping = format!("profile={profile}");
        runs.run("books", run_id, arguments, &[("TV_PROMETHEUS_GROUPING", &grouping)]);
    }

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
        let query = query.replace("time() - 300", "time() - 8").replace("[5m]", "[8s]");
        let query = query.replace("offset 7d", &format!("offset {offset:.0}ms"));
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
