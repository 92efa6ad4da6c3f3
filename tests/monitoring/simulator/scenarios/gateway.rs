//! A gateway or a Prometheus that restarts, is away or loses its state, and groups that somebody deletes.

use super::scenarios;
use crate::simulator::job::{Job, Outcome::*};
use crate::simulator::scenario::{Scenario, may, page, retired_from};
use crate::simulator::time::at;

fn down(from: i64, until: i64) -> crate::simulator::scenario::Expected {
    page("BatchGatewayDown", "").from(from + 300).until(until)
}

scenarios! {
    /// No run is due before the next night.
    gateway_that_restarts_without_its_state_is_no_alert => Scenario::hours(54)
        .job(Job::daily("02:00", "nightly").with_totals())
        .job(Job::every("1h", "hourly"))
        .job(Job::weekly("Fri 05:00", "weekly"))
        .gateway_loses_state(at("Fri 10:01"));

    /// The history has the success of Saturday, the gateway that of Thursday.
    gateway_restored_from_an_older_state_is_no_alert => Scenario::days(5)
        .job(Job::daily("02:00", "nightly"))
        .job(Job::weekly("Fri 05:00", "weekly"))
        .gateway_restored(at("Sat 10:01"), at("Thu 12:00"));

    /// The older state has the failed run of Friday; the one of Saturday was good.
    gateway_restored_with_an_older_failure_is_no_alert => Scenario::hours(61)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")))
        .gateway_restored(at("Sat 10:01"), at("Fri 12:00"))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Sat 02:00")));

    /// The job was late before, and has paged. That page goes on until the next success, and no other one takes its place.
    late_job_stays_one_page_when_the_gateway_loses_its_state => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), NotStarted))
        .gateway_loses_state(at("Fri 14:01"))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")).ends_within("8m"));

    /// The refused push of Friday; those of Saturday were accepted.
    gateway_restored_with_an_older_refusal_is_no_alert => Scenario::hours(61)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), RefusedAfter("5m")))
        .gateway_restored(at("Sat 10:01"), at("Fri 12:00"))
        .expect(page("BatchPushRefused", "nightly").from(at("Fri 02:06")).until(at("Sat 02:00")))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:24")).until(at("Sat 02:00")));

    gateway_that_is_down_for_two_hours_is_one_page => Scenario::hours(39)
        .job(Job::daily("02:00", "nightly"))
        .gateway_down(at("Fri 10:01"), at("Fri 12:00"))
        .expect(down(at("Fri 10:01"), at("Fri 12:00")));

    /// The warning ends.
    job_that_is_retired_while_the_gateway_is_away => Scenario::hours(32)
        .job(Job::daily("02:00", "refused").grouped_by_profile().unlisted().on(at("Fri 02:00"), RefusedAfter("0s")))
        .period("refused", "", &retired_from(at("Fri 05:00"), "vector(86400)"))
        .gateway_down(at("Fri 04:01"), at("Fri 06:00"))
        .expect(down(at("Fri 04:01"), at("Fri 06:00")))
        .expect(page("BatchPushRefused", "refused").from(at("Fri 02:00")).until(at("Fri 05:00")));

    /// The other profile goes on.
    profile_that_was_never_started_stays_one_page_while_the_gateway_is_away => Scenario::hours(33)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile())
        .period("nightly", ", profile: equities", "vector(86400)")
        .scrapes_lost(at("Fri 07:04"), at("Fri 07:12"))
        .gateway_down(at("Fri 07:30"), at("Fri 08:30"))
        .expect(down(at("Fri 07:30"), at("Fri 08:30")))
        .expect(page("BatchNoSuccess", "nightly").with("profile", "equities").from(at("Fri 06:00")).begins_within("1h"));

    gateway_that_is_down_for_half_a_day_is_one_page => Scenario::hours(50)
        .job(Job::weekly("Thu 05:00", "weekly"))
        .gateway_down(at("Fri 10:01"), at("Fri 22:00"))
        .expect(down(at("Fri 10:01"), at("Fri 22:00")));

    /// The run is not seen, so its success is missing until the next one.
    gateway_that_is_down_during_a_run => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly"))
        .gateway_down(at("Fri 01:50"), at("Fri 03:00"))
        .expect(down(at("Fri 01:50"), at("Fri 03:00")))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")));

    /// The page goes on, whatever is lost.
    failed_run_stays_one_page_while_the_gateway_is_away => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), Fails("train")))
        .scrapes_lost(at("Fri 06:00"), at("Fri 06:02"))
        .scrapes_lost(at("Fri 08:00"), at("Fri 08:04"))
        .gateway_down(at("Fri 10:01"), at("Fri 12:00"))
        .expect(down(at("Fri 10:01"), at("Fri 12:00")))
        .expect(page("BatchRunFailed", "nightly").from(at("Fri 02:23")).until(at("Sat 02:00")))
        .expect(page("BatchStageFailed", "nightly").from(at("Fri 02:13")).until(at("Sat 02:00")));

    /// So do warnings about the delivery, and about a job in no list.
    warnings_last_while_the_gateway_is_away => Scenario::hours(32)
        .job(Job::daily("02:00", "refused").on(at("Fri 02:00"), RefusedAfter("0s")))
        .job(Job::daily("02:00", "overflow").overflowing())
        .job(Job::daily("02:00", "spool").spool_files(0, 2))
        .job(Job::daily("02:00", "ad-hoc").unlisted())
        .scrapes_lost(at("Fri 03:00"), at("Fri 03:04"))
        .gateway_down(at("Fri 04:01"), at("Fri 06:00"))
        .expect(down(at("Fri 04:01"), at("Fri 06:00")))
        .expect(page("BatchPushRefused", "refused").from(at("Fri 02:00")))
        .expect(page("BatchSeriesOverflow", "overflow").from(at("Thu 02:02")).until(at("Fri 02:00")))
        .expect(page("BatchSeriesOverflow", "overflow").from(at("Fri 02:02")))
        .expect(page("BatchSpoolNotDraining", "spool").from(at("Fri 02:05")))
        .expect(page("BatchJobUnlisted", "ad-hoc").from(at("Thu 02:00")).begins_within("1h"));

    late_success_stays_one_page_while_scrapes_are_lost => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), NotStarted))
        .scrapes_lost(at("Fri 12:00"), at("Fri 12:04"))
        .scrapes_lost(at("Fri 14:00"), at("Fri 14:02"))
        .expect(page("BatchNoSuccess", "nightly").from(at("Fri 08:25")).until(at("Sat 02:20")));

    lost_scrapes_are_no_alert => Scenario::days(2)
        .job(Job::daily("02:00", "nightly"))
        .job(Job::every("1h", "hourly"))
        .scrapes_lost(at("Thu 06:00"), at("Thu 06:02"))
        .scrapes_lost(at("Thu 14:12"), at("Thu 14:16"))
        .scrapes_lost(at("Fri 02:04"), at("Fri 02:08"));

    /// The runs of these hours are seen late or not at all.
    prometheus_that_is_down_is_no_alert_afterwards => Scenario::hours(32)
        .job(Job::daily("02:00", "nightly"))
        .job(Job::every("1h", "hourly"))
        .prometheus_down(at("Fri 01:30"), at("Fri 05:00"));

    /// The run that was killed is known again at once.
    prometheus_that_is_down_forgets_no_alert => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").on(at("Fri 02:00"), KilledAfter("7m")))
        .prometheus_down(at("Fri 10:00"), at("Fri 13:00"))
        .expect(page("BatchRunNeverEnded", "nightly").from(at("Fri 02:11")).until(at("Sat 02:00")));

    /// Text files alone.
    shop_without_a_gateway => Scenario::days(2)
        .without_gateway()
        .job(Job::daily("02:00", "nightly").text_file_on("host-a"))
        .with_and_without_run_info();

    /// The groups of each day are deleted after midnight, between two runs.
    hourly_fleet_that_is_pruned_daily => Scenario::hours(52)
        .jobs((0..5).map(|worker| Job::every("1h", "fleet").grouped_by("worker", &worker.to_string())))
        .delete_groups(at("Fri 00:04"), &[("job", "fleet")])
        .delete_groups(at("Sat 00:04"), &[("job", "fleet")]);

    /// Each run has another instance. The worker that is gone is no page, since the job goes on.
    fleet_that_gets_smaller => Scenario::hours(37)
        .job(Job::every("1h", "fleet").grouped_by("worker", "1"))
        .job(Job::every("1h", "fleet").grouped_by("worker", "2").until(at("Fri 10:00")))
        .delete_groups(at("Fri 10:45"), &[("job", "fleet"), ("worker", "2")]);

    /// Deleting the group ends the page of a run that failed.
    deleted_group_ends_its_alerts => Scenario::days(2)
        .job(Job::every("1h", "other"))
        .job(Job::unscheduled("once").also(at("Thu 02:00"), Fails("train")))
        .delete_groups(at("Thu 09:00"), &[("job", "once")])
        .expect(may("BatchRunFailed", "once").from(at("Thu 02:23")).until(at("Thu 09:00")))
        .expect(may("BatchStageFailed", "once").from(at("Thu 02:13")).until(at("Thu 09:00")));

    /// A gateway that loses its state while a run fails hourly: the next failure pages as the one before.
    failures_before_and_after_a_lost_state => Scenario::hours(12)
        .job(Job::every("1h", "hourly").on(at("Thu 05:10"), Fails("train")).on(at("Thu 08:10"), Fails("ingest")))
        .gateway_loses_state(at("Thu 07:00"))
        .expect(page("BatchRunFailed", "hourly").from(at("Thu 05:33")).until(at("Thu 06:10")))
        .expect(page("BatchStageFailed", "hourly").from(at("Thu 05:23")).until(at("Thu 06:10")))
        .expect(may("BatchNoSuccess", "hourly").from(at("Thu 05:50")).until(at("Thu 06:30")))
        .expect(page("BatchRunFailed", "hourly").from(at("Thu 08:26")).until(at("Thu 09:10")))
        .expect(page("BatchStageFailed", "hourly").with("stage_id", "ingest").from(at("Thu 08:16")).until(at("Thu 09:10")))
        .expect(may("BatchNoSuccess", "hourly").from(at("Thu 08:50")).until(at("Thu 09:30")));
}
