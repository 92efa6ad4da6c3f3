//! One cause is one notification: alerts of many causes on a real Alertmanager with `alertmanager.yml`, and a run that fails
//! on real servers from the gateway to the notification.

use std::process::Command;

use super::alertmanager::{Alert, Alertmanager, replaced};
use super::support::servers::{self, ALERTMANAGER, AMTOOL, PROMETHEUS};
use super::support::{Prometheus, await_true, pushgateway};
use super::{Fixture, dashboard, files};

/// Alerts of one job, and the notifications that they are to make.
struct Case {
    job: &'static str,
    alerts: Vec<String>,
    /// Alerts that begin after the notifications of the others.
    later: &'static [&'static str],
    notifications: &'static [&'static str],
}

fn case(job: &'static str, alerts: &[&str], notifications: &'static [&'static str]) -> Case {
    let alerts = alerts.iter().map(|alert| (*alert).to_owned()).collect();
    Case { job, alerts, later: &[], notifications }
}

impl Case {
    /// Adds an alert for each of many instances.
    fn and_each(mut self, instances: usize, alert: &str) -> Self {
        self.alerts.extend((0..instances).map(|instance| format!("{alert} instance=w{instance}")));
        self
    }

    fn and_alerts(mut self, alerts: &[&str]) -> Self {
        self.alerts.extend(alerts.iter().map(|alert| (*alert).to_owned()));
        self
    }

    fn and_later(self, later: &'static [&'static str]) -> Self {
        Self { later, ..self }
    }

    fn alerts(&self) -> impl Iterator<Item = Alert> {
        self.alerts.iter().map(|alert| Alert::new(alert, self.job))
    }

    fn later(&self) -> impl Iterator<Item = Alert> {
        self.later.iter().map(|alert| Alert::new(alert, self.job))
    }
}

/// In the default grouping a run has no profile, and its stages have that of their spans.
const STAGES_FAILED: [&str; 3] = [
    "BatchStageFailed profile=crypto stage_id=ingest",
    "BatchStageFailed profile=crypto stage_id=signal",
    "BatchStageFailed profile=crypto stage_id=policy",
];

