//! A subscriber that panics when it hears of the crate's own trouble: the stages are counted and delivered all the same.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{MockGateway, Reply, exposition};
use tracing::{Event, Subscriber, info_span};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, Pushgateway};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// As the `fmt` layer does when it cannot write and standard error is closed.
struct Panics;

impl<S: Subscriber> Layer<S> for Panics {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        assert_ne!(event.metadata().target(), "tracing_stage_metrics", "on purpose");
    }
}

fn started(server: &MockGateway) -> (impl Subscriber + Send + Sync + use<>, FlushGuard) {
    let gateway = Pushgateway::new(server.addr().to_string(), "j").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(Duration::from_millis(20));
    let (layer, guard) = builder.with_flush_timeout(Duration::from_secs(20)).build().unwrap();
    (tracing_subscriber::registry().with(layer).with(Panics), guard)
}

#[test]
fn dropping_the_guard_does_not_panic_and_every_open_stage_is_counted() {
    let server = MockGateway::ok();
    let (subscriber, guard) = started(&server);
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
fn the_delivery_thread_goes_on() {
    let server = MockGateway::start([Reply::status(401)]);
    let (subscriber, guard) = started(&server);
    tracing::subscriber::with_default(subscriber, || {
        // The second comes after the warning about the first.
        server.await_requests(3);
        server.set_replies([Reply::ok()]);
        info_span!("x", stage_id = "a").in_scope(|| ());
        guard.shutdown().unwrap();
    });
    let requests = server.requests();
    let last = exposition::parse(requests.last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
}
