//! Exemplars of stage durations and of failures, at a real gateway and in a real Prometheus.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SpanData};
use serde_json::Value;
use tracing::{Instrument, error, info_span};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, PushFormat, Pushgateway};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::protobuf::{self, Exemplar, Label};
use super::support::servers::{self, Prometheus};
use super::support::{self, MockGateway, Pipeline, Reply};
use super::{First, ORDERS, pipeline_with_traces, tracer};

/// Stages are below the first bound, slow ones below the second.
pub(crate) const BUCKETS: [f64; 2] = [0.2, 60.0];
const SLOW: Duration = Duration::from_millis(250);
/// How far a duration of the traces may be from that of the metrics: the layers read their clocks one after the other.
const TOLERANCE: f64 = 0.1;

pub(crate) const DURATION: &str = "quant_stage_duration_seconds";
pub(crate) const FAILURES: &str = "quant_stage_failures_total";

fn pushing(builder: MetricsLayerBuilder, url: &str) -> MetricsLayerBuilder {
    let gateway = Pushgateway::new(url, "j").unwrap();
    builder.with_pushgateway(gateway).with_push_interval(Duration::from_secs(3_600)).with_buckets(&BUCKETS)
}

/// The series of a metric on the gateway by the value of one label, with the exemplars of each.
fn exemplars(server: &support::Pushgateway, metric: &str, label: &str) -> Vec<(String, Vec<Option<Exemplar>>)> {
    let families = protobuf::scrape(server.addr());
    let family = families.iter().find(|family| family.name == metric).unwrap();
    let series = family.metrics.iter().map(|series| {
        let value = series.labels.iter().find(|pair| pair.name == label).unwrap().value.clone();
        let exemplars = match (&series.counter, &series.histogram) {
            (Some(counter), None) => vec![counter.exemplar.clone()],
            (None, Some(histogram)) => histogram.buckets.iter().map(|bucket| bucket.exemplar.clone()).collect(),
            other => panic!("{metric}: {other:?}"),
        };
        (value, exemplars)
    });
    series.collect()
}

/// The traces of the exemplars of this stage's durations, by bucket.
fn traces_of_buckets(server: &support::Pushgateway, stage: &str) -> Vec<Option<String>> {
    let durations = exemplars(server, DURATION, "stage_id");
    let (_, exemplars) = durations.into_iter().find(|(of, _)| of == stage).unwrap();
    exemplars.into_iter().map(|exemplar| exemplar.map(|exemplar| trace_of(&exemplar))).collect()
}

fn trace_of(exemplar: &Exemplar) -> String {
    let [Label { name, value }] = &exemplar.labels[..] else { panic!("one label: {exemplar:?}") };
    assert_eq!(name, "trace_id");
    value.clone()
}

fn seconds(span: &SpanData) -> f64 {
    span.end_time.duration_since(span.start_time).unwrap().as_secs_f64()
}

pub(crate) fn trace(span: &SpanData) -> String {
    span.span_context.trace_id().to_string()
}

#[track_caller]
fn assert_is_run(value: f64, span: &SpanData) {
    assert!((value - seconds(span)).abs() < TOLERANCE, "{value} {}", seconds(span));
}

/// Two stages, and a slow one that fails, each in a trace of its own. Returns their spans.
pub(crate) fn run_stages(spans: &InMemorySpanExporter) -> [SpanData; 3] {
    for _ in 0..2 {
        info_span!("x", stage_id = "a").in_scope(|| thread::sleep(Duration::from_millis(5)));
    }
    info_span!("x", stage_id = "a").in_scope(|| {
        thread::sleep(SLOW);
        error!("it broke");
    });
    spans.get_finished_spans().unwrap().try_into().unwrap()
}

