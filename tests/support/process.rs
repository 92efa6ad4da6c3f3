//! A server in a process of its own: started on a free port, awaited, stopped, frozen, killed on drop.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use super::{PATIENCE, child, free_addr, http};

/// Between two looks at a server that cannot tell when it is ready.
const POLL: Duration = Duration::from_millis(10);
/// How often a start is tried again because someone else was faster on the port.
const ATTEMPTS: usize = 10;

/// The command of a server that is to listen on an address.
type Launch = Box<dyn Fn(SocketAddr) -> Command + Send>;

pub struct Process {
    name: String,
    launch: Launch,
    ready_path: &'static str,
    addr: SocketAddr,
    child: Child,
    /// Not waited for yet: until then its id is its own, and signals reach nobody else.
    running: bool,
    stderr: TempDir,
}

enum Failed {
    /// Someone else has the port: worth another try.
    PortTaken,
    Other(String),
}

impl Process {
    /// Starts the server on a free port and waits until it answers 200 on `ready_path`. Panics, with what the server
    /// said on stderr, if it does not come up.
    #[track_caller]
    pub fn start(
        name: &str,
        ready_path: &'static str,
        launch: impl Fn(SocketAddr) -> Command + Send + 'static,
    ) -> Self {
        let stderr = tempfile::tempdir().expect("a directory for the server's stderr");
        let launch: Launch = Box::new(launch);
        for _ in 0..ATTEMPTS {
            let addr = free_addr();
            match bring_up(&launch, addr, ready_path, &stderr) {
                Ok(child) => {
                    let name = name.to_owned();
                    return Self { name, launch, ready_path, addr, child, running: true, stderr };
                }
                Err(Failed::PortTaken) => {}
                Err(Failed::Other(why)) => panic!("{name} on {addr}: {why}"),
            }
        }
        panic!("{name} found no free port in {ATTEMPTS} attempts");
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// GET, with the status and the body of the answer; panics if there is no answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        match http::get(self.addr, path) {
            Ok(response) => (response.status, response.body),
            Err(why) => panic!("GET {path} from {} on {}: {why}", self.name, self.addr),
        }
    }

    /// GET of something that must be there.
    #[track_caller]
    pub fn get_ok(&self, path: &str) -> String {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "GET {path} from {}: {body}", self.name);
        body
    }

    /// Ends the server in the orderly way, SIGTERM, and waits for its end. Its port is free afterwards.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.thaw();
        let status = child::wait_timeout(&mut self.child, PATIENCE).expect("a server that ends on SIGTERM");
        self.running = false;
        status
    }

    /// Stops the server from running, SIGSTOP. The kernel still accepts connections for it; nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal reaches the threads one after the other: until the last one has stopped there may be an answer.
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), stopped).expect("a child that stops");
    }

    /// Lets a frozen server run on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops the server, unless it has ended, and starts it on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let deadline = Instant::now() + PATIENCE;
        // The port may be in another's hands for a moment: as the near end of somebody's connection, for one.
        loop {
            match bring_up(&self.launch, self.addr, self.ready_path, &self.stderr) {
                Ok(child) => {
                    self.child = child;
                    self.running = true;
                    return;
                }
                Err(Failed::PortTaken) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(Failed::PortTaken) => panic!("{} did not get {} back", self.name, self.addr),
                Err(Failed::Other(why)) => panic!("{} on {}: {why}", self.name, self.addr),
            }
        }
    }

    /// What the server has written to stderr since its last start.
    pub fn stderr(&self) -> String {
        read_stderr(&self.stderr)
    }

    fn signal(&self, signal: Signal) {
        if self.running {
            kill_process(Pid::from_child(&self.child), signal).expect("a signal sent to a child of one's own");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL also ends a frozen process. Both calls fail only for one that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bring_up(launch: &Launch, addr: SocketAddr, ready_path: &str, stderr: &TempDir) -> Result<Child, Failed> {
    let log = File::create(stderr.path().join("stderr")).map_err(|why| Failed::Other(why.to_string()))?;
    let mut command = launch(addr);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().map_err(|why| Failed::Other(format!("{command:?}: {why}")))?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        // The end of the process comes first: on a taken port the other server would answer in its place.
        if let Some(status) = child.try_wait().map_err(|why| Failed::Other(why.to_string()))? {
            let said = read_stderr(stderr);
            if said.contains("address already in use") {
                return Err(Failed::PortTaken);
            }
            return Err(Failed::Other(format!("ended with {status}, stderr:\n{said}")));
        }
        let ready = || http::get(addr, ready_path).is_ok_and(|response| response.status == 200);
        if listens(&child, addr) && ready() {
            return Ok(child);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failed::Other(format!("not ready in {PATIENCE:?}, stderr:\n{}", read_stderr(stderr))));
        }
        std::thread::sleep(POLL);
    }
}

fn read_stderr(dir: &TempDir) -> String {
    fs::read(dir.path().join("stderr")).map(|said| String::from_utf8_lossy(&said).into_owned()).unwrap_or_default()
}

/// Whether it is this very process that listens on the port, and not one that was faster. Elsewhere than on Linux it is
/// taken to be.
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
