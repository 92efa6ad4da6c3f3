//! Jobs: when they run, what a run does, and how it ends.

use serde_json::Value;

use super::gateway::Labels;
use super::time::{DAY, MINUTE, clock_time, duration, weekday, weekday_index};
use crate::dashboard::{list, text};
use crate::files;

/// Starts of a job, in seconds since the start of the scenario.
#[derive(Clone, Copy)]
pub(crate) enum Schedule {
    Every(i64),
    Daily(i64),
    /// From Monday to Friday.
    Weekdays(i64),
    /// Days after Thursday, time of day.
    Weekly(u8, i64),
    /// On the first of each month.
    Monthly(i64),
    Never,
}

impl Schedule {
    fn starts(self, until: i64) -> Vec<i64> {
        let days = |clock: i64| (0..=until / DAY).map(move |day| day * DAY + clock);
        let starts: Vec<i64> = match self {
            Self::Every(interval) => {
                (0..).map(|run| 10 * MINUTE + run * interval).take_while(|at| *at < until).collect()
            }
            Self::Daily(clock) => days(clock).collect(),
            Self::Weekdays(clock) => days(clock).filter(|at| !matches!(weekday(*at), 2 | 3)).collect(),
            Self::Weekly(on, clock) => days(clock).filter(|at| weekday(*at) == on).collect(),
            Self::Monthly(clock) => [0, 31, 59, 90, 120].map(|day| day * DAY + clock).into(),
            Self::Never => Vec::new(),
        };
        starts.into_iter().filter(|at| *at < until).collect()
    }

    /// The expression of the job's period in `periods.rules.yml`.
    pub(crate) fn period(self) -> String {
        match self {
            Self::Every(interval) => format!("vector({interval})"),
            Self::Daily(_) => "vector(86400)".to_owned(),
            Self::Weekdays(_) => recipe("trading"),
            Self::Weekly(..) => "vector(604800)".to_owned(),
            Self::Monthly(_) => recipe("statements"),
            Self::Never => "vector(+Inf)".to_owned(),
        }
    }
}

/// Returns the expression of a job in the comments of the committed list of periods.
#[track_caller]
fn recipe(job: &str) -> String {
    let uncommented = files::text("periods.rules.yml").replace("      # ", "      ");
    let file: Value = serde_saphyr::from_str(&uncommented).unwrap();
    let rules = list(&file["groups"][0]["rules"]);
    let rule = rules.iter().find(|rule| rule["labels"]["job"] == job);
    text(rule.unwrap_or_else(|| panic!("no recipe for {job}")), "expr").to_owned()
}

