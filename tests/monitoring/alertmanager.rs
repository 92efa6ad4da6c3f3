//! A real Alertmanager with `alertmanager.yml`, alerts as Prometheus sends them, and the notifications that arrive.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};

use super::support::process::Process;
use super::support::servers::ALERTMANAGER;
use super::support::{MockGateway, await_true, http};
use super::{dashboard, files};

/// The times of `alertmanager.yml`, and those of the tests.
const TIMES: [(&str, &str); 6] = [
    ("group_wait: 1m", "group_wait: 1s"),
    ("group_interval: 5m", "group_interval: 1s"),
    ("group_wait: 15m", "group_wait: 3s"),
    ("group_interval: 1h", "group_interval: 1s"),
    ("group_interval: 1m", "group_interval: 300ms"),
    ("repeat_interval: 50s", "repeat_interval: 200ms"),
];
/// The receiver that gets the same notification again and again.
const WATCHDOG: &str = "dead-mans-switch";
/// The name of alerts that only show that others have been dealt with.
const SENTINEL: &str = "Sentinel";

/// Replaces all of these texts, each of which is there.
#[track_caller]
pub(crate) fn replaced(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is in\n{text}");
        text.replace(from, to)
    })
}

/// An Alertmanager with the arguments of `compose.yml`, and the receiver of its notifications.
pub(crate) struct Alertmanager {
    process: Process,
    receiver: MockGateway,
    _dir: tempfile::TempDir,
}

impl Alertmanager {
    /// Starts an Alertmanager with this text of `alertmanager.yml`, except for its times and the URLs of its receivers.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        let receiver = MockGateway::ok();
        let url = format!("{}/", receiver.url());
        let config =
            replaced(&replaced(config, &TIMES), &[("http://fill-in-the-url-of-your-", &url), (".invalid", "")]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alertmanager.yml");
        std::fs::write(&file, config).unwrap();
        let args = replaced(
            &arguments(),
            &[
                ("=/etc/alertmanager/alertmanager.yml", &format!("={}", file.display())),
                ("=/alertmanager", &format!("={}", dir.path().display())),
            ],
        );
        let process = Process::start(ALERTMANAGER, "/-/ready", move |addr| {
            let mut command = Command::new(ALERTMANAGER);
            command.args(replaced(&args, &[("127.0.0.1:9093", &addr.to_string())]).lines());
            command
        });
        Self { process, receiver, _dir: dir }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.process.addr()
    }

    /// Sends alerts as Prometheus does.
    #[track_caller]
    pub(crate) fn post(&self, alerts: impl IntoIterator<Item = Alert>) {
        let body = alerts.into_iter().map(|alert| alert.to_json()).collect::<Value>().to_string();
        let headers = [("Content-Type", "application/json")];
        let answer = http::request(self.addr(), "POST", "/api/v2/alerts", &headers, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?} to {body}");
    }

    /// The notifications so far.
    #[track_caller]
    pub(crate) fn notifications(&self) -> Vec<Notification> {
        self.receiver.requests().iter().map(|request| Notification::read(&request.path, request.text())).collect()
    }

    /// One line for each notification so far, sorted. All those to the watchdog are one.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines_after(0)
    }

    /// The lines without those of this number of first notifications.
    #[track_caller]
    pub(crate) fn lines_after(&self, count: usize) -> Vec<String> {
        let notifications = self.notifications().into_iter().skip(count);
        let is_of_sentinel = |it: &Notification| it.alerts.iter().any(|alert| alert.name == SENTINEL);
        let mut lines: Vec<_> = notifications.filter(|it| !is_of_sentinel(it)).map(|it| it.line()).collect();
        lines.sort();
        lines.dedup_by(|a, b| a == b && a.starts_with(WATCHDOG));
        lines
    }

    /// Waits until Alertmanager has twice dealt with each group of alerts that it has: it notifies of two alerts that begin
    /// now, a critical one and a warning, and then of their end.
    #[track_caller]
    pub(crate) fn await_flushes(&self, job: &str) {
        let alerts =
            ["critical", "warning"].map(|severity| Alert::new(&format!("{SENTINEL} severity={severity}"), job));
        for (status, alerts) in [("firing", alerts.clone()), ("resolved", alerts.map(Alert::resolved))] {
            self.post(alerts);
            await_true(&format!("{job} is {status} at both receivers"), || {
                let notifications = self.notifications();
                notifications.iter().map(|notification| notification.count(SENTINEL, job, status)).sum::<usize>() >= 2
            });
        }
    }
}

