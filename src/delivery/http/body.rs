//! Request bodies, compressed from a threshold on.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Size in bytes from which a body is compressed. Compressing a smaller body costs more than it saves on the wire.
pub const COMPRESSION_THRESHOLD: usize = 64 * 1024;

/// The body of a request and its encoding. A clone shares the bytes, so that another try copies nothing.
#[derive(Clone, Debug)]
pub(in crate::delivery) struct Body {
    pub(in crate::delivery) bytes: Bytes,
    pub(in crate::delivery) is_gzip: bool,
}

impl Body {
    /// Returns a body that is sent as it is.
    pub(in crate::delivery) fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), is_gzip: false }
    }

    /// Returns a body that is compressed if it is large. The fastest level is enough: an exposition shrinks to a
    /// thirtieth at every level.
    pub(in crate::delivery) fn compressed(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.len() < COMPRESSION_THRESHOLD {
            return Self::plain(bytes);
        }
        match gzip(&bytes) {
            Some(bytes) => Self { bytes, is_gzip: true },
            None => Self::plain(bytes),
        }
    }
}

/// Compresses bytes. `None` if the encoder fails, which does not happen in memory: the caller then sends the plain bytes.
pub(in crate::delivery) fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn only_large_bodies_are_compressed() {
        let small = Body::compressed("a 1\n".repeat(10));
        assert!(!small.is_gzip && small.bytes.len() == 40);
        let text = "a_long_metric_name{label=\"value\"} 1\n".repeat(10_000);
        let large = Body::compressed(text.clone());
        assert!(large.is_gzip && large.bytes.len() < text.len() / 20, "{}", large.bytes.len());
        let mut decoded = String::new();
        flate2::read::GzDecoder::new(&*large.bytes).read_to_string(&mut decoded).unwrap();
        assert_eq!(decoded, text);
    }
}
