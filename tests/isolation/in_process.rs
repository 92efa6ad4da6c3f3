//! Subscribers and recorders that block, in the process of the test.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Dispatch, Event, Id, Span, Subscriber, info_span};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::layer::Context;
use tracing_subscriber::{Layer, prelude::*, reload};

use super::SLACK;
use super::support::log::{Log, OWN_TARGET};
use super::support::measured::{Measured, measured, stage};
use super::support::{self, MockGateway, Reply, WAIT_TIMEOUT, await_true, exposition, http};

fn builder(server: &MockGateway) -> MetricsLayerBuilder {
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(Duration::from_millis(50))
}

/// A layer that blocks in the first event of the crate until the test releases it.
struct BlockingLayer {
    entered: SyncSender<()>,
    release: Mutex<Receiver<()>>,
    is_free: AtomicBool,
}

impl<S: Subscriber> Layer<S> for BlockingLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == OWN_TARGET && !self.is_free.swap(true, Ordering::SeqCst) {
            self.entered.send(()).unwrap();
            self.release.lock().unwrap().recv().unwrap();
        }
    }
}

fn blocking_layer() -> (BlockingLayer, Receiver<()>, SyncSender<()>) {
    let ((entered, is_entered), (release, is_released)) = (sync_channel(1), sync_channel(1));
    let layer = BlockingLayer { entered, release: Mutex::new(is_released), is_free: AtomicBool::new(false) };
    (layer, is_entered, release)
}

#[test]
fn blocked_log_delays_neither_pushes_nor_scrapes() {
    let server = MockGateway::start([Reply::status(401)]);
    let address = "127.0.0.1:0".parse().unwrap();
    let (layer, guard) = builder(&server).with_http_listener(address).build().unwrap();
    let (blocking, is_entered, release) = blocking_layer();
    let log = Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(blocking).with(log.clone()).set_default();
    is_entered.recv().unwrap();

    server.set_replies([Reply::ok()]);
    stage("a");
    server.await_request(|request| request.text().contains("stage_id=\"a\""));
    let address = guard.listen_addr().unwrap();
    assert_eq!(http::get(address, "/health").unwrap().status, 200);
    assert!(http::get(address, "/metrics").unwrap().body.contains("stage_id=\"a\""));

    // Queued events are emitted in order once the log is released.
    release.send(()).unwrap();
    guard.flush().unwrap();
    let own = log.own();
    assert_eq!(own.len(), 2, "{own:?}");
    assert!(own[0].starts_with("metrics are not delivered") && own[1].starts_with("metrics are delivered again"));
    guard.shutdown().unwrap();
}

#[test]
fn events_behind_a_blocked_log_are_bounded_and_drops_are_counted() {
    const STAGES: usize = 3_000;
    let server = MockGateway::ok();
    let (layer, guard) = builder(&server).with_flush_timeout(Duration::from_secs(2)).build().unwrap();
    let (blocking, is_entered, release) = blocking_layer();
    let log = Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(blocking).with(log.clone()).set_default();
    let open: Vec<_> = (0..STAGES).map(|_| info_span!("x", stage_id = "open")).collect();
    guard.shutdown().unwrap();
    is_entered.recv().unwrap();
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "open"), ("status", "failure")]), STAGES as f64);
    // The events are held back until the state is delivered. The queue does not hold the event in which the log blocks.
    assert!(log.own().len() <= 1, "{}", log.own().len());
    release.send(()).unwrap();
    support::await_true("the queued events are emitted", || log.own().len() >= 1_024);
    let own = log.own();
    let dropped = own.iter().find(|text| text.starts_with("events of this crate were dropped")).unwrap();
    let kept = own.iter().filter(|text| text.contains("still open")).count();
    let lost = STAGES - kept + usize::from(log.starts().is_empty());
    assert!(dropped.ends_with(&format!("dropped={lost}")), "{kept} of {STAGES}: {dropped}");
    drop(open);
}

/// A layer that blocks in `on_close`, in which the crate has an event to emit, until another thread waits for the
/// layer.
struct HoldClose {
    entered: SyncSender<()>,
    waits: Arc<AtomicBool>,
}

