//! HTTP requests to a server: URLs, headers, bodies, name lookups, retries and errors. Knows no metric, and uses
//! nothing of the other folders of the delivery.

pub(super) mod body;
pub(super) mod client;
pub(super) mod error;
pub(super) mod headers;
pub(super) mod resolver;
pub(super) mod retry;
mod secrets;
pub(super) mod url;
