//! The program `stage-metrics`, as a process, against real servers.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "cli/check.rs"]
mod check;
#[path = "spool/directory.rs"]
#[allow(dead_code)] // for `tests/spool.rs`
mod directory;
#[path = "cli/groups.rs"]
mod groups;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/other_servers.rs"]
mod other_servers;
#[path = "cli/spool.rs"]
mod spool;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::child::{self, Ended};
use support::process::Process;
use support::{example, servers};
use tracing_stage_metrics::Pushgateway;

/// A command that runs the program, without the settings of whoever runs the tests.
fn stage_metrics(arguments: &[&str]) -> Command {
    let mut command = example::isolated(env!("CARGO_BIN_EXE_stage-metrics"));
    command.args(arguments);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program with variables, whose names lack the prefix.
#[track_caller]
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = stage_metrics(arguments);
    command.envs(variables.iter().map(|(name, value)| (format!("TV_PROMETHEUS_{name}"), value)));
    child::start(command).wait()
}

/// Runs the program with `--json`, and returns the exit code and the document.
#[track_caller]
fn run_json(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Value) {
    let ended = run(&[arguments, &["--json"]].concat(), variables);
    assert_eq!(ended.stderr, "", "{ended:?}");
    (ended.status.code().unwrap(), serde_json::from_str(&ended.stdout).unwrap())
}

/// Runs the program, which must end with this code and print nothing to standard error. Returns its output.
#[track_caller]
fn output(code: i32, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let ended = run(arguments, variables);
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(code), ""), "{ended:?}");
    ended.stdout
}

/// Runs the program, which must end with this code and print nothing to standard output. Returns its error.
#[track_caller]
fn error(code: i32, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let ended = run(arguments, variables);
    assert_eq!((ended.status.code(), &*ended.stdout), (Some(code), ""), "{ended:?}");
    ended.stderr
}

/// Pushes a gauge to a group of a gateway.
#[track_caller]
fn push(url: &str, job: &str, labels: &[(&str, &str)]) {
    let mut gateway = Pushgateway::new(url, job).unwrap();
    for (name, value) in labels {
        gateway = gateway.with_grouping_label(*name, *value).unwrap();
    }
    block_on(gateway.push_add("# TYPE a gauge\na 1\n")).unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The groups of a gateway as arguments of `groups delete`, sorted.
#[track_caller]
fn groups(url: &str) -> Vec<String> {
    let (code, listed) = run_json(&["groups", "list", "--all"], &[("PUSHGATEWAY", url)]);
    assert_eq!(code, 0, "{listed}");
    let group = |group: &Value| {
        let labels = group["labels"].as_object().unwrap().iter();
        labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect::<Vec<_>>().join(" ")
    };
    let mut groups: Vec<_> = listed["groups"].as_array().unwrap().iter().map(group).collect();
    groups.sort();
    groups
}

/// A Pushgateway below a path, whose user is `pusher` with the password `p%/word`, and its URL with these credentials.
#[track_caller]
fn gateway_with_password(directory: &Path) -> (Process, String) {
    let config = directory.join("web.yml");
    let users = "basic_auth_users: {pusher: $2a$04$oe99nsT3zvId84p.H6MYd.r1Qjy0XOts7C4miEzQzEqY1qBPxkfVu}\n";
    std::fs::write(&config, users).unwrap();
    let gateway = Process::start_listening(servers::PUSHGATEWAY, move |addr| {
        let mut command = Command::new(servers::PUSHGATEWAY);
        command
            .arg(format!("--web.listen-address={addr}"))
            .args(["--persistence.file=", "--web.route-prefix=/push/gw"]);
        command.arg(format!("--web.config.file={}", config.display()));
        command
    });
    let url = format!("http://pusher:p%25%2Fword@{}/push/gw", gateway.addr());
    (gateway, url)
}

/// The output has nowhere to go; a reader that closes its end early has all it wants.
#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_a_failure() {
    use std::fs::File;
    use std::process::Stdio;
    let mut command = stage_metrics(&["rules"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(command.status().unwrap().code(), Some(1));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = stage_metrics(&["rules"]);
    command.stdout(Stdio::from(writer));
    assert_eq!(command.status().unwrap().code(), Some(0));
}
