//! The requests of the client: pushes, deletion, and reading the gateway's own metrics.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use super::client::Pushgateway;
use super::conflict::SeriesConflict;
use super::format::PushFormat;
use super::group_state::{GroupState, GroupStateReader};
use super::lines::LineReader;
use crate::delivery::http::body::Body;
use crate::delivery::http::error::RequestError;
use crate::error::{Error, Kind};
use crate::exposition::{Labels, TEXT_CONTENT_TYPE};
use crate::unix_time;

/// Bytes of the gateway's own metrics that are read at most.
const MAX_SCRAPE: usize = 256 << 20;

/// Length of the longest URL that the HTTP library sends.
const MAX_URL: usize = u16::MAX as usize - 1;

impl Pushgateway {
    /// Pushes metrics in the [text format](https://prometheus.io/docs/instrumenting/exposition_formats/) with POST, whatever
    /// [`with_format`](Self::with_format) says. The push replaces metrics of the group that have the same names, with all their
    /// label sets; other metrics stay.
    ///
    /// The text must end with a line break.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// # async fn example(gateway: Pushgateway) -> Result<(), tracing_stage_metrics::Error> {
    /// gateway.push_add("# TYPE backup_bytes gauge\nbackup_bytes{volume=\"/var\"} 1.5e9\n").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [Refused](Error::is_refused) if the status is neither 200 nor 202, with the [status](Error::status) and the
    /// beginning of the body; a [timeout](Error::is_timeout); a [configuration error](Error::is_config) if a header
    /// cannot be sent or TLS cannot be set up; another error if the gateway cannot be reached, the connection breaks, or a
    /// [file](Self#files) is missing or wrong.
    pub async fn push_add(&self, exposition: &str) -> Result<(), Error> {
        Ok(self.send(Method::POST, self.body(Bytes::copy_from_slice(exposition.as_bytes()))).await?)
    }

