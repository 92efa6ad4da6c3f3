//! Simulates batch jobs, their gateway and their Prometheus over days to months, and runs the rules over what Prometheus stores.
//!
//! A scenario (`scenarios/`) says in a few lines what happens and which alerts fire, and that no other does. Scenarios that do
//! not disturb each other share a promtool. All of them take half an hour, so a part runs by default. A failure shows each
//! difference.
//!
//! - all: `cargo test -p monitoring --test monitoring all_scenarios -- --ignored`
//! - one: `cargo test -p monitoring --test monitoring failed_run_is_one_page -- --ignored`
//!
//! With `SIMULATOR_KEEP_FILES` promtool's files stay in the temporary directory.

mod gateway;
mod job;
mod mutations;
mod promtool;
mod run;
mod scenario;
mod scenarios;
mod series;
pub(crate) mod time;

use std::collections::BTreeMap;

use scenario::Scenario;
use time::HOUR;

use super::render::rendered;
use super::support::servers::installed;

/// Scenarios by name that share a promtool.
type Batch = Vec<(String, Scenario)>;

/// Those that run by default.
const CHOSEN: [&str; 44] = [
    // Half a day.
    "clock_that_is_behind_by_hours_is_no_late_stage",
    "failure_after_a_clock_was_ahead",
    "failures_before_and_after_a_lost_state",
    "hourly_run_that_fails_once",
    "hourly_run_that_never_starts",
    "job_every_two_minutes_that_fails_for_hours",
    "one_failure_of_a_job_every_two_minutes_is_no_critical_alert",
    "quiet_day_of_a_job_every_two_minutes",
    "refused_runs_of_an_hourly_job",
    "run_longer_than_its_period_had_each_stage",
    "run_that_is_killed_and_started_again_and_again",
    "two_writers_in_turn",
    "watchdog_always_fires",
    // Two days.
    "clock_that_is_behind_is_a_warning",
    "clock_that_is_corrected_in_the_middle_of_a_run",
    "daily_run_that_never_starts",
    "failed_run_is_one_page",
    "failed_run_with_a_text_file",
    "failure_in_a_shared_group_outlives_the_other_profile",
    "grouped_profile_that_stops_is_one_page",
    "grouped_profile_that_was_never_started_beside_one_that_fails",
    "hourly_fleet_that_is_pruned_daily",
    "killed_run_never_ended",
    "refused_run_that_is_killed",
    "retired_job_whose_last_run_failed",
    "retired_jobs_that_had_warnings",
    "retry_after_five_minutes_that_fails_too_is_one_page",
    "retry_after_five_minutes_that_succeeds_is_no_critical_alert",
    "run_that_hangs_and_pushes_in_a_daily_job",
    "stage_that_fails_twice_and_recovers_is_no_alert",
    // Weeks.
    "slow_stages_that_are_retired",
    "weekday_run_of_monday_that_never_starts",
    // A gateway of their own.
    "clock_of_the_gateway_that_is_behind_is_a_warning",
    "failed_job_stays_one_page_with_rules_of_two_namespaces",
    "failed_run_stays_one_page_while_the_gateway_is_away",
    "gateway_restored_from_an_older_state_is_no_alert",
    "gateway_that_restarts_without_its_state_is_no_alert",
    "job_that_is_retired_while_the_gateway_is_away",
    "late_job_stays_one_page_when_the_gateway_loses_its_state",
    "profile_that_was_never_started_stays_one_page_while_the_gateway_is_away",
    "prometheus_that_is_down_is_no_alert_afterwards",
    "rules_of_two_namespaces_side_by_side",
    "slow_stage_of_one_worker_of_a_fleet",
    "warnings_last_while_the_gateway_is_away",
];

/// Groups scenarios with the same tick and about the same length.
fn batches(scenarios: Vec<(&'static str, Scenario)>) -> Vec<Batch> {
    let mut shared: BTreeMap<i64, Batch> = BTreeMap::new();
    let mut batches = Vec::new();
    for (name, scenario) in scenarios {
        let lengths = [24, 36, 56, 80, 7 * 24, 10 * 24, 14 * 24, 20 * 24].map(|hours| hours * HOUR);
        let length = lengths.into_iter().find(|length| scenario.length <= *length).unwrap_or(i64::MAX);
        for variant in variants(name, scenario) {
            match variant.1.needs_its_own_prometheus() {
                true => batches.push(vec![variant]),
                false => shared.entry(length).or_default().push(variant),
            }
        }
    }
    shared.into_values().chain(batches).collect()
}

/// A scenario as the current version of the crate shows it, and an older version if the scenario asks for that.
fn variants(name: &str, scenario: Scenario) -> Batch {
    let mut variants = vec![(name.to_owned(), scenario.clone())];
    if scenario.also_without_run_info {
        let mut older = scenario;
        older.jobs.iter_mut().for_each(|job| job.has_run_info = false);
        variants.push((format!("{name}-without-run-info"), older));
    }
    variants
}

/// Runs the committed rules over scenarios, and panics with every difference from the expected alerts.
#[track_caller]
fn check(batches: &[Batch]) {
    if !installed("promtool") {
        return;
    }
    let mut report = String::new();
    for batch in batches {
        let jobs = batch.iter().flat_map(|(_, scenario)| &scenario.jobs);
        let rules = jobs
            .map(|job| job.namespace)
            .chain(["quant"])
            .map(|namespace| (namespace, rendered(&["rules", "--namespace", namespace])))
            .collect();
        for (name, differences) in promtool::differences(batch, &rules) {
            let (_, scenario) = batch.iter().find(|(member, _)| *member == name).unwrap();
            report +=
                &format!("{name}\n{}  differences:\n    {}\n", scenario.expectation(), differences.join("\n    "));
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// Checks the chosen scenarios that have a gateway of their own, or those that share one.
#[track_caller]
fn check_chosen(has_its_own_gateway: bool) {
    let all = scenarios::all();
    let unknown: Vec<_> = CHOSEN.iter().filter(|chosen| !all.iter().any(|(name, _)| name == *chosen)).collect();
    assert_eq!(unknown, Vec::<&&str>::new());
    let chosen = all
        .into_iter()
        .filter(|(name, scenario)| CHOSEN.contains(name) && scenario.needs_its_own_prometheus() == has_its_own_gateway);
    check(&batches(chosen.collect()));
}

#[test]
fn chosen_scenarios_with_a_shared_gateway() {
    check_chosen(false);
}

#[test]
fn chosen_scenarios_with_their_own_gateway() {
    check_chosen(true);
}

#[test]
#[ignore = "takes half an hour"]
fn all_scenarios() {
    check(&batches(scenarios::all()));
}
