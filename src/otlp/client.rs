//! The HTTP client of the exporter: one that says why a request was no success, which the exporter itself does not.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use reqwest::header::HeaderMap;

use crate::delivery::{Address, Failure, client, foreign_text};
use crate::error::{Error, Kind};

/// What is read of an answer. A collector that is content says nothing, or a few words.
const MAX_ANSWER: usize = 64 * 1024;

/// What went wrong with the last request.
#[derive(Clone, Debug, Default)]
pub(super) struct Said(Arc<Mutex<Option<Failure>>>);

impl Said {
    fn set(&self, failure: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    pub(super) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    address: Address,
    timeout: Duration,
    said: Said,
}

impl Client {
    pub(super) fn new(address: Address, timeout: Duration, said: Said) -> Result<Self, Error> {
        let http = client("collector", &address, timeout, |builder| builder.timeout(timeout))?;
        Ok(Self { http, address, timeout, said })
    }

    async fn answer(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let target = format!("{} {}", request.method(), self.address);
        let failed = |error: reqwest::Error| {
            self.said.set(Failure::unanswered(&target, self.timeout, self.timeout, error));
            HttpError::from("no answer")
        };
        let sent = request.headers().clone();
        let request = request.try_into().map_err(failed)?;
        let mut response = self.http.execute(request).await.map_err(failed)?;
        let (status, headers) = (response.status(), mem::take(response.headers_mut()));
        let body = if status.is_success() {
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                body.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - body.len())]);
                if body.len() == MAX_ANSWER {
                    break;
                }
            }
            if let Some(error) = rejected(&target, &sent, &body) {
                self.said.set(error.into());
            }
            body.freeze()
        } else {
            *response.headers_mut() = headers.clone();
            self.said.set(Failure::refused(&target, &self.address, &sent, response).await);
            Bytes::new()
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

/// What a collector that took the request did not take of it.
fn rejected(target: &str, sent: &HeaderMap, answer: &[u8]) -> Option<Error> {
    let partial = ExportMetricsServiceResponse::decode(answer).ok()?.partial_success?;
    (partial.rejected_data_points > 0).then(|| {
        let (points, why) = (partial.rejected_data_points, foreign_text(sent, partial.error_message.as_bytes()));
        Error::new(Kind::Refused(200), format!("{target} was answered, and {points} data points were rejected: {why}"))
    })
}

// What `async_trait` makes of it.
impl HttpClient for Client {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(self.answer(request))
    }
}
