//! Sends a request to a collector, over HTTP or gRPC.
//!
//! The exporter of `opentelemetry-otlp` does not fit: it accepts only the SDK's own form of metrics, which cannot be
//! divided into requests of a size that a collector accepts, and its errors do not contain the cause.

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

use super::settings::{Compression, OtlpSettings, Protocol};
use crate::delivery::http::body::gzip;
use crate::delivery::http::client::{self, USER_AGENT};
use crate::delivery::http::error::{RequestError, sanitize};
use crate::delivery::http::tls::TlsSettings;
use crate::delivery::http::url::Address;
use crate::error::{Error, Kind};

/// Bytes of a response that are read. A collector that accepted everything sends a few bytes at most.
const MAX_RESPONSE: usize = 64 * 1024;
/// How long reading the body of a response may take. The export has arrived by then, and the body only counts rejected
/// data points.
const BODY_TIMEOUT: Duration = Duration::from_millis(500);

/// A variable of the system names the authorities to trust. Client certificates are not supported.
const TLS_SETTINGS: TlsSettings<'_> = TlsSettings { roots: "SSL_CERT_FILE", identity: None, has_identity: false };

/// The failure of an export.
#[derive(Debug)]
pub(super) struct ExportError {
    pub(super) error: RequestError,
    /// Whether the request had no response and may have arrived.
    pub(super) is_ambiguous: bool,
}

/// The response to an export that arrived.
pub(super) enum ExportResponse {
    Http(reqwest::Response),
    Grpc(ExportMetricsServiceResponse),
}

/// An encoded request, which can be sent several times.
pub(super) enum ExportBody {
    Http { bytes: Bytes, is_gzip: bool },
    Grpc(Box<ExportMetricsServiceRequest>),
}

/// A client of one collector.
pub(super) struct OtlpClient {
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

impl OtlpClient {
    /// Creates a client. The caller must be within the runtime that sends the requests.
    pub(super) fn new(settings: &OtlpSettings) -> Result<Self, Error> {
        let (address, timeout, compression) =
            (Address::from_url(settings.endpoint.clone()), settings.timeout, settings.compression);
        let transport = match settings.protocol {
            Protocol::Http => {
                Transport::Http(client::build("collector", &address, timeout, |builder| Ok(builder.timeout(timeout)))?)
            }
            Protocol::Grpc => {
                let endpoint = endpoint(&address, timeout)
                    .map_err(|error| Error::config(format!("cannot export metrics to {address}")).with_source(error))?;
                Transport::Grpc { client: Box::new(connect(&endpoint, compression)), endpoint: Box::new(endpoint) }
            }
        };
        Ok(Self { address, headers: settings.headers.clone(), timeout, compression, transport })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Encodes a request.
    pub(super) fn body(&self, request: ExportMetricsServiceRequest) -> ExportBody {
        match self.transport {
            Transport::Http(_) => {
                let bytes = Bytes::from(request.encode_to_vec());
                let compressed = self.compression.and_then(|Compression::Gzip| gzip(&bytes));
                let is_gzip = compressed.is_some();
                ExportBody::Http { bytes: compressed.unwrap_or(bytes), is_gzip }
            }
            Transport::Grpc { .. } => ExportBody::Grpc(Box::new(request)),
        }
    }

    /// Sends a request once. Over HTTP the export has arrived when the head of the response is a success.
    pub(super) async fn send(&self, body: &ExportBody) -> Result<ExportResponse, ExportError> {
        match (&self.transport, body) {
            (Transport::Http(http), ExportBody::Http { bytes, is_gzip }) => {
                let mut request = http.post(self.address.as_str()).headers(self.headers.clone());
                request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                if *is_gzip {
                    request = request.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                self.send_http(request.body(bytes.clone())).await
            }
            (Transport::Grpc { client, .. }, ExportBody::Grpc(message)) => {
                let metadata = MetadataMap::from_headers(self.headers.clone());
                let request = Request::from_parts(metadata, Default::default(), (**message).clone());
                let response = MetricsServiceClient::clone(client).export(request).await;
                response
                    .map(|response| ExportResponse::Grpc(response.into_inner()))
                    .map_err(|status| self.grpc_error(status))
            }
            // A client sends only its own bodies.
            _ => Err(ExportError {
                error: Error::new(Kind::Delivery, "the request is of another protocol").into(),
                is_ambiguous: false,
            }),
        }
    }

    async fn send_http(&self, request: reqwest::RequestBuilder) -> Result<ExportResponse, ExportError> {
        let name = self.request_name();
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(ExportResponse::Http(response)),
            Ok(response) => {
                let error = RequestError::refused(&name, &self.address, &self.headers, TLS_SETTINGS, response).await;
                Err(ExportError { error, is_ambiguous: false })
            }
            Err(error) => {
                let error = RequestError::unanswered(&name, self.timeout, self.timeout, TLS_SETTINGS, error);
                Err(ExportError { is_ambiguous: error.may_have_arrived, error })
            }
        }
    }

    fn request_name(&self) -> String {
        match self.transport {
            Transport::Http(_) => format!("POST {}", self.address),
            Transport::Grpc { .. } => format!("export to {}", self.address),
        }
    }

    /// Returns the data points that the collector rejected from an export that arrived.
    pub(super) async fn rejected(&self, response: ExportResponse, deadline: Instant) -> Option<Rejected> {
        let response = match response {
            ExportResponse::Grpc(response) => response,
            ExportResponse::Http(mut response) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let until = Instant::now() + BODY_TIMEOUT.min(left / 2);
                let mut body = BytesMut::new();
                while body.len() < MAX_RESPONSE
                    && let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await
                {
                    body.extend_from_slice(&chunk[..chunk.len().min(MAX_RESPONSE - body.len())]);
                }
                // An incomplete or unknown body is ignored.
                ExportMetricsServiceResponse::decode(body).ok()?
            }
        };
        let partial = response.partial_success?;
        let points = usize::try_from(partial.rejected_data_points).ok().filter(|points| *points > 0)?;
        let reason = sanitize(&self.headers, partial.error_message.as_bytes());
        let text = format!("{} was answered, and {points} data points were rejected: {reason}", self.request_name());
        Some(Rejected { points, error: Error::new(Kind::Refused(200), text) })
    }

