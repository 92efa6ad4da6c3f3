//! Looks up the names of hosts for the HTTP library.
//!
//! The library's own resolver panics where no thread can be started, ends a lookup with the request that waits for it, and has
//! the addresses of a name tried one after the other, each for its share of the connect timeout.

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
const KEPT_FOR: Duration = Duration::from_secs(5);
/// Lookups that run or whose answers are kept, at most. A client sends to one host.
const MAX_LOOKUPS: usize = 4;
/// Addresses of one name that are used, at most.
const MAX_ADDRESSES: usize = 16;
/// How long a connection has to come about before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Blocks until the addresses of a host name are known. The ports are of no account.
pub(crate) type LookUp = Arc<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The resolver of the operating system.
pub(crate) fn system() -> LookUp {
    Arc::new(|host| Ok((host, 0).to_socket_addrs()?.collect()))
}

/// Whom the connections of a client go to: the server, or a proxy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peer {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Looks up names, each on a thread of its own. Requests for one name share a lookup, which goes on when they are dropped.
pub(crate) struct Resolver {
    look_up: LookUp,
    /// Has the port for the connections that find out which address of a name answers.
    peer: Option<Peer>,
    lookups: Mutex<Vec<Lookup>>,
}

/// A lookup that runs, or has ended.
struct Lookup {
    host: String,
    answer: watch::Receiver<Option<Answer>>,
}

#[derive(Clone)]
struct Answer {
    addresses: Result<Vec<SocketAddr>, Arc<io::Error>>,
    at: Instant,
}

/// A lookup could not be made: the name may well exist.
#[derive(Debug)]
pub(crate) struct LookupError {
    what: &'static str,
    cause: Option<io::Error>,
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl StdError for LookupError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

impl Lookup {
    fn start(host: &str, look_up: LookUp) -> Result<Self, LookupError> {
        let (sender, answer) = watch::channel(None);
        let host = host.to_owned();
        let run = {
            let host = host.clone();
            move || {
                let addresses = look_up(&host).map_err(Arc::new);
                // The requests that waited may be gone.
                let _ = sender.send(Some(Answer { addresses, at: Instant::now() }));
            }
        };
        match thread::Builder::new().name("metrics-lookup".to_owned()).spawn(run) {
            Ok(_) => Ok(Self { host, answer }),
            Err(cause) => Err(LookupError { what: "cannot start a thread for the lookup", cause: Some(cause) }),
        }
    }

    /// Whether it serves a new request: it runs, or found addresses lately.
    fn is_usable(&self) -> bool {
        match &*self.answer.borrow() {
            Some(answer) => answer.addresses.is_ok() && answer.at.elapsed() < KEPT_FOR,
            None => self.answer.has_changed().is_ok(),
        }
    }
}

impl Resolver {
    pub(crate) fn new(look_up: LookUp, peer: Option<Peer>) -> Self {
        Self { look_up, peer, lookups: Mutex::default() }
    }

    /// Joins the lookup of this name, or starts one.
    fn join(&self, host: &str) -> Result<watch::Receiver<Option<Answer>>, LookupError> {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        lookups.retain(Lookup::is_usable);
        if let Some(lookup) = lookups.iter().find(|lookup| lookup.host == host) {
            return Ok(lookup.answer.clone());
        }
        if lookups.len() >= MAX_LOOKUPS {
            return Err(LookupError { what: "too many names are being looked up", cause: None });
        }
        let lookup = Lookup::start(host, Arc::clone(&self.look_up))?;
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
                return Err(LookupError { what: "the lookup broke off", cause: None }.into());
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

/// Puts the address first that accepts a connection first. Where none does the order stays, and the HTTP library finds
/// out why.
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

    use crate::Pushgateway;
    use crate::delivery::http::resolver::*;

    const HOST: &str = "gateway.test";

    /// A lookup of addresses that a test lets end, and counts.
    struct Held {
        look_up: LookUp,
        calls: Arc<AtomicUsize>,
        release: Sender<io::Result<Vec<SocketAddr>>>,
    }

    fn held() -> Held {
        let (release, answers) = channel();
        let answers: Mutex<Receiver<io::Result<Vec<SocketAddr>>>> = Mutex::new(answers);
        let calls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&calls);
        let look_up = move |_: &str| {
            counted.fetch_add(1, Ordering::SeqCst);
            answers.lock().unwrap().recv().unwrap()
        };
        Held { look_up: Arc::new(look_up), calls, release }
    }