/// Asserts that the buckets of the stage `a` have the exemplars of these runs, a fast and a slow one, and returns the value of
/// the second.
#[track_caller]
pub(crate) fn assert_buckets_have(prometheus: &Prometheus, fast: &SpanData, slow: &SpanData) -> f64 {
    let mut found = Vec::new();
    for series in prometheus.exemplars("quant_stage_duration_seconds_bucket") {
        assert_eq!(series["seriesLabels"]["stage_id"], "a");
        for exemplar in series["exemplars"].as_array().unwrap() {
            let value: f64 = exemplar["value"].as_str().unwrap().parse().unwrap();
            let trace = exemplar["labels"]["trace_id"].as_str().unwrap().to_owned();
            found.push((series["seriesLabels"]["le"].as_str().unwrap().to_owned(), trace, value));
        }
    }
    found.sort_by(|a, b| a.2.total_cmp(&b.2));
    let [(first, of_fast, quick), (second, of_slow, long)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("0.2", "60.0"));
    assert_eq!((of_fast, of_slow), (&trace(fast), &trace(slow)));
    assert_is_run(*quick, fast);
    assert_is_run(*long, slow);
    *long
}

/// A Prometheus that stores exemplars. Debian's 2.42 asks for protobuf only together with native histograms.
fn prometheus(server: &support::Pushgateway) -> Option<Prometheus> {
    prometheus_with(server, "exemplar-storage,native-histograms")
}

fn prometheus_with(server: &support::Pushgateway, features: &str) -> Option<Prometheus> {
    let scrape = [("pushgateway", server.addr(), true)];
    servers::installed(servers::PROMETHEUS).then(|| Prometheus::start_with_features(&scrape, &[], features))
}

#[test]
fn exemplars_in_prometheus_are_the_exported_spans() {
    for first in ORDERS {
        let Some(server) = support::pushgateway() else { return };
        let Some(prometheus) = prometheus(&server) else { return };
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()).with_exemplars());
        let [_, second, failed] = run_stages(&spans);
        pipeline.guard().flush().unwrap();
        support::await_true("Prometheus has the exemplars", || !prometheus.exemplars(FAILURES).is_empty());

        let long = assert_buckets_have(&prometheus, &second, &failed);
        assert!(long >= SLOW.as_secs_f64(), "{long}");
        // The run that ended last.
        let last = pipeline
            .now()
            .exposition
            .expect("quant_stage_last_duration_seconds", &[("profile", ""), ("stage_id", "a")]);
        assert_eq!(long, last);

        let failures = prometheus.exemplars(FAILURES);
        let [series] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!(
            (&series["seriesLabels"]["stage_id"], &series["seriesLabels"]["reason"]),
            (&"a".into(), &"error".into())
        );
        let exemplars = series["exemplars"].as_array().unwrap();
        let [exemplar] = &exemplars[..] else { panic!("{exemplars:?}") };
        assert_eq!((&exemplar["labels"]["trace_id"], &exemplar["value"]), (&trace(&failed).into(), &"1".into()));
        drop(pipeline);
    }
}

/// The queries of `examples/monitoring` that Grafana also sends to `/api/v1/query_exemplars`, by panel, for all jobs.
fn exemplar_queries_of_the_dashboard() -> Vec<(String, String)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/monitoring/grafana/dashboards/quant.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let of_panel = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let queries = targets.into_iter().filter(|target| target["exemplar"] == true);
        let variables = ["$job", "$profile", "$instance", "$stage"];
        let all = |query: &str| variables.iter().fold(query.to_owned(), |query, name| query.replace(name, ".*"));
        queries.map(|target| (title.clone(), all(target["expr"].as_str().unwrap()))).collect::<Vec<_>>()
    };
    dashboard["panels"].as_array().unwrap().iter().flat_map(of_panel).collect()
}

