//! The run report: the totals of the stages of this run, as a table for a terminal.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::layer::StageState;
use crate::series::outcome::{FailuresByReason, Reason};
use crate::terminal;

/// The stages of a run: the finished ones in the order in which they first finished, then the others.
///
/// `Display` prints a table that fits a terminal of 80 columns. The numbers are those of the moment at which the report was
/// made.
///
/// ```
/// # use tracing_stage_metrics::MetricsLayer;
/// # use tracing_subscriber::prelude::*;
/// # let (layer, guard) = MetricsLayer::builder().build()?;
/// # let _default = tracing_subscriber::registry().with(layer).set_default();
/// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
/// let report = guard.report();
/// for stage in report.stages() {
///     println!("{}: {} of {} failed, {:?} in all", stage.stage_id(), stage.failures(), stage.runs(), stage.total());
/// }
/// assert!(report.to_string().starts_with("stage                               runs  failed"));
/// # Ok::<(), tracing_stage_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RunReport {
    stages: Vec<StageReport>,
    reasons: Vec<String>,
}

/// One stage of a [`RunReport`].
///
/// ```
/// # use tracing_stage_metrics::MetricsLayer;
/// # use tracing_subscriber::prelude::*;
/// # let (layer, guard) = MetricsLayer::builder().build()?;
/// # let _default = tracing_subscriber::registry().with(layer).set_default();
/// for _ in 0..2 {
///     tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
/// }
/// let _open = tracing::info_span!("ingest", stage_id = "ingest");
/// let report = guard.report();
/// let ingest = report.stage("ingest").unwrap();
/// assert_eq!((ingest.runs(), ingest.failures(), ingest.open()), (2, 0, 1));
/// assert!(ingest.mean() <= ingest.slowest() && ingest.slowest() <= ingest.total());
/// # Ok::<(), tracing_stage_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StageReport {
    stage_id: String,
    runs: u64,
    failures: FailuresByReason,
    last_error: Option<String>,
    total: Duration,
    slowest: Duration,
    open: u64,
    #[cfg(feature = "trace-id")]
    trace_id: Option<String>,
}

impl RunReport {
    pub(crate) fn new(states: Vec<StageState>, reasons: Vec<String>) -> Self {
        let stages = states.into_iter().map(|state| StageReport {
            stage_id: state.stage,
            runs: state.totals.succeeded + state.totals.failed.iter().sum::<u64>(),
            failures: state.totals.failed,
            last_error: state.totals.last_error,
            total: state.totals.total,
            slowest: state.totals.slowest,
            open: state.open,
            #[cfg(feature = "trace-id")]
            trace_id: state.totals.trace.map(|trace| trace.to_string()),
        });
        Self { stages: stages.collect(), reasons }
    }

    /// Returns whether the run succeeded. Before its end, returns whether it would if the guard were dropped now: a stage that is
    /// open would then fail.
    ///
    /// [`guide::stages`](crate::guide::stages) has the rules.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Iterates over the reasons why the run is no success, one line each; none if [it succeeded](Self::succeeded). The final
    /// flush writes them to the log, in one warning.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// # let (layer, guard) = MetricsLayer::builder().with_expected_stages(["ingest", "report"]).build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| tracing::error!("no such file"));
    /// let report = guard.report();
    /// let reasons: Vec<_> = report.reasons().collect();
    /// assert_eq!(reasons, ["stage ingest failed (error): no such file", "expected stage report never ran"]);
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.reasons.iter().map(String::as_str)
    }

    /// Returns the stage with this id, if it ran, is open or was expected.
    #[must_use]
    pub fn stage(&self, stage_id: &str) -> Option<&StageReport> {
        self.stages.iter().find(|stage| stage.stage_id == stage_id)
    }

    /// Iterates over all stages, in the order of the table.
    pub fn stages(&self) -> impl Iterator<Item = &StageReport> {
        self.stages.iter()
    }
}

impl StageReport {
    /// Returns the stage's id.
    #[must_use]
    pub fn stage_id(&self) -> &str {
        &self.stage_id
    }