fn cases() -> Vec<Case> {
    vec![
        case("failed", &["BatchRunFailed"], &["pager: failed, 1 BatchRunFailed"])
            .and_alerts(&STAGES_FAILED)
            .and_later(&["BatchNoSuccess", "BatchStageNoSuccess profile=crypto stage_id=ingest"]),
        case("unrelated", &["BatchRunFailed"], &["pager: unrelated, 1 BatchRunFailed"]),
        case("grouped", &["BatchRunNeverEnded profile=crypto"], &["pager: grouped, 1 BatchRunNeverEnded"])
            .and_alerts(&STAGES_FAILED)
            .and_alerts(&["BatchStageSlow profile=crypto stage_id=signal"])
            .and_later(&[
                "BatchNoSuccess profile=crypto",
                "BatchStageNoSuccess profile=crypto stage_id=ingest",
                "BatchStageNeverRan profile=crypto stage_id=policy",
            ]),
        case("hangs", &["BatchRunTooLong", "BatchStageSlow stage_id=ingest"], &["pager: hangs, 1 BatchRunTooLong"])
            .and_later(&["BatchNoSuccess"]),
        case("late", &["BatchNoSuccess"], &["pager: late, 1 BatchNoSuccess"])
            .and_alerts(&["BatchStageNoSuccess profile=crypto stage_id=ingest"])
            .and_later(&["BatchJobMissing"]),
        case("slow", &["BatchStageSlow profile=crypto stage_id=signal"], &["tickets: slow, 1 BatchStageSlow"]),
        case("fleet", &["BatchStageNoSuccess profile=crypto stage_id=ingest"], &["pager: fleet, 30 BatchRunFailed"])
            .and_each(30, "BatchRunFailed profile=crypto")
            .and_each(30, "BatchStageFailed profile=crypto stage_id=ingest")
            .and_later(&["BatchJobMissing profile=crypto"]),
        case("workers", &["BatchStageNoSuccess profile=crypto stage_id=ingest"], &["pager: workers, 5 BatchRunFailed"])
            .and_each(5, "BatchRunFailed")
            .and_each(5, "BatchStageFailed profile=crypto stage_id=ingest"),
        case("never_ran", &["BatchRunFailed profile=crypto"], &["pager: never_ran, 1 BatchRunFailed"])
            .and_alerts(&["BatchStageNeverRan stage_id=policy"]),
        // What has another cause is not held back. A pod failed long ago, and no run comes any more.
        case(
            "pods",
            &["BatchRunFailed profile=crypto instance=p1", "BatchNoSuccess profile=crypto"],
            &["pager: pods, 1 BatchNoSuccess, 1 BatchRunFailed"],
        ),
        case(
            "profiles",
            &[
                "BatchRunFailed profile=crypto",
                "BatchNoSuccess profile=equities",
                "BatchStageSlow profile=fx stage_id=ingest",
            ],
            &["pager: profiles, 1 BatchNoSuccess, 1 BatchRunFailed", "tickets: profiles, 1 BatchStageSlow"],
        ),
        case(
            "hosts",
            &["BatchRunFailed instance=a", "BatchNoSuccess instance=b", "BatchStageSlow instance=c stage_id=ingest"],
            &["pager: hosts, 1 BatchNoSuccess, 1 BatchRunFailed", "tickets: hosts, 1 BatchStageSlow"],
        ),
        case(
            "workers_of_a_profile",
            &["BatchRunFailed profile=crypto instance=a", "BatchStageSlow profile=fx instance=a stage_id=ingest"],
            &["pager: workers_of_a_profile, 1 BatchRunFailed", "tickets: workers_of_a_profile, 1 BatchStageSlow"],
        ),
        case(
            "profile_beside_none",
            &["BatchRunFailed", "BatchNoSuccess profile=crypto"],
            &["pager: profile_beside_none, 1 BatchNoSuccess, 1 BatchRunFailed"],
        ),
        case(
            "writers",
            &["BatchRunFailed", "BatchTwoWriters"],
            &["pager: writers, 1 BatchRunFailed", "tickets: writers, 1 BatchTwoWriters"],
        ),
        case("prometheus", &["BatchWatchdog"], &["dead-mans-switch: prometheus, 1 BatchWatchdog"]),
    ]
}

/// A gateway that is away, all that may be said of twenty jobs meanwhile, and an alert of something else.
fn gateway_cases() -> Vec<Case> {
    const JOBS: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    let rules = files::yaml("quant.rules.yml");
    let rules = dashboard::list(&rules["groups"]).iter().flat_map(|group| dashboard::list(&group["rules"]));
    let names = rules.map(|rule| dashboard::text(rule, "alert"));
    let names: Vec<_> = names.filter(|name| !["", "BatchGatewayDown", "BatchWatchdog"].contains(name)).collect();
    assert!(names.len() > 10, "{names:?}");
    let mut cases: Vec<_> = JOBS.into_iter().map(|job| case(job, &names, &[])).collect();
    cases.push(case("pushgateway", &["BatchGatewayDown"], &["pager: pushgateway, 1 BatchGatewayDown"]));
    cases.push(case("node", &["NodeDiskFull"], &["tickets: node, 1 NodeDiskFull"]));
    let watchdog = case("prometheus", &[], &["dead-mans-switch: prometheus, 1 BatchWatchdog"]);
    cases.push(watchdog.and_later(&["BatchWatchdog"]));
    cases
}

fn config() -> String {
    files::text("alertmanager.yml")
}

/// The notifications of the cases, sorted.
fn expected(cases: &[Case]) -> Vec<String> {
    let mut lines: Vec<_> = cases.iter().flat_map(|case| case.notifications).map(|line| (*line).to_owned()).collect();
    lines.sort();
    lines
}

