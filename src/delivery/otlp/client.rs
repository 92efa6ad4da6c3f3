//! One request to a collector, over HTTP or gRPC.
//!
//! Not the exporter of `opentelemetry-otlp`: it takes the SDK's own form of metrics alone, which cannot be divided into
//! requests that a collector takes, and its errors do not say why.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use tokio::time::{Instant, timeout_at};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::delivery::http::body::gzip;
use crate::delivery::http::client;
use crate::delivery::http::client::USER_AGENT;
use crate::delivery::http::error::{RequestError, foreign_text};
use crate::delivery::http::url::Address;
use crate::delivery::otlp::settings::{Compression, OtlpSettings, Protocol};
use crate::error::{Error, Kind};

/// How much is read of an answer. A collector that took everything sends nothing, or a few bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the body of an answer may take. It arrived: the body tells of rejected data points at most.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// An export that a collector did not take.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: RequestError,
    /// Whether there was no answer to a request that may have arrived.
    pub(crate) is_ambiguous: bool,
}

/// The answer to an export that arrived.
pub(crate) enum Answer {
    Http(reqwest::Response),
    Grpc(ExportMetricsServiceResponse),
}

/// A request in the form in which it is sent, and sent again.
pub(crate) enum Body {
    Http { bytes: Bytes, is_gzip: bool },
    Grpc(Box<ExportMetricsServiceRequest>),
}

pub(crate) struct Client {
    address: Address,
    headers: HeaderMap,
    timeout: Duration,
    compression: Option<Compression>,
    transport: Transport,
}

enum Transport {
    Http(reqwest::Client),
    Grpc { endpoint: Box<Endpoint>, client: Box<MetricsServiceClient<Channel>> },
}

