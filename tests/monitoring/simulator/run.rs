//! What a run pushes: the metrics of the crate, at each tick from `install()` to the final flush.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::gateway::{Event, Families, Labels, series};
use super::job::{Job, Outcome, Run};
use super::time::{MINUTE, duration, weekday};

/// Totals over the runs of a job's group, and their increments.
#[derive(Default)]
pub(crate) struct Totals {
    runs: BTreeMap<&'static str, f64>,
    stages: BTreeMap<(&'static str, &'static str), f64>,
    seconds: BTreeMap<&'static str, f64>,
    is_open: bool,
}

/// A stage of one run: where it begins and ends, in seconds since the start, and its failures.
struct StageRun {
    id: &'static str,
    begin: i64,
    end: i64,
    failures: u32,
    succeeds: bool,
}

struct Plan {
    stages: Vec<StageRun>,
    /// When the process ends, in seconds since the start.
    end: i64,
    /// Whether the run makes its final flush, and whether that is a success.
    flush: Option<bool>,
    final_push_lost: bool,
    refused_from: i64,
}

impl Plan {
    fn new(job: &Job, run: &Run) -> Self {
        let stages = job.stages.iter().filter(|(_, on)| on.is_none_or(|on| on == weekday(run.due)));
        let names: Vec<_> = stages.map(|(id, _)| job.stage_name(id, run.due)).collect();
        let length = match run.outcome {
            Outcome::Takes(length) => duration(length),
            _ => job.duration,
        };
        let each = length / names.len() as i64;
        let mut plan =
            Self { stages: Vec::new(), end: 0, flush: Some(true), final_push_lost: false, refused_from: i64::MAX };
        for id in names {
            let mut stage = StageRun { id, begin: plan.end, end: plan.end + each, failures: 0, succeeds: true };
            match run.outcome {
                Outcome::Fails(failed) if failed == id => {
                    stage.failures = 1;
                    stage.succeeds = false;
                    plan.flush = Some(false);
                }
                Outcome::Recovers(failed) if failed == id => stage.failures = 2,
                Outcome::Skips(skipped) if skipped == id => {
                    plan.flush = Some(false);
                    continue;
                }
                Outcome::Slow(slow, length) if slow == id => stage.end = stage.begin + duration(length),
                Outcome::HangsFor(_) if plan.stages.is_empty() => stage.end = i64::MAX / 2,
                _ => {}
            }
            plan.end = stage.end;
            let goes_on = stage.succeeds;
            plan.stages.push(stage);
            if !goes_on {
                break;
            }
        }
        match run.outcome {
            Outcome::KilledAfter(time) | Outcome::HangsFor(time) => plan.kill(time),
            Outcome::RefusedAndKilledAfter(refused, time) => {
                plan.refused_from = duration(refused);
                plan.kill(time);
            }
            Outcome::RefusedAfter(refused) => plan.refused_from = duration(refused),
            Outcome::LosesFinalPush => plan.final_push_lost = true,
            _ => {}
        }
        plan
    }

    fn kill(&mut self, after: &str) {
        self.end = duration(after);
        self.flush = None;
    }
}

/// Adds the events of one run: a push at its start, at each tick and at its end.
pub(crate) fn events(job: &Job, run: &Run, totals: &mut Totals, tick: i64, into: &mut Vec<(i64, Event)>) {
    let plan = Plan::new(job, run);
    let end = run.start + plan.end;
    if std::mem::replace(&mut totals.is_open, true) {
        *totals.runs.entry("failure").or_default() += 1.0; // that of the run that was killed
    }
    let first_tick = (run.start / tick + 1) * tick;
    let mut pushes: Vec<i64> = std::iter::once(run.start).chain((first_tick..end).step_by(tick as usize)).collect();
    if job.pushes_less {
        pushes.retain(|at| at / tick % 2 == 0);
    } else if tick > MINUTE {
        pushes.push(end - 1); // as pushes every 15 s do
    }
    for at in pushes {
        let families = families(job, run, &plan, totals, at, None);
        into.push((at, event(job, run, at - run.start >= plan.refused_from, families)));
    }
    let Some(success) = plan.flush else { return };
    totals.finish(&plan, success);
    if !plan.final_push_lost {
        let families = families(job, run, &plan, totals, end, Some(success));
        into.push((end, event(job, run, plan.end >= plan.refused_from, families)));
    }
}

/// Adds the pushes of another program to the group of the job.
pub(crate) fn foreign_events(job: &Job, until: i64, into: &mut Vec<(i64, Event)>) {
    let Some((since, interval)) = job.foreign_pushes else { return };
    let group = job.group();
    let families = Families::from([("rows", Rc::new(vec![(series("rows", &group), 7.0)]))]);
    let times = (since..until).step_by(interval as usize);
    into.extend(times.map(|at| (at, Event::Push { group: group.clone(), families: families.clone() })));
}

fn event(job: &Job, run: &Run, is_refused: bool, families: Families) -> Event {
    match job.text_file {
        Some(host) => {
            Event::TextFile { host: format!("{host}:9100"), file: format!("/metrics/{}.prom", job.name), families }
        }
        None if is_refused => Event::RefusedPush { group: group(job, run) },
        None => Event::Push { group: group(job, run), families },
    }
}

