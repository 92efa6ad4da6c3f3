//! Collectors of OpenTelemetry: a reader of what is sent by OTLP, a stand-in for gRPC, and a real receiver.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
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
use opentelemetry_proto::tonic::metrics::v1::{NumberDataPoint, metric::Data, number_data_point};
use prost::Message;
use tokio::sync::oneshot;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::child::{Ended, Running, Signal};
use super::exposition::Exposition;
use super::{PATIENCE, child, free_addr, mock_gateway, servers};

/// The real receiver, from the Python registry.
pub const ROTEL: &str = "rotel-agent";

pub type Labels = BTreeMap<String, String>;

/// One export, decoded.
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
}

const DELTA: i32 = 1;

impl Export {
    /// The body of a request over HTTP; panics if it is none.
    #[track_caller]
    pub fn of_http(request: &mock_gateway::Request) -> Self {
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        Self::of(ExportMetricsServiceRequest::decode(&request.body[..]).expect("an export of metrics"))
    }

    fn of(request: ExportMetricsServiceRequest) -> Self {
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
    let of_number = |number: &NumberDataPoint| match number.value.expect("a value") {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    };
    match data {
        Data::Sum(sum) => {
            assert!(sum.is_monotonic, "{name}");
            let delta = sum.aggregation_temporality == DELTA;
            let value = |number: &NumberDataPoint| Value::Sum { value: of_number(number), delta };
            let of = |n: &NumberDataPoint| point(&n.attributes, n.start_time_unix_nano, n.time_unix_nano, value(n));
            sum.data_points.iter().map(of).collect()
        }
        Data::Gauge(gauge) => {
            let of = |n: &NumberDataPoint| point(&n.attributes, 0, n.time_unix_nano, Value::Gauge(of_number(n)));
            gauge.data_points.iter().map(of).collect()
        }
        Data::Histogram(histogram) => {
            let delta = histogram.aggregation_temporality == DELTA;
            let points = histogram.data_points.into_iter().map(|found| {
                let value = Value::Histogram {
                    bounds: found.explicit_bounds,
                    counts: found.bucket_counts,
                    sum: found.sum.expect("a sum"),
                    count: found.count,
                    delta,
                };
                point(&found.attributes, found.start_time_unix_nano, found.time_unix_nano, value)
            });
            points.collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}

fn labels(attributes: &[KeyValue]) -> Labels {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

/// What a backend makes of all exports of a process: increments are added up, of everything else the last one stays.
pub fn totals(exports: &[Export]) -> BTreeMap<(String, Labels), Value> {
    let mut totals: BTreeMap<(String, Labels), Value> = BTreeMap::new();
    for point in exports.iter().flat_map(|export| &export.points) {
        let total = totals.entry((point.name.clone(), point.labels.clone()));
        total.and_modify(|total| total.add(&point.value)).or_insert_with(|| point.value.clone());
    }
    totals
}

impl Value {
    fn add(&mut self, more: &Self) {
        match (&mut *self, more) {
            (Self::Sum { value, .. }, Self::Sum { value: more, delta: true }) => *value += more,
            (
                Self::Histogram { counts, sum, count, .. },
                Self::Histogram { counts: more_counts, sum: more_sum, count: more_count, delta: true, .. },
            ) => {
                counts.iter_mut().zip(more_counts).for_each(|(count, more)| *count += more);
                *sum += more_sum;
                *count += more_count;
            }
            (last, new) => *last = new.clone(),
        }
    }
}

/// Panics unless the two say the same: every series of the text, and no other, with its value and its buckets.
#[track_caller]
pub fn assert_same(totals: &BTreeMap<(String, Labels), Value>, text: &Exposition) {
    let mut seen = 0;
    for family in &text.families {
        for sample in &family.samples {
            let series = |name: &str| {
                let mut labels = sample.labels.clone();
                labels.remove("le");
                totals.get(&(name.to_owned(), labels))
            };
            let found = series(&family.name).unwrap_or_else(|| panic!("no {sample:?} in {totals:#?}"));
            let same = match (family.kind.as_str(), found, sample.name.strip_prefix(&family.name)) {
                ("counter", Value::Sum { value, .. }, _) | ("gauge", Value::Gauge(value), _) => *value == sample.value,
                ("histogram", Value::Histogram { count, .. }, Some("_count")) => *count as f64 == sample.value,
                ("histogram", Value::Histogram { sum, .. }, Some("_sum")) => (sum - sample.value).abs() < 1e-9,
                ("histogram", Value::Histogram { bounds, counts, .. }, Some("_bucket")) => {
                    let bound = &sample.labels["le"];
                    let at = bounds.iter().position(|found| found.to_string() == *bound);
                    let upto = at.unwrap_or(counts.len() - 1);
                    let known = at.is_some() || bound == "+Inf";
                    known && counts[..=upto].iter().sum::<u64>() as f64 == sample.value
                }
                _ => false,
            };
            assert!(same, "{sample:?} is {found:?}");
            seen += usize::from(!matches!(sample.name.strip_prefix(&family.name), Some("_sum" | "_bucket")));
        }
    }
    assert_eq!(seen, totals.len(), "series of the text, and all: {:#?}", totals.keys());
}

/// A collector over gRPC that keeps what it is sent. It refuses as often as it is told to. The service is generated by `tonic`
/// and served by `hyper`, which come with the features `otlp` and `http`.
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
        state.exports.push(Export::of(request.into_inner()));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl GrpcCollector {
    pub fn start() -> Self {
        Self::refusing([])
    }

    /// Refuses the first requests so, the last of them first.
    pub fn refusing(refusals: impl IntoIterator<Item = Status>) -> Self {
        let shared = Shared::default();
        shared.0.lock().expect("a new lock").refusals = refusals.into_iter().collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, addr) = mpsc::channel();
        let service =
            MetricsServiceServer::new(shared.clone()).accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        let service = service_fn(move |request| service.clone().call(request));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
                told.send(listener.local_addr().expect("its number")).expect("the test waits for it");
                let serve = async {
                    loop {
                        let (connection, _) = listener.accept().await.expect("a connection");
                        let server = http2::Builder::new(TokioExecutor::new());
                        tokio::spawn(server.serve_connection(TokioIo::new(connection), service.clone()));
                    }
                };
                // Ends with the value that stands for it.
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
        self.shared.0.lock().expect("no panic there").exports.clone()
    }

    /// Of every request, those that were refused too.
    pub fn headers(&self) -> Vec<Labels> {
        self.shared.0.lock().expect("no panic there").headers.clone()
    }
}

/// A rotel, which prints what it receives.
pub struct Rotel {
    child: Running,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Rotel {
    /// `None`, said out loud, where it is not installed.
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
            let deadline = Instant::now() + PATIENCE;
            while [grpc, http].iter().any(|addr| std::net::TcpStream::connect(addr).is_err()) {
                assert!(Instant::now() < deadline, "rotel does not listen on {grpc} and {http}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Self { child, grpc, http }
        })
    }

    /// Waits until it has printed this.
    #[track_caller]
    pub fn await_line(&mut self, text: &str) {
        self.child.await_line(text);
    }

    /// All it has printed, when it has ended.
    pub fn stop(self) -> Ended {
        self.child.signal(Signal::TERM);
        self.child.wait()
    }
}
