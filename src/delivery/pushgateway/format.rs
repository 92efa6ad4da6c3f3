//! The formats of a push.

use std::sync::Arc;

use bytes::Bytes;

use crate::exposition::{Families, Problems, TEXT_CONTENT_TYPE, parse, protobuf};

/// The format in which the state of the metrics is pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushFormat {
    /// The [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), which every gateway accepts.
    #[default]
    Text,
    /// The protobuf format, `io.prometheus.client.MetricFamily`, length-delimited. It costs a Pushgateway a tenth of the
    /// work, and has the times at which counters and histograms began. Counts above 2^53 lose their last digits, as they do
    /// in Prometheus.
    ///
    /// A Pushgateway accepts it. VictoriaMetrics and most aggregating gateways do not.
    Protobuf,
}

impl PushFormat {
    pub(in crate::delivery) fn content_type(self) -> &'static str {
        match self {
            Self::Text => TEXT_CONTENT_TYPE,
            Self::Protobuf => protobuf::CONTENT_TYPE,
        }
    }

    /// Returns the format with this content type, whatever its parameters.
    pub(in crate::delivery) fn of_content_type(content_type: &str) -> Option<Self> {
        let media_type = |format: &Self| content_type.split(';').next() == format.content_type().split(';').next();
        [Self::Text, Self::Protobuf].into_iter().find(media_type)
    }

    pub(in crate::delivery) fn encode(self, families: &Families) -> Bytes {
        match self {
            Self::Text => families.to_text().into(),
            Self::Protobuf => families.to_protobuf().into(),
        }
    }

    /// Reads a body that this crate wrote. `None` if it is not of the format.
    pub(in crate::delivery) fn decode(self, body: &[u8]) -> Option<Families> {
        match self {
            Self::Text => parse(std::str::from_utf8(body).ok()?, |_| None, &mut Problems::default()).ok(),
            Self::Protobuf => protobuf::read(body, |_| true),
        }
    }
}

/// A state, and the body of its push. A clone shares both.
#[derive(Clone)]
pub(in crate::delivery) struct EncodedState {
    pub(in crate::delivery) families: Arc<Families>,
    pub(in crate::delivery) body: Bytes,
}

impl EncodedState {
    pub(in crate::delivery) fn new(families: Arc<Families>, format: PushFormat) -> Self {
        Self { body: format.encode(&families), families }
    }

    /// The state of a text, which is the body as it is where that is the format.
    #[cfg(test)]
    pub(in crate::delivery) fn of_text(text: &str, format: PushFormat) -> Self {
        let state = Self::new(Arc::new(PushFormat::Text.decode(text.as_bytes()).unwrap()), format);
        if format == PushFormat::Text { Self { body: Bytes::from(text.to_owned()), ..state } } else { state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_type_names_the_format_whatever_its_parameters() {
        for format in [PushFormat::Text, PushFormat::Protobuf] {
            assert_eq!(PushFormat::of_content_type(format.content_type()), Some(format));
        }
        assert_eq!(PushFormat::of_content_type("text/plain"), Some(PushFormat::Text));
        assert_eq!(PushFormat::of_content_type("application/openmetrics-text"), None);
    }

    #[test]
    fn body_that_is_not_of_the_format_is_no_state() {
        let state = EncodedState::of_text("a 1\n", PushFormat::Protobuf);
        assert_eq!(PushFormat::Protobuf.decode(&state.body).unwrap(), *state.families);
        assert_eq!(PushFormat::Protobuf.decode(&state.body[..state.body.len() - 1]), None);
        assert_eq!(PushFormat::Protobuf.decode(b"a 1\n"), None);
        assert_eq!(PushFormat::Text.decode(b"\xff\n"), None);
    }
}