/// The labels of the group, and so of each of its series.
fn group(job: &Job, run: &Run) -> Labels {
    let mut labels = job.group();
    if job.instance_per_run {
        labels.insert("instance".to_owned(), format!("{}-{}", job.name, run.start / MINUTE));
    }
    if let Some(host) = job.text_file {
        labels.insert("instance".to_owned(), format!("{host}:9100"));
    }
    labels
}

/// The metrics at a time of the run; with the outcome, those of the final flush.
fn families(job: &Job, run: &Run, plan: &Plan, totals: &Totals, at: i64, success: Option<bool>) -> Families {
    let group = group(job, run);
    let mut families: BTreeMap<&'static str, Vec<(String, f64)>> = BTreeMap::new();
    let mut add = |name: &'static str, labels: &[(&str, &str)], value: f64| {
        // A grouping label replaces a label of the series.
        let mut all: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        all.extend(group.clone());
        families.entry(name).or_default().push((series(&format!("{}_{name}", job.namespace), &all), value));
    };
    let wall = |at: i64| (at + job.clock_offset(at)) as f64;
    let now = at - run.start;
    add("run_start_timestamp_seconds", &[], wall(run.start));
    if let Some(success) = success {
        add("run_last_completion_timestamp_seconds", &[], wall(at));
        add("run_duration_seconds", &[], now as f64);
        if success {
            add("run_last_success_timestamp_seconds", &[], wall(at));
        }
    }
    let begun: Vec<_> =
        plan.stages.iter().filter(|stage| stage.begin <= now && (now > 0 || success.is_some())).collect();
    if job.expects_stages {
        for (stage, _) in job.stages.iter().filter(|(_, weekday)| weekday.is_none()) {
            let stage = job.stage_name(stage, run.due);
            if !begun.iter().any(|begun| begun.id == stage) {
                add("stage_total", &[("stage_id", stage), ("status", "success")], 0.0);
                add("stage_total", &[("stage_id", stage), ("status", "failure")], 0.0);
            }
        }
    }
    for stage in &begun {
        let is_done = stage.end <= now;
        let profile = job.profile_of(stage.id);
        let both = &[("stage_id", stage.id), ("profile", profile)];
        // Each failed attempt takes a part of the stage's time.
        let attempts = i64::from(stage.failures) + i64::from(stage.succeeds);
        let failures = match is_done {
            true => i64::from(stage.failures),
            false => ((now - stage.begin) * attempts / (stage.end - stage.begin).max(1)).min(i64::from(stage.failures)),
        };
        let succeeded = is_done && stage.succeeds;
        add("stage_active", both, f64::from(u8::from(!is_done)));
        add("stage_total", &[("stage_id", stage.id), ("status", "success")], f64::from(u8::from(succeeded)));
        add("stage_total", &[("stage_id", stage.id), ("status", "failure")], failures as f64);
        add(
            "stage_failures_total",
            &[("stage_id", stage.id), ("profile", profile), ("reason", "error")],
            failures as f64,
        );
        if is_done || failures > 0 {
            add("stage_last_duration_seconds", both, ((stage.end - stage.begin) / attempts) as f64);
            if job.has_run_info {
                add("stage_last_failed", both, f64::from(u8::from(!succeeded)));
            }
        }
        if succeeded {
            add("stage_last_success_timestamp_seconds", both, wall(run.start + stage.end));
        }
    }
    if job.has_run_info {
        let profile = if begun.is_empty() { "" } else { job.profile };
        add("run_info", &[("run_id", &format!("run-{}", run.start / MINUTE)), ("profile", profile)], 1.0);
    }
    if job.has_totals {
        for status in ["success", "failure"] {
            add("runs_total", &[("status", status)], totals.runs.get(status).copied().unwrap_or_default());
            for stage in plan.stages.iter() {
                let count = totals.stages.get(&(stage.id, status)).copied().unwrap_or_default();
                add(
                    "stage_runs_total",
                    &[("stage_id", stage.id), ("profile", job.profile_of(stage.id)), ("status", status)],
                    count,
                );
            }
        }
        for stage in plan.stages.iter() {
            let seconds = totals.seconds.get(stage.id).copied().unwrap_or_default();
            add("stage_run_seconds_total", &[("stage_id", stage.id), ("profile", job.profile_of(stage.id))], seconds);
        }
    }
    add("telemetry_overflow_total", &[], if job.overflows && now > 0 { 3.0 } else { 0.0 });
    if let Some((_, files)) = job.spool_files.iter().rev().find(|(since, _)| *since <= at) {
        add("telemetry_spool_files", &[], f64::from(*files));
    }
    families.into_iter().map(|(name, family)| (name, Rc::new(family))).collect()
}

impl Totals {
    fn finish(&mut self, plan: &Plan, success: bool) {
        self.is_open = false;
        *self.runs.entry(if success { "success" } else { "failure" }).or_default() += 1.0;
        for stage in &plan.stages {
            *self.stages.entry((stage.id, "failure")).or_default() += f64::from(stage.failures);
            *self.stages.entry((stage.id, "success")).or_default() += f64::from(u8::from(stage.succeeds));
            *self.seconds.entry(stage.id).or_default() += (stage.end - stage.begin) as f64;
        }
    }
}
