//! The jobs of the history: five weeks until Tuesday, 31 March 2026, 09:00 UTC.

use super::history::{End, Group, Stage, stage};

const DAY: u64 = 86_400;
const HOUR: u64 = 3_600;
const MINUTE: u64 = 60;
/// Tuesday, 31 March 2026, 00:00 UTC.
const TODAY: u64 = 1_774_915_200;
pub(crate) const NOW: u64 = TODAY + 9 * HOUR;

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

/// A job of workers with a label of `with_label`, yesterday and today. Today the second one fails, the third is killed and the
/// fourth is still at work. The fifth is new and has pushed once.
fn fleet() -> Vec<Group> {
    let new = |worker| {
        let group = Group::new("fleet", "p", TODAY - DAY);
        group.with_grouping("worker", worker).with_label("team", "risk").with_cumulative_totals()
    };
    let group = |worker, today: &dyn Fn(&mut Group)| {
        let mut group = new(worker);
        group.run(TODAY - DAY + 8 * HOUR, &format!("{worker}-1"), &[stage("price", 600)], &[], End::Success);
        today(&mut group);
        group
    };
    let start = TODAY + 8 * HOUR;
    let retried = Stage { failures: 1, ..stage("price", 600) };
    let failed = stage("price", 1_200).failed("error");
    let mut fifth = new("e");
    fifth.run(NOW - 2 * MINUTE, "e-0", &[stage("price", DAY)], &[], End::Success);
    vec![
        fifth,
        group("a", &|group| group.run(start, "a-0", &[retried], &["report"], End::Success)),
        group("b", &|group| group.run(start, "b-0", &[failed], &["report"], End::Failure)),
        group("c", &|group| group.run(start, "c-0", &[stage("price", HOUR)], &[], End::Killed(start + 10 * MINUTE))),
        group("d", &|group| group.run(start, "d-0", &[stage("price", DAY)], &["report"], End::Success)),
    ]
}

/// Three profiles in the grouping, whose runs have one id.
fn books() -> Vec<Group> {
    let group = |profile, stage: Stage, expected: &[&str], end| {
        let mut group = Group::new("books", profile, TODAY).with_grouping("profile", profile);
        group.run(TODAY + 3 * HOUR, "o-0", &[stage], expected, end);
        group
    };
    let retried = Stage { failures: 1, ..stage("model", 600) };
    vec![
        group("crypto", stage("model", 1_200).failed("error"), &["publish"], End::Failure),
        group("equities", retried, &[], End::Success),
        group("rates", stage("model", HOUR), &[], End::Killed(TODAY + 3 * HOUR + 10 * MINUTE)),
    ]
}

/// A group for each run, although the crate advises against it.
fn dated() -> Vec<Group> {
    let group = |run_id, start, seconds, end| {
        let mut group = Group::new("dated", "", TODAY).with_grouping("run_id", run_id);
        group.run(start, run_id, &[stage("load", seconds)], &[], end);
        group
    };
    let killed = |start| End::Killed(start + 5 * MINUTE);
    let [first, second] = [TODAY + HOUR, TODAY + 2 * HOUR];
    vec![
        group("t-1", first, 600, End::Failure),
        group("t-2", second, 300, End::Failure),
        group("t-3", first, 600, killed(first)),
        group("t-4", second, 600, killed(second)),
    ]
}

/// The samples of all jobs.
pub(crate) fn samples() -> String {
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

    let single = [nightly(), weekly, first, again, killed, gone, never, flaky, desks, restored];
    let mut samples = String::new();
    for mut group in single.into_iter().chain(fleet()).chain(books()).chain(dated()) {
        group.wait_until(NOW + 1);
        // A run that is in progress now ends later.
        let past = |line: &&str| line.rsplit_once(' ').is_some_and(|(_, time)| time.parse::<u64>().unwrap() <= NOW);
        group.samples.lines().filter(past).for_each(|line| samples.extend([line, "\n"]));
    }
    samples + "# EOF\n"
}