/// Prometheus has native histograms in place of buckets, or buckets alone.
#[test]
fn panels_of_the_dashboard_show_the_exported_spans() {
    for has_native in [true, false] {
        let Some(server) = support::pushgateway() else { return };
        if !servers::installed(servers::PROMETHEUS) {
            return;
        }
        // Prometheus 2.42 asks for protobuf only together with native histograms.
        let features = if has_native || !servers::is_prometheus_3() {
            "exemplar-storage,native-histograms"
        } else {
            "exemplar-storage"
        };
        let Some(prometheus) = prometheus_with(&server, features) else { return };
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = pipeline_with_traces(tracer, First::Traces, |builder| {
            let builder = pushing(builder, &server.url()).with_exemplars();
            if has_native { builder.with_native_histograms() } else { builder }
        });
        let [_, second, failed] = run_stages(&spans);
        pipeline.guard().flush().unwrap();
        let traces_of = |query: &str| {
            let series = prometheus.exemplars(query);
            let exemplars = series.iter().flat_map(|series| series["exemplars"].as_array().unwrap());
            exemplars
                .map(|exemplar| exemplar["labels"]["trace_id"].as_str().unwrap().to_owned())
                .collect::<BTreeSet<_>>()
        };
        let queries = exemplar_queries_of_the_dashboard();
        assert_eq!(queries.len(), 2, "{queries:?}");
        for (title, query) in queries {
            let expected = match title.as_str() {
                // Prometheus 2.42 takes one exemplar of a native histogram, that of its first bucket.
                "Duration of each stage" if has_native && !servers::is_prometheus_3() => {
                    BTreeSet::from([trace(&second)])
                }
                "Duration of each stage" => BTreeSet::from([trace(&second), trace(&failed)]),
                "Failures by reason" => BTreeSet::from([trace(&failed)]),
                other => panic!("an unknown panel: {other}"),
            };
            support::await_true(&format!("{title} has the traces, {has_native}"), || traces_of(&query) == expected);
        }
        let is_stored = || prometheus.query(&format!("count({DURATION})")).len() == usize::from(has_native);
        support::await_true(&format!("Prometheus has native histograms: {has_native}"), is_stored);
    }
}

/// A time that changes from push to push would be another exemplar to Prometheus.
#[test]
fn exemplar_keeps_the_time_at_which_its_stage_ended() {
    for first in ORDERS {
        let Some(server) = support::pushgateway() else { return };
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()).with_exemplars());
        let [_, _, failed] = run_stages(&spans);
        let push = || {
            pipeline.guard().flush().unwrap();
            [exemplars(&server, DURATION, "stage_id"), exemplars(&server, FAILURES, "stage_id")]
        };
        let pushed = push();
        let of_failure = pushed[1][0].1[0].as_ref().unwrap();
        let ended = failed.end_time.duration_since(UNIX_EPOCH).unwrap();
        let off = of_failure.time.as_ref().unwrap().unix().abs_diff(ended);
        assert!(off.as_secs_f64() < TOLERANCE, "{off:?}");
        for _ in 0..3 {
            assert_eq!(push(), pushed, "{first:?}");
        }
    }
}

#[test]
fn unsampled_trace_is_in_no_exemplar() {
    for first in ORDERS {
        let Some(server) = support::pushgateway() else { return };
        let (tracer, _spans) = tracer(Sampler::AlwaysOff);
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()).with_exemplars());
        info_span!("x", stage_id = "a").in_scope(|| ());
        info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
        pipeline.guard().flush().unwrap();
        assert_eq!(traces_of_buckets(&server, "a"), [None, None, None], "{first:?}");
        assert_eq!(exemplars(&server, FAILURES, "stage_id"), [("a".to_owned(), vec![None])], "{first:?}");
    }
}

fn remote(trace: u128, flags: TraceFlags) -> opentelemetry::Context {
    let parent = SpanContext::new(TraceId::from(trace), SpanId::from(7), flags, true, Default::default());
    opentelemetry::Context::new().with_remote_span_context(parent)
}

/// As in a worker, one long span around messages that each belong to the trace of their sender.
#[test]
fn stage_in_another_trace_than_its_parent_has_its_own() {
    for (first, is_outermost_before) in ORDERS.into_iter().flat_map(|first| [(first, false), (first, true)]) {
        let Some(server) = support::pushgateway() else { return };
        let (tracer, _spans) = tracer(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()).with_exemplars());
        if is_outermost_before {
            info_span!("x", stage_id = "outermost").in_scope(|| ());
        }
        let _worker = info_span!("worker").entered();
        for (number, flags) in (1..).zip([TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED].into_iter().cycle()).take(6) {
            let stage_id = format!("{number}");
            let message = info_span!("x", stage_id);
            message.set_parent(remote(number, flags)).unwrap();
            message.in_scope(|| info_span!("x", stage_id = "inner").in_scope(|| ()));
            drop(message);
            pipeline.guard().flush().unwrap();
            let expected = (flags == TraceFlags::SAMPLED).then(|| TraceId::from(number).to_string());
            assert_eq!(
                traces_of_buckets(&server, &stage_id),
                [expected, None, None],
                "{first:?} {is_outermost_before}"
            );
            // The last sampled one.
            let sampled = TraceId::from((number - 1) / 2 * 2 + 1).to_string();
            assert_eq!(traces_of_buckets(&server, "inner"), [Some(sampled), None, None], "{first:?} {number}");
        }
    }
}

