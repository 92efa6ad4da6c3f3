//! Child processes, for tests of the end of a process: exits, panics, signals.
//!
//! The child is the test binary itself. A test function has the scenarios, and does nothing when it runs as a test:
//!
//! ```ignore
//! #[test]
//! fn scenarios() {
//!     let Some(scenario) = support::child::scenario() else { return };
//!     match scenario.as_str() {
//!         "exit_3" => std::process::exit(3),
//!         unknown => panic!("unknown scenario: {unknown}"),
//!     }
//! }
//!
//! #[test]
//! fn exit_code_is_kept() {
//!     let ended = support::child::start(support::child::command("scenarios", "exit_3")).wait();
//!     assert_eq!(ended.status.code(), Some(3));
//! }
//! ```
//!
//! A scenario that panics ends with exit code 101, a scenario that returns with 0. It runs on a thread of the test
//! harness, not on the main thread; the harness prints `test … ...` before its first line of output, on the same line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use super::WAIT_TIMEOUT;

/// The environment variable with the scenario of a child.
const SCENARIO: &str = "TSM_SCENARIO";

/// The scenario of this child process; `None` in an ordinary test run.
pub fn scenario() -> Option<String> {
    std::env::var(SCENARIO).ok()
}

/// A command that runs this test binary again, for one scenario of a test function. `test` is the path of the function
/// with its modules, such as `a::b::scenarios`. The child inherits no settings of the crate or of OpenTelemetry.
#[track_caller]
pub fn command(test: &str, scenario: &str) -> Command {
    // The test harness passes if no test has the name.
    assert!(has_test(test), "no test function {test} for the scenario {scenario}");
    let mut command = this_binary();
    command.args(["--exact", test, "--nocapture"]);
    for (name, _) in std::env::vars_os() {
        let is_setting = ["TV_PROMETHEUS_", "OTEL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        if is_setting {
            command.env_remove(&name);
        }
    }
    command.env(SCENARIO, scenario);
    command
}

fn this_binary() -> Command {
    Command::new(std::env::current_exe().expect("the path of this test binary"))
}

fn has_test(name: &str) -> bool {
    let list = this_binary().args(["--exact", name, "--list"]).output().expect("the list of the tests");
    String::from_utf8_lossy(&list.stdout).lines().any(|line| line == format!("{name}: test"))
}

/// Waits for the end of a child. Returns `None` if the child still runs after the timeout.
pub fn wait_timeout(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    const POLL: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().expect("a child of this process") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// A running child. Threads read its output. The drop kills it.
pub struct Running {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    stdout: String,
    readers: Vec<JoinHandle<String>>,
}

/// A child that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// Includes the lines of the test harness.
    pub stdout: String,
    pub stderr: String,
    /// From the start of the child to its end.
    pub elapsed: Duration,
}

/// Starts the command without standard input. Every signal has its default action and none is blocked.
#[track_caller]
pub fn start(command: Command) -> Running {
    let mut command = with_default_signals(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let stdout = child.stdout.take().expect("a pipe");
    let mut stderr = child.stderr.take().expect("a pipe");
    let (sender, lines) = mpsc::channel();
    let readers = vec![
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
            String::new()
        }),
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let _ = stderr.read_to_end(&mut output);
            String::from_utf8_lossy(&output).into_owned()
        }),
    ];
    Running { child, started, lines, stdout: String::new(), readers }
}

/// A shell starts background jobs with SIGINT ignored, and their children inherit that. The standard library empties
/// the signal mask of a child, but leaves ignored signals ignored: `env` of the coreutils resets them, then executes
/// the program.
#[cfg(target_os = "linux")]
fn with_default_signals(inner: Command) -> Command {
    // An absolute path, since PATH is that of the child.
    let mut outer = Command::new("/usr/bin/env");
    outer.arg("--default-signal");
    wrap(&mut outer, &inner);
    outer
}

#[cfg(not(target_os = "linux"))]
fn with_default_signals(inner: Command) -> Command {
    inner
}

/// Makes `outer` run `inner`: appends the program and the arguments of `inner`, and copies its environment.
pub fn wrap(outer: &mut Command, inner: &Command) {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(directory) = inner.get_current_dir() {
        outer.current_dir(directory);
    }
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal to a child of this process");
    }

    /// Waits for a line with this text on the child's stdout, which reports its progress. Panics on a timeout, or if
    /// the child ends before.
    #[track_caller]
    pub fn await_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                panic!("the child did not print {text:?}; its output:\n{}", self.stdout);
            };
            self.push_line(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for the end of the child. Panics on a timeout.
    #[track_caller]
    pub fn wait(self) -> Ended {
        self.wait_for(WAIT_TIMEOUT)
    }

    /// Waits for the end of the child with a timeout of the caller's. Kills the child and panics on a timeout.
    #[track_caller]
    pub fn wait_for(mut self, timeout: Duration) -> Ended {
        let Some(status) = wait_timeout(&mut self.child, timeout) else {
            panic!("the child did not end in {timeout:?}");
        };
        let elapsed = self.started.elapsed();
        // The channel closes with the pipe: at the end of the child, unless it left children of its own.
        while let Ok(line) = self.lines.recv_timeout(WAIT_TIMEOUT) {
            self.push_line(&line);
        }
        let stderr: Vec<String> = self.readers.drain(..).map(|reader| reader.join().expect("a reader")).collect();
        Ended { status, stdout: std::mem::take(&mut self.stdout), stderr: stderr.concat(), elapsed }
    }

    fn push_line(&mut self, line: &str) {
        self.stdout.push_str(line);
        self.stdout.push('\n');
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls fail only for a child that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
