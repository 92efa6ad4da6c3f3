//! Shared helpers of the integration tests: real servers, a gateway that misbehaves on demand, a strict parser of the
//! exposition text, child processes. `mod support;` in a test file includes them; a package below
//! this one names their path.
//!
//! `support_works.rs` shows for every helper with a check that the check can fail.

// Each test binary compiles all of these modules and uses a part of them.
#![allow(dead_code, unreachable_pub, unused_imports)]
// Clippy's exemption for tests covers `#[test]` functions only, not the functions that they call.
#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod child;
#[cfg(all(feature = "http", feature = "otlp"))]
pub mod collector;
pub mod example;
pub mod exposition;
pub mod http;
pub mod log;
#[cfg(feature = "pushgateway")]
pub mod measured;
pub mod mock_gateway;
#[cfg(feature = "pushgateway")]
pub mod pipeline;
pub mod process;
pub mod random;
pub mod servers;
#[cfg(target_os = "linux")]
pub mod sockets;
pub mod template;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use mock_gateway::{MockGateway, Reply};
#[cfg(feature = "pushgateway")]
pub use pipeline::Pipeline;
pub use servers::{NodeExporter, Prometheus, Pushgateway, VictoriaMetrics};

/// The timeout of a wait for an expected event. Only a failing test waits this long.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The directory of the workspace, which has the lock file. The test may belong to another package of it.
pub fn workspace() -> &'static Path {
    let mut directories = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    directories.find(|directory| directory.join("Cargo.lock").exists()).expect("a workspace")
}

/// Starts a Pushgateway for this test. Prints a message and returns `None` if it is not installed.
#[track_caller]
pub fn pushgateway() -> Option<Pushgateway> {
    servers::installed(servers::PUSHGATEWAY).then(Pushgateway::start)
}

/// Starts a Prometheus that scrapes each `(job, address, honor_labels)`. Prints a message and returns `None` if it is
/// not installed.
#[track_caller]
pub fn prometheus(scrape: &[(&str, SocketAddr, bool)]) -> Option<Prometheus> {
    servers::installed(servers::PROMETHEUS).then(|| Prometheus::start(scrape))
}

/// Starts a VictoriaMetrics. Prints a message and returns `None` if it is not installed.
#[track_caller]
pub fn victoria_metrics() -> Option<VictoriaMetrics> {
    servers::installed(servers::VICTORIA_METRICS).then(VictoriaMetrics::start)
}

/// Starts a node_exporter that reads the text files of one directory. Prints a message and returns `None` if it is not
/// installed.
#[track_caller]
pub fn node_exporter(textfile_dir: &Path) -> Option<NodeExporter> {
    servers::installed(servers::NODE_EXPORTER).then(|| NodeExporter::start(textfile_dir))
}

/// The families of an OpenMetrics text, as the parser of Prometheus' client for Python reads them. Prints a message and returns
/// `None` if it is not installed. Panics if the parser refuses the text.
#[track_caller]
pub fn open_metrics(text: &str) -> Option<serde_json::Value> {
    if !servers::installed(servers::OPEN_METRICS_PARSER) {
        return None;
    }
    let mut parser = Command::new(servers::OPEN_METRICS_PARSER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the parser started");
    parser.stdin.take().expect("its input").write_all(text.as_bytes()).expect("the text written");
    let output = parser.wait_with_output().expect("the output of the parser");
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("the families as JSON"))
}

/// Waits until the condition is true, which another thread or process brings about. Panics with the description on a
/// timeout.
#[track_caller]
pub fn await_true(description: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {WAIT_TIMEOUT:?}: {description}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A loopback address on which no process listens at the moment.
pub fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("the address of the listener")
}
