//! A server process: starts on a free port, waits until it is ready, stops, freezes, dies on drop.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use super::{WAIT_TIMEOUT, child, free_addr, http};

/// The interval at which a start polls the server.
const POLL: Duration = Duration::from_millis(10);
/// The maximum number of starts, since another process may take the free port first.
const ATTEMPTS: usize = 10;

/// Makes the command of a server that listens on an address.
type Launch = Box<dyn Fn(SocketAddr) -> Command + Send>;

pub struct Process {
    name: String,
    launch: Launch,
    /// `None` for a server that is ready when it listens.
    ready_path: Option<&'static str>,
    addr: SocketAddr,
    child: Child,
    /// The process has not been waited for: its id is valid, so that a signal reaches no other process.
    running: bool,
    stderr: TempDir,
}

enum StartError {
    /// Another process has the port: a further start may succeed.
    PortTaken,
    Other(String),
}

impl Process {
    /// Starts the server on a free port and waits until it answers 200 on `ready_path`. Panics with the server's stderr
    /// if the start fails.
    #[track_caller]
    pub fn start(
        name: &str,
        ready_path: &'static str,
        launch: impl Fn(SocketAddr) -> Command + Send + 'static,
    ) -> Self {
        Self::start_when_ready(name, Some(ready_path), launch)
    }

    /// Starts a server without a page in plain HTTP, and waits until it listens.
    #[track_caller]
    pub fn start_listening(name: &str, launch: impl Fn(SocketAddr) -> Command + Send + 'static) -> Self {
        Self::start_when_ready(name, None, launch)
    }

    #[track_caller]
    fn start_when_ready(
        name: &str,
        ready_path: Option<&'static str>,
        launch: impl Fn(SocketAddr) -> Command + Send + 'static,
    ) -> Self {
        let stderr = tempfile::tempdir().expect("a directory for the server's stderr");
        let launch: Launch = Box::new(launch);
        for _ in 0..ATTEMPTS {
            let addr = free_addr();
            match spawn_ready(&launch, addr, ready_path, &stderr) {
                Ok(child) => {
                    let name = name.to_owned();
                    return Self { name, launch, ready_path, addr, child, running: true, stderr };
                }
                Err(StartError::PortTaken) => {}
                Err(StartError::Other(err)) => panic!("{name} on {addr}: {err}"),
            }
        }
        panic!("{name} found no free port in {ATTEMPTS} attempts");
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends a GET and returns status and body of the answer. Panics if there is no answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        match http::get(self.addr, path) {
            Ok(response) => (response.status, response.body),
            Err(err) => panic!("GET {path} from {} on {}: {err}", self.name, self.addr),
        }
    }

    /// Sends a GET and returns the body. Panics unless the status is 200.
    #[track_caller]
    pub fn get_ok(&self, path: &str) -> String {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "GET {path} from {}: {body}", self.name);
        body
    }

    /// Stops the server by SIGTERM and waits for its end. Its port is free afterwards.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.thaw();
        let status = child::wait_timeout(&mut self.child, WAIT_TIMEOUT).expect("a server that ends on SIGTERM");
        self.running = false;
        status
    }

    /// Freezes the server by SIGSTOP. The kernel still accepts connections; the server answers none.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal stops the threads one after the other: until the last one has stopped, the server may answer.
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), stopped).expect("a child that stops");
    }

    /// Resumes a frozen server by SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops the server if it runs, and starts it on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        // The port may be in use for a moment, for example as the local port of an outgoing connection.
        loop {
            match spawn_ready(&self.launch, self.addr, self.ready_path, &self.stderr) {
                Ok(child) => {
                    self.child = child;
                    self.running = true;
                    return;
                }
                Err(StartError::PortTaken) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(StartError::PortTaken) => panic!("{} did not get {} back", self.name, self.addr),
                Err(StartError::Other(err)) => panic!("{} on {}: {err}", self.name, self.addr),
            }
        }
    }

    /// The server's stderr since its last start.
    pub fn stderr(&self) -> String {
        read_stderr(&self.stderr)
    }

    fn signal(&self, signal: Signal) {
        if self.running {
            kill_process(Pid::from_child(&self.child), signal).expect("a signal to a child of this process");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL also ends a frozen process. Both calls fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn_ready(
    launch: &Launch,
    addr: SocketAddr,
    ready_path: Option<&str>,
    stderr: &TempDir,
) -> Result<Child, StartError> {
    let log = File::create(stderr.path().join("stderr")).map_err(|err| StartError::Other(err.to_string()))?;
    let mut command = launch(addr);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().map_err(|err| StartError::Other(format!("{command:?}: {err}")))?;

    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        // Checks for the end of the process first: on a taken port the other server would answer.
        if let Some(status) = child.try_wait().map_err(|err| StartError::Other(err.to_string()))? {
            let stderr = read_stderr(stderr);
            if stderr.contains("address already in use") {
                return Err(StartError::PortTaken);
            }
            return Err(StartError::Other(format!("ended with {status}, stderr:\n{stderr}")));
        }
        let ready = |path| http::get(addr, path).is_ok_and(|response| response.status == 200);
        if listens(&child, addr) && ready_path.is_none_or(ready) {
            return Ok(child);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(StartError::Other(format!("not ready in {WAIT_TIMEOUT:?}, stderr:\n{}", read_stderr(stderr))));
        }
        std::thread::sleep(POLL);
    }
}

fn read_stderr(dir: &TempDir) -> String {
    fs::read(dir.path().join("stderr")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Whether this process listens on the port, and not another process. Always true on systems other than Linux.
fn listens(child: &Child, addr: SocketAddr) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    const LISTEN: &str = "0A";
    let proc = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    let port = format!(":{:04X}", addr.port());
    let sockets: Vec<String> = ["net/tcp", "net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(proc.join(table)).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let listening = columns.get(1)?.ends_with(&port) && *columns.get(3)? == LISTEN;
            listening.then(|| format!("socket:[{}]", columns.get(9).copied().unwrap_or_default()))
        })
        .collect();
    let Ok(open_files) = fs::read_dir(proc.join("fd")) else { return false };
    open_files
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}