    /// Pushes metrics with PUT. The push replaces the whole group.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// # async fn example(gateway: Pushgateway) -> Result<(), tracing_stage_metrics::Error> {
    /// gateway.push_replace("backup_bytes 1.5e9\n").await?; // the group has no other metric now
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push_add`](Self::push_add).
    pub async fn push_replace(&self, exposition: &str) -> Result<(), Error> {
        Ok(self.send(Method::PUT, self.body(Bytes::copy_from_slice(exposition.as_bytes()))).await?)
    }

    /// Deletes the group from the gateway with DELETE. A group that does not exist is no error. The gateway responds
    /// first and deletes the group shortly after.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::Pushgateway;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tracing_stage_metrics::Error> {
    /// let worker = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?.with_grouping_label("instance", "worker-7:4711")?;
    /// worker.delete().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push_add`](Self::push_add).
    pub async fn delete(&self) -> Result<(), Error> {
        Ok(self.send(Method::DELETE, Body::plain(Bytes::new())).await?)
    }

    /// Checks the configuration before the first push, files included.
    ///
    /// # Errors
    ///
    /// A configuration error, as the first push would return it; another one if no thread can be started.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.check_settings()?;
        self.check_files()
    }

    fn check_settings(&self) -> Result<(), Error> {
        if self.timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(Error::config(format!(
                "the timeouts of gateway {} are {:?} for a request and {:?} for a connection: both have to be above zero",
                self.address, self.timeout, self.connect_timeout
            )));
        }
        let length = self.url().len();
        if length > MAX_URL {
            return Err(Error::config(format!(
                "the grouping key makes a URL of {length} bytes for gateway {}: at most {MAX_URL} can be sent, shorten it",
                self.address
            )));
        }
        if self.format() == PushFormat::Protobuf && self.address.stores_samples() {
            // It answers 200 to protobuf and stores nothing.
            return Err(Error::config(format!(
                "gateway {} is an import path of VictoriaMetrics, which takes text alone: set the push format to text",
                self.address
            )));
        }
        Ok(())
    }

    /// Returns the body of an exposition.
    pub(in crate::delivery) fn body(&self, exposition: Bytes) -> Body {
        if self.compression { Body::compressed(exposition) } else { Body::plain(exposition) }
    }

    /// Sends one request with a body in the text format. The bytes are not copied, so that a caller can keep them for
    /// another try.
    pub(in crate::delivery) async fn send(&self, method: Method, body: Body) -> Result<(), RequestError> {
        self.send_as(method, body, TEXT_CONTENT_TYPE, None).await
    }

    /// Sends one request with a body of this content type. `time` is that of the body's state on the gateway's clock;
    /// `None` for the state of now. VictoriaMetrics stores the samples at that time, so that later ones stay the last. A
    /// Pushgateway has no use for it.
    pub(in crate::delivery) async fn send_as(
        &self,
        method: Method,
        body: Body,
        content_type: &str,
        time: Option<f64>,
    ) -> Result<(), RequestError> {
        let mut url = self.url();
        if let Some(time) = time.filter(|_| self.address.stores_samples()) {
            let _ = write!(url, "?timestamp={:.0}", time * 1e3);
        }
        let complete = |request: RequestBuilder| match method {
            Method::DELETE => request,
            _ if body.is_gzip => {
                request.header(CONTENT_TYPE, content_type).header(CONTENT_ENCODING, "gzip").body(body.bytes)
            }
            _ => request.header(CONTENT_TYPE, content_type).body(body.bytes),
        };
        self.request(&method, &url, complete).await.map(drop)
    }

    /// Reads the state of this group, whose metrics have the prefix `namespace` and these constant labels. `None` if the
    /// response does not come from a Pushgateway: the page of a proxy says nothing about the group, and VictoriaMetrics has
    /// none.
    pub(in crate::delivery) async fn group_state(
        &self,
        namespace: Option<&str>,
        constant: &Labels,
    ) -> Result<Option<GroupState>, RequestError> {
        let mut reader = GroupStateReader::new(&self.grouping, namespace, constant);
        self.scrape(|line| reader.read(line)).await?;
        Ok(reader.finish())
    }

    /// Calls `each` with every line that the gateway serves at `/metrics`.
    pub(super) async fn scrape(&self, mut each: impl FnMut(&str)) -> Result<(), RequestError> {
        let each = |line: &str| {
            each(line);
            ControlFlow::Continue(())
        };
        self.scrape_until(each).await
    }

    /// Calls `each` with the lines that the gateway serves at `/metrics`, until it breaks.
    pub(super) async fn scrape_until(&self, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Result<(), RequestError> {
        // VictoriaMetrics takes this for an import of nothing, and its response has the time.
        let url = if self.address.stores_samples() { self.url() } else { format!("{}/metrics", self.address) };
        let mut response = self.request(&Method::GET, &url, |request| request).await?;
        let (mut lines, mut length) = (LineReader::default(), 0);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    length += chunk.len();
                    if length > MAX_SCRAPE {
                        let text = format!("the response to GET {url} is longer than {MAX_SCRAPE} bytes");
                        return Err(Error::new(Kind::Delivery, text).into());
                    }
                    if lines.read(&chunk, &mut each).is_break() {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    let _ = lines.finish(each);
                    return Ok(());
                }
                Err(error) => return Err(self.unanswered(&format!("GET {url}"), error)),
            }
        }
    }

    /// Checks the configuration, sends a request, and checks the status of the response. `complete` adds the body.
    async fn request(
        &self,
        method: &Method,
        url: &str,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RequestError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::config(format!(
                "cannot reach gateway {}: there is no tokio runtime here, call it inside one",
                self.address
            ))
            .into());
        }
        self.check_settings()?;
        let (client, headers) = self.connection_of_request().await?;
        let request = complete(client.request(method.clone(), url).timeout(self.timeout));
        let sent = unix_time::now().as_secs_f64();
        match request.headers(headers.clone()).send().await {
            Ok(response) if matches!(response.status(), StatusCode::OK | StatusCode::ACCEPTED) => {
                // A refusal, and so its date, may come from a proxy.
                self.clock.observe(response.headers(), sent, unix_time::now().as_secs_f64());
                Ok(response)
            }
            Ok(response) => {
                let status = response.status();
                let mut err = RequestError::refused(
                    &format!("{method} {url}"),
                    &self.address,
                    &headers,
                    self.tls_settings(),
                    response,
                )
                .await;
                if let Some(conflict) = SeriesConflict::find(status, &err.body) {
                    err.error = err.error.with_source(conflict);
                }
                Err(err)
            }
            Err(error) => Err(self.unanswered(&format!("{method} {url}"), error)),
        }
    }

    fn unanswered(&self, request: &str, error: reqwest::Error) -> RequestError {
        RequestError::unanswered(request, self.timeout, self.connect_timeout, self.tls_settings(), error)
    }

    pub(super) fn url(&self) -> String {
        format!("{}{}", self.address, self.grouping.path())
    }
}
