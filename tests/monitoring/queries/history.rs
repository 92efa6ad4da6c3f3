//! Samples of jobs over weeks, as a Prometheus has them that scrapes a gateway.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Seconds between two scrapes.
pub(crate) const STEP: u64 = 300;

/// The metrics that a push has from the end of the run's first stage on.
const OF_FINISHED_STAGES: [&str; 5] = [
    "quant_stage_cpu_seconds_total",
    "quant_stage_duration_seconds_bucket",
    "quant_stage_duration_seconds_sum",
    "quant_stage_last_duration_seconds",
    "quant_stage_last_failed",
];

/// One stage of a run. The stages of a run follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) id: &'static str,
    pub(crate) seconds: u64,
    pub(crate) cpu: f64,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    pub(crate) reason: &'static str,
}

/// A stage that succeeds and uses one core.
pub(crate) fn stage(id: &'static str, seconds: u64) -> Stage {
    Stage { id, seconds, cpu: seconds as f64, successes: 1, failures: 0, reason: "error" }
}

impl Stage {
    pub(crate) fn failed(self, reason: &'static str) -> Self {
        Self { successes: 0, failures: 1, reason, ..self }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    Success,
    Failure,
    /// The process ends at this time without a push.
    Killed(u64),
}

/// The group of a job on the gateway, and its samples so far.
pub(crate) struct Group {
    job: &'static str,
    pub(crate) profile: &'static str,
    /// The grouping labels beside the job.
    grouping: Vec<(&'static str, &'static str)>,
    /// The labels of `with_label`, which the metrics of the gateway do not have.
    constant: Vec<(&'static str, &'static str)>,
    cumulative: bool,
    /// Name and labels of each series, with its value.
    series: BTreeMap<(&'static str, String), f64>,
    /// The time of the next scrape.
    next: u64,
    pushes: bool,
    killed: bool,
    pub(crate) samples: String,
}

impl Group {
    /// Begins at this time. The scrapes are a minute before each step.
    pub(crate) fn new(job: &'static str, profile: &'static str, begin: u64) -> Self {
        Self {
            job,
            profile,
            grouping: Vec::new(),
            constant: Vec::new(),
            cumulative: false,
            series: BTreeMap::new(),
            next: begin + STEP - 60,
            pushes: false,
            killed: false,
            samples: String::new(),
        }
    }

    pub(crate) fn with_grouping(mut self, name: &'static str, value: &'static str) -> Self {
        self.grouping.push((name, value));
        self
    }

    pub(crate) fn with_label(mut self, name: &'static str, value: &'static str) -> Self {
        self.constant.push((name, value));
        self
    }

    pub(crate) fn with_cumulative_totals(self) -> Self {
        Self { cumulative: true, ..self }
    }

    /// Writes the scrapes before this time.
    pub(crate) fn wait_until(&mut self, time: u64) {
        while self.next < time {
            if self.pushes {
                self.set("push_time_seconds", "", self.next as f64);
                self.add("quant_telemetry_push_total", ",result=\"success\"", 1.0);
            }
            for ((name, labels), value) in &self.series {
                let mut labels = labels.clone();
                let constant = self.constant.iter().filter(|_| name.starts_with("quant_"));
                for (name, value) in self.grouping.iter().chain(constant) {
                    // A grouping label takes the place of the series' own.
                    if !labels.contains(&format!(",{name}=")) {
                        let _ = write!(labels, ",{name}=\"{value}\"");
                    }
                }
                let _ = writeln!(self.samples, "{name}{{job=\"{}\"{labels}}} {value} {}", self.job, self.next);
            }
            self.next += STEP;
        }
    }

    pub(crate) fn set(&mut self, name: &'static str, labels: &str, value: f64) {
        self.series.insert((name, labels.to_owned()), value);
    }

    fn add(&mut self, name: &'static str, labels: &str, value: f64) {
        *self.series.entry((name, labels.to_owned())).or_default() += value;
    }

    /// Adds to a total, which exists from then on.
    fn total(&mut self, name: &'static str, labels: &str, value: f64) {
        if self.cumulative {
            self.add(name, labels, value);
        }
    }

    /// A push replaces a metric with all its series.
    fn remove(&mut self, metrics: &[&str]) {
        self.series.retain(|(name, _), _| !metrics.contains(name));
    }

    pub(crate) fn delete(&mut self, time: u64) {
        self.wait_until(time);
        self.series.clear();
    }

