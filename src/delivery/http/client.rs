//! The HTTP client that everything is sent with.

use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{Client, ClientBuilder, Url, redirect};

use crate::delivery::http::resolver;
use crate::delivery::http::resolver::{LookUp, Peer, Resolver};
use crate::delivery::http::url::Address;
use crate::error::Error;

/// How this crate introduces itself.
pub(crate) const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A client for one server, named by `of` and its address. `set` adds what is special to it.
pub(crate) fn build(
    of: &str,
    address: &Address,
    connect_timeout: Duration,
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<Client, Error> {
    build_with(resolver::system(), of, address, connect_timeout, set)
}

/// [`build`] with another way to look up names than the system's.
pub(crate) fn build_with(
    look_up: LookUp,
    of: &str,
    address: &Address,
    connect_timeout: Duration,
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<Client, Error> {
    let proxy = Proxy::of(address);
    let peer = match &proxy {
        Some(proxy) => proxy.peer.clone(),
        None => peer(address.url()),
    };
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(connect_timeout)
        .redirect(redirect::Policy::none())
        .dns_resolver(Resolver::new(look_up, peer));
    if address.is_loopback() {
        builder = builder.no_proxy();
    }
    #[cfg(feature = "tls")]
    if !address.is_https() && !proxy.is_some_and(|proxy| proxy.is_https) {
        // Spares a job that speaks plain http the reading of all the system's certificates.
        builder = builder.tls_certs_only([]);
    }
    set(builder).build().map_err(|error| {
        Error::config(format!(
            "cannot set up a client for {of} {address}: see the cause; for https the system's certificates have to be \
             readable, or SSL_CERT_FILE has to name some"
        ))
        .with_source(error.without_url())
    })
}

fn peer(url: &Url) -> Option<Peer> {
    Some(Peer { host: url.host_str()?.to_owned(), port: url.port_or_known_default()? })
}

/// A proxy of the environment.
pub(crate) struct Proxy {
    /// `None` where the port of the proxy is not known.
    peer: Option<Peer>,
    /// `http://proxy:3128`, without user and password.
    pub(crate) url: String,
    #[cfg(feature = "tls")]
    is_https: bool,
}

impl Proxy {
    /// The proxy that requests to this server go through, found as the HTTP library finds it.
    pub(crate) fn of(address: &Address) -> Option<Self> {
        if address.is_loopback() {
            return None;
        }
        let intercept = Matcher::from_system().intercept(&address.url().as_str().parse().ok()?)?;
        let uri = intercept.uri();
        let (scheme, host) = (uri.scheme_str().unwrap_or("http"), uri.host()?);
        let port = uri.port_u16().or(match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        });
        Some(Self {
            peer: port.map(|port| Peer { host: host.to_owned(), port }),
            // Not the authority: what the environment has before its last `@` may be a part of the password.
            url: match port {
                Some(port) => format!("{scheme}://{host}:{port}"),
                None => format!("{scheme}://{host}"),
            },
            #[cfg(feature = "tls")]
            is_https: scheme == "https",
        })
    }
}
