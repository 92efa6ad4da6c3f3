//! The Pushgateway client.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode};

use crate::delivery::http::body::Body;
use crate::delivery::http::client;
use crate::delivery::http::error::RequestError;
use crate::delivery::http::headers::Headers;
use crate::delivery::http::url::Address;
use crate::delivery::pushgateway::Grouping;
use crate::delivery::pushgateway::clock_offset::ClockOffset;
use crate::delivery::spool::{GroupState, GroupStateReader};
use crate::error::{Error, Kind};
use crate::unix_time;

/// How long one request may take, from the connection to the answer, unless [`Pushgateway::with_timeout`] says
/// otherwise: 10 seconds.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to come about, name lookup included, unless [`Pushgateway::with_connect_timeout`]
/// says otherwise: 5 seconds.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The longest answer that is read for a group's state.
const MAX_STATE: usize = 256 << 20;

/// The longest URL that the HTTP library sends.
const MAX_URL: usize = u16::MAX as usize - 1;

/// A client for one group of metrics on a [Prometheus Pushgateway](https://github.com/prometheus/pushgateway).
///
/// A gateway keeps metrics in groups, each named by a *grouping key*: the job and any further labels. Prometheus
/// finds these labels on every metric of the group. Jobs that share a key overwrite each other, so a job that runs
/// in several variants needs a label that tells them apart. Labels that change with every run (an id, a time) leave
/// a group behind per run: a gateway never forgets one by itself.
///
/// ```no_run
/// use tracing_stage_metrics::Pushgateway;
///
/// # async fn example() -> Result<(), tracing_stage_metrics::Error> {
/// let gateway = Pushgateway::new("http://pushgateway:9091", "nightly_backup")?
///     .with_grouping_label("volume", "/var/lib")?
///     .with_basic_auth("pusher", "secret");
/// gateway.push_add("backup_bytes 1.5e9\n").await?;
/// # Ok(())
/// # }
/// ```
///
/// The methods that send need a tokio runtime with I/O and time switched on; in any other place they return an
/// error. A client can be used on several runtimes, one after the other. Nothing is tried twice: that is for the
/// caller to decide, by the [`Error`] it gets.
///
/// # Connections
///
/// Every request has a connection of its own. The system looks the host's name up, on a thread of its own; where no thread
/// can be started, the request fails and the next one tries again. Where a name has several addresses, connections to them
/// start a quarter of a second after each other, and the first that comes about decides which address is used.
///
/// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are followed.
/// Requests to a loopback host never go through a proxy: `localhost`, names that end in `.localhost`, `127.0.0.0/8`, `::1`,
/// `0.0.0.0` and `::`. Requests to this machine's own name or network address do, unless `NO_PROXY` lists it. An `https`
/// gateway needs the feature `tls` and a certificate that the system trusts; on Linux, `SSL_CERT_FILE` and `SSL_CERT_DIR` name
/// certificates to be trusted in the system's place. Redirects are not followed: a push that arrives as a GET is lost.
///
/// # Secrets
///
/// User, password, token and the values of headers are never in `Debug`, errors or logs. What a gateway says when it refuses
/// a push is shown without them too, but for those of less than four bytes.
#[derive(Clone)]
pub struct Pushgateway {
    address: Address,
    grouping: Grouping,
    headers: Headers,
    timeout: Duration,
    connect_timeout: Duration,
    compression: bool,
    /// Built when first needed. Clones share it as long as they agree on what it is built from.
    client: Arc<OnceLock<Client>>,
    clock: Arc<ClockOffset>,
}

