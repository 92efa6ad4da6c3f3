//! The page `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::accept::Format;
use crate::delivery::http::body::Body;
use crate::delivery::source::ExpositionSource;
use crate::delivery::totals::CumulativeTotals;
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
    /// The totals of the gateway or the text file beside the listener.
    totals: Option<Arc<CumulativeTotals>>,
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
    pub(super) fn new(
        source: Arc<dyn ExpositionSource>,
        totals: Option<Arc<CumulativeTotals>>,
        has_formats: bool,
    ) -> Self {
        let (families, bodies) = (Ok(Arc::default()), Default::default());
        let last = Mutex::new(Rendered { start: None, next: Instant::now(), families, bodies });
        Self { source, totals, has_formats, last }
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
            let families = rendered.map_err(|error| error.to_string()).map(|families| match &self.totals {
                Some(totals) => totals.completed(&families, self.source.stage_counts()),
                None => families,
            });
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::delivery::{BoxFuture, DeliveryEvent};
    use crate::error::Error;
    use crate::exposition::{Problems, parse};

    /// A recorder that counts its renderings.
    #[derive(Default)]
    struct Source(AtomicUsize);

    impl ExpositionSource for Source {
        fn exposition(self: Arc<Self>, _: Instant) -> BoxFuture<'static, Result<Arc<Families>, Error>> {
            let text = format!(
                "# TYPE renderings_total counter\nrenderings_total {}\n",
                self.0.fetch_add(1, Ordering::Relaxed)
            );
            let families = parse(&text, |_| None, &mut Problems::default()).unwrap();
            Box::pin(async move { Ok(Arc::new(families)) })
        }

        #[cfg(feature = "otlp")]
        fn publish(self: Arc<Self>) -> Vec<crate::exposition::SeriesExemplars> {
            Vec::new()
        }

        fn is_own(&self, _: &str) -> bool {
            false
        }

        fn sample(self: Arc<Self>) {}

        fn pushed(self: Arc<Self>, _: bool, _: Duration) {}

        fn spooled(self: Arc<Self>, _: usize, _: u64) {}

        fn on_event(&self, _: DeliveryEvent) {}

        fn events_taken(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }
    }

    #[tokio::test]
    async fn requests_of_all_formats_share_a_rendering() {
        let source = Arc::new(Source::default());
        let page = &MetricsPage::new(Arc::clone(&source) as _, None, true);
        // All requests come before the next rendering is due.
        page.last.lock().await.next += Duration::from_millis(50);
        let get = async |format| String::from_utf8_lossy(&page.get(format, false).await.unwrap().bytes).into_owned();
        let (text, open_metrics, protobuf) =
            tokio::join!(get(Format::Text), get(Format::OpenMetrics), get(Format::Protobuf));
        assert_eq!(text, "# TYPE renderings_total counter\nrenderings_total 0\n");
        assert_eq!(open_metrics, "# TYPE renderings counter\nrenderings_total 0\n# EOF\n");
        assert!(protobuf.contains("renderings_total"), "{protobuf}");
        assert_eq!(source.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn each_format_and_encoding_is_made_once() {
        let text: String = (0..5_000).map(|n| format!("a_metric_of_some_length{{n=\"{n}\"}} 1\n")).collect();
        let families = parse(&text, |_| None, &mut Problems::default()).unwrap();
        let (now, bodies) = (Instant::now(), Default::default());
        let mut rendered = Rendered { start: Some(now), next: now, families: Ok(Arc::new(families)), bodies };
        for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
            for gzip in [false, true] {
                let [one, other] = [(); 2].map(|()| rendered.body(format, gzip).unwrap());
                assert_eq!((one.bytes.as_ptr(), one.is_gzip), (other.bytes.as_ptr(), gzip), "{format:?}");
            }
        }
    }
}
