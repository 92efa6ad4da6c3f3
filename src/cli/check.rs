//! The command `check`: the settings of the environment, and whether they work.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use indicatif::ProgressDrawTarget;
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::arguments::Common;
use super::groups::{Outcome, delete};
use super::report::{Report, count};
use super::runtime;
use crate::config::{Destinations, Variable, variable_name, variables};
use crate::delivery::{DeliveryEvent, Grouping, Pushgateway, Spool, Textfile};
use crate::error::{Error, Kind};
use crate::schema::OWN_TARGET;
use crate::{MetricsLayer, MetricsLayerBuilder, process};

/// Job of the group that is pushed and deleted again.
const PROBE_JOB: &str = "stage_metrics_check";
const PROBE: &str = "# TYPE stage_metrics_check gauge\nstage_metrics_check 1\n";
/// How long the warnings of `install()` may take to arrive from their thread.
const WARNING_TIME: Duration = Duration::from_secs(5);

pub(super) fn run(common: &Common) -> Result<Report, Error> {
    let prefix = &common.env_prefix;
    let mut checks = Vec::new();
    match MetricsLayer::builder().with_env_prefix(prefix) {
        Ok(mut builder) => {
            let destinations = builder.destinations();
            // The causes that a destination reports itself are not told twice.
            let tried = try_destinations(&destinations, prefix)?;
            let installed = install(builder);
            let is_told = |check: &Check| tried.iter().any(|other| other.text == check.text);
            let is_kept = |check: &Check| !is_told(check) && (destinations.has_any || check.severity != Severity::Ok);
            checks.extend(installed.into_iter().filter(is_kept));
            checks.extend(tried);
        }
        Err(error) => checks.push(Check::error("settings", &error)),
    }
    Ok(report(variables(prefix), &checks))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Ok,
    Warning,
    Error,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The result of a check of one subject.
struct Check {
    subject: &'static str,
    severity: Severity,
    text: String,
}

impl Check {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, severity: Severity::Ok, text: text.into() }
    }

    fn warning(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, severity: Severity::Warning, text: text.into() }
    }

    fn error(subject: &'static str, error: &Error) -> Self {
        Self { subject, severity: Severity::Error, text: format!("{error:?}") }
    }
}

/// Does what `install()` does before its first push, and collects its warnings.
fn install(builder: MetricsLayerBuilder) -> Vec<Check> {
    let (warnings, received) = channel();
    let subscriber = Dispatch::new(tracing_subscriber::registry().with(Warnings(warnings)));
    let checked = tracing::dispatcher::with_default(&subscriber, || builder.check_install());
    // The events that wait hold the subscriber, and so the sender.
    drop(subscriber);
    let mut checks: Vec<_> = until_closed(&received).map(|text| Check::warning("settings", text)).collect();
    checks.push(match checked {
        Ok(()) => Check::ok("settings", "valid"),
        Err(error) => Check::error("settings", &error),
    });
    checks
}

fn until_closed(received: &Receiver<String>) -> impl Iterator<Item = String> {
    std::iter::from_fn(|| received.recv_timeout(WARNING_TIME).ok())
}

