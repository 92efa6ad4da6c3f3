//! Runs that fail, are killed, hang or are overtaken.

use super::scenarios;
use crate::simulator::job::{Job, Outcome::*};
use crate::simulator::scenario::{Scenario, may, one_of, page};
use crate::simulator::time::{at, duration};

/// Runs of two minutes from Thursday 02:00 to 06:00 that are killed, and then one that succeeds.
fn restarted(interval: &str) -> Job {
    let kills = (at("Thu 02:00")..at("Thu 06:00")).step_by(duration(interval) as usize);
    let job = Job::daily("06:00", "nightly");
    kills.fold(job, |job, start| job.also(start, KilledAfter("2m")))
}

scenarios! {
    /// The run ends at 02:13, and ten minutes are left for a retry. One critical alert.
    failed_run_is_one_page => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").with("stage_id", "train").from(at("Fri 02:13")).until(at("Sat 02:00")))
        .with_and_without_run_info();

    first_run_of_a_job_fails => Scenario::days(2)
        .job(Job::daily("02:00", "nightly").on(at("Thu 02:00"), Fails("ingest")))
        .expect(page("BatchRunFailed", "nightly").from(at("Thu 02:16")).until(at("Fri 02:00")))
        .expect(page("BatchStageFailed", "nightly").with("stage_id", "ingest").from(at("Thu 02:06")).until(at("Fri 02:00")));

    /// From Friday on each run fails, at 02:13. While the next one is under way, the alert may hold or not.
    run_that_fails_day_after_day => Scenario::hours(77)
        .job(Job::daily("02:00", "nightly").between(at("Fri 00:00"), at("Sun 00:00"), &Fails("train")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchRunFailed", "nightly").from(at("Sat 02:23")).until(at("Sun 02:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Sat 02:13")).until(at("Sun 02:00")))
        .expect(may("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sun 02:20")));

    failure_of_a_grouped_profile_names_it => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile().on(at("Fri 02:00"), Fails("train")))
        .job(Job::daily("02:05", "nightly").profile("equities").grouped_by_profile())
        .expect(page("BatchRunFailed", "nightly").with("profile", "crypto").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").with("profile", "crypto").from(at("Fri 02:13")).until(at("Sat 02:00")));

    /// The run goes well in the end.
    stage_that_fails_twice_and_recovers_is_no_alert => Scenario::hours(28)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Recovers("train")).with_totals())
        .with_and_without_run_info();

    retry_after_five_minutes_that_succeeds_is_no_critical_alert => Scenario::hours(28)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")).also(at("Fri 02:18"), Succeeds))
        .expect(may("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Fri 02:38")));

    /// It ends at 02:31.
    retry_after_five_minutes_that_fails_too_is_one_page => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")).also(at("Fri 02:18"), Fails("train")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:41")).until(at("Sat 02:00")))
        .expect(may("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Fri 02:31")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:31")).until(at("Sat 02:00")));

    /// After an hour: too late to hold the alert back.
    retry_after_an_hour_ends_the_alert => Scenario::hours(30)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")).also(at("Fri 03:15"), Succeeds))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Fri 03:15")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Fri 03:15")));

    one_failure_of_a_job_every_two_minutes_is_no_critical_alert => Scenario::hours(12)
        .job(Job::every("2m", "poll").on(at("Thu 05:10"), Fails("train")))
        .expect(may("BatchStageFailed", "poll").from(at("Thu 05:10")).until(at("Thu 05:10") + 120));

    /// From 05:10 on. Period and grace are twelve minutes, and five more pass. It is one cause, whichever alert says it.
    job_every_two_minutes_that_fails_for_hours => Scenario::hours(12)
        .job(Job::every("2m", "poll").between(at("Thu 05:10"), at("Thu 09:10"), &Fails("train")))
        .expect(one_of(&["BatchNoSuccess", "BatchRunFailed"], "poll")
            .from(at("Thu 05:26")).until(at("Thu 09:10")).begins_within("10m"))
        .expect(may("BatchRunFailed", "poll").from(at("Thu 05:12")).until(at("Thu 09:10")))
        .expect(may("BatchStageFailed", "poll").from(at("Thu 05:10")).until(at("Thu 09:10")));

    /// It fails at 05:23; the run at 06:10 is good.
    hourly_run_that_fails_once => Scenario::hours(12)
        .job(Job::every("1h", "hourly").on(at("Thu 05:10"), Fails("train")))
        .expect(page("BatchRunFailed", "hourly").from(at("Thu 05:33")).until(at("Thu 06:10")))
        .expect(page("BatchStageFailed", "hourly").from(at("Thu 05:23")).until(at("Thu 06:10")))
        .expect(may("BatchNoSuccess", "hourly").from(at("Thu 05:50")).until(at("Thu 06:30")));

    /// Killed at 02:07 after a push at 02:06 or later.
    killed_run_never_ended => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), KilledAfter("7m")).with_totals())
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:11")).until(at("Sat 02:00")))
        .with_and_without_run_info();

    killed_run_that_a_retry_follows_is_no_alert => Scenario::hours(28)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), KilledAfter("7m")).also(at("Fri 02:10"), Succeeds));

    /// From Friday on each run is killed after seven minutes.
    run_that_is_killed_day_after_day => Scenario::hours(77)
        .job(Job::daily("02:00", "nightly").between(at("Fri 00:00"), at("Sun 00:00"), &KilledAfter("7m")))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:11")).until(at("Sat 02:00")))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Sat 02:11")).until(at("Sun 02:00")))
        .expect(may("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sun 02:20")));

    /// A scheduler starts it again every six minutes, as Kubernetes does with a pod that crashes. No run lasts long enough to
    /// be missed, and none ends.
    run_that_is_killed_and_started_again_and_again => Scenario::hours(12)
        .job(restarted("6m"))
        .expect(one_of(&["BatchRunNeverEnded", "BatchRunFailed"], "nightly")
            .from(at("Thu 02:20")).until(at("Thu 06:00")).begins_within("40m"))
        .expect(may("BatchTwoWriters", "nightly").from(at("Thu 02:10")).until(at("Thu 06:15")));

    /// One page, and not one for each of the runs.
    run_that_is_killed_and_started_again_every_ten_minutes => Scenario::hours(12)
        .job(restarted("10m"))
        .expect(one_of(&["BatchRunNeverEnded", "BatchRunFailed"], "nightly")
            .from(at("Thu 02:08")).until(at("Thu 06:00")).begins_within("50m"))
        .expect(may("BatchTwoWriters", "nightly").from(at("Thu 02:10")).until(at("Thu 06:15")));

    /// Each stage of the long run succeeded in it, the first one almost two hours before its end.
    run_longer_than_its_period_had_each_stage => Scenario::hours(12)
        .job(Job::every("1h", "hourly").on(at("Thu 05:10"), Takes("2h 45m")).on(at("Thu 06:10"), NotStarted).on(at("Thu 07:10"), NotStarted))
        .expect(may("BatchNoSuccess", "hourly").from(at("Thu 05:50")).until(at("Thu 08:00")))
        .expect(may("BatchRunTooLong", "hourly").from(at("Thu 05:55")).until(at("Thu 08:00")))
        .expect(may("BatchStageSlow", "hourly").from(at("Thu 06:10")).until(at("Thu 09:30")));

    /// Each pod has a group of its own, and the groups are deleted each night.
    killed_worker_of_a_fleet_is_one_page => Scenario::days(2)
        .jobs((0..3).map(|worker| {
            let job = Job::every("6h", "fleet").grouped_by("worker", &worker.to_string()).with_instance_per_run();
            if worker == 2 { job.on(at("Thu 06:10"), KilledAfter("7m")) } else { job }
        }))
        .delete_groups(at("Fri 00:05"), &[("job", "fleet")])
        .expect(page("BatchRunNeverEnded", "fleet").with("worker", "2").from(at("Thu 06:21")).until(at("Fri 00:05")));

    /// Nothing says whether the run was killed, so it is one page; its text names the lost push.
    lost_final_push_is_a_run_that_never_ended => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), LosesFinalPush))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:24")).until(at("Sat 02:00")));

    /// Each run took 20 minutes, so 40 are too long. It is killed at 14:00.
    run_that_hangs_and_pushes_in_a_daily_job => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), HangsFor("12h")))
        .expect(page("BatchRunTooLong", "nightly").from(at("Fri 02:40")).until(at("Fri 14:00")).begins_within("30m"))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 14:04")).until(at("Sat 02:00")))
        .expect(may("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")));

    /// It is killed after two days.
    run_that_hangs_and_pushes_in_a_weekly_job => Scenario::days(20)
        .job(Job::weekly("Sat 03:00", "weekly").lasting("1h").on(at("Sat+2 03:00"), HangsFor("48h")))
        .expect(page("BatchRunTooLong", "weekly").from(at("Sat+2 05:00")).until(at("Mon+2 03:00")).begins_within("30m"))
        .expect(page("BatchRunNeverEnded", "weekly").from(at("Mon+2 03:04")))
        .expect(may("BatchNoSuccess", "weekly").from(at("Sat+2 10:05")));

    run_within_twice_its_usual_time_is_no_alert => Scenario::hours(28)
        .job(Job::daily("02:00", "nightly").lasting("1h").on(at("Fri 02:00"), Takes("1h 45m")));

    first_run_of_a_job_takes_hours => Scenario::days(2)
        .job(Job::daily("02:00", "nightly").on(at("Thu 02:00"), Takes("5h")));

    /// The pushes fail from 02:05 on, and the process is killed at 02:11.
    refused_run_that_is_killed => Scenario::hours(52)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), RefusedAndKilledAfter("5m", "11m")))
        .expect(page("BatchPushRefused", "nightly").from(at("Fri 02:06")).until(at("Sat 02:00")))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:15")).until(at("Sat 02:00")));

    /// It takes an hour. Its end is refused as well, after which nothing more is heard.
    refused_run_that_is_alive_has_not_ended_yet => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").lasting("1h").on(at("Fri 02:00"), RefusedAfter("5m")))
        .expect(page("BatchPushRefused", "nightly").from(at("Fri 02:06")).until(at("Sat 02:00")))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 03:04")).until(at("Sat 02:00")));

    /// Two processes with the same name push for two hours; each scrape sees the one or the other.
    two_writers_in_turn => Scenario::hours(12)
        .job(Job::daily("06:00", "writer").lasting("2h"))
        .job(Job::daily("06:02", "writer").lasting("2h").pushing_in_turn().unlisted())
        .expect(page("BatchTwoWriters", "writer").from(at("Thu 06:06")).until(at("Thu 07:55")))
        .expect(may("BatchStageNeverRan", "writer").from(at("Thu 06:00")).until(at("Thu 08:15")));

    /// The second process runs for half an hour, and each scrape sees the pushes of the first one, which ends at 05:00.
    two_writers_in_phase_with_the_scrape => Scenario::hours(56)
        .job(Job::daily("03:30", "long").lasting("30m").since(at("Fri 00:00")).unlisted())
        .job(Job::daily("02:00", "long").lasting("3h"))
        .expect(page("BatchTwoWriters", "long").from(at("Fri 04:00")).until(at("Fri 05:00")).begins_within("30m"))
        .expect(page("BatchTwoWriters", "long").from(at("Sat 04:00")).until(at("Sat 05:00")).begins_within("30m"))
        .expect(may("BatchStageNeverRan", "long").from(at("Fri 04:00")))
        .expect(may("BatchClockSkew", "long"));

    too_many_label_sets => Scenario::days(2)
        .job(Job::daily("02:00", "nightly").overflowing())
        .expect(page("BatchSeriesOverflow", "nightly").from(at("Thu 02:02")).until(at("Fri 02:00")))
        .expect(page("BatchSeriesOverflow", "nightly").from(at("Fri 02:02")));
}
