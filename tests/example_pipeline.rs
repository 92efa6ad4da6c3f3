//! The example pipeline, a program with a `main` of its own, against the real Pushgateway: good runs, failed runs,
//! panics, and what yesterday's run leaves behind for today's. The modules test its calculation.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[allow(dead_code)]
#[path = "../examples/momentum/mod.rs"]
mod momentum;
#[path = "example_pipeline/steps.rs"]
mod steps;
#[path = "example_pipeline/whole.rs"]
mod whole;

use std::path::Path;

use momentum::STAGES;
use support::Pushgateway;
use support::child::{self, Ended};
use support::exposition::{self, Exposition};

const GROUP: [(&str, &str); 2] = [("instance", ""), ("job", "quant_pipeline")];

/// Runs it to its end, pushing to the gateway; the file in the directory is what it wrote.
#[track_caller]
fn run(gateway: &Pushgateway, directory: &Path, arguments: &[&str]) -> Ended {
    let mut command = support::example::command("pipeline");
    command
        .args(["--run-id", "20260105-191332", "--textfile"])
        .arg(directory.join("pipeline.prom"))
        .args(arguments)
        .env("TV_PROMETHEUS_PUSHGATEWAY", gateway.url())
        .env("TV_PROMETHEUS_JOB", "quant_pipeline");
    child::start(command).wait()
}

struct Runs {
    gateway: Pushgateway,
    directory: tempfile::TempDir,
}

fn runs() -> Option<Runs> {
    Some(Runs { gateway: support::pushgateway()?, directory: tempfile::tempdir().unwrap() })
}

impl Runs {
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> (Ended, Exposition) {
        let ended = run(&self.gateway, self.directory.path(), arguments);
        (ended, exposition::parse(&self.gateway.metrics()))
    }

    fn textfile(&self) -> Exposition {
        exposition::parse(&std::fs::read_to_string(self.directory.path().join("pipeline.prom")).unwrap())
    }
}

/// The value of a series in the group of the job.
#[track_caller]
fn of(found: &Exposition, name: &str, labels: &[(&str, &str)]) -> f64 {
    found.expect(name, &[&GROUP[..], labels].concat())
}

#[track_caller]
fn total(found: &Exposition, stage: &str, status: &str) -> f64 {
    of(found, "quant_stage_total", &[("stage_id", stage), ("status", status)])
}

fn reasons(found: &Exposition, stage: &str) -> Vec<(String, f64)> {
    let failures = found.matching("quant_stage_failures_total", &[("stage_id", stage)]);
    failures.iter().map(|sample| (sample.labels["reason"].clone(), sample.value)).collect()
}

#[test]
fn a_good_run_is_a_success_in_all_its_stages() {
    let Some(runs) = runs() else { return };
    let (ended, found) = runs.run(&[]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("momentum") && ended.stdout.contains("Sharpe"), "{}", ended.stdout);
    for stage in STAGES {
        assert!(total(&found, stage, "success") >= 1.0, "{stage}");
        assert_eq!(total(&found, stage, "failure"), 0.0, "{stage}");
        let labels = [("stage_id", stage), ("profile", "multi_asset_daily"), ("run_id", "20260105-191332")];
        let count = of(&found, "quant_stage_duration_seconds_count", &labels);
        assert_eq!(count, total(&found, stage, "success"), "{stage}");
        assert_eq!(ended.stderr.matches(&format!("\n{stage} ")).count(), 1, "in the report: {}", ended.stderr);
    }
    let completed = of(&found, "quant_run_last_completion_timestamp_seconds", &[]);
    assert_eq!(of(&found, "quant_run_last_success_timestamp_seconds", &[]), completed);
    assert_eq!(of(&found, "push_failure_time_seconds", &[]), 0.0, "no push was refused");

    let file = runs.textfile();
    let job = [("job", "quant_pipeline")];
    assert_eq!(file.expect("quant_run_last_success_timestamp_seconds", &job), completed, "the file is what was pushed");
}