    /// Returns how many times the stage finished, with success or without.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Returns how many of its runs failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Iterates over the reasons of its failures, each with its number: `error`, `panic`, `cancelled`, `interrupted` and
    /// `unfinished`, those that happened.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// # let (layer, guard) = MetricsLayer::builder().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| tracing::error!("no such file"));
    /// let report = guard.report();
    /// let ingest = report.stage("ingest").unwrap();
    /// assert_eq!(ingest.failures_by_reason().collect::<Vec<_>>(), [("error", 1)]);
    /// assert_eq!(ingest.last_error(), Some("no such file"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn failures_by_reason(&self) -> impl Iterator<Item = (&str, u64)> {
        by_reason(&self.failures)
    }

    /// Returns the text of the last event by which the stage failed, at most 256 bytes: its message and its field `error` or
    /// `err`; all of its fields if it has none of these. For the event of `#[instrument(err)]` that is the returned error.
    ///
    /// `None` if no such event is known. That is so for a panic, whose message a span does not have, for a future that was dropped,
    /// for a span that only declares `otel.status_code`, and for a stage that is open at the end. If such a stage also emitted an
    /// event by which it would have failed, the text is there.
    ///
    /// **The text is what your code logs.** It goes into the report and the warning at the end, never into a metric. Keep secrets
    /// out of your errors.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Returns the sum of the durations of its runs. It exceeds the time on the clock if runs overlap.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Returns the mean duration of its runs; zero before the first one has finished.
    #[must_use]
    pub fn mean(&self) -> Duration {
        match self.runs {
            0 => Duration::ZERO,
            runs => Duration::from_nanos(u64::try_from(self.total.as_nanos() / u128::from(runs)).unwrap_or(u64::MAX)),
        }
    }

    /// Returns the longest duration of its runs; zero before the first one has finished.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        self.slowest
    }

    /// Returns how many of its spans are open now. The other numbers do not include them.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open
    }

    /// Returns the trace id of its last failure that has one: 32 hexadecimal digits. `None` without a failure, without
    /// `tracing-opentelemetry` in the subscriber, and if no failure was sampled.
    #[cfg(feature = "trace-id")]
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }
}

/// Columns of the table.
const WIDTH: usize = 80;
const STAGE: usize = 32;
const NUMBER: usize = 7;
const TIME: usize = 9;

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:STAGE$} {:>NUMBER$} {:>NUMBER$}", "stage", "runs", "failed");
        write!(text, " {:>TIME$} {:>TIME$} {:>TIME$}", "total", "mean", "slowest")?;
        if self.stages.is_empty() {
            text.push_str("\nno stage was measured: add the layer to the subscriber, and check its filter");
        }
        for stage in &self.stages {
            write!(text, "\n{stage}")?;
        }
        // At once: standard error has no buffer, and the log may be written to the same terminal or pipe meanwhile.
        f.write_str(&text)
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: u64| if n < 1_000_000 { n.to_string() } else { format!("{:.2}M", n as f64 / 1e6) };
        // Ids of one pipeline share their beginnings.
        let id = terminal::last_columns(&terminal::one_line(&self.stage_id), STAGE);
        write!(f, "{id}{:padding$}", "", padding = STAGE - terminal::width(&id))?;
        match (self.runs, self.open) {
            (0, 0) => return write!(f, " {:>NUMBER$}", "never"),
            (0, 1) => return write!(f, " {:>NUMBER$}", "open"),
            (0, open) => return write!(f, " {:>NUMBER$}", format!("{} open", count(open))),
            _ => {}
        }
        write!(f, " {:>NUMBER$} {:>NUMBER$}", count(self.runs), count(self.failures()))?;
        for time in [self.total, self.mean(), self.slowest] {
            write!(f, " {:>TIME$}", short_time(time))?;
        }
        if self.open > 0 {
            write!(f, "\n{:STAGE$} {:>NUMBER$}", "", format!("{} open", count(self.open)))?;
        }
        if self.failures() > 0 {
            let error = self.last_error().map_or_else(String::new, |error| format!(": {}", terminal::one_line(error)));
            let text = format!("  {}{error}", failures_text(&self.failures));
            write!(f, "\n{}", terminal::first_columns(&text, WIDTH))?;
        }
        #[cfg(feature = "trace-id")]
        if let Some(trace_id) = &self.trace_id {
            write!(f, "\n  its last failure is in the trace {trace_id}")?;
        }
        Ok(())
    }
}

