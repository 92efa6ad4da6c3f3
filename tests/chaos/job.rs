//! One run: a child process that measures stages, pushes often, and ends as planned. It reports its progress on stdout:
//! a line in the pipe outlives the process.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::{FlushGuard, MetricsLayer};
use tracing_subscriber::prelude::*;

use super::support::measured::{failing_stage, stage};
use super::support::{child, exposition, log};

pub(crate) const PUSH_INTERVAL: Duration = Duration::from_millis(100);
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Prefix of the lines that a child prints for its parent.
const PREFIX: &str = "chaos: ";
/// Gauges of the application: the number of the run, and a flag that is 1 from just before the final flush on.
pub(crate) const NUMBER: &str = "chaos_run";
pub(crate) const OVER: &str = "chaos_over";

/// How a run ends without a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    FinishOk,
    FinishErr,
    ShutdownOk,
    /// `shutdown()` after a stage that failed.
    ShutdownFailed,
    /// The run works until a signal ends it.
    Never,
}

const ENDINGS: [(Ending, &str); 5] = [
    (Ending::FinishOk, "finish-ok"),
    (Ending::FinishErr, "finish-err"),
    (Ending::ShutdownOk, "shutdown-ok"),
    (Ending::ShutdownFailed, "shutdown-failed"),
    (Ending::Never, "never"),
];

impl Ending {
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::FinishOk | Self::ShutdownOk)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Job {
    pub(crate) number: u32,
    /// The number of steps; each takes `STEP`.
    pub(crate) steps: u32,
    /// The step after which the run calls `flush()`.
    pub(crate) flush_after: Option<u32>,
    pub(crate) ending: Ending,
}

/// A stage that runs once in each step, in a profile of its run.
pub(crate) const COUNTED: &str = "counted";

pub(crate) const STEP: Duration = Duration::from_millis(10);

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = ENDINGS.iter().find(|(ending, _)| *ending == self.ending).unwrap().1;
        let flush_after = self.flush_after.map_or("-".to_owned(), |step| step.to_string());
        write!(f, "{} {} {flush_after} {ending}", self.number, self.steps)
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("not a job: {text:?}");
        let words: Vec<&str> = text.split(' ').collect();
        let [number, steps, flush_after, ending] = words[..] else { return Err(invalid()) };
        Ok(Self {
            number: number.parse().map_err(|_| invalid())?,
            steps: steps.parse().map_err(|_| invalid())?,
            flush_after: flush_after.parse().ok(),
            ending: ENDINGS.iter().find(|(_, name)| *name == ending).ok_or_else(invalid)?.0,
        })
    }
}

/// A progress report of a child. Times are Unix times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Progress {
    /// The value of `quant_run_start_timestamp_seconds`.
    Started(f64),
    /// The result of a `flush()`.
    Flushed(bool),
    /// Whether that `flush()` pushed the totals.
    Counted(bool),
    /// The final flush is the next call.
    Ending(f64),
    /// The final flush has returned, with its result if the call returns one.
    Ended(Option<bool>),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(start) => write!(f, "started {start}"),
            Self::Flushed(ok) => write!(f, "flushed {ok}"),
            Self::Counted(is_counted) => write!(f, "counted {is_counted}"),
            Self::Ending(time) => write!(f, "ending {time}"),
            Self::Ended(Some(ok)) => write!(f, "ended {ok}"),
            Self::Ended(None) => write!(f, "ended unknown"),
        }
    }
}

impl Progress {
    /// All progress reports in the output of a child, in order.
    pub(crate) fn all_of(stdout: &str) -> Vec<Self> {
        // The test harness may print a prefix on the same line.
        let lines = stdout.lines().filter_map(|line| Some(line.split_once(PREFIX)?.1));
        lines.map(|line| Self::parse(line).unwrap_or_else(|| panic!("not a progress report: {line:?}"))).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        Some(match line.split_once(' ')? {
            ("started", start) => Self::Started(start.parse().ok()?),
            ("flushed", ok) => Self::Flushed(ok.parse().ok()?),
            ("counted", is_counted) => Self::Counted(is_counted.parse().ok()?),
            ("ending", time) => Self::Ending(time.parse().ok()?),
            ("ended", "unknown") => Self::Ended(None),
            ("ended", ok) => Self::Ended(Some(ok.parse().ok()?)),
            _ => return None,
        })
    }
}

