//! HTTP requests to a server: URLs, headers, credentials, certificates, bodies, name lookups, retries and errors. Knows no
//! metric, and uses nothing of the other folders of the delivery.

pub(super) mod body;
pub(super) mod client;
pub(super) mod credentials;
pub(super) mod error;
pub(super) mod file;
pub(super) mod headers;
#[cfg(feature = "tls")]
mod pem;
pub(super) mod resolver;
pub(super) mod retry;
mod secrets;
pub(super) mod tls;
#[cfg(feature = "tls")]
mod tls_error;
pub(super) mod url;