#[test]
fn a_failed_run_after_a_good_one_leaves_the_success_of_that_one() {
    let Some(runs) = runs() else { return };
    let (_, good) = runs.run(&[]);
    let success = of(&good, "quant_run_last_success_timestamp_seconds", &[]);

    let (ended, found) = runs.run(&["--fail", "alpha.policy"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.ends_with("error: alpha.policy fails because --fail asked for it\n"), "{}", ended.stderr);
    assert_eq!(of(&found, "quant_run_last_success_timestamp_seconds", &[]), success, "it outlives the failed run");
    let completed = of(&found, "quant_run_last_completion_timestamp_seconds", &[]);
    assert!(completed > success, "{completed} {success}");
    assert_eq!((total(&found, "alpha.policy", "success"), total(&found, "alpha.policy", "failure")), (0.0, 1.0));
    assert_eq!(reasons(&found, "alpha.policy"), [("error".to_owned(), 1.0)]);
    for never in ["risk.optimize", "allocation.simulate"] {
        assert_eq!((total(&found, never, "success"), total(&found, never, "failure")), (0.0, 0.0), "{never}");
    }
    assert_eq!(runs.textfile().value("quant_run_last_success_timestamp_seconds", &[]), None, "a file is of one run");

    let (ended, found) = runs.run(&[]);
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(total(&found, "alpha.policy", "failure"), 0.0, "yesterday's failures are gone");
    assert_eq!(reasons(&found, "alpha.policy"), [("error".to_owned(), 0.0)]);
    assert!(of(&found, "quant_run_last_success_timestamp_seconds", &[]) > completed);
}

#[test]
fn a_panic_is_a_failure_of_its_stage_and_of_the_run() {
    let Some(runs) = runs() else { return };
    let (ended, found) = runs.run(&["--panic", "risk.optimize"]);
    assert_eq!(ended.status.code(), Some(101), "{ended:?}");
    assert!(ended.stderr.contains("risk.optimize panics because --panic asked for it"), "{}", ended.stderr);
    assert_eq!((total(&found, "risk.optimize", "success"), total(&found, "risk.optimize", "failure")), (0.0, 1.0));
    assert!(reasons(&found, "risk.optimize").contains(&("panic".to_owned(), 1.0)), "{found:?}");
    assert_eq!(total(&found, "alpha.policy", "success"), 1.0, "what came before succeeded");
    assert_eq!(found.matching("quant_run_last_success_timestamp_seconds", &[]), Vec::<&exposition::Sample>::new());
    assert!(ended.stderr.contains("\nrisk.optimize "), "the report comes after a panic too: {}", ended.stderr);
    assert!(of(&found, "quant_run_duration_seconds", &[]) > 0.0);
}

/// One of several threads panics inside the stage; the others finish it.
#[test]
fn a_panic_on_a_thread_of_the_pipeline_is_one_too() {
    let Some(runs) = runs() else { return };
    let (ended, found) = runs.run(&["--panic", "foundation.features"]);
    assert_eq!(ended.status.code(), Some(101), "{ended:?}");
    let panics = total(&found, "foundation.features", "failure");
    assert!(panics >= 1.0, "{panics}");
    assert!(reasons(&found, "foundation.features").contains(&("panic".to_owned(), panics)), "{found:?}");
    assert_eq!(total(&found, "alpha.inference", "success"), 0.0);
}

#[test]
fn a_gateway_that_is_not_there_changes_nothing_but_the_log() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, code) in [(&[][..], 0), (&["--fail", "alpha.policy"], 1), (&["--panic", "alpha.policy"], 101)] {
        let mut command = support::example::command("pipeline");
        command
            .arg("--textfile")
            .arg(directory.path().join("pipeline.prom"))
            .args(arguments)
            .env("TV_PROMETHEUS_PUSHGATEWAY", support::free_addr().to_string());
        let ended = child::start(command).wait();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert_eq!(ended.stderr.matches("the last state of the metrics was not delivered").count(), 1, "{ended:?}");
    }
}