/// Sends alerts, first those that others hold back.
#[track_caller]
fn post(alertmanager: &Alertmanager, alerts: impl Iterator<Item = Alert>) {
    let (critical, others): (Vec<_>, Vec<_>) = alerts.partition(Alert::is_critical);
    alertmanager.post(others);
    alertmanager.post(critical);
}

/// An Alertmanager that has dealt with the alerts of these cases.
#[track_caller]
fn after(config: &str, cases: &[Case]) -> Alertmanager {
    let alertmanager = Alertmanager::start(config);
    post(&alertmanager, cases.iter().flat_map(Case::alerts));
    alertmanager.await_flushes("first");
    post(&alertmanager, cases.iter().flat_map(Case::later));
    alertmanager.await_flushes("later");
    alertmanager
}

#[test]
fn one_cause_is_one_notification_and_one_of_its_end() {
    if !servers::installed(ALERTMANAGER) {
        return;
    }
    let cases = cases();
    let alertmanager = after(&config(), &cases);
    let mut expected = expected(&cases);
    assert_eq!(alertmanager.lines(), expected);

    post(&alertmanager, cases.iter().flat_map(|case| case.alerts().chain(case.later())).map(Alert::resolved));
    alertmanager.await_flushes("ended");
    let ended = |line: &String| {
        let (receiver, alerts) = line.split_once(": ").unwrap();
        let (job, _) = alerts.split_once(", ").unwrap();
        format!("{receiver}: {job}, resolved")
    };
    // The receiver of the watchdog has no use for its end.
    let ends: Vec<_> = expected.iter().filter(|line| !line.contains("BatchWatchdog")).map(ended).collect();
    expected.extend(ends);
    expected.sort();
    assert_eq!(alertmanager.lines(), expected);
}

#[test]
fn gateway_that_is_down_is_one_notification() {
    if !servers::installed(ALERTMANAGER) {
        return;
    }
    let cases = gateway_cases();
    assert_eq!(after(&config(), &cases).lines(), expected(&cases));
}

#[test]
fn watchdog_repeats() {
    if !servers::installed(ALERTMANAGER) {
        return;
    }
    let alertmanager = Alertmanager::start(&config());
    alertmanager.post([Alert::new("BatchWatchdog", "prometheus")]);
    await_true("the watchdog comes again and again", || alertmanager.notifications().len() > 3);
    assert_eq!(alertmanager.lines(), ["dead-mans-switch: prometheus, 1 BatchWatchdog"]);
}

#[test]
fn commands_of_the_page_reach_the_pager_and_silence_it() {
    if !servers::installed(ALERTMANAGER) || !servers::installed(AMTOOL) {
        return;
    }
    let page = files::text("README.md");
    let commands: Vec<_> = page.lines().filter(|line| line.starts_with("amtool --alertmanager.url")).collect();
    let [alert, silence] = commands[..] else { panic!("{commands:?}") };
    let alertmanager = Alertmanager::start(&config());
    let run = |command: &str| {
        let command = replaced(command, &[("localhost:9093", &alertmanager.addr().to_string())]);
        let (command, _comment) = command.split_once(" #").unwrap_or((&command, ""));
        let sent = Command::new(AMTOOL).args(command.split_whitespace().skip(1)).output().unwrap();
        assert!(sent.status.success(), "{command}: {sent:?}");
    };
    run(alert);
    await_true("a page", || !alertmanager.notifications().is_empty());
    assert_eq!(alertmanager.lines(), ["pager: try, 1 BatchRunFailed"]);
    // What is silenced is not sent again.
    run(silence);
    alertmanager.post([Alert::new("BatchNoSuccess", "try")]);
    alertmanager.await_flushes("silenced");
    assert_eq!(alertmanager.lines(), ["pager: try, 1 BatchRunFailed"]);
}

