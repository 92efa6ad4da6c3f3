//! A scenario: jobs, what happens around them, and the alerts that must fire.

use super::gateway::{Event, Labels, Restart, Targets};
use super::job::Job;
use super::run::{self, Totals};
use super::series::SeriesStore;
use super::time::{HOUR, MINUTE, Shown, duration};

/// An alert that must fire, or may.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// One of these.
    pub(crate) alerts: Vec<&'static str>,
    pub(crate) labels: Vec<(&'static str, &'static str)>,
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// Time within which the alert begins after `from`.
    pub(crate) begins_within: i64,
    /// Time within which the alert ends after `until`.
    pub(crate) ends_within: i64,
    /// False: the alert may fire.
    pub(crate) is_required: bool,
}

/// The alert must fire, as one alert at a time, from `from` to `until` (by default the end of the scenario). It may begin
/// [`Expected::begins_within`] later and end [`Expected::ends_within`] later.
pub(crate) fn page(alert: &'static str, job: &'static str) -> Expected {
    one_of(&[alert], job)
}

/// At least one of the alerts must fire at any time.
pub(crate) fn one_of(alerts: &[&'static str], job: &'static str) -> Expected {
    Expected {
        alerts: alerts.to_vec(),
        labels: Vec::from_iter((!job.is_empty()).then_some(("job", job))),
        from: 0,
        until: i64::MAX / 2,
        begins_within: 15 * MINUTE,
        ends_within: 30 * MINUTE,
        is_required: true,
    }
}

/// The alert may fire, for instance since Alertmanager inhibits it.
pub(crate) fn may(alert: &'static str, job: &'static str) -> Expected {
    Expected { is_required: false, ..page(alert, job) }
}

impl Expected {
    pub(crate) fn with(mut self, label: &'static str, value: &'static str) -> Self {
        self.labels.push((label, value));
        self
    }

    pub(crate) fn from(mut self, from: i64) -> Self {
        self.from = from;
        self
    }

    pub(crate) fn until(mut self, until: i64) -> Self {
        self.until = until;
        self
    }

    pub(crate) fn begins_within(mut self, text: &str) -> Self {
        self.begins_within = duration(text);
        self
    }

    pub(crate) fn ends_within(mut self, text: &str) -> Self {
        self.ends_within = duration(text);
        self
    }

    /// Whether the alert is this one: all labels are equal, and others do not matter.
    pub(crate) fn is(&self, alert: &Labels) -> bool {
        let value = |label: &str| alert.get(label).map_or("", String::as_str);
        self.alerts.contains(&value("alertname")) && self.labels.iter().all(|(name, expected)| value(name) == *expected)
    }

    pub(crate) fn shown(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{}{{{}}}", self.alerts.join(" or "), labels.join(", "))
    }
}

/// The expression of a period that is +Inf from a time on.
pub(crate) fn retired_from(at: i64, period: &str) -> String {
    format!("{period} and on () vector(time()) < {at} or vector(+Inf)")
}

#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) length: i64,
    pub(crate) tick: i64,
    pub(crate) jobs: Vec<Job>,
    events: Vec<(i64, Event)>,
    pub(crate) expected: Vec<Expected>,
    /// Times at which no alert is looked at.
    pub(crate) unchecked: Vec<(i64, i64)>,
    /// Job, further labels in YAML, and expression.
    extra_periods: Vec<(String, String, String)>,
    pub(crate) checks_watchdog: bool,
    is_without_gateway: bool,
    gateway_clock: i64,
    pub(crate) also_without_run_info: bool,
}

impl Scenario {
    /// A scenario of so many days; time is sampled every two minutes, or four where it is longer than a day.
    pub(crate) fn days(days: i64) -> Self {
        Self::hours(24 * days)
    }

    pub(crate) fn hours(hours: i64) -> Self {
        // Longer than four minutes, a recorded series would be stale before it is recorded again.
        let tick = if hours > 24 { 4 } else { 2 };
        Self {
            length: hours * HOUR,
            tick: tick * MINUTE,
            jobs: Vec::new(),
            events: Vec::new(),
            expected: Vec::new(),
            unchecked: Vec::new(),
            extra_periods: Vec::new(),
            checks_watchdog: false,
            is_without_gateway: false,
            gateway_clock: 0,
            also_without_run_info: false,
        }
    }

    pub(crate) fn job(mut self, job: Job) -> Self {
        self.jobs.push(job);
        self
    }

    pub(crate) fn jobs(self, jobs: impl IntoIterator<Item = Job>) -> Self {
        jobs.into_iter().fold(self, Self::job)
    }

    /// Lists a period for a job, with further labels in YAML, such as `", profile: crypto"`.
    pub(crate) fn period(mut self, job: &str, labels: &str, expression: &str) -> Self {
        self.extra_periods.push((job.to_owned(), labels.to_owned(), expression.to_owned()));
        self
    }

    /// The gateway is stopped, and starts again.
    pub(crate) fn gateway_down(mut self, from: i64, until: i64) -> Self {
        self.events.extend([(from, Event::GatewayDown), (until, Event::GatewayUp(Restart::Kept))]);
        self
    }

    /// The gateway starts again without its state. No scrape fails.
    pub(crate) fn gateway_loses_state(mut self, at: i64) -> Self {
        self.events.push((at, Event::GatewayUp(Restart::Empty)));
        self
    }

    /// The gateway starts again with the state that it had at an earlier time.
    pub(crate) fn gateway_restored(mut self, at: i64, of: i64) -> Self {
        self.events.extend([(of, Event::Snapshot), (at, Event::GatewayUp(Restart::Older))]);
        self
    }