pub(crate) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[track_caller]
pub(crate) fn command(job: Job, url: &str, group: &str, spool: &Path) -> Command {
    let mut command = child::command("job::run_job", &job.to_string());
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", url)
        .env("TV_PROMETHEUS_JOB", group)
        .env("TV_PROMETHEUS_PUSH_INTERVAL", format!("{}ms", PUSH_INTERVAL.as_millis()))
        .env("TV_PROMETHEUS_FLUSH_TIMEOUT", format!("{}ms", FLUSH_TIMEOUT.as_millis()))
        .env("TV_PROMETHEUS_SPOOL_DIR", spool);
    command
}

/// Not a test: the scenario of the child processes.
#[test]
fn run_job() {
    let Some(job) = child::scenario() else { return };
    let job: Job = job.parse().unwrap();
    let report = |progress: Progress| println!("{PREFIX}{progress}");
    let builder = MetricsLayer::builder().with_env().unwrap().with_cumulative_totals().with_flush_on_signals();
    let (layer, guard) = builder.install().unwrap();
    let own = tracing_subscriber::filter::filter_fn(|metadata| metadata.target() == log::OWN_TARGET);
    let stderr = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr).with_filter(own);
    tracing_subscriber::registry().with(layer).with(stderr).init();
    metrics::gauge!(NUMBER).set(job.number);
    metrics::gauge!(OVER).set(0);
    let rendered = exposition::parse(&guard.render());
    report(Progress::Started(rendered.expect("quant_run_start_timestamp_seconds", &[])));

    for step in 1..=job.steps {
        stage("work");
        let profile = job.number;
        tracing::info_span!("stage", stage_id = COUNTED, profile).in_scope(|| {});
        std::thread::sleep(STEP);
        if job.flush_after == Some(step) {
            let is_flushed = guard.flush().is_ok();
            report(Progress::Flushed(is_flushed));
            // A process that does not know the totals yet pushes without them.
            report(Progress::Counted(is_flushed && guard.render().contains("quant_runs_total")));
        }
    }
    if job.ending == Ending::Never {
        loop {
            std::thread::park();
        }
    }
    if job.ending == Ending::ShutdownFailed {
        failing_stage("work");
    }
    metrics::gauge!(OVER).set(1);
    report(Progress::Ending(unix_time()));
    report(Progress::Ended(end(guard, job.ending)));
}

/// Makes the final flush and returns its result if the call returns one.
fn end(guard: FlushGuard, ending: Ending) -> Option<bool> {
    match ending {
        Ending::FinishOk => guard.finish(Ok::<_, String>(())).map(|()| None).unwrap(),
        Ending::FinishErr => guard.finish(Err::<(), _>("on purpose")).map_or(None, |()| unreachable!()),
        Ending::ShutdownOk | Ending::ShutdownFailed => Some(guard.shutdown().is_ok()),
        Ending::Never => unreachable!("a signal ends the run"),
    }
}

#[test]
fn jobs_and_progress_reports_round_trip_through_text() {
    for (ending, _) in ENDINGS {
        for flush_after in [None, Some(3)] {
            let job = Job { number: 7, steps: 12, flush_after, ending };
            assert_eq!(job.to_string().parse(), Ok(job));
        }
    }
    let all = [
        Progress::Started(1_764_194_400.123_456_7),
        Progress::Flushed(false),
        Progress::Counted(true),
        Progress::Ending(2.5),
        Progress::Ended(Some(true)),
        Progress::Ended(None),
    ];
    let stdout: String = all.iter().map(|progress| format!("test x ... {PREFIX}{progress}\nother\n")).collect();
    assert_eq!(Progress::all_of(&stdout), all);
}
