//! The HTTP client that everything is sent with.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect};

use super::address::Address;
use crate::error::Error;

/// How this crate introduces itself.
const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A client for one server, named by `of` and its address. `set` adds what is special to it.
pub(crate) fn build(
    of: &str,
    address: &Address,
    connect_timeout: Duration,
    set: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<Client, Error> {
    let mut builder =
        Client::builder().user_agent(USER_AGENT).connect_timeout(connect_timeout).redirect(redirect::Policy::none());
    if address.is_loopback() {
        builder = builder.no_proxy();
    }
    #[cfg(feature = "tls")]
    if !address.is_https() && (address.is_loopback() || !has_https_proxy()) {
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

/// Whether http requests, too, may have to speak TLS: to the proxy.
#[cfg(feature = "tls")]
fn has_https_proxy() -> bool {
    ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].iter().any(|name| {
        std::env::var(name)
            .is_ok_and(|proxy| proxy.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")))
    })
}
