//! OpenTelemetry collectors: a decoder of OTLP exports, a mock collector for gRPC, a real receiver and a real collector.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogramDataPoint, NumberDataPoint, metric::Data, number_data_point,
};
use prost::Message;
use tokio::sync::oneshot;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::child::{Ended, Running, Signal};
use super::exposition::Exposition;
use super::process::Process;
use super::{WAIT_TIMEOUT, child, free_addr, mock_gateway, servers, workspace};

/// Exports are increments.
pub const DELTA: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
/// Histograms are exponential.
pub const EXPONENTIAL: (&str, &str) =
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram");

/// The real receiver, a program from the Python registry.
pub const ROTEL: &str = "rotel-agent";

pub type Labels = BTreeMap<String, String>;

/// One decoded export.
#[derive(Clone, Debug)]
pub struct Export {
    pub resource: Labels,
    pub scopes: Vec<String>,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub struct Point {
    pub name: String,
    pub unit: String,
    pub help: String,
    pub labels: Labels,
    pub value: Value,
    /// Nanoseconds of Unix time.
    pub start: u64,
    pub time: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Sum { value: f64, delta: bool },
    Gauge(f64),
    Histogram { bounds: Vec<f64>, counts: Vec<u64>, sum: f64, count: u64, delta: bool },
    Exponential { buckets: Vec<Bucket>, sum: f64, count: u64, delta: bool },
}

/// A bucket of an exponential histogram: the number of its samples, which are between these values. Histograms of any scales
/// are added by putting their buckets together.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub lower: f64,
    pub upper: f64,
    pub count: u64,
}

const DELTA_TEMPORALITY: i32 = 1;

impl Export {
    /// Decodes the body of an HTTP request. Panics if the body is not an export.
    #[track_caller]
    pub fn from_http(request: &mock_gateway::Request) -> Self {
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        Self::from_request(ExportMetricsServiceRequest::decode(&request.body[..]).expect("an export of metrics"))
    }

    fn from_request(request: ExportMetricsServiceRequest) -> Self {
        let mut export = Self { resource: Labels::new(), scopes: Vec::new(), points: Vec::new() };
        for resource in request.resource_metrics {
            export.resource.extend(labels(&resource.resource.unwrap_or_default().attributes));
            for scope in resource.scope_metrics {
                export.scopes.push(scope.scope.unwrap_or_default().name);
                for metric in scope.metrics {
                    let data = metric.data.expect("data of a metric");
                    let points = points(&metric.name, &metric.unit, &metric.description, data);
                    export.points.extend(points);
                }
            }
        }
        export
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.points.iter().map(|point| point.name.as_str()).collect();
        names.dedup();
        names
    }
}

fn points(name: &str, unit: &str, help: &str, data: Data) -> Vec<Point> {
    let point = |attributes: &[KeyValue], start, time, value| Point {
        name: name.to_owned(),
        unit: unit.to_owned(),
        help: help.to_owned(),
        labels: labels(attributes),
        value,
        start,
        time,
    };
    let value_of = |number: &NumberDataPoint| match number.value.expect("a value") {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    };
    match data {
        Data::Sum(sum) => {
            assert!(sum.is_monotonic, "{name}");
            let delta = sum.aggregation_temporality == DELTA_TEMPORALITY;
            let value = |number: &NumberDataPoint| Value::Sum { value: value_of(number), delta };
            let to_point =
                |n: &NumberDataPoint| point(&n.attributes, n.start_time_unix_nano, n.time_unix_nano, value(n));
            sum.data_points.iter().map(to_point).collect()
        }
        Data::Gauge(gauge) => {
            let to_point = |n: &NumberDataPoint| point(&n.attributes, 0, n.time_unix_nano, Value::Gauge(value_of(n)));
            gauge.data_points.iter().map(to_point).collect()
        }
        Data::Histogram(histogram) => {
            let delta = histogram.aggregation_temporality == DELTA_TEMPORALITY;
            let points = histogram.data_points.into_iter().map(|data| {
                let value = Value::Histogram {
                    bounds: data.explicit_bounds,
                    counts: data.bucket_counts,
                    sum: data.sum.expect("a sum"),
                    count: data.count,
                    delta,
                };
                point(&data.attributes, data.start_time_unix_nano, data.time_unix_nano, value)
            });
            points.collect()
        }
        Data::ExponentialHistogram(histogram) => {
            let delta = histogram.aggregation_temporality == DELTA_TEMPORALITY;
            let points = histogram.data_points.into_iter().map(|data| {
                let (buckets, sum, count) = (buckets(&data), data.sum.expect("a sum"), data.count);
                let value = Value::Exponential { buckets, sum, count, delta };
                point(&data.attributes, data.start_time_unix_nano, data.time_unix_nano, value)
            });
            points.collect()
        }
        other @ Data::Summary(_) => panic!("unexpected data of {name}: {other:?}"),
    }
}

