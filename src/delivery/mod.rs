//! Exposition in, bytes out: everything that leaves the process. Knows nothing of spans.

mod address;
mod failure;
mod grouping;
mod headers;
mod pushgateway;

pub use pushgateway::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