    /// Scrapes of the gateway fail, and pushes succeed.
    pub(crate) fn scrapes_lost(mut self, from: i64, until: i64) -> Self {
        self.events.extend([(from, Event::ScrapesFail(true)), (until, Event::ScrapesFail(false))]);
        self
    }

    /// Prometheus is down. No alert is looked at meanwhile, nor in the ten minutes after.
    pub(crate) fn prometheus_down(mut self, from: i64, until: i64) -> Self {
        self.events.extend([(from, Event::PrometheusDown), (until, Event::PrometheusUp)]);
        self.unchecked.push((from, until + 10 * MINUTE));
        self
    }

    /// Deletes all groups with these labels.
    pub(crate) fn delete_groups(mut self, at: i64, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.events.push((at, Event::Delete(labels)));
        self
    }

    /// Prometheus scrapes no gateway.
    pub(crate) fn without_gateway(mut self) -> Self {
        self.is_without_gateway = true;
        self
    }

    /// The clock of the gateway is ahead of the one of Prometheus; negative: behind.
    pub(crate) fn gateway_clock_ahead(mut self, by: &str) -> Self {
        self.gateway_clock = duration(by);
        self
    }

    pub(crate) fn watchdog(mut self) -> Self {
        self.checks_watchdog = true;
        self
    }

    /// Runs the scenario also as a version of the crate shows it that has no `quant_run_info` and no
    /// `quant_stage_last_failed`.
    pub(crate) fn with_and_without_run_info(mut self) -> Self {
        self.also_without_run_info = true;
        self
    }

    pub(crate) fn expect(mut self, expected: Expected) -> Self {
        self.expected.push(expected);
        self
    }

    pub(crate) fn ticks(&self) -> usize {
        (self.length / self.tick) as usize
    }

    /// Returns what Prometheus stores.
    pub(crate) fn series(&self) -> SeriesStore {
        let mut events = self.events.clone();
        for job in &self.jobs {
            let mut totals = Totals::default();
            for run in job.runs(self.length) {
                run::events(job, &run, &mut totals, self.tick, &mut events);
            }
            run::foreign_events(job, self.length, &mut events);
        }
        events.sort_by_key(|(at, _)| *at);
        let mut events = events.into_iter().peekable();
        let mut targets = Targets::default();
        targets.has_gateway = !self.is_without_gateway;
        targets.gateway_clock = self.gateway_clock;
        targets.all_changed = true;
        let mut store = SeriesStore::default();
        for tick in 0..self.ticks() {
            let now = tick as i64 * self.tick;
            let mut is_changed = tick == 0;
            while let Some((at, event)) = events.next_if(|(at, _)| *at <= now) {
                targets.apply(at, event);
                is_changed = true;
            }
            if is_changed {
                targets.scrape(tick, &mut store);
            }
        }
        store
    }

    /// Returns `periods.rules.yml` with the periods of the jobs.
    pub(crate) fn periods(&self) -> String {
        let mut rules: Vec<(String, String)> = Vec::new();
        for job in self.jobs.iter().filter(|job| job.is_listed) {
            let profile = job.grouping.get("profile").map(|profile| format!(", profile: {profile}"));
            let labels = format!("job: {}{}", job.name, profile.unwrap_or_default());
            let period = job.schedule.period();
            let period = match job.retired_at {
                Some(at) => retired_from(at, &period),
                None => period,
            };
            if !rules.iter().any(|(listed, _)| *listed == labels) {
                rules.push((labels, period));
            }
        }
        let extra = self.extra_periods.iter();
        rules.extend(extra.map(|(job, labels, period)| (format!("job: {job}{labels}"), period.clone())));
        if rules.is_empty() {
            return "groups: []\n".to_owned();
        }
        let rule = |(labels, period): (String, String)| {
            format!("      - {{record: 'job:period_seconds', expr: {period:?}, labels: {{{labels}}}}}\n")
        };
        format!("groups:\n  - name: periods\n    rules:\n{}", rules.into_iter().map(rule).collect::<String>())
    }

    /// Gives each job a prefix, so that scenarios may share a gateway and a Prometheus.
    pub(crate) fn with_prefix(mut self, prefix: &str) -> Self {
        let rename = |name: &mut String| *name = format!("{prefix}/{name}");
        self.jobs.iter_mut().for_each(|job| rename(&mut job.name));
        self.extra_periods.iter_mut().for_each(|(job, ..)| rename(job));
        for (_, event) in &mut self.events {
            if let Event::Delete(labels) = event {
                rename(labels.get_mut("job").unwrap());
            }
        }
        self
    }

    /// Adds the jobs of another scenario.
    pub(crate) fn merge(&mut self, other: Self) {
        assert_eq!(self.tick, other.tick);
        self.length = self.length.max(other.length);
        self.jobs.extend(other.jobs);
        self.extra_periods.extend(other.extra_periods);
        self.events.extend(other.events);
    }

    /// Whether something happens that other jobs would see too.
    pub(crate) fn needs_its_own_prometheus(&self) -> bool {
        self.is_without_gateway
            || self.gateway_clock != 0
            || self.checks_watchdog
            || self.jobs.iter().any(|job| job.namespace != "quant")
            || self.events.iter().any(|(_, event)| !matches!(event, Event::Delete(_)))
    }

    pub(crate) fn prometheus_is_down(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::PrometheusDown))
    }

    /// Describes the expectation, a line for each alert.
    pub(crate) fn expectation(&self) -> String {
        let shown = |expected: &Expected| {
            let verb = if expected.is_required { "must" } else { "may" };
            let until = expected.until.min(self.length);
            format!("  {} {verb} fire from {} to {}\n", expected.shown(), Shown(expected.from), Shown(until))
        };
        match self.expected.is_empty() {
            true => "  nothing fires\n".to_owned(),
            false => self.expected.iter().map(shown).collect(),
        }
    }
}