/// Sends the texts of this crate's warnings.
struct Warnings(Sender<String>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == OWN_TARGET && *event.metadata().level() <= Level::WARN {
            let mut message = Message(String::new());
            event.record(&mut message);
            // The receiver stops waiting after a while.
            let _ = self.0.send(message.0);
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

fn try_destinations(destinations: &Destinations, prefix: &str) -> Result<Vec<Check>, Error> {
    let mut checks = Vec::new();
    if !destinations.has_any {
        let text = format!(
            "the variables name no destination, so metrics go nowhere: set {}",
            variable_name(prefix, "PUSHGATEWAY")
        );
        checks.push(Check::error("settings", &Error::config(text)));
    }
    if let Some(path) = &destinations.textfile {
        checks.push(match Textfile::open(path) {
            Ok(_) => Check::ok("text file", format!("{path:?} can be written")),
            Err(error) => Check::error("text file", &error),
        });
    }
    if let Some(directory) = &destinations.spool_directory {
        checks.extend(match Spool::open(directory.clone(), &destinations.namespace) {
            Ok(spool) => check_spool(&spool, destinations.gateway.is_some())?,
            Err(error) => vec![Check::error("spool", &error)],
        });
    }
    if let Some(gateway) = &destinations.gateway {
        checks.push(match gateway.check() {
            Ok(()) => runtime()?.block_on(probe(gateway)),
            Err(error) => Check::error("gateway", &error),
        });
    }
    Ok(checks)
}

/// Checks a spool that was opened, with which its file system's features were tried.
fn check_spool(spool: &Spool, has_gateway: bool) -> Result<Vec<Check>, Error> {
    let directory = spool.directory();
    let waiting = spool.files()?.len();
    let holds = if waiting == 0 { "is empty".to_owned() } else { format!("holds {}", count(waiting, "file")) };
    let mut checks = vec![Check::ok("spool", format!("{directory:?} can be written, and {holds}"))];
    for notice in spool.take_notices() {
        if let DeliveryEvent::SpoolDegraded(error) = notice {
            checks.push(Check::warning("spool", format!("{error:?}")));
        }
    }
    if !has_gateway {
        checks.push(Check::warning("spool", "it has no effect, since no gateway is set"));
    }
    Ok(checks)
}

/// Pushes a group of its own, reads that it is there, deletes it, and waits until it is gone.
async fn probe(gateway: &Pushgateway) -> Check {
    match try_probe(gateway).await {
        Ok(check) => check,
        Err(error) => Check::error("gateway", &error),
    }
}

async fn try_probe(gateway: &Pushgateway) -> Result<Check, Error> {
    let endpoint = gateway.endpoint();
    if gateway.stores_samples() {
        gateway.push_in_format("").await?;
        return Ok(Check::ok(
            "gateway",
            format!("{endpoint} accepts pushes; it is VictoriaMetrics, which has no groups"),
        ));
    }
    let refused = match gateway.groups().await {
        Ok(_) => None,
        // A proxy may let only pushes through.
        Err(error) if error.is_refused() => Some(error),
        Err(error) => return Err(error),
    };
    let mut grouping = Grouping::new(PROBE_JOB)?;
    grouping.add("instance", process::instance())?;
    let probe = gateway.for_group(grouping);
    let tried = push_probe(gateway, &probe, refused).await;
    if tried.is_err() {
        // A gateway keeps the group of a push that it refused. The first error says why.
        let _ = probe.delete().await;
    }
    tried
}

/// Pushes the probe and deletes it. `refused` is the error of a gateway that does not show its metrics.
async fn push_probe(gateway: &Pushgateway, probe: &Pushgateway, refused: Option<Error>) -> Result<Check, Error> {
    let (endpoint, path) = (gateway.endpoint(), probe.grouping().path());
    if let Err(error) = probe.push_in_format(PROBE).await {
        // The first refusal says more of a server that is no gateway.
        return Err(refused.unwrap_or(error));
    }
    if let Some(refused) = refused {
        probe.delete().await?;
        let text = format!(
            "{endpoint} accepts pushes and deletions, but does not show its metrics, so that nobody sees whether the \
             probe {path} is gone, and the spool cannot compare states: {refused:?}"
        );
        return Ok(Check::warning("gateway", text));
    }
    let pushed = gateway.groups().await?.into_iter().find(|group| group.grouping.path() == path);
    let Some(pushed) = pushed.filter(|group| group.last_push.is_some()) else {
        let text = format!("{endpoint} accepted a push and does not show it, at {path}");
        return Err(Error::new(Kind::Delivery, text));
    };
    match delete(gateway, vec![pushed], ProgressDrawTarget::hidden()).await.pop() {
        Some((_, Outcome::Failed(error))) => {
            Err(Error::new(Kind::Delivery, format!("{endpoint}, the probe {path}: {error}")))
        }
        _ => Ok(Check::ok("gateway", format!("{endpoint} accepted a push, showed it, and deleted it"))),
    }
}

fn report(variables: Vec<(Variable, Option<String>)>, checks: &[Check]) -> Report {
    let mut text = String::from("VARIABLES\n");
    for (variable, value) in &variables {
        let line = match value {
            Some(value) => format!("  {} = {value}\n", variable.name),
            None => format!("  {} is not set: {}\n", variable.name, variable.default),
        };
        text.push_str(&line);
    }
    text.push_str("\nCHECKS\n");
    for Check { subject, severity, text: result } in checks {
        text.push_str(&format!("  {:7}  {subject}: {result}\n", severity.name()));
    }
    let number = |severity| checks.iter().filter(|check| check.severity == severity).count();
    let (errors, warnings) = (number(Severity::Error), number(Severity::Warning));
    text.push_str(&match (errors, warnings) {
        (0, 0) => "\nall is well\n".to_owned(),
        (0, warnings) => format!("\nall is well, with {}\n", count(warnings, "warning")),
        (errors, warnings) => format!("\n{}, {}\n", count(errors, "error"), count(warnings, "warning")),
    });
    let variables: Vec<Value> = variables
        .iter()
        .map(|(variable, value)| {
            let source = if value.is_some() { "variable" } else { "default" };
            json!({ "name": variable.name, "value": value, "default": variable.default, "source": source })
        })
        .collect();
    let objects: Vec<Value> = checks
        .iter()
        .map(|check| json!({ "subject": check.subject, "result": check.severity.name(), "text": check.text }))
        .collect();
    let is_ok = errors == 0;
    Report { text, json: json!({ "ok": is_ok, "variables": variables, "checks": objects }), is_ok }
}
