//! Builds the HTTP client for a server.

use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{Client, ClientBuilder, Url, redirect};

use super::resolver::{self, LookupFn, Peer, Resolver};
use super::url::Address;
use crate::error::Error;

/// The user agent of every request.
pub(in crate::delivery) const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Builds a client for one server, which errors call `server`. `configure` adds the settings of this client alone.
pub(in crate::delivery) fn build(
    server: &str,
    address: &Address,
    connect_timeout: Duration,
    configure: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, Error>,
) -> Result<Client, Error> {
    build_with(resolver::system(), server, address, connect_timeout, configure)
}

/// Builds a client as [`build`] does, with another name lookup than the system's.
pub(in crate::delivery) fn build_with(
    lookup: LookupFn,
    server: &str,
    address: &Address,
    connect_timeout: Duration,
    configure: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, Error>,
) -> Result<Client, Error> {
    let proxy = Proxy::from_env(address);
    let peer = match &proxy {
        Some(proxy) => proxy.peer.clone(),
        None => peer(address.url()),
    };
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(connect_timeout)
        .redirect(redirect::Policy::none())
        .dns_resolver(Resolver::new(lookup, peer));
    if address.is_loopback() {
        builder = builder.no_proxy();
    }
    #[cfg(feature = "tls")]
    if !address.is_https() && !proxy.is_some_and(|proxy| proxy.is_https) {
        // A job that uses plain http does not read the system's certificates.
        builder = builder.tls_certs_only([]);
    }
    configure(builder)?.build().map_err(|error| {
        Error::config(format!(
            "cannot set up a client for {server} {address}: see the cause; for https the system's certificates have to be \
             readable, or SSL_CERT_FILE has to name some"
        ))
        .with_source(error.without_url())
    })
}

fn peer(url: &Url) -> Option<Peer> {
    Some(Peer { host: url.host_str()?.to_owned(), port: url.port_or_known_default()? })
}

/// A proxy that the environment names.
pub(super) struct Proxy {
    /// `None` if the port of the proxy is unknown.
    peer: Option<Peer>,
    /// `http://proxy:3128`, without user and password.
    pub(super) url: String,
    #[cfg(feature = "tls")]
    is_https: bool,
}

impl Proxy {
    /// Returns the proxy for requests to this server, by the rules of the HTTP library.
    pub(super) fn from_env(address: &Address) -> Option<Self> {
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
            // Not the authority: text before its last `@` may be a part of the password.
            url: match port {
                Some(port) => format!("{scheme}://{host}:{port}"),
                None => format!("{scheme}://{host}"),
            },
            #[cfg(feature = "tls")]
            is_https: scheme == "https",
        })
    }
}
