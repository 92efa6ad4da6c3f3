//! A subscriber that panics on the crate's own events costs no measurement and no delivery.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{MockGateway, Reply, exposition};
use tracing::{Event, Subscriber, info_span};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, Pushgateway};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Panics on the crate's events, as the `fmt` layer does when it cannot write and stderr is closed.
struct PanicOnOwnEvent;

impl<S: Subscriber> Layer<S> for PanicOnOwnEvent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        assert_ne!(event.metadata().target(), "tracing_stage_metrics", "on purpose");
    }
}

fn start(server: &MockGateway) -> (impl Subscriber + Send + Sync + use<>, FlushGuard) {
    let gateway = Pushgateway::new(server.addr().to_string(), "j").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(Duration::from_millis(20));
    let (layer, guard) = builder.with_flush_timeout(Duration::from_secs(20)).build().unwrap();
    (tracing_subscriber::registry().with(layer).with(PanicOnOwnEvent), guard)
}

#[test]
fn guard_drop_does_not_panic_and_counts_open_stages() {
    let server = MockGateway::ok();
    let (subscriber, guard) = start(&server);
    tracing::subscriber::with_default(subscriber, || {
        let open: Vec<_> = ["a", "b", "c"].map(|id| info_span!("x", stage_id = id)).into();
        drop(guard);
        drop(open);
    });
    let requests = server.requests();
    let last = exposition::parse(requests.last().unwrap().text());
    for id in ["a", "b", "c"] {
        assert_eq!(last.expect("quant_stage_total", &[("stage_id", id), ("status", "failure")]), 1.0);
    }
    assert!(last.expect("quant_run_duration_seconds", &[]) > 0.0);
}

#[test]
fn delivery_thread_survives_the_panic() {
    let server = MockGateway::start([Reply::status(401)]);
    let (subscriber, guard) = start(&server);
    tracing::subscriber::with_default(subscriber, || {
        // The crate logs a warning after the first push, before the second.
        server.await_requests(3);
        server.set_replies([Reply::ok()]);
        info_span!("x", stage_id = "a").in_scope(|| ());
        guard.shutdown().unwrap();
    });
    let requests = server.requests();
    let last = exposition::parse(requests.last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
}