impl Pushgateway {
    /// A client for the group of `job` on the gateway at `url`.
    ///
    /// `url` is the gateway's base URL, `http` or `https`; `host:port` alone means `http`. It may carry
    /// `user:password@` for basic authentication (percent-encoded where they hold one of `/?#@:%`), and a path prefix,
    /// which is kept. The `/metrics/job/…` of the push is added to it.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// Pushgateway::new("pushgateway:9091", "quant_pipeline")?; // http
    /// Pushgateway::new("http://pusher:p%40ssword@example.org/gateway", "quant_pipeline")?;
    /// assert!(Pushgateway::new("http://pushgateway:9091", "").unwrap_err().is_config());
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) when the URL cannot be read, is neither `http` nor `https`, has no
    /// host, or has a query or a fragment; when it is `https` and the feature `tls` is off; when the job is empty.
    pub fn new(url: impl AsRef<str>, job: impl Into<String>) -> Result<Self, Error> {
        let (address, credentials) = Address::parse(url.as_ref())?;
        let mut headers = Headers::default();
        if let Some(credentials) = credentials {
            headers.set_basic_auth(&credentials.user, &credentials.password);
            headers.to_map()?;
        }
        Ok(Self {
            address,
            grouping: Grouping::new(job)?,
            headers,
            timeout: DEFAULT_REQUEST_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            compression: true,
            client: Arc::default(),
            clock: Arc::default(),
        })
    }

    /// Adds a label to the grouping key. Without any, the job alone names the group.
    ///
    /// Any text is a value: it arrives at the gateway as it is, empty or with a `/` in it. The gateway puts the label
    /// on every metric of the group, over one of the same name that the metric has.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?
    ///     .with_grouping_label("profile", "crypto_production")?
    ///     .with_grouping_label("instance", "worker-7")?;
    /// assert!(gateway.with_grouping_label("stage_id", "x").unwrap_err().is_config()); // a label of the metrics
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A [configuration error](Error::is_config) when the name is not a label name (`[a-zA-Z_][a-zA-Z0-9_]*`), was
    /// given before, is reserved (`job`, `le`, `quantile`, anything that starts with `__`), or is a label that this
    /// crate's own metrics have (`stage_id`, `status`, `reason`, `resource_type`, `node`, `result`). `profile` and
    /// `run_id` are allowed: they fix that label for the whole process.
    pub fn with_grouping_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Result<Self, Error> {
        self.grouping.add(name, value)?;
        Ok(self)
    }

    /// Authenticates with user and password. Without it, with those of the URL, where it has them.
    ///
    /// The last of this, [`with_bearer_token`](Self::with_bearer_token) and an `Authorization` given to
    /// [`with_header`](Self::with_header) counts.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?.with_basic_auth("pusher", "secret");
    /// assert!(!format!("{gateway:?}").contains("secret"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn with_basic_auth(mut self, user: impl AsRef<str>, password: impl AsRef<str>) -> Self {
        self.headers.set_basic_auth(user.as_ref().as_bytes(), password.as_ref().as_bytes());
        self
    }

    /// Authenticates with a token, sent as `Authorization: Bearer <token>`. Without it none is sent.
    ///
    /// A token that a header cannot carry, for a line break at its end perhaps, is an error of the first push, and of
    /// the layer's `install()`.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::Pushgateway;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let token = std::fs::read_to_string("/run/secrets/pushgateway")?;
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?.with_bearer_token(token.trim_end());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_bearer_token(mut self, token: impl AsRef<str>) -> Self {
        self.headers.set_bearer_token(token.as_ref());
        self
    }

    /// Sends a header along, in place of one of the same name. Without it only what HTTP asks for is sent.
    ///
    /// A name or value that cannot be sent, and a header that describes the body (`Content-Type` and the like), is an
    /// error of the first push, and of the layer's `install()`.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?.with_header("X-Scope-OrgID", "research");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.headers.set(name.as_ref(), value.as_ref().as_bytes());
        self
    }

    /// How long one request may take, from the connection to the answer. Without it,
    /// [`DEFAULT_REQUEST_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a connection may take to come about, within the time of the request: the lookup of the host's name, and
    /// the handshakes of TCP and TLS. Without it, [`DEFAULT_CONNECT_TIMEOUT`].
    ///
    /// A lookup that takes longer fails the request and goes on by itself. A request that follows within its time, or within
    /// 5 seconds after it, uses its answer.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self.client = Arc::default();
        self
    }

    /// Sends every body as it is, for gateways before 1.5.0, which take a compressed one for text. Without it, bodies of
    /// [`COMPRESSION_THRESHOLD`](crate::COMPRESSION_THRESHOLD) bytes and more are sent with gzip.
    #[must_use]
    pub fn without_compression(mut self) -> Self {
        self.compression = false;
        self
    }

    /// Pushes metrics in the [text format](https://prometheus.io/docs/instrumenting/exposition_formats/) with POST:
    /// metrics of the group with the same names are replaced, with all their label sets; the others stay.
    ///
    /// The text needs a line break at its end.
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
    /// [Refused](Error::is_refused) when the answer is neither 200 nor 202, with the
    /// [status](Error::status) and the beginning of the body; a [timeout](Error::is_timeout); an error that is neither
    /// when the gateway cannot be reached or the connection breaks; a [configuration error](Error::is_config) when a
    /// header cannot be sent or TLS cannot be set up.
    pub async fn push_add(&self, exposition: &str) -> Result<(), Error> {
        Ok(self.send(Method::POST, self.body(Bytes::copy_from_slice(exposition.as_bytes()))).await?)
    }

    /// Pushes metrics with PUT: they replace the whole group.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// # async fn example(gateway: Pushgateway) -> Result<(), tracing_stage_metrics::Error> {
    /// gateway.push_replace("backup_bytes 1.5e9\n").await?; // and nothing else is in the group any more
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`push_add`](Self::push_add).
    pub async fn push_replace(&self, exposition: &str) -> Result<(), Error> {
        Ok(self.send(Method::PUT, self.body(Bytes::copy_from_slice(exposition.as_bytes()))).await?)
    }

    /// Removes the group from the gateway with DELETE. A group that is not there is no error. The gateway answers first and
    /// removes the group shortly after.
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

    pub(crate) fn grouping(&self) -> &Grouping {
        &self.grouping
    }

    /// How long one request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The gateway's base URL, for messages: without user and password.
    pub(crate) fn endpoint(&self) -> &str {
        self.address.as_str()
    }

    /// Finds what is wrong with the configuration before the first push does.
    pub(crate) fn check(&self) -> Result<(), Error> {
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
        self.headers.to_map()?;
        self.client()?;
        Ok(())
    }

    /// The same gateway, with all its settings, and another group on it.
    pub(crate) fn for_group(&self, grouping: Grouping) -> Self {
        Self { grouping, ..self.clone() }
    }

    /// An exposition as it is to be sent.
    pub(crate) fn body(&self, exposition: Bytes) -> Body {
        if self.compression { Body::compressed(exposition) } else { Body::plain(exposition) }
    }

    /// The gateway's clock minus this node's, in seconds; `None` before the gateway answered.
    pub(crate) fn clock_offset(&self) -> Option<f64> {
        self.clock.get()
    }

    /// Sends one request. The body is not copied, so that a caller can keep it for another try.
    pub(crate) async fn send(&self, method: Method, body: Body) -> Result<(), RequestError> {
        self.send_as(method, body, TEXT_FORMAT).await
    }

    /// Sends one request with a body of this content type.
    pub(crate) async fn send_as(&self, method: Method, body: Body, content_type: &str) -> Result<(), RequestError> {
        let url = self.url();
        let request = self.start(&method, &url)?;
        let request = match method {
            Method::DELETE => request,
            _ if body.is_gzip => {
                request.header(CONTENT_TYPE, content_type).header(CONTENT_ENCODING, "gzip").body(body.bytes)
            }
            _ => request.header(CONTENT_TYPE, content_type).body(body.bytes),
        };
        self.answer(&method, &url, request).await.map(drop)
    }

    /// What the gateway has of this group, whose metrics have the prefix `namespace`. `None` where the answer is not a
    /// Pushgateway's: a proxy's page says nothing of the group.
    pub(crate) async fn group_state(&self, namespace: Option<&str>) -> Result<Option<GroupState>, RequestError> {
        let mut reader = GroupStateReader::new(&self.grouping, namespace);
        self.scrape(|piece| reader.read(piece)).await?;
        Ok(reader.finish())
    }

    /// Reads what the gateway serves at `/metrics`, piece by piece.
    pub(crate) async fn scrape(&self, mut read: impl FnMut(&[u8])) -> Result<(), RequestError> {
        let url = format!("{}/metrics", self.address);
        let request = self.start(&Method::GET, &url)?;
        let mut response = self.answer(&Method::GET, &url, request).await?;
        let mut length = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    length += chunk.len();
                    if length > MAX_STATE {
                        let text = format!("the answer to GET {url} is longer than {MAX_STATE} bytes");
                        return Err(Error::new(Kind::Delivery, text).into());
                    }
                    read(&chunk);
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    let target = format!("GET {url}");
                    return Err(RequestError::unanswered(&target, self.timeout, self.connect_timeout, error));
                }
            }
        }
    }

    fn start(&self, method: &Method, url: &str) -> Result<RequestBuilder, RequestError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::config(format!(
                "cannot reach gateway {}: there is no tokio runtime here, call it inside one",
                self.address
            ))
            .into());
        }
        self.check()?;
        Ok(self.client()?.request(method.clone(), url).timeout(self.timeout).headers(self.headers.to_map()?))
    }

    async fn answer(&self, method: &Method, url: &str, request: RequestBuilder) -> Result<Response, RequestError> {
        let sent = unix_time::now().as_secs_f64();
        match request.send().await {
            Ok(response) if matches!(response.status(), StatusCode::OK | StatusCode::ACCEPTED) => {
                // A refusal may be a proxy's, and so its date.
                self.clock.observe(response.headers(), sent, unix_time::now().as_secs_f64());
                Ok(response)
            }
            Ok(response) => {
                let headers = self.headers.to_map()?;
                Err(RequestError::refused(&format!("{method} {url}"), &self.address, &headers, response).await)
            }
            Err(error) => {
                Err(RequestError::unanswered(&format!("{method} {url}"), self.timeout, self.connect_timeout, error))
            }
        }
    }

    fn url(&self) -> String {
        format!("{}{}", self.address, self.grouping.path())
    }

    fn client(&self) -> Result<Client, Error> {
        match self.client.get() {
            Some(client) => Ok(client.clone()),
            // Two may build one at the same time; the first is kept.
            None => self.build_client().map(|client| self.client.get_or_init(|| client).clone()),
        }
    }

    fn build_client(&self) -> Result<Client, Error> {
        client::build("gateway", &self.address, self.connect_timeout, without_pool)
    }

    /// The same gateway, whose names are looked up in this way.
    #[cfg(test)]
    pub(crate) fn with_lookup(mut self, look_up: crate::delivery::http::resolver::LookUp) -> Self {
        let client = client::build_with(look_up, "gateway", &self.address, self.connect_timeout, without_pool);
        self.client = Arc::new(client.unwrap().into());
        self
    }
}

