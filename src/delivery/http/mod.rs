//! HTTP requests to a server of the network: URLs, headers, bodies, name lookups, retries and errors. Knows no metric.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod headers;
pub(crate) mod resolver;
pub(crate) mod retry;
mod secrets;
pub(crate) mod url;
