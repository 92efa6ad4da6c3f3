//! Exposition in, bytes out: everything that leaves the process. Knows nothing of spans.