    /// Opens a new connection for the next request. A task of the old one may have panicked.
    pub(super) fn reconnect(&mut self) {
        if let Transport::Grpc { endpoint, client } = &mut self.transport {
            **client = connect(endpoint, self.compression);
        }
    }

    /// Returns the error of a gRPC status, with the HTTP status that corresponds to it.
    fn grpc_error(&self, status: Status) -> ExportError {
        let name = self.request_name();
        // A status that the collector sent has no source.
        let Some(source) = status.source() else {
            let kind = match status.code() {
                Code::InvalidArgument => Kind::Refused(400),
                Code::Unauthenticated => Kind::Refused(401),
                Code::PermissionDenied => Kind::Refused(403),
                Code::NotFound | Code::Unimplemented => Kind::Refused(404),
                // With details, the status means "try again later". Without, it means that the message is too large, in
                // the servers of most languages; tonic uses `OutOfRange`.
                Code::ResourceExhausted if status.details().is_empty() => Kind::Refused(413),
                Code::OutOfRange if status.message().contains("too large") => Kind::Refused(413),
                Code::ResourceExhausted => Kind::Refused(429),
                Code::DeadlineExceeded => Kind::Timeout,
                _ => Kind::Delivery,
            };
            let text = sanitize(&self.headers, format!("{:?}: {}", status.code(), status.message()).as_bytes());
            let error = Error::new(kind, format!("{name} was refused with {text}"));
            return ExportError { error: error.into(), is_ambiguous: false };
        };
        let causes = || std::iter::successors(Some(source), |&cause| cause.source());
        let is_unconnected = causes().any(|cause| cause.is::<tonic::ConnectError>());
        let is_refused = |cause: &(dyn StdError + 'static)| {
            let error = cause.downcast_ref::<io::Error>();
            error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        let (kind, cause) = if causes().any(|cause| cause.is::<tonic::TimeoutExpired>()) {
            (Kind::Timeout, format!("no answer within {:?}", self.timeout))
        } else if causes().any(is_refused) {
            (Kind::Unreachable, "no server answers there".to_owned())
        } else if causes().any(|cause| cause.to_string().contains("dns error")) {
            (Kind::Unreachable, "the name of its host is unknown".to_owned())
        } else if is_unconnected {
            (Kind::Delivery, "could not connect".to_owned())
        } else {
            (Kind::Delivery, "the connection broke, or carried no gRPC".to_owned())
        };
        let error = Error::new(kind, format!("{name} failed: {cause}")).with_source(status);
        ExportError { error: error.into(), is_ambiguous: !is_unconnected }
    }
}

/// The data points that a collector rejected from an export.
pub(super) struct Rejected {
    pub(super) points: usize,
    pub(super) error: Error,
}

fn endpoint(address: &Address, timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.as_str().to_owned())?;
    let endpoint = endpoint.timeout(timeout).connect_timeout(timeout).user_agent(USER_AGENT)?;
    #[cfg(feature = "tls")]
    if address.is_https() {
        // Without roots, tonic trusts no certificate.
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
