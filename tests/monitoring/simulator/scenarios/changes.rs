//! Jobs, stages and clocks that change: renamed, retired, of another namespace, ahead or behind.

use super::scenarios;
use crate::simulator::job::{Job, Outcome::*};
use crate::simulator::scenario::{Scenario, may, page, retired_from};
use crate::simulator::time::at;

scenarios! {
    /// For as long as the history has the old name.
    renamed_stage_is_no_alert => Scenario::days(19)
        .job(Job::daily("02:00", "nightly").renaming_stage("train", "fit", at("Mon 00:00")))
        .with_and_without_run_info();

    renamed_stage_of_a_job_that_expects_none_is_no_alert => Scenario::days(7)
        .job(Job::daily("02:00", "nightly").without_expected_stages().renaming_stage("train", "fit", at("Sat 00:00")));

    /// Its period is listed.
    stage_that_runs_on_mondays_is_no_alert => Scenario::days(14)
        .job(Job::daily("02:00", "nightly").with_stage_on("Mon", "weekly.report"))
        .period("nightly", ", stage_id: weekly.report", "vector(604800)");

    /// Its period is not listed, and the stage is not expected.
    unlisted_stage_that_runs_on_mondays_is_no_alert => Scenario::days(9)
        .job(Job::daily("02:00", "nightly").with_stage_on("Mon", "weekly.report"));

    /// Neither "no success" nor "missing", whether its group is deleted or not.
    retired_job_is_no_alert => Scenario::days(8)
        .job(Job::daily("02:00", "nightly").retired(at("Sat 12:00")))
        .job(Job::daily("03:00", "deleted").retired(at("Sat 12:00")))
        .job(Job::daily("04:00", "other"))
        .delete_groups(at("Sat 13:00"), &[("job", "deleted")]);

    /// Its last run failed, and the page ends.
    retired_job_whose_last_run_failed => Scenario::hours(39)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")).retired(at("Fri 12:00")))
        .job(Job::daily("03:00", "killed").on(at("Fri 03:00"), KilledAfter("7m")).retired(at("Fri 12:00")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Fri 12:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Fri 12:00")))
        .expect(page("BatchRunNeverEnded", "killed").from(at("Fri 03:11")).until(at("Fri 12:00")));

    /// Of the job no alert is left, and of the other profile in its group none begins.
    retired_profile_whose_last_run_failed => Scenario::hours(39)
        .job(Job::daily("02:00", "nightly").profile("crypto").on(at("Fri 02:00"), Fails("train")).until(at("Fri 12:00")))
        .job(Job::daily("05:00", "nightly").profile("equities"))
        .period("nightly", ", profile: crypto", &retired_from(at("Fri 12:00"), "vector(86400)"))
        .expect(page("BatchRunFailed", "nightly").with("profile", "crypto").from(at("Fri 02:23")).until(at("Fri 12:00")))
        .expect(page("BatchStageFailed", "nightly").with("profile", "crypto").from(at("Fri 02:13")).until(at("Fri 05:00")))
        .expect(may("BatchStageFailed", "nightly").from(at("Fri 05:00")).until(at("Fri 12:00")));

    retired_jobs_that_had_warnings => Scenario::hours(39)
        .job(Job::daily("02:00", "refused").on(at("Fri 02:00"), RefusedAfter("0s")).retired(at("Fri 12:00")))
        .job(Job::daily("02:00", "overflow").overflowing().since(at("Fri 00:00")).retired(at("Fri 12:00")))
        .job(Job::daily("02:00", "spool").spool_files(0, 2).retired(at("Fri 12:00")))
        .expect(page("BatchPushRefused", "refused").from(at("Fri 02:00")).until(at("Fri 12:00")))
        .expect(may("BatchNoSuccess", "refused").from(at("Fri 08:25")).until(at("Fri 12:00")))
        .expect(page("BatchSeriesOverflow", "overflow").from(at("Fri 02:02")).until(at("Fri 12:00")))
        .expect(page("BatchSpoolNotDraining", "spool").from(at("Fri 02:05")).until(at("Fri 12:00")))
        .expect(may("BatchNoSuccess", "overflow").until(at("Fri 02:20")));

    /// The rules of both namespaces are loaded; each job has one.
    rules_of_two_namespaces_side_by_side => Scenario::hours(32)
        .job(Job::daily("02:00", "ours"))
        .job(Job::daily("02:00", "theirs").in_namespace("acme").on(at("Fri 02:00"), Fails("train")))
        .expect(page("BatchRunFailed", "theirs").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "theirs").from(at("Fri 02:13")).until(at("Sat 02:00")));

    /// It never succeeded, and only the rules of its namespace know that it runs.
    failed_job_stays_one_page_with_rules_of_two_namespaces => Scenario::hours(12)
        .job(Job::daily("02:00", "ours"))
        .job(Job::every("1h", "theirs").in_namespace("acme").between(0, at("Thu 12:00"), &Fails("train")))
        .gateway_down(at("Thu 05:01"), at("Thu 07:00"))
        .expect(page("BatchGatewayDown", "").from(at("Thu 05:06")).until(at("Thu 07:00")))
        .expect(page("BatchRunFailed", "theirs").from(at("Thu 00:33")))
        .expect(page("BatchStageFailed", "theirs").from(at("Thu 00:23")));

    late_job_is_one_page_with_rules_of_two_namespaces => Scenario::hours(53)
        .job(Job::daily("02:00", "ours").on(at("Fri 02:00"), NotStarted))
        .job(Job::daily("02:00", "theirs").in_namespace("acme"))
        .expect(page("BatchNoSuccess", "ours").from(at("Fri 08:25")).until(at("Sat 02:20")));

    clock_that_is_behind_is_a_warning => Scenario::hours(48)
        .job(Job::daily("02:00", "nightly").clock_ahead(0, "-10m"))
        .expect(page("BatchClockSkew", "nightly").from(at("Thu 02:20")).begins_within("30m"))
        .with_and_without_run_info();

    clock_that_is_ahead_is_a_warning => Scenario::hours(48)
        .job(Job::daily("02:00", "nightly").clock_ahead(0, "10m"))
        .expect(page("BatchClockSkew", "nightly").from(at("Thu 02:20")).begins_within("30m"));

    /// A host with the wrong time zone. The times of stages and of the run are on one clock, or they say nothing.
    clock_that_is_behind_by_hours_is_no_late_stage => Scenario::hours(12)
        .job(Job::every("1h", "hourly").clock_ahead(0, "-3h"))
        .expect(page("BatchClockSkew", "hourly").from(at("Thu 00:30")).begins_within("30m"));

    /// Each run seems to have stopped pushing ten minutes ago, while it pushes.
    clock_of_the_gateway_that_is_behind_is_a_warning => Scenario::hours(31)
        .job(Job::daily("02:00", "nightly").lasting("1h"))
        .gateway_clock_ahead("-10m")
        .expect(page("BatchClockSkew", "nightly").from(at("Thu 03:00")).begins_within("30m"));

    /// Each run begins with a clock that is 40 minutes ahead, so it ends before it began.
    clock_that_is_corrected_in_the_middle_of_a_run => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").clock_ahead(at("Fri 00:00"), "40m").clock_ahead(at("Fri 02:05"), "0s"))
        .expect(may("BatchClockSkew", "nightly").from(at("Fri 02:00")).until(at("Sat 02:00")));

    /// The success at 04:30 is written as 06:20, later than the failure at 05:23.
    failure_after_a_clock_was_ahead => Scenario::hours(12)
        .job(Job::every("1h", "hourly").clock_ahead(0, "110m").clock_ahead(at("Thu 05:00"), "0s").on(at("Thu 05:10"), Fails("train")))
        .expect(page("BatchRunFailed", "hourly").from(at("Thu 05:33")).until(at("Thu 06:10")))
        .expect(page("BatchStageFailed", "hourly").from(at("Thu 05:23")).until(at("Thu 06:10")))
        .expect(may("BatchNoSuccess", "hourly").from(at("Thu 05:50")).until(at("Thu 06:30")))
        .expect(page("BatchClockSkew", "hourly").from(at("Thu 00:30")).until(at("Thu 05:10")).begins_within("30m"));

    /// The next success is that of Saturday, at 02:20 and written as 02:10.
    late_success_with_a_clock_that_is_behind => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").clock_ahead(0, "-10m").on(at("Fri 02:00"), NotStarted))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:15")).until(at("Sat 02:20")).begins_within("30m"))
        .expect(page("BatchClockSkew", "nightly").from(at("Thu 02:20")).begins_within("30m"));

    /// The period of the profile is an hour, that of the job a day.
    period_of_a_profile_takes_precedence => Scenario::days(2)
        .job(Job::every("1h", "mixed").profile("fast").grouped_by_profile().on(at("Thu 05:10"), NotStarted))
        .job(Job::daily("02:00", "mixed").profile("slow").grouped_by_profile().unlisted())
        .period("mixed", "", "vector(86400)")
        .expect(page("BatchNoSuccess", "mixed").with("profile", "fast").from(at("Thu 05:50")).until(at("Thu 06:30")));

    /// Not even when it runs no more.
    job_in_no_list_gets_no_other_alert_about_periods => Scenario::hours(36)
        .job(Job::daily("02:00", "ad-hoc").unlisted().until(at("Fri 00:00")))
        .expect(page("BatchJobUnlisted", "ad-hoc").from(at("Thu 02:00")).begins_within("1h"));

    /// A run that fails is a page, listed or not.
    failure_of_a_job_in_no_list => Scenario::hours(52)
        .job(Job::daily("02:00", "ad-hoc").unlisted().on(at("Fri 02:00"), Fails("train")))
        .expect(page("BatchJobUnlisted", "ad-hoc").from(at("Thu 02:00")).begins_within("1h"))
        .expect(page("BatchRunFailed", "ad-hoc").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "ad-hoc").from(at("Fri 02:13")).until(at("Sat 02:00")));
}
