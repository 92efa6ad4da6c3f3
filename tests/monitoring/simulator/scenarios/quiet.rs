//! Normal life: nothing fires.

use super::scenarios;
use crate::simulator::job::Job;
use crate::simulator::scenario::{Scenario, page};
use crate::simulator::time::at;

scenarios! {
    quiet_week_of_an_hourly_job => Scenario::days(7).job(Job::every("1h", "hourly").with_jitter("5m")).with_and_without_run_info();

    quiet_week_of_a_daily_job => Scenario::days(7).job(Job::daily("02:00", "nightly").with_jitter("20m").with_totals());

    quiet_fortnight_of_a_weekday_job => Scenario::days(14).job(Job::weekdays("02:00", "trading").with_jitter("10m"));

    quiet_month_of_a_weekly_job => Scenario::days(33).job(Job::weekly("Sun 03:00", "weekly").lasting("2h"));

    quiet_months_of_a_monthly_job => Scenario::days(62).job(Job::monthly("02:00", "monthly"));

    quiet_day_of_a_job_every_two_minutes => Scenario::hours(12).job(Job::every("2m", "poll"));

    /// Each run pushes to a group of its own, and the groups are deleted each night.
    quiet_days_of_a_fleet_that_is_pruned => Scenario::hours(52)
        .jobs((0..3).map(|worker| {
            Job::every("6h", "fleet").grouped_by("worker", &worker.to_string()).with_instance_per_run().with_jitter("9m")
        }))
        .delete_groups(at("Fri 00:05"), &[("job", "fleet")])
        .delete_groups(at("Sat 00:05"), &[("job", "fleet")]);

    quiet_days_of_text_files_on_two_hosts => Scenario::hours(51)
        .without_gateway()
        .job(Job::daily("02:00", "nightly").text_file_on("host-a"))
        .job(Job::daily("02:30", "nightly").text_file_on("host-b"));

    quiet_days_of_two_profiles_in_one_group => Scenario::hours(51)
        .job(Job::daily("02:00", "nightly").profile("crypto"))
        .job(Job::daily("03:00", "nightly").profile("equities"));

    /// Until the last stage begins, all stages have the same profile.
    quiet_days_of_runs_with_stages_of_two_profiles => Scenario::hours(53)
        .job(Job::daily("02:00", "nightly").with_stage_profile("report", "equities"))
        .with_and_without_run_info();

    quiet_days_of_two_grouped_profiles => Scenario::hours(51)
        .job(Job::daily("02:00", "nightly").profile("crypto").grouped_by_profile())
        .job(Job::daily("03:00", "nightly").profile("equities").grouped_by_profile());

    /// One that pushes, with a period of +Inf.
    quiet_days_of_a_service => Scenario::hours(48)
        .job(Job::unscheduled("service").also(at("Thu 01:00"), crate::simulator::job::Outcome::HangsFor("4d")));

    /// Only that is said, all the time.
    unlisted_weekly_job_is_one_warning => Scenario::days(16)
        .job(Job::weekly("Fri 03:00", "ad-hoc").unlisted())
        .expect(page("BatchJobUnlisted", "ad-hoc").from(at("Fri 03:00")).begins_within("1h"));

    watchdog_always_fires => Scenario::hours(12).job(Job::daily("02:00", "nightly")).watchdog();
}