/// Replaces one occurrence of a text, the first of which has the number 0.
#[track_caller]
fn replaced_at(text: &str, occurrence: usize, from: &str, to: &str) -> String {
    let (at, _) = text.match_indices(from).nth(occurrence).unwrap_or_else(|| panic!("{from:?} is in\n{text}"));
    format!("{}{to}{}", &text[..at], &text[at + from.len()..])
}

/// Each change lets alerts through, holds back too many, or sends them elsewhere.
#[test]
fn each_change_of_the_configuration_changes_notifications() {
    if !servers::installed(ALERTMANAGER) {
        return;
    }
    const NO_SOURCE: &str = "source_matchers: ['alertname=\"Nothing\"', ";
    let of_gateway = [
        (0, "source_matchers: [", NO_SOURCE),
        (0, "alertname=~\"Batch.+\"", "alertname=~\"(Batch|Node).+\""),
        (0, "BatchGatewayDown|BatchWatchdog", "BatchGatewayDown"),
    ];
    let of_runs = [
        (0, "group_by: [job]", "group_by: [alertname]"),
        (0, "group_by: [job]", "group_by: [job, instance]"),
        (0, "group_by: [job]", "group_by: []"),
        (0, "severity=\"warning\"", "severity=\"nothing\""),
        (0, "alertname=\"BatchWatchdog\"", "alertname=\"Nothing\""),
        (1, "source_matchers: [", NO_SOURCE),
        (2, "source_matchers: [", NO_SOURCE),
        (3, "source_matchers: [", NO_SOURCE),
        (4, "source_matchers: [", NO_SOURCE),
        (5, "source_matchers: [", NO_SOURCE),
        (0, "BatchRunFailed|", ""),
        (0, "BatchRunNeverEnded|", ""),
        (0, "BatchRunTooLong|", ""),
        (0, "|BatchNoSuccess", ""),
        (0, "BatchNoSuccess|BatchStage.+", "BatchStage.+"),
        (0, "BatchNoSuccess|BatchStage.+", "BatchNoSuccess"),
        (1, "BatchStage.+", "Batch.+"),
        (2, "BatchStage.+", "Batch.+"),
        (0, "equal: [job, profile, instance]", "equal: [job, profile]"),
        (0, "equal: [job, profile, instance]", "equal: [job, instance]"),
        (0, "equal: [job, profile, instance]", "equal: [profile, instance]"),
        (0, "equal: [job, profile]", "equal: [job]"),
        (0, "[*cause, 'profile=\"\"']", "[*cause]"),
        (0, "equal: [job, instance]", "equal: [job]"),
        (1, "equal: [job, instance]", "equal: [job]"),
        (1, "[*cause, 'profile=\"\"']", "[*cause]"),
        (0, "|BatchStage.+\"', 'instance=\"\"'", "|BatchStage.+\"'"),
        (0, "BatchJobMissing|BatchStage.+", "BatchNoSuccess|BatchJobMissing|BatchStage.+"),
        (0, "BatchJobMissing|BatchStage.+", "BatchStage.+"),
        (0, "BatchJobMissing|BatchStage.+", "BatchJobMissing"),
        (0, "[*stage, 'instance=\"\"']", "[*stage]"),
        (0, "[*stage, 'profile=\"\"']", "[*stage]"),
    ];
    for (changes, cases) in [(&of_gateway[..], gateway_cases()), (&of_runs[..], cases())] {
        let unseen = |(occurrence, from, to): &(usize, &str, &str)| {
            let changed = replaced_at(&config(), *occurrence, from, to);
            (after(&changed, &cases).lines() == expected(&cases)).then(|| format!("{occurrence} {from} -> {to}"))
        };
        // Some at a time: they wait more than they compute.
        for changes in changes.chunks(9) {
            let unseen: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = changes.iter().map(|change| scope.spawn(|| unseen(change))).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(unseen, Vec::<String>::new());
        }
    }
}