fn by_reason(failures: &FailuresByReason) -> impl Iterator<Item = (&str, u64)> {
    let reasons = Reason::ALL.into_iter().zip(*failures);
    reasons.filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.as_str(), count))
}

/// Returns the reasons of failures, with their numbers if there are several.
pub(super) fn failures_text(failures: &FailuresByReason) -> String {
    let reasons: Vec<_> = by_reason(failures).collect();
    match reasons[..] {
        [(reason, _)] => reason.to_owned(),
        _ => reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", "),
    }
}

/// Formats a duration as three digits and a unit, up to days.
fn short_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let digits = |value: f64, unit: &str| {
        let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
        format!("{value:.decimals$} {unit}")
    };
    match seconds {
        s if s < 999.5e-9 => format!("{} ns", time.as_nanos()),
        s if s < 999.5e-6 => digits(s * 1e6, "µs"),
        s if s < 0.9995 => digits(s * 1e3, "ms"),
        s if s < 99.5 => digits(s, "s"),
        s if s < 5_999.5 => format!("{:.0}m {:02.0}s", (s.round() / 60.0).floor(), s.round() % 60.0),
        s if s < 3.6e6 => {
            format!("{:.0}h {:02.0}m", (s.round() / 3_600.0).floor(), (s.round() % 3_600.0 / 60.0).floor())
        }
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(id: &str, runs: u64, failures: u64, total: u64, slowest: u64, open: u64) -> StageReport {
        let (total, slowest) = (Duration::from_nanos(total), Duration::from_nanos(slowest));
        StageReport {
            stage_id: id.to_owned(),
            runs,
            failures: [failures, 0, 0, 0, 0],
            last_error: None,
            total,
            slowest,
            open,
            #[cfg(feature = "trace-id")]
            trace_id: None,
        }
    }

    #[test]
    fn prints_a_table_of_at_most_eighty_columns() {
        let report = RunReport {
            reasons: Vec::new(),
            stages: vec![
                stage("foundation.ingest", 1, 0, 12_345_678, 12_345_678, 0),
                stage("foundation.features.with.a.very.long.name.indeed", 3_000_000, 12, u64::MAX / 4, u64::MAX / 8, 2),
                stage("alpha.inference", 0, 0, 0, 0, 1),
                stage("risk.optimize", 0, 0, 0, 0, 0),
            ],
        };
        let text = report.to_string();
        assert_eq!(
            text,
            "\
stage                               runs  failed     total      mean   slowest
foundation.ingest                      1       0   12.3 ms   12.3 ms   12.3 ms
…es.with.a.very.long.name.indeed   3.00M      12   53376 d   25m 37s   26688 d
                                  2 open
  error
alpha.inference                     open
risk.optimize                      never"
        );
    }

    #[cfg(feature = "trace-id")]
    #[test]
    fn the_trace_of_a_failure_is_on_a_line_below() {
        let trace_id = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
        let report = RunReport {
            reasons: Vec::new(),
            stages: vec![
                StageReport { trace_id: trace_id.clone(), ..stage("alpha.policy", 3, 1, 3_000, 1_500, 2) },
                StageReport { trace_id, ..stage("risk.optimize", 1, 1, 1_000, 1_000, 0) },
                stage("risk.report", 1, 1, 1_000, 1_000, 0),
            ],
        };
        let text = report.to_string();
        assert_eq!(
            text,
            "\
stage                               runs  failed     total      mean   slowest
alpha.policy                           3       1   3.00 µs   1.00 µs   1.50 µs
                                  2 open
  error
  its last failure is in the trace 4bf92f3577b34da6a3ce929d0e0e4736
risk.optimize                          1       1   1.00 µs   1.00 µs   1.00 µs
  error
  its last failure is in the trace 4bf92f3577b34da6a3ce929d0e0e4736
risk.report                            1       1   1.00 µs   1.00 µs   1.00 µs
  error"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn the_report_is_written_at_once() {
        struct Writes(Vec<String>);
        impl fmt::Write for Writes {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.push(text.to_owned());
                Ok(())
            }
        }
        let stages = vec![stage("a", 1, 0, 1_000, 1_000, 0), stage("b", 0, 0, 0, 0, 0)];
        let report = RunReport { stages, reasons: Vec::new() };
        let mut writes = Writes(Vec::new());
        write!(writes, "{report}").unwrap();
        assert_eq!(writes.0, [report.to_string()]);
    }

    #[test]
    fn reasons_and_error_of_a_failed_stage_are_on_a_line_below() {
        let failed = |failures, error: Option<&str>| {
            let stage = StageReport { failures, last_error: error.map(Into::into), ..stage("a", 9, 0, 9, 1, 0) };
            stage.to_string().lines().nth(1).map(str::to_owned)
        };
        assert_eq!(failed([0; 5], Some("not shown")), None);
        assert_eq!(failed([2, 0, 0, 0, 0], Some("no such file")).unwrap(), "  error: no such file");
        assert_eq!(failed([0, 1, 0, 0, 0], None).unwrap(), "  panic");
        let hostile = "\u{1b}[2J two\r\n lines\n";
        assert_eq!(
            failed([2, 0, 0, 1, 0], Some(hostile)).unwrap(),
            "  2 error, 1 interrupted: \u{fffd}[2J two   lines"
        );
        assert_eq!(failed([2, 0, 0, 0, 0], Some("a\u{202e}b")).unwrap(), "  error: a\u{fffd}b");
        let long = failed([1, 0, 0, 0, 0], Some(&"ä".repeat(128))).unwrap();
        assert_eq!((long.chars().count(), long.ends_with("ä…")), (80, true), "{long}");
    }

    #[test]
    fn wide_and_deceptive_characters_keep_the_columns() {
        let wide = StageReport { last_error: Some("日".repeat(80)), ..stage(&"語".repeat(20), 1, 1, 9, 9, 0) };
        let text =
            RunReport { reasons: Vec::new(), stages: vec![wide, stage("a\u{200b}\tb", 1, 0, 9, 9, 0)] }.to_string();
        let lines = text.lines().map(terminal::width).collect::<Vec<_>>();
        assert_eq!(lines, [78, 78, 80, 78], "{text}");
        assert!(text.contains(&format!("\n…{}  ", "語".repeat(15))), "{text}");
        assert!(text.contains("\na\u{fffd} b  "), "{text}");
    }

    #[test]
    fn an_empty_report_says_where_to_look() {
        let text = RunReport { stages: Vec::new(), reasons: Vec::new() }.to_string();
        assert!(text.ends_with("\nno stage was measured: add the layer to the subscriber, and check its filter"));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn times_have_three_digits_and_fit_their_column() {
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (12_345_678, "12.3 ms"),
            (1_000_000_000, "1.00 s"),
            (59_990_000_000, "60.0 s"),
            (99_600_000_000, "1m 40s"),
            (3_599_900_000_000, "60m 00s"),
            (7_260_000_000_000, "2h 01m"),
            (3_599_999_000_000_000, "999h 59m"),
            (u64::MAX, "213504 d"),
        ] {
            let shown = short_time(Duration::from_nanos(nanos));
            assert_eq!(shown, text);
            assert!(shown.chars().count() <= TIME);
        }
    }

    #[test]
    fn the_mean_is_of_finished_runs() {
        assert_eq!(stage("a", 3, 0, 30, 15, 9).mean(), Duration::from_nanos(10));
        assert_eq!(stage("a", 0, 0, 0, 0, 9).mean(), Duration::ZERO);
    }
}
