use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::panic_of;
use super::support::child::{self, Ended, Signal};
use super::support::servers;

const SCENARIOS: &str = "child_processes::scenarios";

/// Not a test: the scenarios of the child processes.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    match scenario.as_str() {
        "return" => {}
        "exit_3" => std::process::exit(3),
        "panic" => panic!("on purpose"),
        "settings" => println!("url: {:?}", std::env::var("TV_PROMETHEUS_PUSHGATEWAY")),
        // A process with a setting in its environment, and its child.
        "settings of a child" => {
            let ended = run("settings");
            println!("{}", ended.stdout);
        }
        "signals" => println!("\n{}", ignored_signals()),
        // A process that ignores signals, and its child.
        "signals of a child" => {
            let ended = run("signals");
            let child = ended.stdout.lines().find(|line| line.starts_with("SigIgn:")).unwrap();
            println!("\nparent: {}\nchild: {child}", ignored_signals());
        }
        "wait" => {
            println!("waiting");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
        }
        "installed" => {
            // Two calls print one message.
            println!("installed: {}", servers::installed(servers::PUSHGATEWAY));
            println!("installed: {}", servers::installed(servers::PUSHGATEWAY));
        }
        unknown => panic!("unknown scenario: {unknown}"),
    }
}

fn ignored_signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("SigIgn:")).unwrap().to_owned()
}

fn run(scenario: &str) -> Ended {
    child::start(child::command(SCENARIOS, scenario)).wait()
}

#[test]
fn exit_code_and_panic_of_a_child_are_returned() {
    assert_eq!(run("return").status.code(), Some(0));
    assert_eq!(run("exit_3").status.code(), Some(3));
    let panicked = run("panic");
    assert_eq!(panicked.status.code(), Some(101));
    assert!(panicked.stderr.contains("on purpose"), "{panicked:?}");
    assert_eq!(run("no such scenario").status.code(), Some(101), "an unknown scenario is a failure");
}

#[test]
fn command_of_an_unknown_test_function_panics() {
    let message = panic_of(|| child::command("scenarios", "return"));
    assert!(message.contains("no test function"), "{message}");
}

#[test]
fn settings_are_passed_explicitly_and_not_inherited() {
    let with_setting = |scenario| {
        let mut command = child::command(SCENARIOS, scenario);
        command.env("TV_PROMETHEUS_PUSHGATEWAY", "here");
        child::start(command).wait()
    };
    let explicit = with_setting("settings");
    assert!(explicit.stdout.contains("url: Ok(\"here\")"), "{explicit:?}");
    let inherited = with_setting("settings of a child");
    assert!(inherited.stdout.contains("url: Err(NotPresent)"), "{inherited:?}");
}

#[test]
fn signal_after_an_awaited_line_ends_the_child() {
    let mut running = child::start(child::command(SCENARIOS, "wait"));
    running.await_line("waiting");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status.signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn wait_for_panics_on_a_timeout() {
    let mut running = child::start(child::command(SCENARIOS, "wait"));
    running.await_line("waiting");
    let message = panic_of(|| running.wait_for(Duration::from_millis(50)));
    assert!(message.contains("did not end"), "{message}");
}

#[test]
fn await_line_panics_at_the_end_of_the_child() {
    let mut running = child::start(child::command(SCENARIOS, "return"));
    let message = panic_of(|| running.await_line("something else"));
    assert!(message.contains("something else") && message.contains("running 1 test"), "{message}");
}

#[test]
fn missing_server_leaves_the_test_out_with_one_message() {
    let mut command = child::command(SCENARIOS, "installed");
    command.env("PATH", "").env_remove(servers::REQUIRE_SERVERS);
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches("LEFT OUT: ").count(), 1, "{ended:?}");
    assert_eq!(ended.stdout.matches("installed: false").count(), 2, "{ended:?}");
}

#[test]
fn missing_required_server_fails_the_test() {
    let mut command = child::command(SCENARIOS, "installed");
    command.env("PATH", "").env(servers::REQUIRE_SERVERS, "1");
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(101), "{ended:?}");
    assert!(ended.stderr.contains("prometheus-pushgateway is not installed"), "{ended:?}");
}

/// A shell starts its background jobs with ignored signals.
#[test]
fn ignored_signals_are_not_inherited() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' INT TERM; exec \"$0\" \"$@\""]);
    child::wrap(&mut shell, &child::command(SCENARIOS, "signals of a child"));
    let ended = child::start(shell).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let ignored = |prefix: &str| {
        let line = ended.stdout.lines().find_map(|line| line.strip_prefix(prefix)).unwrap().to_owned();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let [int, term] = [Signal::INT, Signal::TERM].map(|signal| 1_u64 << (signal.as_raw() - 1));
    assert_eq!(ignored("parent: SigIgn:") & (int | term), int | term);
    assert_eq!(ignored("child: SigIgn:") & (int | term), 0);
}
