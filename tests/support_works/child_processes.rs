use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::panic_of;
use super::support::child::{self, Ended, Signal};
use super::support::servers;

const SCENARIOS: &str = "child_processes::scenarios";

/// Not a test: what the children of the tests below do.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    match scenario.as_str() {
        "return" => {}
        "exit_3" => std::process::exit(3),
        "panic" => panic!("as told"),
        "settings" => println!("url: {:?}", std::env::var("TV_PROMETHEUS_PUSHGATEWAY")),
        // A process in whose environment there is a setting, and its child.
        "settings of a child" => {
            let ended = run("settings");
            println!("{}", ended.stdout);
        }
        "signals" => println!("\n{}", ignored_signals()),
        // A process that ignores some, and its child.
        "signals of a child" => {
            let ended = run("signals");
            let child = ended.stdout.lines().find(|line| line.starts_with("SigIgn:")).unwrap();
            println!("\nhere: {}\nthe child: {child}", ignored_signals());
        }
        "wait" => {
            println!("it waits");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
        }
        "installed" => {
            // Twice: it is told once.
            println!("installed: {}", servers::installed(servers::PUSHGATEWAY));
            println!("installed: {}", servers::installed(servers::PUSHGATEWAY));
        }
        unknown => panic!("no scenario {unknown}"),
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
fn the_end_of_a_child_is_seen() {
    assert_eq!(run("return").status.code(), Some(0));
    assert_eq!(run("exit_3").status.code(), Some(3));
    let panicked = run("panic");
    assert_eq!(panicked.status.code(), Some(101));
    assert!(panicked.stderr.contains("as told"), "{panicked:?}");
    assert_eq!(run("unheard of").status.code(), Some(101), "a scenario that nobody holds is a failure");
}

#[test]
fn a_holder_that_is_not_there_is_a_failure() {
    let message = panic_of(|| child::command("scenarios", "return"));
    assert!(message.contains("no test function"), "{message}");
}

#[test]
fn settings_are_given_to_a_child_and_not_inherited() {
    let with_setting = |scenario| {
        let mut command = child::command(SCENARIOS, scenario);
        command.env("TV_PROMETHEUS_PUSHGATEWAY", "here");
        child::start(command).wait()
    };
    let given = with_setting("settings");
    assert!(given.stdout.contains("url: Ok(\"here\")"), "{given:?}");
    let inherited = with_setting("settings of a child");
    assert!(inherited.stdout.contains("url: Err(NotPresent)"), "{inherited:?}");
}

#[test]
fn a_signal_ends_a_child_that_has_said_how_far_it_is() {
    let mut running = child::start(child::command(SCENARIOS, "wait"));
    running.await_line("it waits");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status.signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn a_child_that_does_not_end_is_a_failure() {
    let mut running = child::start(child::command(SCENARIOS, "wait"));
    running.await_line("it waits");
    let message = panic_of(|| running.wait_for(Duration::from_millis(50)));
    assert!(message.contains("did not end"), "{message}");
}

#[test]
fn a_line_that_does_not_come_is_a_failure() {
    let mut running = child::start(child::command(SCENARIOS, "return"));
    let message = panic_of(|| running.await_line("something else"));
    assert!(message.contains("something else") && message.contains("running 1 test"), "{message}");
}

#[test]
fn without_the_server_a_test_is_left_out_aloud_and_once() {
    let mut command = child::command(SCENARIOS, "installed");
    command.env("PATH", "").env_remove(servers::REQUIRE_SERVERS);
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches("LEFT OUT: ").count(), 1, "{ended:?}");
    assert_eq!(ended.stdout.matches("installed: false").count(), 2, "{ended:?}");
}

#[test]
fn without_the_server_a_test_fails_where_servers_are_required() {
    let mut command = child::command(SCENARIOS, "installed");
    command.env("PATH", "").env(servers::REQUIRE_SERVERS, "1");
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(101), "{ended:?}");
    assert!(ended.stderr.contains("prometheus-pushgateway is not installed"), "{ended:?}");
}

/// As a shell does to what it puts in the background.
#[test]
fn signals_that_are_ignored_here_are_not_ignored_by_a_child() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' INT TERM; exec \"$0\" \"$@\""]);
    child::wrap(&mut shell, &child::command(SCENARIOS, "signals of a child"));
    let ended = child::start(shell).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let ignored = |whose: &str| {
        let line = ended.stdout.lines().find_map(|line| line.strip_prefix(whose)).unwrap().to_owned();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let [int, term] = [Signal::INT, Signal::TERM].map(|signal| 1_u64 << (signal.as_raw() - 1));
    assert_eq!(ignored("here: SigIgn:") & (int | term), int | term);
    assert_eq!(ignored("the child: SigIgn:") & (int | term), 0);
}
