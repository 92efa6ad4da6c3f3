//! Runs that never start, or of which nothing arrives: somebody must be told, and in time.

use super::scenarios;
use crate::simulator::job::{Job, Outcome::*};
use crate::simulator::scenario::{Scenario, may, one_of, page, retired_from};
use crate::simulator::time::at;

scenarios! {
    /// The last success is that of Thursday 02:20, the period a day and the grace six hours.
    daily_run_that_never_starts => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")));

    daily_job_that_is_no_longer_scheduled => Scenario::hours(35)
        .job(Job::daily("02:00", "nightly").until(at("Fri 00:00")))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")));

    /// The run of 05:10 is missing; the one of 04:10 ended at 04:30.
    hourly_run_that_never_starts => Scenario::hours(12)
        .job(Job::every("1h", "hourly").on(at("Thu 05:10"), NotStarted))
        .expect(page("BatchNoSuccess", "hourly").from(at("Thu 05:50")).until(at("Thu 06:30")).ends_within("10m"));

    weekly_run_that_never_starts => Scenario::days(19)
        .job(Job::weekly("Sat 03:00", "weekly").on(at("Sat+1 03:00"), NotStarted))
        .expect(page("BatchNoSuccess", "weekly").from(at("Sat+1 09:25")).until(at("Sat+2 03:20")));

    /// January has 31 days.
    monthly_run_that_never_starts => Scenario::days(34)
        .job(Job::monthly("02:00", "monthly").on(at("day 31 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "monthly").from(at("day 31 08:25")));

    weekday_run_of_wednesday_that_never_starts => Scenario::days(9)
        .job(Job::weekdays("02:00", "trading").on(at("Wed 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "trading").from(at("Wed 08:25")).until(at("Thu+1 02:20")));

    weekday_run_of_monday_that_never_starts => Scenario::days(7)
        .job(Job::weekdays("02:00", "trading").on(at("Mon 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "trading").from(at("Mon 08:25")).until(at("Tue 02:20")));

    /// One page, over the weekend.
    weekday_run_of_friday_that_never_starts => Scenario::days(12)
        .job(Job::weekdays("02:00", "trading").on(at("Fri+1 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "trading").from(at("Fri+1 08:25")).until(at("Mon+1 02:20")));

    /// The period is a day, from the start of the scenario on. Nothing is missing that was never there.
    listed_job_that_was_never_started => Scenario::hours(33)
        .job(Job::daily("02:00", "other"))
        .period("typo", "", "vector(86400)")
        .expect(page("BatchNoSuccess", "typo").from(at("Fri 06:00")).begins_within("1h"));

    /// Each run has another pod. The failed one of Friday is still on the gateway, though a later run was good.
    job_that_stops_after_a_failure_that_was_put_right => Scenario::hours(83)
        .job(Job::daily("02:00", "pods").with_instance_per_run().on(at("Fri 02:00"), Fails("train"))
            .on(at("Sun 02:00"), NotStarted))
        .expect(may("BatchRunFailed", "pods").from(at("Fri 02:23")))
        .expect(may("BatchStageFailed", "pods").from(at("Fri 02:13")))
        .expect(page("BatchNoSuccess", "pods").from(at("Sun 08:25")));

    /// Prometheus is restarted in the meantime, which takes twenty minutes.
    listed_job_that_was_never_started_before_prometheus_restarts => Scenario::hours(33)
        .job(Job::daily("02:00", "other"))
        .period("typo", "", "vector(86400)")
        .prometheus_down(at("Thu 20:00"), at("Thu 20:20"))
        .expect(page("BatchNoSuccess", "typo").from(at("Fri 06:00")).begins_within("1h"));

    grouped_profile_that_was_never_started => Scenario::hours(33)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile())
        .period("nightly", ", profile: equities", "vector(86400)")
        .expect(page("BatchNoSuccess", "nightly").with("profile", "equities").from(at("Fri 06:00")).begins_within("1h"));

    /// The other profile was started, and fails each day.
    grouped_profile_that_was_never_started_beside_one_that_fails => Scenario::hours(33)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile()
            .between(0, at("Sat 00:00"), &Fails("train")))
        .period("nightly", ", profile: equities", "vector(86400)")
        .expect(page("BatchRunFailed", "nightly").with("profile", "crypto").from(at("Thu 02:23")))
        .expect(page("BatchStageFailed", "nightly").with("profile", "crypto").from(at("Thu 02:13")))
        .expect(page("BatchNoSuccess", "nightly").with("profile", "equities").from(at("Fri 06:00")).begins_within("1h"));

    /// One page, and none for each of its stages.
    grouped_profile_that_stops_is_one_page => Scenario::hours(36)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile().with_totals())
        .job(Job::daily("03:00", "nightly").profile("equities").grouped_by_profile().until(at("Fri 00:00")))
        .expect(page("BatchNoSuccess", "nightly").with("profile", "equities").from(at("Fri 09:25")));

    /// The other profile pushes to the same group. Both have a period of their own.
    profile_in_a_shared_group_that_stops => Scenario::hours(36)
        .job(Job::daily("02:00", "nightly").profile("crypto").unlisted())
        .job(Job::daily("03:00", "nightly").profile("equities").unlisted().until(at("Fri 00:00")))
        .period("nightly", ", profile: crypto", "vector(86400)")
        .period("nightly", ", profile: equities", "vector(86400)")
        .expect(page("BatchNoSuccess", "nightly").with("profile", "equities").from(at("Fri 09:25")));

    /// The next run of crypto is the first to put its failure right.
    failure_in_a_shared_group_outlives_the_other_profile => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").profile("crypto").on(at("Fri 02:00"), Fails("train")))
        .job(Job::daily("05:00", "nightly").profile("equities"))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Fri 05:00")))
        .expect(may("BatchStageFailed", "nightly").with("profile", "crypto").from(at("Fri 05:00")).until(at("Sat 02:00")));

    /// The gateway refuses each push from Friday on. A push that it refuses is no success.
    refused_runs_of_a_job_that_was_good => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").between(at("Fri 00:00"), at("Sun 00:00"), &RefusedAfter("0s")))
        .expect(page("BatchPushRefused", "nightly").from(at("Fri 02:00")))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")));

    refused_runs_of_an_hourly_job => Scenario::hours(12)
        .job(Job::every("1h", "hourly").between(at("Thu 05:10"), at("Thu 12:10"), &RefusedAfter("0s")))
        .expect(page("BatchPushRefused", "hourly").from(at("Thu 05:10")))
        .expect(page("BatchNoSuccess", "hourly").from(at("Thu 05:50")));

    /// Its group has a time of a refused push, and nothing else.
    listed_job_whose_pushes_were_always_refused => Scenario::hours(35)
        .job(Job::daily("02:00", "other"))
        .job(Job::daily("02:00", "nightly").between(0, at("Sat 00:00"), &RefusedAfter("0s")))
        .expect(page("BatchPushRefused", "nightly").from(at("Thu 02:00")))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 06:00")).begins_within("3h"));

    /// Another program adds its metrics to the group each hour. Its pushes are no success, and say nothing of a clock.
    group_that_another_program_pushes_to => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), NotStarted).with_foreign_pushes(at("Thu 04:30"), "1h"))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")));

    /// A text file shows no pushes, so the kill shows as a success that is late. The other host's runs are good.
    killed_runs_with_a_text_file_on_one_of_two_hosts => Scenario::hours(60)
        .without_gateway()
        .job(Job::daily("02:00", "nightly").text_file_on("host-a"))
        .job(Job::daily("02:30", "nightly").text_file_on("host-b")
            .between(at("Fri 00:00"), at("Sun 00:00"), &KilledAfter("7m")))
        .expect(page("BatchNoSuccess", "nightly").with("instance", "host-b:9100").from(at("Fri 08:55")))
        .expect(may("BatchRunNeverEnded", "nightly").with("instance", "host-b:9100").from(at("Fri 02:41")));

    failed_run_with_a_text_file => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").text_file_on("host-a").on(at("Fri 02:00"), Fails("train")))
        .job(Job::daily("02:00", "nightly").text_file_on("host-b"))
        .expect(page("BatchRunFailed", "nightly").with("instance", "host-a:9100").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").with("instance", "host-a:9100").with("stage_id", "train")
            .from(at("Fri 02:13")).until(at("Sat 02:00")))
        .with_and_without_run_info();

    /// The run is due on Saturday at 02:00 and does not come.
    job_that_the_gateway_lost_and_that_is_due => Scenario::hours(59)
        .job(Job::daily("02:00", "nightly").until(at("Sat 00:00")))
        .job(Job::daily("04:00", "other"))
        .gateway_loses_state(at("Fri 10:00"))
        .expect(one_of(&["BatchJobMissing", "BatchNoSuccess"], "nightly").from(at("Sat 08:25")).begins_within("30m"))
        .expect(may("BatchJobMissing", "nightly").from(at("Sat 02:20")));

    /// The listed period of the stage is a week. Its last success is on Monday, at 02:20.
    stage_that_runs_on_mondays_and_is_left_out => Scenario::days(14)
        .job(Job::daily("02:00", "nightly").with_stage_on("Mon", "weekly.report")
            .on(at("Mon+1 02:00"), Skips("weekly.report")))
        .period("nightly", ", stage_id: weekly.report", "vector(604800)")
        .expect(page("BatchRunFailed", "nightly").from(at("Mon+1 02:25")).until(at("Tue+1 02:00")))
        .expect(page("BatchStageNoSuccess", "nightly").with("stage_id", "weekly.report").from(at("Tue+1 02:40")))
        .expect(may("BatchStageNoSuccess", "nightly").with("stage_id", "weekly.report").from(at("Mon+1 08:20")));

    /// Each stage has the period of its job. A run that leaves out an expected stage is no success.
    expected_stage_that_is_left_out => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Skips("report")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:22")).until(at("Sat 02:00")))
        .expect(may("BatchStageNeverRan", "nightly").with("stage_id", "report").from(at("Fri 02:12")).until(at("Sat 02:00")));

    /// The longest took 20 minutes. Four runs before it are all that 33 days have.
    slow_stage_of_a_weekly_job => Scenario::days(34)
        .job(Job::weekly("Sat 03:00", "weekly").on(at("Sat+4 03:00"), Slow("train", "30m")))
        .expect(page("BatchStageSlow", "weekly").with("stage_id", "train").from(at("Sat+4 03:37")).begins_within("30m"))
        .expect(may("BatchRunTooLong", "weekly").from(at("Sat+4 03:40")).until(at("Sat+4 03:44")));

    slow_stage_of_a_daily_job => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").on(at("Thu+1 02:00"), Slow("train", "18m")))
        .expect(page("BatchStageSlow", "nightly").with("stage_id", "train").from(at("Thu+1 02:25")).until(at("Fri+1 02:00")));

    /// Nothing is said of a job that is retired while its last run was slow.
    slow_stage_of_a_job_that_is_retired => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").on(at("Thu+1 02:00"), Slow("train", "18m")).retired(at("Thu+1 12:00")))
        .expect(page("BatchStageSlow", "nightly").with("stage_id", "train").from(at("Thu+1 02:25")).until(at("Thu+1 12:00")));

    /// Nor of a profile, whose group shows another one, or of a stage.
    slow_stages_that_are_retired => Scenario::days(9)
        .job(Job::daily("02:00", "shared").profile("crypto").on(at("Thu+1 02:00"), Slow("train", "18m"))
            .until(at("Thu+1 12:00")))
        .job(Job::daily("05:00", "shared").profile("equities"))
        .period("shared", ", profile: crypto", &retired_from(at("Thu+1 12:00"), "vector(86400)"))
        .job(Job::daily("02:00", "nightly").on(at("Thu+1 02:00"), Slow("train", "18m")))
        .period("nightly", ", stage_id: train", &retired_from(at("Thu+1 12:00"), "vector(86400)"))
        .expect(page("BatchStageSlow", "shared").with("profile", "crypto").from(at("Thu+1 02:25")).until(at("Thu+1 12:00")))
        .expect(page("BatchStageSlow", "nightly").from(at("Thu+1 02:25")).until(at("Thu+1 12:00")));

    /// The other worker runs each hour, and has another stage in place of this one. A scrape is lost after such a run.
    slow_stage_of_one_worker_of_a_fleet => Scenario::hours(24)
        .job(Job::every("2h", "fleet").grouped_by("instance", "w1").on(at("Thu 12:10"), Slow("train", "19m")).unlisted())
        .job(Job::every("1h", "fleet").grouped_by("instance", "w2").renaming_stage("train", "fit", 0).unlisted())
        .period("fleet", "", "vector(7200)")
        .scrapes_lost(at("Thu 13:40"), at("Thu 13:44"))
        .expect(page("BatchStageSlow", "fleet").with("stage_id", "train").from(at("Thu 12:35")).until(at("Thu 14:18")));

    /// The next run has the stage under another name. Another worker of a fleet might still have it, for an hour.
    slow_stage_that_is_renamed => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").without_expected_stages().renaming_stage("train", "fit", at("Fri+1 00:00"))
            .on(at("Thu+1 02:00"), Slow("train", "18m")))
        .expect(page("BatchStageSlow", "nightly").with("stage_id", "train").from(at("Thu+1 02:25")).until(at("Fri+1 02:20"))
            .ends_within("1h"));

    /// The page says what to look at.
    slow_stage_of_a_job_that_is_late_then => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").on(at("Thu+1 02:00"), Slow("train", "18m")).on(at("Fri+1 02:00"), NotStarted))
        .expect(page("BatchStageSlow", "nightly").from(at("Thu+1 02:25")).until(at("Fri+1 08:36")))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri+1 08:36")))
        .with_and_without_run_info();

    /// The next run ends before it comes to the stage.
    slow_stage_of_a_job_that_fails_then => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").on(at("Thu+1 02:00"), Slow("train", "18m"))
            .on(at("Fri+1 02:00"), Fails("ingest")))
        .job(Job::daily("03:00", "mixed").with_stage_profile("report", "equities")
            .on(at("Thu+1 03:00"), Slow("train", "18m")).on(at("Fri+1 03:00"), Fails("ingest")))
        .expect(page("BatchStageSlow", "nightly").from(at("Thu+1 02:25")).until(at("Fri+1 02:07")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri+1 02:16")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri+1 02:06")))
        .expect(page("BatchStageSlow", "mixed").from(at("Thu+1 03:25")).until(at("Fri+1 03:07")))
        .expect(page("BatchRunFailed", "mixed").from(at("Fri+1 03:16")))
        .expect(page("BatchStageFailed", "mixed").from(at("Fri+1 03:06")))
        .with_and_without_run_info();

    /// Both profiles leave out the stage; its period is that of one of them.
    stage_of_one_profile_that_is_left_out => Scenario::hours(53)
        .jobs([("02:00", "crypto"), ("04:00", "equities")].map(|(clock, profile)| {
            Job::daily(clock, "nightly").profile(profile).grouped_by_profile().without_expected_stages()
                .renaming_stage("report", "summary", at("Fri 00:00"))
        }))
        .period("nightly", ", profile: crypto, stage_id: report", "vector(43200)")
        .expect(page("BatchStageNoSuccess", "nightly").with("profile", "crypto").with("stage_id", "report").from(at("Fri 02:20")));

    /// A payload waits, and neither of the next runs sends it.
    spool_of_a_weekly_job_that_is_not_sent => Scenario::days(26)
        .job(Job::weekly("Sat 03:00", "weekly").spool_files(0, 0).spool_files(at("Sat+1 03:00"), 2))
        .expect(page("BatchSpoolNotDraining", "weekly").from(at("Sat+2 03:20")).begins_within("1h"))
        .expect(may("BatchSpoolNotDraining", "weekly").from(at("Sat+1 03:20")));
}