/// A kept connection belongs to the runtime it was made on, and the client outlives that.
fn without_pool(builder: ClientBuilder) -> ClientBuilder {
    builder.pool_max_idle_per_host(0)
}

impl fmt::Debug for Pushgateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushgateway")
            .field("url", &self.endpoint())
            .field("job", &self.grouping.job())
            .field("grouping", &self.grouping.labels())
            .field("headers", &self.headers.names().collect::<Vec<_>>())
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::pushgateway::client::*;

    const _: () = {
        const fn send_sync<T: Send + Sync + 'static>() {}
        send_sync::<Pushgateway>();
    };

    fn gateway() -> Pushgateway {
        Pushgateway::new("http://hush:hush@127.0.0.1:1/prefix/", "a job").unwrap()
    }

    fn check_error(gateway: &Pushgateway) -> String {
        let error = gateway.check().unwrap_err();
        assert!(error.is_config());
        error.to_string()
    }

    /// Where a gateway takes a future apart from the thread it was made on, it has to be `Send`.
    #[test]
    fn pushes_can_be_spawned() {
        fn spawnable<T: Send>(_: &T) {}
        let gateway = gateway();
        spawnable(&gateway.push_add("x 1\n"));
        spawnable(&gateway.delete());
    }

    #[test]
    fn debug_shows_names_and_no_secrets() {
        let gateway = gateway()
            .with_grouping_label("team", "a/b")
            .unwrap()
            .with_basic_auth("hush", "hush")
            .with_header("X-Key", "hush")
            .with_bearer_token("hush");
        assert_eq!(
            format!("{gateway:?}"),
            "Pushgateway { url: \"http://127.0.0.1:1/prefix\", job: \"a job\", grouping: [(\"team\", \"a/b\")], \
             headers: [\"X-Key\", \"authorization\"], timeout: 10s, connect_timeout: 5s }"
        );
        assert_eq!(gateway.endpoint(), "http://127.0.0.1:1/prefix");
        assert_eq!(gateway.url(), "http://127.0.0.1:1/prefix/metrics/job/a%20job/team@base64/YS9i");
        assert_eq!(gateway.grouping().get("team"), Some("a/b"));
    }

    #[test]
    fn a_wrong_configuration_is_found_before_the_first_push() {
        assert!(gateway().check().is_ok());
        assert_eq!(
            check_error(&gateway().with_timeout(Duration::ZERO)),
            "the timeouts of gateway http://127.0.0.1:1/prefix are 0ns for a request and 5s for a connection: \
             both have to be above zero"
        );
        assert_eq!(
            check_error(&gateway().with_header("Content-Type", "hush")),
            "header \"Content-Type\" belongs to the client, which knows what it sends: leave it out"
        );
        assert_eq!(
            check_error(&gateway().with_grouping_label("x", "y".repeat(70_000)).unwrap()),
            "the grouping key makes a URL of 70048 bytes for gateway http://127.0.0.1:1/prefix: \
             at most 65534 can be sent, shorten it"
        );
        let Err(error) = Pushgateway::new("http://hu%3Ash:x@gw", "job") else { panic!("accepted") };
        assert_eq!(
            error.to_string(),
            "the user name has a colon in it, which basic authentication cannot carry: \
             give user and password apart from each other"
        );
    }

    #[test]
    fn outside_of_a_runtime_a_push_is_an_error() {
        let gateway = gateway();
        let mut push = std::pin::pin!(gateway.push_add("x 1\n"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Err(error)) = push.as_mut().poll(&mut context) else { panic!("no error") };
        assert_eq!(
            error.to_string(),
            "cannot reach gateway http://127.0.0.1:1/prefix: there is no tokio runtime here, call it inside one"
        );
    }

    #[test]
    fn clones_share_a_client_until_they_differ_in_what_it_is_made_of() {
        let first = gateway();
        let same = first.clone().with_timeout(Duration::from_secs(1)).with_bearer_token("x");
        let other = first.clone().with_connect_timeout(Duration::from_secs(1));
        first.check().unwrap();
        assert!(same.client.get().is_some());
        assert!(other.client.get().is_none());
    }
}