    /// A run, from its first push to its end. `expected` are the stages that never run.
    pub(crate) fn run(&mut self, start: u64, run_id: &str, stages: &[Stage], expected: &[&str], end: End) {
        self.wait_until(start);
        self.pushes = true;
        self.set("quant_run_start_timestamp_seconds", "", start as f64);
        self.set("quant_engine_resource_usage", ",resource_type=\"cpu\",node=\"worker-1\"", 1.0);
        self.set("quant_engine_resource_usage", ",resource_type=\"mem\",node=\"worker-1\"", 1e9);
        self.set("quant_telemetry_spool_files", "", 0.0);
        self.set("quant_telemetry_push_total", ",result=\"success\"", 0.0);
        self.set("quant_telemetry_push_total", ",result=\"failure\"", 0.0);
        self.remove(&["quant_run_info"]);
        self.set("quant_run_info", ",run_id=\"\",profile=\"\"", 1.0);
        let killed = std::mem::take(&mut self.killed);
        self.total("quant_runs_total", ",status=\"success\"", 0.0);
        self.total("quant_runs_total", ",status=\"failure\"", f64::from(u8::from(killed)));
        let mut now = start;
        for (number, stage) in stages.iter().enumerate() {
            if number == 0 {
                self.remove(&[
                    "quant_stage_active",
                    "quant_stage_failures_total",
                    "quant_stage_total",
                    "quant_run_info",
                ]);
                self.set("quant_run_info", &format!(",run_id=\"{run_id}\",profile=\"{}\"", self.profile), 1.0);
                expected.iter().for_each(|id| self.finished(id, 0, 0));
            }
            now += stage.seconds;
            let labels = format!(",stage_id=\"{}\",profile=\"{}\"", stage.id, self.profile);
            self.set("quant_stage_active", &labels, 1.0);
            self.set("quant_stage_failures_total", &format!("{labels},reason=\"error\""), 0.0);
            if let End::Killed(time) = end
                && time < now
            {
                self.wait_until(time);
                (self.pushes, self.killed) = (false, true);
                return;
            }
            self.wait_until(now);
            if number == 0 {
                self.remove(&OF_FINISHED_STAGES);
            }
            self.end_stage(&labels, run_id, *stage);
        }
        self.wait_until(now);
        self.pushes = false;
        self.set("push_time_seconds", "", now as f64);
        self.set("quant_run_duration_seconds", "", (now - start) as f64);
        self.set("quant_run_last_completion_timestamp_seconds", "", now as f64);
        self.set("quant_run_peak_memory_bytes", "", 1e3 * (now - start) as f64);
        if end == End::Success {
            self.set("quant_run_last_success_timestamp_seconds", "", now as f64);
        }
        let status = if end == End::Success { "success" } else { "failure" };
        self.total("quant_runs_total", &format!(",status=\"{status}\""), 1.0);
    }

    fn finished(&mut self, id: &str, successes: u32, failures: u32) {
        for (status, count) in [("success", successes), ("failure", failures)] {
            self.set("quant_stage_total", &format!(",stage_id=\"{id}\",status=\"{status}\""), count.into());
        }
    }

    fn end_stage(&mut self, labels: &str, run_id: &str, stage: Stage) {
        let seconds = stage.seconds as f64;
        self.set("quant_stage_active", labels, 0.0);
        self.finished(stage.id, stage.successes, stage.failures);
        self.set("quant_stage_failures_total", &format!("{labels},reason=\"{}\"", stage.reason), stage.failures.into());
        self.set("quant_stage_last_failed", labels, f64::from(u8::from(stage.successes == 0)));
        self.set("quant_stage_last_duration_seconds", labels, seconds);
        self.set("quant_stage_cpu_seconds_total", labels, stage.cpu);
        for (status, count) in [("success", stage.successes), ("failure", stage.failures)] {
            self.total("quant_stage_runs_total", &format!("{labels},status=\"{status}\""), count.into());
        }
        self.total("quant_stage_run_seconds_total", labels, seconds);
        let histogram = format!("{labels},run_id=\"{run_id}\"");
        self.set("quant_stage_duration_seconds_sum", &histogram, seconds);
        for (bound, le) in [(1_800, "1800"), (3_600, "3600"), (u64::MAX, "+Inf")] {
            let count = f64::from(u8::from(stage.seconds <= bound));
            self.set("quant_stage_duration_seconds_bucket", &format!("{histogram},le=\"{le}\""), count);
        }
    }
}