/// How a run goes.
#[derive(Clone)]
pub(crate) enum Outcome {
    Succeeds,
    /// A stage returns an error, which ends the run.
    Fails(&'static str),
    /// A stage fails twice and then succeeds; the program returns `Ok`.
    Recovers(&'static str),
    /// Every stage succeeds but these, which the run leaves out though they are expected.
    Skips(&'static str),
    /// The process is killed after this time.
    KilledAfter(&'static str),
    /// The process stops making progress in its first stage and keeps pushing until it is killed after this time.
    HangsFor(&'static str),
    /// Takes this long, and succeeds.
    Takes(&'static str),
    /// One stage takes this long.
    Slow(&'static str, &'static str),
    /// Succeeds, and the last push is lost.
    LosesFinalPush,
    /// After a while the gateway refuses the pushes, and then the process is killed.
    RefusedAndKilledAfter(&'static str, &'static str),
    /// After a while the gateway refuses the pushes; the run goes on to its end.
    RefusedAfter(&'static str),
    /// Never starts, or ends before `install()`.
    NotStarted,
}

/// One start of a job.
pub(crate) struct Run {
    /// Where the schedule has it.
    pub(crate) due: i64,
    /// When the process starts.
    pub(crate) start: i64,
    pub(crate) outcome: Outcome,
}

#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    pub(crate) schedule: Schedule,
    pub(crate) duration: i64,
    jitter: i64,
    /// Stage, and the weekday on which it runs where that is not each day.
    pub(crate) stages: Vec<(&'static str, Option<u8>)>,
    /// Stages that take another name from a time on.
    renamed: Option<(&'static str, &'static str, i64)>,
    pub(crate) expects_stages: bool,
    /// The label of the stages' spans.
    pub(crate) profile: &'static str,
    /// A stage whose span has another profile.
    stage_profile: Option<(&'static str, &'static str)>,
    /// Grouping labels besides the job.
    pub(crate) grouping: Labels,
    /// The `instance` of each run is a new one.
    pub(crate) instance_per_run: bool,
    /// The host whose node_exporter has the text file, in place of a gateway.
    pub(crate) text_file: Option<&'static str>,
    pub(crate) is_listed: bool,
    pub(crate) retired_at: Option<i64>,
    /// From a time on, the job's clock is ahead by so many seconds.
    pub(crate) clock: Vec<(i64, i64)>,
    /// `quant_run_info` and `quant_stage_last_failed`, which older versions do not write.
    pub(crate) has_run_info: bool,
    pub(crate) has_totals: bool,
    pub(crate) spool_files: Vec<(i64, u32)>,
    pub(crate) overflows: bool,
    /// Pushes at every second tick alone.
    pub(crate) pushes_less: bool,
    /// From a time on, at an interval, another program pushes to the group of the job.
    pub(crate) foreign_pushes: Option<(i64, i64)>,
    outcomes: Vec<(i64, Outcome)>,
    extra: Vec<(i64, Outcome)>,
    lifetime: (i64, i64),
}

impl Job {
    fn new(name: &str, schedule: Schedule, length: i64) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "quant",
            schedule,
            duration: length,
            jitter: 0,
            stages: vec![("ingest", None), ("train", None), ("report", None)],
            renamed: None,
            expects_stages: true,
            profile: "crypto",
            stage_profile: None,
            grouping: Labels::new(),
            instance_per_run: false,
            text_file: None,
            is_listed: true,
            retired_at: None,
            clock: Vec::new(),
            has_run_info: true,
            has_totals: false,
            spool_files: Vec::new(),
            overflows: false,
            pushes_less: false,
            foreign_pushes: None,
            outcomes: Vec::new(),
            extra: Vec::new(),
            lifetime: (0, i64::MAX),
        }
    }

    /// From ten minutes past midnight on.
    pub(crate) fn every(interval: &str, name: &str) -> Self {
        let interval = duration(interval);
        Self::new(name, Schedule::Every(interval), (interval / 3).min(20 * MINUTE))
    }

    /// Takes 20 minutes, as those below.
    pub(crate) fn daily(clock: &str, name: &str) -> Self {
        Self::new(name, Schedule::Daily(clock_time(clock)), 20 * MINUTE)
    }

    pub(crate) fn weekdays(clock: &str, name: &str) -> Self {
        Self::new(name, Schedule::Weekdays(clock_time(clock)), 20 * MINUTE)
    }

    pub(crate) fn weekly(time: &str, name: &str) -> Self {
        let (weekday, clock) = time.split_once(' ').unwrap();
        Self::new(name, Schedule::Weekly(weekday_index(weekday), clock_time(clock)), 20 * MINUTE)
    }

    pub(crate) fn monthly(clock: &str, name: &str) -> Self {
        Self::new(name, Schedule::Monthly(clock_time(clock)), 20 * MINUTE)
    }

    /// A job that nothing starts; [`Job::also`] adds its runs.
    pub(crate) fn unscheduled(name: &str) -> Self {
        Self::new(name, Schedule::Never, 20 * MINUTE)
    }

    pub(crate) fn lasting(mut self, text: &str) -> Self {
        self.duration = duration(text);
        self
    }

    /// Each start is late by up to this time.
    pub(crate) fn with_jitter(mut self, text: &str) -> Self {
        self.jitter = duration(text);
        self
    }

    /// The profile of the spans.
    pub(crate) fn profile(mut self, profile: &'static str) -> Self {
        self.profile = profile;
        self
    }

    /// The span of this stage has a profile of its own.
    pub(crate) fn with_stage_profile(mut self, stage: &'static str, profile: &'static str) -> Self {
        self.stage_profile = Some((stage, profile));
        self
    }

    pub(crate) fn profile_of(&self, stage: &str) -> &'static str {
        self.stage_profile.filter(|(id, _)| *id == stage).map_or(self.profile, |(_, profile)| profile)
    }

    /// The name of a stage in a run that is due at this time.
    pub(crate) fn stage_name(&self, stage: &'static str, due: i64) -> &'static str {
        self.renamed.filter(|(from, _, since)| *from == stage && due >= *since).map_or(stage, |(_, to, _)| to)
    }

    /// The labels of the job's groups, without those that each run has of its own.
    pub(crate) fn group(&self) -> Labels {
        let job = ("job".to_owned(), self.name.clone());
        self.grouping.clone().into_iter().chain([job]).collect()
    }

    pub(crate) fn grouped_by_profile(self) -> Self {
        let profile = self.profile;
        self.grouped_by("profile", profile)
    }

    pub(crate) fn grouped_by(mut self, label: &str, value: &str) -> Self {
        self.grouping.insert(label.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn with_instance_per_run(mut self) -> Self {
        self.instance_per_run = true;
        self
    }

    pub(crate) fn text_file_on(mut self, host: &'static str) -> Self {
        self.text_file = Some(host);
        self
    }

    pub(crate) fn in_namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    pub(crate) fn with_stage_on(mut self, weekday: &str, stage: &'static str) -> Self {
        self.stages.push((stage, Some(weekday_index(weekday))));
        self
    }

    pub(crate) fn renaming_stage(mut self, from: &'static str, to: &'static str, since: i64) -> Self {
        self.renamed = Some((from, to, since));
        self
    }

    /// Without `with_expected_stages`.
    pub(crate) fn without_expected_stages(mut self) -> Self {
        self.expects_stages = false;
        self
    }

    /// Not in the list of periods.
    pub(crate) fn unlisted(mut self) -> Self {
        self.is_listed = false;
        self
    }

    /// Ends the schedule, and lists the job with a period of +Inf from then on.
    pub(crate) fn retired(mut self, since: i64) -> Self {
        self.retired_at = Some(since);
        self.until(since)
    }

    pub(crate) fn since(mut self, start: i64) -> Self {
        self.lifetime.0 = start;
        self
    }

    /// The scheduler no longer starts the job.
    pub(crate) fn until(mut self, end: i64) -> Self {
        self.lifetime.1 = end;
        self
    }

    /// The clock of the job's host is ahead of the gateway's from a time on; negative: behind.
    pub(crate) fn clock_ahead(mut self, since: i64, by: &str) -> Self {
        self.clock.push((since, duration(by)));
        self
    }

    /// Payloads that wait in the spool directory, from a time on.
    pub(crate) fn spool_files(mut self, since: i64, files: u32) -> Self {
        self.spool_files.push((since, files));
        self
    }

    pub(crate) fn overflowing(mut self) -> Self {
        self.overflows = true;
        self
    }

    /// Half of the scrapes see the pushes of this job, and half those of another job before it in the same group.
    pub(crate) fn pushing_in_turn(mut self) -> Self {
        self.pushes_less = true;
        self
    }

    pub(crate) fn with_foreign_pushes(mut self, since: i64, interval: &str) -> Self {
        self.foreign_pushes = Some((since, duration(interval)));
        self
    }

    pub(crate) fn with_totals(mut self) -> Self {
        self.has_totals = true;
        self
    }

    /// The run that the schedule has at this time.
    pub(crate) fn on(mut self, due: i64, outcome: Outcome) -> Self {
        self.outcomes.push((due, outcome));
        self
    }

    /// All runs that the schedule has in this time.
    #[track_caller]
    pub(crate) fn between(mut self, from: i64, until: i64, outcome: &Outcome) -> Self {
        let starts: Vec<_> = self.schedule.starts(until).into_iter().filter(|due| *due >= from).collect();
        assert!(!starts.is_empty(), "no run between {from} and {until}");
        self.outcomes.extend(starts.into_iter().map(|due| (due, outcome.clone())));
        self
    }

    /// A run beside the schedule.
    pub(crate) fn also(mut self, start: i64, outcome: Outcome) -> Self {
        self.extra.push((start, outcome));
        self
    }

    /// The runs before `until`, in order.
    #[track_caller]
    pub(crate) fn runs(&self, until: i64) -> Vec<Run> {
        let starts = self.schedule.starts(until.min(self.lifetime.1));
        let mut outcomes = self.outcomes.clone();
        let mut runs = Vec::new();
        for (index, due) in starts.into_iter().filter(|due| *due >= self.lifetime.0).enumerate() {
            // Spreads over the jitter without a pattern.
            let late = (index as i64 * 7919 + 1234) % (self.jitter + 1);
            let outcome = outcomes.iter().position(|(at, _)| *at == due).map(|index| outcomes.swap_remove(index).1);
            runs.push(Run { due, start: due + late, outcome: outcome.unwrap_or(Outcome::Succeeds) });
        }
        assert!(
            outcomes.is_empty(),
            "{}: no run is due at {:?}",
            self.name,
            outcomes.iter().map(|o| o.0).collect::<Vec<_>>()
        );
        runs.extend(self.extra.iter().map(|(start, outcome)| Run {
            due: *start,
            start: *start,
            outcome: outcome.clone(),
        }));
        runs.retain(|run| !matches!(run.outcome, Outcome::NotStarted));
        runs.sort_by_key(|run| run.start);
        runs
    }

    /// How far the job's clock is ahead.
    pub(crate) fn clock_offset(&self, at: i64) -> i64 {
        self.clock.iter().rev().find(|(since, _)| *since <= at).map_or(0, |(_, ahead)| *ahead)
    }
}
