//! The command line, and its help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::DEFAULT_NAMESPACE;
use crate::config::{DEFAULT_ENV_PREFIX, Variable, documented_variables, parse_duration};

/// Describes the exit codes of a command. `failures` are the reasons of the code 1.
fn exit_codes(failures: &str) -> String {
    format!("EXIT CODES\n  0  done\n  1  {failures}\n  2  the command line is wrong, or a variable is missing or wrong")
}

/// The failures of a command that reads the gateway.
const NO_GATEWAY: &str = "no Pushgateway answers at the address";

/// Describes the examples and the exit codes of a command that deletes groups.
fn group_help(failure: &str) -> String {
    format!("{GROUP_EXAMPLES}\n\n{}", exit_codes(&format!("{NO_GATEWAY}, or {failure}")))
}

const EXAMPLES: &str = "\
EXAMPLES
  stage-metrics check                                 before the first run, or in an init container
  stage-metrics groups list --all                     what is on the gateway
  stage-metrics groups prune --older-than 2d --label instance --all
                                                      the groups of workers that ended days ago
  stage-metrics spool list                            what an outage of the gateway left
  stage-metrics rules --namespace acme --history 60d > acme.rules.yml";

const GROUP_EXAMPLES: &str = "\
EXAMPLES
  stage-metrics groups prune --older-than 2d --dry-run
  stage-metrics groups prune --older-than 12h --label instance --all
  stage-metrics groups delete profile=crypto_production
  stage-metrics groups delete job=old_job instance=worker-7:4711";

/// Looks after jobs that use tracing-stage-metrics: their settings, their groups on a Pushgateway, and the metrics that
/// wait to be delivered.
///
/// Jobs and this program read the same environment variables, so run it where the job runs: in the same container, or
/// with the same EnvironmentFile. The program has the features of the library that it was built with; a variable that
/// needs another one is an error that names the feature.
#[derive(Parser)]
#[command(name = "stage-metrics", version, max_term_width = 100, subcommand_required = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

const CHECK_EXAMPLES: &str = "\
EXAMPLES
  stage-metrics check
  stage-metrics check --json | jq -e .ok
  systemd-run --pipe --property=EnvironmentFile=/etc/quant.env stage-metrics check";

const SPOOL_EXAMPLES: &str = "\
EXAMPLES
  stage-metrics spool list
  stage-metrics spool replay
  stage-metrics spool drop 01764194109000000000-00c0ffee-17-0123456789abcdef.refused";

#[derive(Subcommand)]
pub(super) enum Command {
    /// Checks the settings in the environment, and tries the gateway, the text file and the spool.
    ///
    /// It prints each variable with its value or, where it is not set, with its default. Credentials are not printed. It
    /// finds the error that `with_env()` or `install()` would return in the job, and prints the warnings that the job
    /// would log at its start. It warns of a variable that is misspelt, and of a text file that node_exporter does not
    /// read. A port to listen on must be free, so it fails while the job serves there.
    ///
    /// To try the gateway it pushes one gauge to a group of its own, `job=stage_metrics_check` with the label
    /// `instance`, as the job would push: with the same credentials, certificates and format. It reads that the group
    /// is there, deletes it, and waits until it is gone. VictoriaMetrics, which has no groups, gets an empty push. The
    /// spool directory is created if it does not exist; nothing is left in it or beside the text file.
    #[command(after_long_help = format!(
        "VARIABLES\n{}\n{CHECK_EXAMPLES}\n\nEXIT CODES\n  0  all is well; there may be warnings\n  1  something is wrong, \
         a variable included\n  2  the command line is wrong",
        variables()
    ))]
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// Lists and deletes the groups on the gateway.
    ///
    /// A Pushgateway keeps a group, the job and its grouping labels, until somebody deletes it. The gateway is that of
    /// the environment, the groups are those of its job, and with --all those of every job.
    #[command(after_long_help = format!("{GROUP_EXAMPLES}\n\n{}", exit_codes("see the commands")))]
    Groups {
        #[command(subcommand)]
        command: GroupsCommand,
    },
    /// Lists, delivers and drops the payloads that wait in the spool directory.
    ///
    /// A job that cannot deliver its last state leaves it in the spool, for a later run to deliver. Where no later run
    /// comes soon, `replay` does it.
    #[command(after_long_help = format!("{SPOOL_EXAMPLES}\n\n{}", exit_codes("see the commands")))]
    Spool {
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// Prints alert rules for Prometheus.
    ///
    /// They are written for jobs that push to a Pushgateway. `periods.rules.yml`, in examples/monitoring of the
    /// repository, lists how often each job should succeed.
    #[command(after_long_help = "EXAMPLES\n  stage-metrics rules --namespace acme --history 60d > acme.rules.yml")]
    Rules {
        /// Prefix of the names of the metrics.
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
        /// How long the rules remember a job whose group is deleted, a stage that no run has, and the longest run: at most
        /// what Prometheus keeps (15d unless it is configured). A number and h, d, w or y.
        #[arg(long, default_value = "15d", value_name = "DURATION")]
        history: String,
        /// Where Grafana has the dashboard, without a query: alerts link to it with its variables filled. The default is
        /// http://localhost:3000/d/batch-jobs, and http://localhost:3000/d/batch-jobs-acme for the namespace acme.
        #[arg(long, value_name = "URL")]
        dashboard_url: Option<String>,
    },
    /// Prints a dashboard for Grafana.
    ///
    /// Import it in Grafana, or put it where Grafana's provisioning finds it. It needs Prometheus 2.40. Its uid and its
    /// title are those of the namespace, so that Grafana has a dashboard of each. The links of the alerts that `rules`
    /// prints open it.
    #[command(after_long_help = "EXAMPLES\n  stage-metrics dashboard --namespace acme > acme.json")]
    Dashboard {
        /// Prefix of the names of the metrics.
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
}

#[derive(Args)]
pub(super) struct Common {
    /// Prints one JSON document to standard output, errors included, and nothing to standard error.
    #[arg(long)]
    json: bool,
    /// Prefix of the variables, as of the method `with_env_prefix`.
    #[arg(long, value_name = "PREFIX", default_value = DEFAULT_ENV_PREFIX)]
    pub(super) env_prefix: String,
}

#[derive(Args)]
pub(super) struct Selection {
    /// The groups of every job, not only those of the job in the environment.
    #[arg(long)]
    pub(super) all: bool,
    /// Only groups that have a grouping label of this name, such as `instance`.
    #[arg(long, value_name = "NAME")]
    pub(super) label: Option<String>,
}

#[derive(Subcommand)]
pub(super) enum GroupsCommand {
    /// Lists the groups and the time since their last push, by the gateway's clock.
    ///
    /// A group is printed as `groups delete` takes it.
    #[command(after_long_help = exit_codes(NO_GATEWAY))]
    List {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        common: Common,
    },
    /// Deletes groups that were not pushed to for some time.
    ///
    /// The time since the last push is that of the gateway's clock; a push that the gateway refused counts too. Groups
    /// are read again while the deletion goes on, every two seconds, and one that was pushed to since stays. A gateway
    /// has no deletion on a condition: a push within those two seconds may be deleted, and the next push of the job
    /// brings the group back. The program ends when the gateway shows none of the groups any more.
    #[command(after_long_help = group_help("a group could not be deleted"))]
    Prune {
        /// Time since the last push: a number and s, m, h or d.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        older_than: Duration,
        /// Prints what would be deleted, and deletes nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        common: Common,
    },
    /// Deletes one group, whatever its age.
    ///
    /// The labels are all of the group's grouping labels. Its job is that of the environment unless `job` is one of
    /// them.
    #[command(after_long_help = group_help("the group is not there or could not be deleted"))]
    Delete {
        /// The grouping labels of the group.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        common: Common,
    },
}

impl GroupsCommand {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::List { common, .. } | Self::Prune { common, .. } | Self::Delete { common, .. } => common,
        }
    }
}