/// The arguments of the service in `compose.yml`, one a line, without the delay of the start.
fn arguments() -> String {
    let services = files::yaml("compose.yml");
    let arguments = dashboard::list(&services["services"]["alertmanager"]["command"]);
    let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
    let arguments: Vec<_> = arguments.map(|argument| argument.replace("start-delay=2m", "start-delay=0s")).collect();
    let help = Command::new(ALERTMANAGER).arg("--help").output().unwrap();
    let knows_delay = String::from_utf8([help.stdout, help.stderr].concat()).unwrap().contains("dispatch.start-delay");
    // Debian's Alertmanager, 0.25, does not have it.
    arguments
        .into_iter()
        .filter(|argument| knows_delay || !argument.contains("start-delay"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[derive(Clone)]
pub(crate) struct Alert {
    labels: BTreeMap<String, String>,
    resolved: bool,
}

impl Alert {
    /// An alert of a job, from its name and further labels, as in `BatchStageSlow profile=crypto`.
    #[track_caller]
    pub(crate) fn new(text: &str, job: &str) -> Self {
        let (name, further) = text.split_once(' ').unwrap_or((text, ""));
        let severity = match name {
            "BatchWatchdog" => "none",
            "BatchGatewayDown" | "BatchJobMissing" | "BatchNoSuccess" | "BatchRunFailed" | "BatchRunNeverEnded"
            | "BatchRunTooLong" => "critical",
            _ => "warning",
        };
        let labels = [("alertname", name), ("job", job), ("severity", severity)].into_iter();
        let further = further.split_whitespace().map(|label| label.split_once('=').unwrap());
        let labels = labels.chain(further).map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { labels: labels.collect(), resolved: false }
    }

    pub(crate) fn resolved(self) -> Self {
        Self { resolved: true, ..self }
    }

    pub(crate) fn is_critical(&self) -> bool {
        self.labels["severity"] == "critical"
    }

    fn to_json(&self) -> Value {
        let now = jiff::Timestamp::now().to_string();
        let mut alert = json!({
            "labels": self.labels,
            "annotations": {"summary": format!("{}: {}", self.labels["job"], self.labels["alertname"])},
            "startsAt": now,
            "generatorURL": "http://localhost:9090/graph?g0.expr=up",
        });
        if self.resolved {
            alert["endsAt"] = now.into();
        }
        alert
    }
}

/// One POST to a receiver.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) receiver: String,
    status: String,
    alerts: Vec<NotifiedAlert>,
}

#[derive(Debug)]
struct NotifiedAlert {
    name: String,
    job: String,
    status: String,
}

impl Notification {
    #[track_caller]
    fn read(path: &str, body: &str) -> Self {
        let body: Value = serde_json::from_str(body).unwrap();
        let alerts = dashboard::list(&body["alerts"]).iter().map(|alert| NotifiedAlert {
            name: dashboard::text(&alert["labels"], "alertname").to_owned(),
            job: dashboard::text(&alert["labels"], "job").to_owned(),
            status: dashboard::text(alert, "status").to_owned(),
        });
        Self {
            receiver: path.trim_start_matches('/').to_owned(),
            status: dashboard::text(&body, "status").to_owned(),
            alerts: alerts.collect(),
        }
    }

    /// The number of its alerts with this name, job and status.
    pub(crate) fn count(&self, name: &str, job: &str, status: &str) -> usize {
        self.alerts.iter().filter(|alert| alert.name == name && alert.job == job && alert.status == status).count()
    }

    /// The jobs with the number of each alert, such as `pager: fleet, 30 BatchRunFailed`. Of alerts that have ended it has the
    /// jobs alone.
    fn line(&self) -> String {
        let mut jobs: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for alert in self.alerts.iter().filter(|alert| alert.status == self.status) {
            *jobs.entry(&alert.job).or_default().entry(&alert.name).or_default() += 1;
        }
        let mut line = format!("{}:", self.receiver);
        for (job, alerts) in jobs {
            line.push_str(&format!(" {job}"));
            match self.status.as_str() {
                "firing" => alerts.iter().for_each(|(name, count)| line.push_str(&format!(", {count} {name}"))),
                status => line.push_str(&format!(", {status}")),
            }
        }
        line
    }
}