#[test]
fn stage_has_the_trace_of_its_parent() {
    for first in ORDERS {
        let Some(server) = support::pushgateway() else { return };
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()).with_exemplars());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = async {
            tokio::task::yield_now().await;
            async { tokio::task::yield_now().await }.instrument(info_span!("x", stage_id = "inner")).await;
        };
        runtime.block_on(task.instrument(info_span!("x", stage_id = "a")));
        pipeline.guard().flush().unwrap();
        let [inner, outer]: [SpanData; 2] = spans.get_finished_spans().unwrap().try_into().unwrap();
        assert_eq!(trace(&inner), trace(&outer));
        for stage in ["inner", "a"] {
            assert_eq!(traces_of_buckets(&server, stage), [Some(trace(&outer)), None, None], "{first:?} {stage}");
        }
    }
}

#[test]
fn without_the_setting_there_are_no_exemplars_and_text_is_pushed() {
    for first in ORDERS {
        let (tracer, _spans) = tracer(Sampler::AlwaysOn);
        let server = MockGateway::ok();
        let pipeline = pipeline_with_traces(tracer, first, |builder| pushing(builder, &server.url()));
        info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
        pipeline.guard().flush().unwrap();
        let pushes = server.requests();
        assert!(pushes.iter().all(|push| push.header("content-type").unwrap().starts_with("text/plain")), "{pushes:?}");
    }
    let Some(server) = support::pushgateway() else { return };
    let (tracer, _spans) = tracer(Sampler::AlwaysOn);
    let in_protobuf =
        |builder| pushing(builder, &server.url()).map_pushgateway(|gateway| gateway.with_format(PushFormat::Protobuf));
    let pipeline = pipeline_with_traces(tracer, First::Traces, in_protobuf);
    info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
    pipeline.guard().flush().unwrap();
    assert_eq!(traces_of_buckets(&server, "a"), [None, None, None]);
    assert_eq!(exemplars(&server, FAILURES, "stage_id"), [("a".to_owned(), vec![None])]);
}

#[test]
fn exemplars_stay_in_the_spool_until_the_gateway_has_them() {
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let refusing = MockGateway::start([Reply::status(401)]);
    let builder =
        |url: &str| pushing(MetricsLayer::builder(), url).with_exemplars().with_spool_dir(directory.path().to_owned());
    let (tracer, spans) = tracer(Sampler::AlwaysOn);
    let (layer, guard) = builder(&refusing.url()).build().unwrap();
    let default = Registry::default().with(OpenTelemetryLayer::new(tracer)).with(layer).set_default();
    let [_, second, failed] = run_stages(&spans);
    assert_eq!(guard.shutdown().unwrap_err().status(), Some(401));
    drop(default);
    let payloads: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let payload = payloads.iter().find(|path| path.extension().is_some_and(|ending| ending == "spool")).unwrap();
    readdress(payload, &refusing.url(), &server.url());

    let (_layer, later) = builder(&server.url()).build().unwrap();
    later.flush().unwrap();
    let expected = [Some(trace(&second)), Some(trace(&failed)), None];
    assert_eq!(traces_of_buckets(&server, "a"), expected);
    assert_eq!(exemplars(&server, FAILURES, "reason")[0].1[0].as_ref().map(trace_of), Some(trace(&failed)));
    assert!(!payload.exists());
}

/// Replaces the gateway of a payload.
#[track_caller]
fn readdress(payload: &Path, from: &str, to: &str) {
    let content = std::fs::read(payload).unwrap();
    let at = content.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
    std::fs::write(payload, [&content[..at], to.as_bytes(), &content[at + from.len()..]].concat()).unwrap();
}

/// A second recorder gets each duration, and the exemplars stay with the layer.
#[cfg(feature = "otlp")]
#[test]
fn stages_that_a_meter_provider_gets_too_have_exemplars() {
    for first in ORDERS {
        let Some(server) = support::pushgateway() else { return };
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build();
        let pipeline = pipeline_with_traces(tracer, first, |builder| {
            pushing(builder, &server.url()).with_exemplars().with_meter_provider(provider)
        });
        let [_, second, failed] = run_stages(&spans);
        pipeline.guard().flush().unwrap();
        let expected = [Some(trace(&second)), Some(trace(&failed)), None];
        assert_eq!(traces_of_buckets(&server, "a"), expected, "{first:?}");
        let failures = exemplars(&server, FAILURES, "reason");
        assert_eq!(failures[0].1[0].as_ref().map(trace_of), Some(trace(&failed)), "{first:?}");
    }
}