#[derive(Subcommand)]
pub(super) enum SpoolCommand {
    /// Lists the files of the spool, oldest first.
    ///
    /// `waiting` is delivered by the next run or by `replay`, also while a job works with it. `refused` was refused by
    /// the gateway, and `damaged` is incomplete: nobody delivers them, and they are dropped when the spool is full.
    /// `being written` belongs to a job that ends right now, or to one that was killed then. A directory that is not there
    /// or cannot be read is a wrong variable.
    #[command(after_long_help = exit_codes("the files cannot be listed"))]
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Delivers the waiting payloads to the gateway of the environment, oldest first.
    ///
    /// It does what a run of a job does with the payloads of earlier runs: each goes to its own group, unless the
    /// gateway has a newer state of it; payloads for other gateways stay, and so do those that a running job works
    /// with. A payload that the gateway refuses is renamed to *.refused. For payloads that wait for another gateway, set the
    /// variable of the gateway to its address.
    #[command(after_long_help = exit_codes(
        "a payload was refused or could not be delivered; one that waits for another gateway, or that a job works with, is no failure"
    ))]
    Replay {
        #[command(flatten)]
        common: Common,
    },
    /// Deletes files of the spool, whatever they wait for.
    ///
    /// Only files that the library has made are deleted, only in the spool directory, and none that a job works with.
    #[command(after_long_help = exit_codes("a file is not there, or a job works with it") + "; then nothing is deleted")]
    Drop {
        /// Names as `spool list` prints them, or paths.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

impl SpoolCommand {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::List { common } | Self::Replay { common } | Self::Drop { common, .. } => common,
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let label = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    label.ok_or_else(|| "it has no `=`: write it as NAME=VALUE".to_owned())
}

impl Arguments {
    /// Parses a command line.
    pub(super) fn parse(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let codes = exit_codes("something is wrong, or could not be done; `check` counts a wrong variable here");
        let help = format!("VARIABLES\n{}\n{EXAMPLES}\n\n{codes}", variables());
        let matches = Self::command().after_long_help(help).try_get_matches_from(arguments)?;
        Self::from_arg_matches(&matches)
    }
}

/// Describes the variables as the documentation does.
fn variables() -> String {
    let variable =
        |variable: Variable| format!("  {}\n      {} [{}]\n", variable.name, variable.description, variable.default);
    let variables: String = documented_variables().into_iter().map(variable).collect();
    variables + "\nThe pages `guide::…` are at https://docs.rs/tracing-stage-metrics.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_valid() {
        Arguments::command().debug_assert();
    }
}