impl<S: Subscriber> Layer<S> for HoldClose {
    fn on_close(&self, _: Id, _: Context<'_, S>) {
        if self.entered.try_send(()).is_ok() {
            while !self.waits.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // Time for that thread to wait for the lock that this callback holds. Nothing signals that it waits; if the
            // pause is too short, the test passes without the contention.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn event_in_a_callback_does_not_deadlock_with_a_reload() {
    let server = MockGateway::ok();
    let (layer, guard) = builder(&server).with_max_series(1).build().unwrap();
    let (entered, is_entered) = sync_channel(0);
    let waits = Arc::new(AtomicBool::new(false));
    let hold = HoldClose { entered, waits: Arc::clone(&waits) };
    let (layer, handle) = reload::Layer::new(layer.and_then(hold).and_then(Log::default()));
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
    let (done, is_done) = sync_channel(1);
    std::thread::spawn(move || {
        is_entered.recv().unwrap();
        waits.store(true, Ordering::SeqCst);
        handle.modify(|_| ()).unwrap();
    });
    std::thread::spawn(move || {
        tracing::dispatcher::with_default(&dispatch, || {
            // The second stage is beyond the limit on label sets.
            for run_id in 0..2 {
                info_span!("x", stage_id = "a", run_id).in_scope(|| ());
            }
        });
        guard.shutdown().unwrap();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(support::WAIT_TIMEOUT).unwrap();
}

/// A pipeline whose layer `reload` adds late, with a stage that was entered and is open.
struct Reloaded {
    guard: FlushGuard,
    log: Log,
    default: DefaultGuard,
    open: Span,
}

fn reloaded(server: &MockGateway) -> Reloaded {
    let (layer, guard) = builder(server).build().unwrap();
    let log = Log::default();
    let (late, handle) = reload::Layer::new(None::<MetricsLayer>);
    let default = tracing_subscriber::registry().with(late).with(log.clone()).set_default();
    handle.modify(|late| *late = Some(layer)).unwrap();
    let open = info_span!("x", stage_id = "open");
    open.in_scope(|| ());
    Reloaded { guard, log, default, open }
}

#[test]
fn warning_of_a_thread_without_subscriber_reaches_a_reloaded_layer() {
    let server = MockGateway::ok();
    let Reloaded { guard, log, default: _default, open: _open } = reloaded(&server);
    tracing::subscriber::with_default(NoSubscriber::default(), || guard.shutdown().unwrap());
    let own = log.own();
    assert_eq!(own.len(), 1, "{own:?}");
    assert!(own[0].contains("was still open at the final flush"), "{own:?}");
}

#[test]
fn async_flush_starts_no_thread() {
    const FLUSHES: usize = 5_000;
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let server = MockGateway::start([Reply::Silent]);
    let (layer, guard) = builder(&server).with_flush_timeout(Duration::from_secs(2)).build().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    let guard = Arc::new(guard);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let before = threads();
        let mut flushes = tokio::task::JoinSet::new();
        for _ in 0..FLUSHES {
            let guard = Arc::clone(&guard);
            flushes.spawn(async move { guard.flush_async().await });
        }
        tokio::task::yield_now().await;
        let during = threads();
        // Concurrent tests of this program start and end threads.
        assert!(during < before + 100, "{before} threads before, {during} with {FLUSHES} flushes");
        let mut errors = 0;
        while let Some(flushed) = flushes.join_next().await {
            assert!(flushed.unwrap().unwrap_err().is_timeout());
            errors += 1;
        }
        assert_eq!(errors, FLUSHES);
    });
}

/// tokio gives a task a budget of operations, after which the task must yield. A blocking flush cannot yield.
#[test]
fn flush_in_a_task_without_budget_returns() {
    const BUDGET: usize = 128;
    let server = MockGateway::ok();
    let Measured { guard, default: _default, .. } = measured(builder(&server));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..BUDGET {
            sender.send(number).unwrap();
        }
        for _ in 0..BUDGET {
            receiver.recv().await.unwrap();
        }
        assert!(!tokio::task::coop::has_budget_remaining());
        guard.flush().unwrap();
        guard.shutdown().unwrap();
    });
}

#[test]
fn async_flush_behind_a_push_in_flight_keeps_its_timeout() {
    let server = MockGateway::start([Reply::Silent]);
    let timeout = Duration::from_millis(500);
    let builder = builder(&server).with_push_interval(Duration::from_secs(3_600));
    let Measured { guard, default: _default, .. } = measured(builder.with_flush_timeout(timeout));
    server.await_requests(1);
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(guard.flush_async()).unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    // The request in flight would take 10 seconds.
    assert!(start.elapsed() < timeout + SLACK, "{:?}", start.elapsed());
}

/// More stages are open than the queue holds events.
#[test]
fn final_warning_replaces_earlier_events_in_a_full_queue() {
    let server = MockGateway::start([Reply::status(401)]);
    let Measured { guard, default: _default, log } = measured(builder(&server));
    // The warning about the first push, and the event of the start before it, are not in the queue any more.
    await_true("the first warning", || !log.own().is_empty());
    let open: Vec<_> = (0..3_000).map(|_| info_span!("x", stage_id = "open")).collect();
    drop(guard);
    let own = log.own();
    assert!(own.last().unwrap().starts_with("the last state of the metrics was not delivered"), "{:?}", own.last());
    let kept = own.iter().filter(|text| text.contains("still open")).count();
    let dropped = own.iter().find(|text| text.starts_with("events of this crate were dropped")).unwrap();
    let lost = open.len() - kept;
    assert!(dropped.ends_with(&format!("dropped={lost}")), "{kept}: {dropped}");
}