impl Client {
    /// To be called within the runtime on which it will send.
    pub(crate) fn new(settings: &OtlpSettings) -> Result<Self, Error> {
        let (address, timeout, compression) =
            (Address::of(settings.endpoint.clone()), settings.timeout, settings.compression);
        let transport = match settings.protocol {
            Protocol::Http => {
                Transport::Http(client::build("collector", &address, timeout, |builder| builder.timeout(timeout))?)
            }
            Protocol::Grpc => {
                let endpoint = endpoint(&address, timeout)
                    .map_err(|error| Error::config(format!("cannot export metrics to {address}")).with_source(error))?;
                Transport::Grpc { client: Box::new(connect(&endpoint, compression)), endpoint: Box::new(endpoint) }
            }
        };
        Ok(Self { address, headers: settings.headers.clone(), timeout, compression, transport })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn body(&self, request: ExportMetricsServiceRequest) -> Body {
        match self.transport {
            Transport::Http(_) => {
                let bytes = Bytes::from(request.encode_to_vec());
                let compressed = self.compression.and_then(|Compression::Gzip| gzip(&bytes));
                let is_gzip = compressed.is_some();
                Body::Http { bytes: compressed.unwrap_or(bytes), is_gzip }
            }
            Transport::Grpc { .. } => Body::Grpc(Box::new(request)),
        }
    }

    /// Sends it once. Over HTTP it has arrived with the head of a success.
    pub(crate) async fn send(&self, body: &Body) -> Result<Answer, Refusal> {
        match (&self.transport, body) {
            (Transport::Http(http), Body::Http { bytes, is_gzip }) => {
                let mut request = http.post(self.address.as_str()).headers(self.headers.clone());
                request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                if *is_gzip {
                    request = request.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                self.send_http(request.body(bytes.clone())).await
            }
            (Transport::Grpc { client, .. }, Body::Grpc(message)) => {
                let metadata = MetadataMap::from_headers(self.headers.clone());
                let request = Request::from_parts(metadata, Default::default(), (**message).clone());
                let answer = MetricsServiceClient::clone(client).export(request).await;
                answer.map(|answer| Answer::Grpc(answer.into_inner())).map_err(|status| self.refusal_by_grpc(status))
            }
            // A body is made by the client that sends it.
            _ => Err(Refusal {
                failure: Error::new(Kind::Delivery, "the request is of another protocol").into(),
                is_ambiguous: false,
            }),
        }
    }

    async fn send_http(&self, request: reqwest::RequestBuilder) -> Result<Answer, Refusal> {
        let name = self.request_name();
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(Answer::Http(response)),
            Ok(response) => {
                let failure = RequestError::refused(&name, &self.address, &self.headers, response).await;
                Err(Refusal { failure, is_ambiguous: false })
            }
            Err(error) => {
                let is_ambiguous = !error.is_connect() && !error.is_builder();
                Err(Refusal {
                    failure: RequestError::unanswered(&name, self.timeout, self.timeout, error),
                    is_ambiguous,
                })
            }
        }
    }

    fn request_name(&self) -> String {
        match self.transport {
            Transport::Http(_) => format!("POST {}", self.address),
            Transport::Grpc { .. } => format!("export to {}", self.address),
        }
    }

    /// The collector's word on what it rejected of an export that arrived.
    pub(crate) async fn rejected(&self, answer: Answer, deadline: Instant) -> Option<Rejected> {
        let answer = match answer {
            Answer::Grpc(answer) => answer,
            Answer::Http(mut response) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let until = Instant::now() + ANSWER_TIMEOUT.min(left / 2);
                let mut body = BytesMut::new();
                while body.len() < MAX_ANSWER
                    && let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await
                {
                    body.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - body.len())]);
                }
                // A body that is cut off, or another, does not count.
                ExportMetricsServiceResponse::decode(body).ok()?
            }
        };
        let partial = answer.partial_success?;
        let points = usize::try_from(partial.rejected_data_points).ok().filter(|points| *points > 0)?;
        let why = foreign_text(&self.headers, partial.error_message.as_bytes());
        let text = format!("{} was answered, and {points} data points were rejected: {why}", self.request_name());
        Some(Rejected { points, error: Error::new(Kind::Refused(200), text) })
    }

    /// Opens a new connection for the next request. A task of the old one may have panicked.
    pub(crate) fn reconnect(&mut self) {
        if let Transport::Grpc { endpoint, client } = &mut self.transport {
            **client = connect(endpoint, self.compression);
        }
    }

    /// Refusals by gRPC are given the status that says the same over HTTP.
    fn refusal_by_grpc(&self, status: Status) -> Refusal {
        let name = self.request_name();
        // A status that the collector sent has no source.
        let Some(source) = status.source() else {
            let kind = match status.code() {
                Code::InvalidArgument => Kind::Refused(400),
                Code::Unauthenticated => Kind::Refused(401),
                Code::PermissionDenied => Kind::Refused(403),
                Code::NotFound | Code::Unimplemented => Kind::Refused(404),
                // Details say when to try again. Where there are none, the message is too large, as the servers of most
                // languages say, or those of this one.
                Code::ResourceExhausted if status.details().is_empty() => Kind::Refused(413),
                Code::OutOfRange if status.message().contains("too large") => Kind::Refused(413),
                Code::ResourceExhausted => Kind::Refused(429),
                Code::DeadlineExceeded => Kind::Timeout,
                _ => Kind::Delivery,
            };
            let text = foreign_text(&self.headers, format!("{:?}: {}", status.code(), status.message()).as_bytes());
            let error = Error::new(kind, format!("{name} was refused with {text}"));
            return Refusal { failure: error.into(), is_ambiguous: false };
        };
        let causes = || std::iter::successors(Some(source), |&cause| cause.source());
        let is_unconnected = causes().any(|cause| cause.is::<tonic::ConnectError>());
        let is_refused = |cause: &(dyn StdError + 'static)| {
            let error = cause.downcast_ref::<io::Error>();
            error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        let (kind, what) = if causes().any(|cause| cause.is::<tonic::TimeoutExpired>()) {
            (Kind::Timeout, format!("no answer within {:?}", self.timeout))
        } else if causes().any(is_refused) {
            (Kind::Unreachable, "nobody answers there".to_owned())
        } else if causes().any(|cause| cause.to_string().contains("dns error")) {
            (Kind::Unreachable, "the name of its host is unknown".to_owned())
        } else if is_unconnected {
            (Kind::Delivery, "could not connect".to_owned())
        } else {
            (Kind::Delivery, "the connection broke, or carried no gRPC".to_owned())
        };
        let error = Error::new(kind, format!("{name} failed: {what}")).with_source(status);
        Refusal { failure: error.into(), is_ambiguous: !is_unconnected }
    }
}

/// Data points that a collector did not take of an export.
pub(crate) struct Rejected {
    pub(crate) points: usize,
    pub(crate) error: Error,
}

fn endpoint(address: &Address, timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.as_str().to_owned())?;
    let endpoint = endpoint.timeout(timeout).connect_timeout(timeout).user_agent(USER_AGENT)?;
    #[cfg(feature = "tls")]
    if address.is_https() {
        // It trusts nobody unless it is told to.
        return endpoint.tls_config(tonic::transport::ClientTlsConfig::new().with_enabled_roots());
    }
    Ok(endpoint)
}

fn connect(endpoint: &Endpoint, compression: Option<Compression>) -> MetricsServiceClient<Channel> {
    let client = MetricsServiceClient::new(endpoint.connect_lazy());
    match compression {
        Some(Compression::Gzip) => {
            client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip)
        }
        None => client,
    }
}