/// The buckets of an exponential histogram that have samples.
fn buckets(data: &ExponentialHistogramDataPoint) -> Vec<Bucket> {
    let base_log = f64::from(-data.scale).exp2();
    let zero = Bucket { lower: -data.zero_threshold, upper: data.zero_threshold, count: data.zero_count };
    let mut buckets = vec![zero];
    for (side, is_negative) in [(&data.positive, false), (&data.negative, true)] {
        let side = side.clone().unwrap_or_default();
        buckets.extend((side.offset..).zip(side.bucket_counts).map(|(index, count)| {
            let [inner, outer] = [index, index + 1].map(|index| (f64::from(index) * base_log).exp2());
            let (lower, upper) = if is_negative { (-outer, -inner) } else { (inner, outer) };
            Bucket { lower, upper, count }
        }));
    }
    buckets.retain(|bucket| bucket.count > 0);
    assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), data.count, "{data:?}");
    buckets
}

fn labels(attributes: &[KeyValue]) -> Labels {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

/// Merges all exports of a process as a backend does: adds up increments, and keeps the last value of the other points.
pub fn totals(exports: &[Export]) -> BTreeMap<(String, Labels), Value> {
    let mut totals: BTreeMap<(String, Labels), Value> = BTreeMap::new();
    for point in exports.iter().flat_map(|export| &export.points) {
        let total = totals.entry((point.name.clone(), point.labels.clone()));
        total.and_modify(|total| total.add(&point.value)).or_insert_with(|| point.value.clone());
    }
    totals
}

impl Value {
    fn add(&mut self, increment: &Self) {
        match (&mut *self, increment) {
            (Self::Sum { value, .. }, Self::Sum { value: added, delta: true }) => *value += added,
            (
                Self::Histogram { counts, sum, count, .. },
                Self::Histogram { counts: added_counts, sum: added_sum, count: added_count, delta: true, .. },
            ) => {
                counts.iter_mut().zip(added_counts).for_each(|(count, added)| *count += added);
                *sum += added_sum;
                *count += added_count;
            }
            (
                Self::Exponential { buckets, sum, count, .. },
                Self::Exponential { buckets: added_buckets, sum: added_sum, count: added_count, delta: true },
            ) => {
                buckets.extend_from_slice(added_buckets);
                *sum += added_sum;
                *count += added_count;
            }
            (last, new) => *last = new.clone(),
        }
    }
}

/// Panics unless the exports have exactly the series of the text, with the same values and buckets.
#[track_caller]
pub fn assert_same(totals: &BTreeMap<(String, Labels), Value>, text: &Exposition) {
    let mut compared = 0;
    for family in &text.families {
        for sample in &family.samples {
            let series = |name: &str| {
                let mut labels = sample.labels.clone();
                labels.remove("le");
                totals.get(&(name.to_owned(), labels))
            };
            let total = series(&family.name).unwrap_or_else(|| panic!("{sample:?} is not in {totals:#?}"));
            let same = match (family.kind.as_str(), total, sample.name.strip_prefix(&family.name)) {
                ("counter", Value::Sum { value, .. }, _) | ("gauge", Value::Gauge(value), _) => *value == sample.value,
                ("histogram", Value::Histogram { count, .. } | Value::Exponential { count, .. }, Some("_count")) => {
                    *count as f64 == sample.value
                }
                ("histogram", Value::Histogram { sum, .. } | Value::Exponential { sum, .. }, Some("_sum")) => {
                    (sum - sample.value).abs() < 1e-9
                }
                ("histogram", Value::Exponential { buckets, .. }, Some("_bucket")) => {
                    let bound: f64 = sample.labels["le"].parse().expect("a bound");
                    let count = |is_counted: &dyn Fn(&Bucket) -> bool| {
                        buckets.iter().filter(|bucket| is_counted(bucket)).map(|bucket| bucket.count).sum::<u64>()
                            as f64
                    };
                    // Bounds of exponential buckets are rounded.
                    let within = count(&|bucket| bucket.upper <= bound * 0.999_999);
                    let touching = count(&|bucket| bucket.lower < bound * 1.000_001);
                    (within..=touching).contains(&sample.value)
                }
                ("histogram", Value::Histogram { bounds, counts, .. }, Some("_bucket")) => {
                    let bound = &sample.labels["le"];
                    let index = bounds.iter().position(|exported| exported.to_string() == *bound);
                    let last = index.unwrap_or(counts.len() - 1);
                    let exists = index.is_some() || bound == "+Inf";
                    exists && counts[..=last].iter().sum::<u64>() as f64 == sample.value
                }
                _ => false,
            };
            assert!(same, "{sample:?} is exported as {total:?}");
            compared += usize::from(!matches!(sample.name.strip_prefix(&family.name), Some("_sum" | "_bucket")));
        }
    }
    assert_eq!(compared, totals.len(), "every exported series is in the text: {:#?}", totals.keys());
}

/// A gRPC collector that stores the exports and refuses requests on demand. `tonic` generates the service and `hyper` serves
/// it; the features `otlp` and `http` add them.
pub struct GrpcCollector {
    pub addr: SocketAddr,
    shared: Shared,
    _stop: oneshot::Sender<()>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    exports: Vec<Export>,
    headers: Vec<Labels>,
    refusals: Vec<Status>,
}

#[tonic::async_trait]
impl MetricsService for Shared {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let headers = request.metadata().clone().into_headers();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        state.headers.push(headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect());
        if let Some(refusal) = state.refusals.pop() {
            return Err(refusal);
        }
        state.exports.push(Export::from_request(request.into_inner()));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl GrpcCollector {
    pub fn start() -> Self {
        Self::refusing([])
    }

    /// Refuses the first requests with these statuses, the last status first.
    pub fn refusing(refusals: impl IntoIterator<Item = Status>) -> Self {
        let shared = Shared::default();
        shared.0.lock().expect("a new lock").refusals = refusals.into_iter().collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, addr) = mpsc::channel();
        let service =
            MetricsServiceServer::new(shared.clone()).accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        let service = service_fn(move |request| service.clone().call(request));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
                sender.send(listener.local_addr().expect("the address of the listener")).expect("a waiting test");
                let serve = async {
                    loop {
                        let (connection, _) = listener.accept().await.expect("a connection");
                        let server = http2::Builder::new(TokioExecutor::new());
                        tokio::spawn(server.serve_connection(TokioIo::new(connection), service.clone()));
                    }
                };
                // Ends when the `GrpcCollector` is dropped.
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { addr: addr.recv().expect("an address"), shared, _stop: stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn exports(&self) -> Vec<Export> {
        self.shared.0.lock().expect("an unpoisoned lock").exports.clone()
    }

    /// The headers of every request, including refused ones.
    pub fn headers(&self) -> Vec<Labels> {
        self.shared.0.lock().expect("an unpoisoned lock").headers.clone()
    }
}

/// A running rotel, which prints the metrics that it receives.
pub struct Rotel {
    child: Running,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Rotel {
    /// Prints a message and returns `None` if rotel is not installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        servers::installed(ROTEL).then(|| {
            let (grpc, http) = (free_addr(), free_addr());
            let mut command = Command::new(ROTEL);
            command
                .args(["start", "--exporter", "blackhole"])
                .args(["--debug-log", "metrics", "--debug-log-verbosity", "detailed"])
                .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()]);
            let child = child::start(command);
            let deadline = Instant::now() + WAIT_TIMEOUT;
            while [grpc, http].iter().any(|addr| std::net::TcpStream::connect(addr).is_err()) {
                assert!(Instant::now() < deadline, "rotel does not listen on {grpc} and {http}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Self { child, grpc, http }
        })
    }

    /// Waits until rotel has printed this text.
    #[track_caller]
    pub fn await_line(&mut self, text: &str) {
        self.child.await_line(text);
    }

    /// Stops rotel and returns its output.
    pub fn stop(self) -> Ended {
        self.child.signal(Signal::TERM);
        self.child.wait()
    }
}

/// A running OpenTelemetry Collector with a configuration of `examples/`. The drop kills it.
pub struct Otelcol {
    process: Process,
    pub grpc: SocketAddr,
    /// Where a Prometheus scrapes it.
    pub metrics: SocketAddr,
    /// Where a Prometheus scrapes its own metrics, if its file has them.
    pub telemetry: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Otelcol {
    /// Starts a collector with `examples/otlp-collector.yaml`. Prints a message and returns `None` if the collector is not
    /// installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Starts such a collector with further settings.
    #[track_caller]
    pub fn start_with(settings: &str) -> Option<Self> {
        servers::installed(servers::OTELCOL).then(|| {
            let metrics = free_addr();
            let settings = format!("exporters: {{prometheus: {{endpoint: \"{metrics}\"}}}}\n{settings}");
            Self::start_file("otlp-collector.yaml", metrics, settings)
        })
    }

    /// Starts a collector with `examples/otlp-load-balancer.yaml` in front of these collectors.
    #[track_caller]
    pub fn in_front_of(collectors: &[Self]) -> Self {
        let hosts: Vec<_> = collectors.iter().map(|collector| collector.grpc.to_string()).collect();
        let settings = format!(
            "exporters: {{load_balancing: {{resolver: {{static: {{hostnames: {hosts:?}}}}}}}}}\n\
             service: {{telemetry: {{metrics: {{level: none}}}}}}\n"
        );
        Self::start_file("otlp-load-balancer.yaml", free_addr(), settings)
    }

    /// The file's addresses are replaced: those of the telemetry in its text, since settings replace a list as a whole.
    #[track_caller]
    fn start_file(file: &str, metrics: SocketAddr, settings: String) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the collector");
        let (grpc, telemetry) = (free_addr(), free_addr());
        let text = std::fs::read_to_string(workspace().join("examples").join(file)).expect("the file");
        let text = text.replace("host: 0.0.0.0\n", &format!("host: {}\n", telemetry.ip()));
        let text = text.replace("port: 8888\n", &format!("port: {}\n", telemetry.port()));
        let (copy, replaced) = (dir.path().join(file), dir.path().join("replaced.yaml"));
        std::fs::write(&copy, text).expect("the file written");
        // The receiver starts after the processors and exporters, its HTTP server last.
        let process = Process::start_listening(servers::OTELCOL, move |http| {
            let settings = format!(
                "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"{grpc}\"}}, http: {{endpoint: \"{http}\"}}}}}}}}\n\
                 {settings}"
            );
            std::fs::write(&replaced, settings).expect("the settings written");
            let mut command = Command::new(servers::OTELCOL);
            command.arg(format!("--config={}", copy.display())).arg(format!("--config={}", replaced.display()));
            command
        });
        Self { process, grpc, metrics, telemetry, _dir: dir }
    }

    /// The endpoint for OTLP over HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }
}

impl Deref for Otelcol {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Otelcol {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
