//! The page `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::accept::Format;
use crate::delivery::http::body::Body;
use crate::delivery::source::ExpositionSource;
use crate::exposition::Families;

/// How long a recorder of the application may take to render. Prometheus waits for 10 seconds by default.
const RENDER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two renderings, as a multiple of the time that the last one took.
const PAUSE_FACTOR: u32 = 10;

/// Longest pause between two renderings, so that every client gets a response in time even if a recorder does not return.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The metrics. A request during a rendering, or shortly after one, waits for the next one, which all waiting requests share:
/// each format and encoding is made once. So rendering takes a small part of the thread's time, whatever the number of
/// requests.
pub(super) struct MetricsPage {
    source: Arc<dyn ExpositionSource>,
    /// Whether a client may ask for a format other than text.
    pub(super) has_formats: bool,
    last: Mutex<Rendered>,
}

/// The last rendering.
struct Rendered {
    /// Start of the rendering. It serves requests that came before.
    start: Option<Instant>,
    /// Earliest start of the next rendering.
    next: Instant,
    families: Result<Arc<Families>, String>,
    /// By format.
    bodies: [Encoded; Format::COUNT],
}

/// A rendering in one format, encoded for the first request that takes it.
#[derive(Default)]
struct Encoded {
    plain: Option<Bytes>,
    compressed: Option<Body>,
}

impl MetricsPage {
    pub(super) fn new(source: Arc<dyn ExpositionSource>, has_formats: bool) -> Self {
        let (families, bodies) = (Ok(Arc::default()), Default::default());
        let last = Mutex::new(Rendered { start: None, next: Instant::now(), families, bodies });
        Self { source, has_formats, last }
    }

    /// Returns a rendering that began after the call.
    pub(super) async fn get(&self, format: Format, gzip: bool) -> Result<Body, String> {
        let requested = Instant::now();
        let mut last = self.last.lock().await;
        let mut start = Instant::now();
        if last.start.is_none_or(|start| start < requested) {
            sleep_until(last.next).await;
            start = Instant::now();
            let rendered = Arc::clone(&self.source).exposition(start + RENDER_TIMEOUT).await;
            let families = rendered.map_err(|error| error.to_string());
            *last = Rendered { start: Some(start), next: start, families, bodies: Default::default() };
        }
        let body = last.body(format, gzip);
        last.next = last.next.max(Instant::now() + (start.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE));
        body
    }
}

impl Rendered {
    fn body(&mut self, format: Format, gzip: bool) -> Result<Body, String> {
        let families = self.families.as_ref().map_err(Clone::clone)?;
        let Encoded { plain, compressed } = &mut self.bodies[format as usize];
        let plain = plain.get_or_insert_with(|| match format {
            Format::Text => families.to_text().into(),
            Format::OpenMetrics => families.to_open_metrics().into(),
            Format::Protobuf => families.to_protobuf().into(),
        });
        let plain = plain.clone();
        Ok(if gzip { compressed.get_or_insert_with(|| Body::compressed(plain)).clone() } else { Body::plain(plain) })
    }
}
