//! Looks up the names of hosts for the HTTP library.
//!
//! The library's own resolver panics if no thread can be started, and cancels a lookup with the request that waits for
//! it. The library tries the addresses of a name one after the other, each for its share of the connect timeout.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long an answer serves further requests. The tries of one push share it; the next push on the interval does not.
const ANSWER_TTL: Duration = Duration::from_secs(5);
/// Limit of lookups that run or whose answers are cached. A client sends to one host.
const MAX_LOOKUPS: usize = 4;
/// Limit of the addresses of one name.
const MAX_ADDRESSES: usize = 16;
/// How long a connection attempt runs alone before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Looks up the addresses of a host name and blocks until they are known. The ports do not matter.
pub(in crate::delivery) type LookupFn = Arc<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Returns the resolver of the operating system.
pub(super) fn system() -> LookupFn {
    Arc::new(|host| Ok((host, 0).to_socket_addrs()?.collect()))
}

/// The host and port that a client connects to: the server, or a proxy.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Peer {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Looks up each name on a thread of its own. Requests for one name share a lookup, which continues when they are
/// dropped.
pub(super) struct Resolver {
    lookup: LookupFn,
    /// Gives the port for the connections that test which address of a name answers.
    peer: Option<Peer>,
    lookups: Mutex<Vec<Lookup>>,
}

/// A lookup that runs or has ended.
struct Lookup {
    host: String,
    answer: watch::Receiver<Option<Answer>>,
}

/// The result of a lookup.
#[derive(Clone)]
struct Answer {
    addresses: Result<Vec<SocketAddr>, Arc<io::Error>>,
    at: Instant,
}

/// The lookup itself failed: the name may exist.
#[derive(Debug)]
pub(super) struct LookupError {
    message: &'static str,
    source: Option<io::Error>,
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}

impl StdError for LookupError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

impl Lookup {
    fn start(host: &str, lookup: LookupFn) -> Result<Self, LookupError> {
        let (sender, answer) = watch::channel(None);
        let host = host.to_owned();
        let run = {
            let host = host.clone();
            move || {
                let addresses = lookup(&host).map_err(Arc::new);
                // The waiting requests may be gone.
                let _ = sender.send(Some(Answer { addresses, at: Instant::now() }));
            }
        };
        match thread::Builder::new().name("metrics-lookup".to_owned()).spawn(run) {
            Ok(_) => Ok(Self { host, answer }),
            Err(err) => Err(LookupError { message: "cannot start a thread for the lookup", source: Some(err) }),
        }
    }

    /// Returns whether a new request can use the lookup: it runs, or its addresses are recent.
    fn is_usable(&self) -> bool {
        match &*self.answer.borrow() {
            Some(answer) => answer.addresses.is_ok() && answer.at.elapsed() < ANSWER_TTL,
            None => self.answer.has_changed().is_ok(),
        }
    }
}

impl Resolver {
    pub(super) fn new(lookup: LookupFn, peer: Option<Peer>) -> Self {
        Self { lookup, peer, lookups: Mutex::default() }
    }

