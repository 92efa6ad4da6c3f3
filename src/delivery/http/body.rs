//! Request bodies, compressed where that is worth it.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// From this size on a body is compressed. Below it, the time on the wire is not worth it.
pub const COMPRESSION_THRESHOLD: usize = 64 * 1024;

/// What is sent, and how it is encoded. Cheap to clone, for another try.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    pub(crate) is_gzip: bool,
}

impl Body {
    pub(crate) fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), is_gzip: false }
    }

    /// Compressed if it is large. Fast rather than small: an exposition shrinks to a thirtieth either way.
    pub(crate) fn compressed(bytes: impl Into<Bytes>) -> Self {
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

/// Writing to memory does not fail; if it did, the plain bytes would do.
pub(crate) fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use crate::delivery::http::body::*;

    #[test]
    fn large_bodies_are_compressed_and_small_ones_are_not() {
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