#[test]
fn scrapes_are_answered_while_the_recorder_blocks() {
    let lock = Arc::new(Mutex::new(()));
    let lock_of_render = Arc::clone(&lock);
    let render = move || {
        drop(lock_of_render.lock());
        "rows_total 7\n".to_owned()
    };
    let builder = MetricsLayer::builder().with_http_listener("127.0.0.1:0".parse().unwrap());
    let Measured { guard, default: _default, .. } = measured(builder.without_run_id_label().with_exposition(render));
    let address = guard.listen_addr().unwrap();
    assert_eq!(http::get(address, "/metrics").unwrap().status, 200);
    let _held = lock.lock();
    for _ in 0..2 {
        assert_eq!(http::get(address, "/metrics").unwrap().body, "rows_total 7\n");
    }
}

#[test]
fn last_rendering_is_delivered_after_a_recorder_panicked_with_its_lock() {
    let server = MockGateway::ok();
    let lock = Arc::new(Mutex::new(()));
    let lock_of_render = Arc::clone(&lock);
    let render = move || {
        drop(lock_of_render.lock().unwrap());
        "rows_total 7\n".to_owned()
    };
    let Measured { guard, default: _default, log } =
        measured(builder(&server).without_run_id_label().with_exposition(render));
    guard.flush().unwrap();
    let poisoned = std::thread::spawn(move || {
        let _held = lock.lock();
        panic!("on purpose");
    });
    poisoned.join().unwrap_err();
    let before = server.requests().len();
    guard.shutdown().unwrap();
    assert!(server.requests().len() > before);
    assert_eq!(server.requests().last().unwrap().text(), "rows_total 7\n");
    let own = log.own();
    assert!(own.iter().any(|text| text.contains("its last rendering is delivered")), "{own:?}");
}

#[test]
fn reasons_of_a_failed_run_need_no_recorder() {
    let server = MockGateway::ok();
    let lock = Arc::new(Mutex::new(()));
    let (lock_of_render, (sender, is_rendering)) = (Arc::clone(&lock), channel());
    let render = move || {
        let _ = sender.send(());
        drop(lock_of_render.lock());
        "rows_total 7\n".to_owned()
    };
    let builder = builder(&server).with_push_interval(Duration::from_secs(3_600)).with_exposition(render);
    let Measured { guard, default: _default, log } = measured(builder.with_flush_timeout(Duration::from_secs(1)));
    info_span!("x", stage_id = "a").in_scope(|| ());
    guard.flush().unwrap();
    while is_rendering.try_recv().is_ok() {}
    let (held, handle) = (lock.lock(), guard.handle());
    let flushing = guard.handle();
    let flush = std::thread::spawn(move || flushing.flush());
    is_rendering.recv_timeout(WAIT_TIMEOUT).unwrap();
    guard.finish(Err::<(), ()>(())).unwrap_err();
    let why = "the program ended with an error: `finish` was given an `Err`";
    let report = handle.report();
    assert_eq!(report.reasons().collect::<Vec<_>>(), [why]);
    assert!(log.text().contains(&format!("the run is not a success: {why}\n")), "{}", log.text());
    drop(held);
    let _ = flush.join().unwrap();
}

#[test]
fn final_warnings_of_a_thread_without_subscriber_reach_a_reloaded_layer() {
    let server = MockGateway::start([Reply::status(401)]);
    let Reloaded { guard, log, default: _default, open: _open } = reloaded(&server);
    tracing::subscriber::with_default(NoSubscriber::default(), || drop(guard));
    let own = log.own();
    assert!(own.iter().any(|text| text.contains("was still open at the final flush")), "{own:?}");
    assert!(own.iter().any(|text| text.starts_with("the last state of the metrics was not delivered")), "{own:?}");
}

/// Another subscriber was the default of a thread before, which does not mean that this layer's subscriber exists.
#[test]
fn event_before_the_subscriber_is_emitted_later() {
    tracing::subscriber::with_default(tracing_subscriber::registry(), || ());
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let (layer, guard) = builder(&server).with_push_interval(Duration::from_secs(3_600)).build().unwrap();
    server.await_requests(1);
    // The flush is queued behind the first push, which fails.
    guard.flush().unwrap();
    let log = Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();
    guard.shutdown().unwrap();
    let own = log.own();
    assert!(own.iter().any(|text| text.starts_with("metrics are not delivered")), "{own:?}");
}