    /// Joins the lookup of this name, or starts one.
    fn join(&self, host: &str) -> Result<watch::Receiver<Option<Answer>>, LookupError> {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        lookups.retain(Lookup::is_usable);
        if let Some(lookup) = lookups.iter().find(|lookup| lookup.host == host) {
            return Ok(lookup.answer.clone());
        }
        if lookups.len() >= MAX_LOOKUPS {
            return Err(LookupError { message: "too many names are being looked up", source: None });
        }
        let lookup = Lookup::start(host, Arc::clone(&self.lookup))?;
        let answer = lookup.answer.clone();
        lookups.push(lookup);
        Ok(answer)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = self.join(name.as_str());
        let peer = self.peer.as_ref().filter(|peer| peer.host == name.as_str());
        let port = peer.map(|peer| peer.port);
        Box::pin(async move {
            let mut answer = answer?;
            let answered = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
            let Some(Answer { addresses, .. }) = answered else {
                return Err(LookupError { message: "the lookup broke off", source: None }.into());
            };
            let mut addresses = addresses?;
            addresses.truncate(MAX_ADDRESSES);
            if let Some(port) = port {
                move_reachable_to_front(&mut addresses, port).await;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Moves the address that accepts a connection first to the front. If none does, the order stays, and the HTTP library
/// reports why.
async fn move_reachable_to_front(addresses: &mut [SocketAddr], port: u16) {
    if addresses.len() < 2 {
        return;
    }
    let mut untried = addresses.iter().copied().enumerate();
    let mut attempts = JoinSet::new();
    let mut winner = None;
    while winner.is_none() {
        let mut wait = Duration::MAX;
        if let Some((index, mut address)) = untried.next() {
            address.set_port(port);
            attempts.spawn(async move { TcpStream::connect(address).await.ok().map(|_| index) });
            wait = ATTEMPT_DELAY;
        }
        winner = match timeout(wait, attempts.join_next()).await {
            Ok(Some(connected)) => connected.ok().flatten(),
            Ok(None) => return,
            Err(_) => None,
        };
    }
    if let Some(index) = winner {
        addresses[..=index].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::Pushgateway;

    const HOST: &str = "gateway.test";

    /// A lookup that a test completes, and whose calls it counts.
    struct HeldLookup {
        lookup: LookupFn,
        calls: Arc<AtomicUsize>,
        release: Sender<io::Result<Vec<SocketAddr>>>,
    }

    fn held_lookup() -> HeldLookup {
        let (release, answers) = channel();
        let answers: Mutex<Receiver<io::Result<Vec<SocketAddr>>>> = Mutex::new(answers);
        let calls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&calls);
        let lookup = move |_: &str| {
            counted.fetch_add(1, Ordering::SeqCst);
            answers.lock().unwrap().recv().unwrap()
        };
        HeldLookup { lookup: Arc::new(lookup), calls, release }
    }

    fn resolver(lookup: LookupFn) -> Resolver {
        Resolver::new(lookup, None)
    }

    fn peer(port: u16) -> Option<Peer> {
        Some(Peer { host: HOST.to_owned(), port })
    }

    fn resolve(resolver: &Resolver, host: &str) -> Resolving {
        resolver.resolve(host.parse().unwrap())
    }

    fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn address(last: u8) -> SocketAddr {
        ([127, 0, 0, last], 0).into()
    }

    /// Waits for a future that completes soon.
    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), future).await.expect("completes within ten seconds")
    }

    /// Returns the addresses, or the text of the error.
    async fn resolved(resolving: Resolving) -> Result<Vec<SocketAddr>, String> {
        soon(resolving).await.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn requests_share_a_lookup_that_outlives_them() {
        let HeldLookup { lookup, calls, release } = held_lookup();
        let resolver = resolver(lookup);
        let mut dropped = resolve(&resolver, HOST);
        assert!(poll(&mut dropped).is_pending());
        drop(dropped);
        let joined = resolve(&resolver, HOST);
        release.send(Ok(vec![address(1)])).unwrap();
        assert_eq!(resolved(joined).await, Ok(vec![address(1)]));
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]), "the answer is cached");
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn answer_is_cached_for_seconds() {
        let lookup = |addresses, elapsed| {
            let at = Instant::now().checked_sub(elapsed).unwrap();
            let (_, answer) = watch::channel(Some(Answer { addresses, at }));
            Lookup { host: HOST.to_owned(), answer }
        };
        assert!(lookup(Ok(vec![address(1)]), ANSWER_TTL - Duration::from_secs(1)).is_usable());
        assert!(!lookup(Ok(vec![address(1)]), ANSWER_TTL).is_usable());
        assert!(!lookup(Err(Arc::new(io::Error::other("no such name"))), Duration::ZERO).is_usable());
    }

    #[tokio::test]
    async fn addresses_are_bounded() {
        let resolver = resolver(Arc::new(|_| Ok((0..100).map(address).collect())));
        assert_eq!(resolved(resolve(&resolver, HOST)).await.unwrap().len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn failed_lookup_is_not_cached() {
        let HeldLookup { lookup, calls, release } = held_lookup();
        let resolver = resolver(lookup);
        release.send(Err(io::Error::other("no such name"))).unwrap();
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Err("no such name".to_owned()));
        release.send(Ok(vec![address(1)])).unwrap();
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn panicking_lookup_is_an_error_and_the_next_request_starts_another() {
        let calls = AtomicUsize::new(0);
        let resolver = resolver(Arc::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("on purpose"),
            _ => Ok(vec![address(1)]),
        }));
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Err("the lookup broke off".to_owned()));
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]));
    }

    #[tokio::test]
    async fn lookups_are_bounded() {
        let HeldLookup { lookup, release, .. } = held_lookup();
        let resolver = resolver(lookup);
        let running: Vec<_> = (0..MAX_LOOKUPS).map(|host| resolve(&resolver, &format!("host{host}"))).collect();
        let error = resolved(resolve(&resolver, HOST)).await.unwrap_err();
        assert_eq!(error, "too many names are being looked up");
        for _ in &running {
            release.send(Err(io::Error::other("no such name"))).unwrap();
        }
        for lookup in running {
            resolved(lookup).await.unwrap_err();
        }
        release.send(Ok(vec![address(1)])).unwrap();
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]));
    }

    /// Responds to one request with 200.
    async fn respond_once(listener: &tokio::net::TcpListener) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            // A connection that only tests the address ends without a byte.
            if connection.read(&mut [0; 4096]).await.unwrap_or_default() > 0 {
                return connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        }
    }

    async fn listener() -> (tokio::net::TcpListener, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn gateway(port: u16, lookup: LookupFn) -> Pushgateway {
        Pushgateway::new(format!("{HOST}:{port}"), "j").unwrap().with_lookup(lookup)
    }

    /// The first push of a job is aborted by its final flush while the name is looked up.
    #[tokio::test]
    async fn push_joins_the_lookup_of_the_previous_push() {
        let (listener, port) = listener().await;
        let HeldLookup { lookup, calls, release } = held_lookup();
        let gateway = gateway(port, lookup);
        let aborted = timeout(Duration::from_millis(50), gateway.push_add("x 1\n")).await;
        assert!(aborted.is_err(), "{aborted:?}");
        let push = async {
            let push = gateway.push_add("x 1\n");
            let mut push = std::pin::pin!(push);
            assert!(poll(&mut push).is_pending());
            release.send(Ok(vec![address(1)])).unwrap();
            push.await
        };
        let (pushed, ()) = soon(async { tokio::join!(push, respond_once(&listener)) }).await;
        pushed.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn lookup_slower_than_the_connect_timeout_serves_the_next_try() {
        let (listener, port) = listener().await;
        let HeldLookup { lookup, calls, release } = held_lookup();
        let gateway = Pushgateway::new(format!("{HOST}:{port}"), "j").unwrap();
        let gateway = gateway.with_connect_timeout(Duration::from_millis(50)).with_lookup(lookup);
        let error = gateway.push_add("x 1\n").await.unwrap_err();
        assert!(error.is_timeout() && error.to_string().ends_with("no connection within 50ms"), "{error}");
        release.send(Ok(vec![address(1)])).unwrap();
        let (pushed, ()) = soon(async { tokio::join!(gateway.push_add("x 1\n"), respond_once(&listener)) }).await;
        pushed.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    /// Binds a listener that neither accepts nor refuses connections: its backlog is full.
    #[cfg(target_os = "linux")]
    fn black_hole(address: SocketAddr) -> (std::net::TcpListener, Vec<std::net::TcpStream>) {
        let listener = std::net::TcpListener::bind(address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(connection) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            waiting.push(connection);
            assert!(waiting.len() < 16, "the backlog does not fill up");
        }
        (listener, waiting)
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn black_hole_costs_a_fraction_of_the_connect_timeout() {
        let (listener, port) = listener().await;
        let _black_hole = black_hole(([127, 0, 0, 2], port).into());
        let gateway = gateway(port, Arc::new(|_| Ok(vec![address(2), address(1)])));
        let start = Instant::now();
        let (pushed, ()) = soon(async { tokio::join!(gateway.push_add("x 1\n"), respond_once(&listener)) }).await;
        pushed.unwrap();
        let elapsed = start.elapsed();
        assert!(elapsed >= ATTEMPT_DELAY, "the first address is a black hole: {elapsed:?}");
        // Its share of the connect timeout is 2.5 seconds.
        assert!(elapsed < Duration::from_millis(1_500), "{elapsed:?}");
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn refused_address_costs_no_time_and_the_others_keep_their_order() {
        let (_listener, port) = listener().await;
        let mut addresses = [address(3), address(4), address(1), address(5)];
        move_reachable_to_front(&mut addresses, port).await;
        assert_eq!(addresses, [address(1), address(3), address(4), address(5)]);
        let mut refused = [address(3), address(4)];
        move_reachable_to_front(&mut refused, port).await;
        assert_eq!(refused, [address(3), address(4)]);
    }

    /// The cases are one address, and a proxy whose port is unknown.
    #[tokio::test]
    async fn single_address_or_unknown_port_makes_no_connection() {
        let (listener, port) = listener().await;
        for (addresses, host) in [(vec![address(1)], HOST), (vec![address(1), address(2)], "other.test")] {
            let expected = Ok(addresses.clone());
            let resolver = Resolver::new(Arc::new(move |_| Ok(addresses.clone())), peer(port));
            assert_eq!(resolved(resolve(&resolver, host)).await, expected);
        }
        let two = Resolver::new(Arc::new(|_| Ok(vec![address(1), address(1)])), peer(port));
        resolved(resolve(&two, HOST)).await.unwrap();
        soon(listener.accept()).await.unwrap();
        assert!(poll(&mut Box::pin(listener.accept())).is_pending(), "only the first of two addresses is tried");
    }
}
