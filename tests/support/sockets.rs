//! The connections of a local server, as the kernel lists them (Linux). They show the backlog of a frozen server, which
//! cannot answer.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::WAIT_TIMEOUT;

const POLL: Duration = Duration::from_millis(5);

/// The server's end of a TCP connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    pub client_port: u16,
    /// The number of received bytes that the server has not read.
    pub unread: u64,
    /// The client has closed its end.
    pub closed_by_client: bool,
}

/// The open connections to a server on an IPv4 address.
pub fn connections(server: SocketAddr) -> Vec<Connection> {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let table = fs::read_to_string("/proc/self/net/tcp").expect("the table of connections");
    let hex_port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let connection = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, ..] = columns[..] else { return None };
        let is_open = hex_port(local)? == server.port() && [ESTABLISHED, CLOSE_WAIT].contains(&state);
        let unread = u64::from_str_radix(queues.split(':').nth(1)?, 16).ok()?;
        is_open.then_some(Connection { client_port: hex_port(remote)?, unread, closed_by_client: state == CLOSE_WAIT })
    };
    table.lines().skip(1).filter_map(connection).collect()
}

/// Waits until one request has been pending without interruption for `duration`, and returns its connection.
#[track_caller]
pub fn await_pending(server: SocketAddr, duration: Duration) -> Connection {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let mut since: Option<(Connection, Instant)> = None;
    loop {
        let all = connections(server);
        let pending = all.iter().filter(|connection| connection.unread > 0 && !connection.closed_by_client);
        since = match (pending.clone().next_back(), since.take()) {
            (Some(current), Some((previous, start))) if *current == previous => Some((previous, start)),
            (current, _) => current.map(|connection| (connection.clone(), Instant::now())),
        };
        if let Some((connection, start)) = &since
            && start.elapsed() >= duration
        {
            return connection.clone();
        }
        assert!(Instant::now() < deadline, "no request was pending for {duration:?} at {server}: {all:?}");
        std::thread::sleep(POLL);
    }
}

/// Waits until the kernel lists exactly these connections. It may process a connection, or its end, after the client's call
/// has returned.
#[track_caller]
pub fn await_connections(server: SocketAddr, expected: &[Connection]) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while connections(server) != expected {
        assert!(Instant::now() < deadline, "{server} has {:?}, expected {expected:?}", connections(server));
        std::thread::sleep(POLL);
    }
}

/// Waits until the server has closed every connection.
#[track_caller]
pub fn await_idle(server: SocketAddr) {
    await_connections(server, &[]);
}