/// Beyond the limit, several label sets share a series, and the exemplar is that of the run that ended last.
#[test]
fn overflow_series_has_the_exemplar_that_is_the_latest() {
    let Some(server) = support::pushgateway() else { return };
    let (tracer, spans) = tracer(Sampler::AlwaysOn);
    let pipeline = pipeline_with_traces(tracer, First::Traces, |builder| {
        pushing(builder, &server.url()).with_exemplars().with_max_series(1)
    });
    for stage_id in ["a", "b", "c", "b"] {
        info_span!("x", stage_id).in_scope(|| ());
    }
    pipeline.guard().flush().unwrap();
    let last = trace(spans.get_finished_spans().unwrap().last().unwrap());
    assert_eq!(traces_of_buckets(&server, "_overflow"), [Some(last), None, None]);
}

#[test]
fn exemplars_that_cannot_be_pushed_are_one_warning() {
    let server = MockGateway::ok();
    let heard = |configure: &dyn Fn(MetricsLayerBuilder) -> MetricsLayerBuilder| {
        let pipeline = Pipeline::with(|builder| configure(pushing(builder, &server.url()).with_exemplars()));
        // The warnings of `install()` wait for a span.
        drop(info_span!("x", stage_id = "a"));
        pipeline.heard()
    };
    let warning = |heard: Vec<String>| {
        let [warning] = <[String; 1]>::try_from(heard).unwrap();
        warning
    };
    let text = heard(&|builder| builder.map_pushgateway(|gateway| gateway.with_format(PushFormat::Text)));
    assert_eq!(
        warning(text),
        "WARN exemplars are not delivered: pushes are text, which has none: set the push format to protobuf"
    );
    let foreign = heard(&|builder| builder.with_exposition(|| "a 1\n".to_owned()));
    assert_eq!(warning(foreign), "WARN exemplars are not delivered: `with_exposition` renders text, which has none");
    let both = heard(&|builder| {
        builder.with_native_histograms().map_pushgateway(|gateway| gateway.with_format(PushFormat::Text))
    });
    assert!(warning(both).starts_with("WARN native histograms and exemplars are not delivered: "));
    assert_eq!(heard(&|builder| builder), [""; 0]);
}

/// Exemplars make the format protobuf, which VictoriaMetrics throws away.
#[test]
fn exemplars_for_a_server_that_takes_text_alone_are_a_configuration_error() {
    let gateway = Pushgateway::new("http://vm:8428/api/v1/import/prometheus", "j").unwrap();
    let build = |gateway| MetricsLayer::builder().with_exemplars().with_pushgateway(gateway).build();
    let error = build(gateway.clone()).unwrap_err();
    assert!(error.is_config() && error.to_string().ends_with("set the push format to text"), "{error}");
    assert!(build(gateway.with_format(PushFormat::Text)).is_ok(), "text is taken");
}

/// A layer of traces that is not there, or has nothing to do with the current context.
#[test]
fn stages_without_a_trace_have_no_exemplar() {
    let Some(server) = support::pushgateway() else { return };
    let (tracer, _spans) = tracer(Sampler::AlwaysOn);
    for has_traces in [false, true] {
        let tracer = tracer.clone();
        let pipeline = Pipeline::stacked(
            |builder| pushing(builder, &server.url()).with_exemplars(),
            |layer, heard| {
                let traces = has_traces.then(|| OpenTelemetryLayer::new(tracer).with_context_activation(false));
                Registry::default().with(traces).with(layer).with(heard).into()
            },
        );
        info_span!("x", stage_id = "a").in_scope(|| ());
        // A stage is looked up only if it fails, because that starts its span.
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        assert!(!has_traces || stage.set_parent(remote(7, TraceFlags::SAMPLED)).is_ok());
        drop(stage);
        pipeline.guard().flush().unwrap();
        assert_eq!(traces_of_buckets(&server, "a"), [None, None, None]);
    }
}