/// Replaces the duration after each occurrence of a key.
fn with_duration(text: &str, key: &str, duration: &str) -> String {
    let mut parts = text.split(key);
    let mut replaced = parts.next().unwrap().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || "smhd".contains(c));
        let is_duration = part.starts_with(|c: char| c.is_ascii_digit());
        replaced.extend(if is_duration { [key, duration, rest] } else { [key, "", part] });
    }
    replaced
}

/// The rules and `prometheus.yml`, with short times and other addresses.
#[test]
fn failed_run_is_one_page() {
    let Some(gateway) = pushgateway() else { return };
    if !servers::installed(PROMETHEUS) || !servers::installed(ALERTMANAGER) {
        return;
    }
    let alertmanager = Alertmanager::start(&config());
    let directory = tempfile::tempdir().unwrap();
    for name in files::with_suffix(".rules.yml") {
        let mut rules = files::text(&name);
        for key in [" for: ", "keep_firing_for: ", " interval: "] {
            rules = with_duration(&rules, key, "300ms");
        }
        // The ten minutes for a retry.
        std::fs::write(directory.path().join(name), rules.replace(" 600", " 1")).unwrap();
    }
    let config = replaced(
        &files::text("prometheus.yml"),
        &[
            ("15s", "300ms"),
            ("30s", "300ms"),
            ("[quant.rules.yml, periods.rules.yml]", &format!("[\"{}/*.rules.yml\"]", directory.path().display())),
            ("localhost:9093", &alertmanager.addr().to_string()),
            ("localhost:9091", &gateway.addr().to_string()),
            ("localhost:9464", "localhost:1"),
        ],
    );
    // Debian's Prometheus, 2.42, does not know the setting.
    let is_known = |line: &&str| servers::is_prometheus_3() || !line.contains("scrape_protocols");
    let config = config.lines().filter(is_known).collect::<Vec<_>>().join("\n");
    // Prometheus discovers the Alertmanager after the first alerts, and sends alerts again after a minute otherwise.
    let prometheus = Prometheus::start_with(&config, &["--rules.alert.resend-delay=1s"]);
    let fixture = Fixture { gateway, prometheus, directory, variables: &[] };

    let firing = |alert: &str| format!("ALERTS{{alertname{alert}, alertstate=\"firing\"}}");
    fixture.run("good", &[], 0.0);
    // Until the first scrape there is no gateway.
    fixture
        .prometheus
        .await_query(&format!("{} or vector(0)", firing("!=\"BatchWatchdog\"")), |series| series.len() == 1);
    alertmanager.await_flushes("good");
    let before = alertmanager.notifications().len();
    let of_the_run = || {
        let lines = alertmanager.lines_after(before);
        lines.into_iter().filter(|line| !line.contains("BatchWatchdog")).collect::<Vec<_>>()
    };

    fixture.run("failed", &["--fail", "alpha.policy"], 2.0);
    for alert in ["BatchRunFailed", "BatchStageFailed"] {
        fixture.prometheus.await_query(&firing(&format!("=\"{alert}\"")), |series| series.len() == 1);
    }
    await_true("a page", || !of_the_run().is_empty());
    alertmanager.await_flushes("failed");
    let page = "pager: quant_pipeline, 1 BatchRunFailed";
    assert_eq!(of_the_run(), [page]);

    fixture.run("mended", &[], 0.0);
    await_true("the end of the page", || of_the_run().len() > 1);
    alertmanager.await_flushes("mended");
    let has_watchdog = files::text("quant.rules.yml").contains("alert: BatchWatchdog");
    assert_eq!(alertmanager.lines().iter().any(|line| line.starts_with("dead-mans-switch")), has_watchdog);
    let pages: Vec<_> = of_the_run().into_iter().filter(|line| line.starts_with("pager")).collect();
    assert_eq!(pages, [page, "pager: quant_pipeline, resolved"]);
}