    fn resolver(look_up: LookUp) -> Resolver {
        Resolver::new(look_up, None)
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

    /// Waits for what is bound to happen.
    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), future).await.expect("an end within ten seconds")
    }

    /// The addresses, or the text of the error.
    async fn resolved(resolving: Resolving) -> Result<Vec<SocketAddr>, String> {
        soon(resolving).await.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn requests_share_a_lookup_that_outlives_them() {
        let Held { look_up, calls, release } = held();
        let resolver = resolver(look_up);
        let mut dropped = resolve(&resolver, HOST);
        assert!(poll(&mut dropped).is_pending());
        drop(dropped);
        let joined = resolve(&resolver, HOST);
        release.send(Ok(vec![address(1)])).unwrap();
        assert_eq!(resolved(joined).await, Ok(vec![address(1)]));
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]), "the answer is kept");
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_answer_is_kept_for_seconds() {
        let lookup = |addresses, elapsed| {
            let at = Instant::now().checked_sub(elapsed).unwrap();
            let (_, answer) = watch::channel(Some(Answer { addresses, at }));
            Lookup { host: HOST.to_owned(), answer }
        };
        assert!(lookup(Ok(vec![address(1)]), KEPT_FOR - Duration::from_secs(1)).is_usable());
        assert!(!lookup(Ok(vec![address(1)]), KEPT_FOR).is_usable());
        assert!(!lookup(Err(Arc::new(io::Error::other("no such name"))), Duration::ZERO).is_usable());
    }

    #[tokio::test]
    async fn addresses_are_bounded() {
        let resolver = resolver(Arc::new(|_| Ok((0..100).map(address).collect())));
        assert_eq!(resolved(resolve(&resolver, HOST)).await.unwrap().len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn a_failed_lookup_is_not_kept() {
        let Held { look_up, calls, release } = held();
        let resolver = resolver(look_up);
        release.send(Err(io::Error::other("no such name"))).unwrap();
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Err("no such name".to_owned()));
        release.send(Ok(vec![address(1)])).unwrap();
        assert_eq!(resolved(resolve(&resolver, HOST)).await, Ok(vec![address(1)]));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_lookup_that_panics_is_an_error_and_the_next_request_starts_another() {
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
        let Held { look_up, release, .. } = held();
        let resolver = resolver(look_up);
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

    /// Answers one request with 200.
    async fn answer_one(listener: &tokio::net::TcpListener) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            // A connection that only finds out whether the address answers ends without a byte.
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

    fn gateway(port: u16, look_up: LookUp) -> Pushgateway {
        Pushgateway::new(format!("{HOST}:{port}"), "j").unwrap().with_lookup(look_up)
    }

    /// The first push of a job is aborted by its final flush while the name is looked up.
    #[tokio::test]
    async fn a_push_joins_the_lookup_of_the_push_before_it() {
        let (listener, port) = listener().await;
        let Held { look_up, calls, release } = held();
        let gateway = gateway(port, look_up);
        let aborted = timeout(Duration::from_millis(50), gateway.push_add("x 1\n")).await;
        assert!(aborted.is_err(), "{aborted:?}");
        let push = async {
            let push = gateway.push_add("x 1\n");
            let mut push = std::pin::pin!(push);
            assert!(poll(&mut push).is_pending());
            release.send(Ok(vec![address(1)])).unwrap();
            push.await
        };
        let (pushed, ()) = soon(async { tokio::join!(push, answer_one(&listener)) }).await;
        pushed.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_lookup_slower_than_the_connect_timeout_serves_the_next_try() {
        let (listener, port) = listener().await;
        let Held { look_up, calls, release } = held();
        let gateway = Pushgateway::new(format!("{HOST}:{port}"), "j").unwrap();
        let gateway = gateway.with_connect_timeout(Duration::from_millis(50)).with_lookup(look_up);
        let error = gateway.push_add("x 1\n").await.unwrap_err();
        assert!(error.is_timeout() && error.to_string().ends_with("no connection within 50ms"), "{error}");
        release.send(Ok(vec![address(1)])).unwrap();
        let (pushed, ()) = soon(async { tokio::join!(gateway.push_add("x 1\n"), answer_one(&listener)) }).await;
        pushed.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    /// Accepts no connection and refuses none: its backlog is full.
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
    async fn a_black_hole_costs_a_fraction_of_the_connect_timeout() {
        let (listener, port) = listener().await;
        let _black_hole = black_hole(([127, 0, 0, 2], port).into());
        let gateway = gateway(port, Arc::new(|_| Ok(vec![address(2), address(1)])));
        let start = Instant::now();
        let (pushed, ()) = soon(async { tokio::join!(gateway.push_add("x 1\n"), answer_one(&listener)) }).await;
        pushed.unwrap();
        let elapsed = start.elapsed();
        assert!(elapsed >= ATTEMPT_DELAY, "the first address is a black hole: {elapsed:?}");
        // By its share of the connect timeout it would be 2.5 seconds.
        assert!(elapsed < Duration::from_millis(1_500), "{elapsed:?}");
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_refused_address_costs_nothing_and_the_order_of_the_others_stays() {
        let (_listener, port) = listener().await;
        let mut addresses = [address(3), address(4), address(1), address(5)];
        move_reachable_to_front(&mut addresses, port).await;
        assert_eq!(addresses, [address(1), address(3), address(4), address(5)]);
        let mut refused = [address(3), address(4)];
        move_reachable_to_front(&mut refused, port).await;
        assert_eq!(refused, [address(3), address(4)]);
    }

    /// A proxy whose port is not known, or one address alone.
    #[tokio::test]
    async fn without_a_choice_or_a_port_no_connection_is_made() {
        let (listener, port) = listener().await;
        for (addresses, host) in [(vec![address(1)], HOST), (vec![address(1), address(2)], "other.test")] {
            let found = addresses.clone();
            let resolver = Resolver::new(Arc::new(move |_| Ok(found.clone())), peer(port));
            assert_eq!(resolved(resolve(&resolver, host)).await, Ok(addresses));
        }
        let two = Resolver::new(Arc::new(|_| Ok(vec![address(1), address(1)])), peer(port));
        resolved(resolve(&two, HOST)).await.unwrap();
        soon(listener.accept()).await.unwrap();
        assert!(poll(&mut Box::pin(listener.accept())).is_pending(), "the one of two addresses alone");
    }
}
