//! Child processes, for everything about the end of a process: exits, panics, signals.
//!
//! The child is the test binary itself. A test function holds the scenarios, and does nothing when it runs as a test:
//!
//! ```ignore
//! #[test]
//! fn scenarios() {
//!     let Some(scenario) = support::child::scenario() else { return };
//!     match scenario.as_str() {
//!         "exit_3" => std::process::exit(3),
//!         unknown => panic!("no scenario {unknown}"),
//!     }
//! }
//!
//! #[test]
//! fn an_exit_code_is_kept() {
//!     let ended = support::child::start(support::child::command("scenarios", "exit_3")).wait();
//!     assert_eq!(ended.status.code(), Some(3));
//! }
//! ```
//!
//! A scenario that panics ends with the exit code 101, one that returns with 0. It runs on a thread of the harness, not
//! on the main thread; its first line of output comes after the harness's `test … ...` on the same line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use super::PATIENCE;

/// Names the scenario to the child.
const SCENARIO: &str = "TSM_SCENARIO";

/// The scenario this process was started for; `None` in an ordinary test run.
pub fn scenario() -> Option<String> {
    std::env::var(SCENARIO).ok()
}

/// A command that runs this test binary again, for one scenario held by the test function `holder` (with its modules,
/// `a::b::scenarios`). Settings of the crate and of OpenTelemetry in the environment of the tests do not reach it.
#[track_caller]
pub fn command(holder: &str, scenario: &str) -> Command {
    // The harness takes a name that is not there for zero tests, all passed.
    assert!(has_test(holder), "no test function {holder} to hold the scenario {scenario}");
    let mut command = this_binary();
    command.args(["--exact", holder, "--nocapture"]);
    for (name, _) in std::env::vars_os() {
        let foreign = ["TV_PROMETHEUS_", "OTEL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        if foreign {
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
    let listed = this_binary().args(["--exact", name, "--list"]).output().expect("the list of the tests");
    String::from_utf8_lossy(&listed.stdout).lines().any(|line| line == format!("{name}: test"))
}

/// Waits for the end of a child, so long at most. `None`: it runs still.
pub fn wait_timeout(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    const POLL: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + patience;
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

/// A child that runs, its output read as it comes. Killed on drop.
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
    /// With the lines of the test harness around the scenario's own.
    pub stdout: String,
    pub stderr: String,
    /// From the start of the child to its end.
    pub elapsed: Duration,
}

/// Starts the command without standard input, every signal at its default action and none blocked.
#[track_caller]
pub fn start(command: Command) -> Running {
    let mut command = with_default_signals(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
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
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        }),
    ];
    Running { child, started, lines, stdout: String::new(), readers }
}

/// A shell starts what it puts in the background with SIGINT ignored, and so do its children. The standard library empties
/// the mask of a child, but leaves ignored signals ignored: `env` of the coreutils resets them, then becomes the program.
#[cfg(target_os = "linux")]
fn with_default_signals(inner: Command) -> Command {
    // Not by PATH, which is that of the child.
    let mut outer = Command::new("/usr/bin/env");
    outer.arg("--default-signal");
    wrap(&mut outer, &inner);
    outer
}

#[cfg(not(target_os = "linux"))]
fn with_default_signals(inner: Command) -> Command {
    inner
}

/// Has `outer` run `inner`, whose program and arguments follow its own.
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
        kill_process(Pid::from_child(&self.child), signal).expect("a signal sent to a child of one's own");
    }

    /// Waits for a line on the child's stdout that contains the text: the way it tells how far it is. Panics if the
    /// child ends, or takes too long, before it has said so.
    #[track_caller]
    pub fn await_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                panic!("the child did not say {text:?}; it said:\n{}", self.stdout);
            };
            self.keep(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for the end of the child; panics if it does not come.
    #[track_caller]
    pub fn wait(self) -> Ended {
        self.wait_for(PATIENCE)
    }

    /// The same with a bound of one's own. A child that outlives it is killed.
    #[track_caller]
    pub fn wait_for(mut self, patience: Duration) -> Ended {
        let Some(status) = wait_timeout(&mut self.child, patience) else {
            panic!("the child did not end in {patience:?}");
        };
        let elapsed = self.started.elapsed();
        // Ends with the pipe, that is with the child, unless it left children of its own behind.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.keep(&line);
        }
        let said: Vec<String> = self.readers.drain(..).map(|reader| reader.join().expect("a reader")).collect();
        Ended { status, stdout: std::mem::take(&mut self.stdout), stderr: said.concat(), elapsed }
    }

    fn keep(&mut self, line: &str) {
        self.stdout.push_str(line);
        self.stdout.push('\n');
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
