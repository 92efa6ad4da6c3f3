//! The Pushgateway client and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::clock_offset::ClockOffset;
use super::files::GatewayFiles;
use super::format::PushFormat;
use super::grouping::Grouping;
use crate::delivery::http::headers::Headers;
use crate::delivery::http::url::Address;
use crate::error::Error;

/// Default timeout of one request, from the connection to the response: 10 seconds. [`Pushgateway::with_timeout`]
/// changes it.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Default timeout of a connection, name lookup included: 5 seconds. [`Pushgateway::with_connect_timeout`] changes it.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for one group of metrics on a [Prometheus Pushgateway](https://github.com/prometheus/pushgateway).
///
/// A gateway keeps metrics in groups, each named by a *grouping key*: the job and any further labels. Every metric of
/// the group has these labels in Prometheus. Jobs that share a key overwrite each other, so a job that runs in several
/// variants needs a label that distinguishes them. A label that changes with every run (an id, a time) leaves a group
/// for each run: a gateway never deletes a group by itself.
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
/// The methods that send need a tokio runtime with I/O and time enabled; without one they return an error. A client can
/// be used on several runtimes, one after the other. No request is retried: the [`Error`] tells the caller whether
/// another try makes sense.
///
/// # Connections
///
/// Every request has a connection of its own. The system's resolver looks up the host on a thread of its own; if no
/// thread can be started, the request fails and the next one tries again. If a name has several addresses, connections
/// to them start a quarter of a second after each other, and the first that is established decides which address is
/// used.
///
/// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are followed. Requests to a loopback host never use a proxy:
/// `localhost`, names that end in `.localhost`, `127.0.0.0/8`, `::1`, `0.0.0.0` and `::`. Requests to this machine's
/// own name or network address do, unless `NO_PROXY` lists it. An `https` gateway needs the feature `tls` and a
/// certificate that the system trusts, or that `with_root_certificates` does; on Linux, `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name the certificates to trust instead of the system's. Redirects are not followed: a push that
/// arrives as a GET is lost.
///
/// # Files
///
/// The files of credentials and certificates are read again for every request, on a thread of their own, so a new
/// version needs no restart. A relative path starts at the working directory of the call that names the file. The layer's
/// `install()` checks the files: it returns a configuration error if one is missing or does not hold what it should.
/// A request for which a file cannot be read within two seconds fails with its name. The layer tries again, as after any
/// failure but a refusal, since a new version of the file may be on its way.
///
/// # Secrets
///
/// `Debug`, errors and logs never contain the user, the password, the token or the value of a header. They are removed
/// from the text of a refusal too, except values of less than four bytes.
#[derive(Clone)]
pub struct Pushgateway {
    pub(super) address: Address,
    pub(super) grouping: Grouping,
    pub(super) headers: Headers,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) compression: bool,
    /// `None` is the default.
    pub(super) format: Option<PushFormat>,
    pub(super) files: GatewayFiles,
    pub(super) clock: Arc<ClockOffset>,
}

impl Pushgateway {
    /// Creates a client for the group of `job` on the gateway at `url`.
    ///
    /// `url` is the gateway's base URL, `http` or `https`; `host:port` alone means `http`. It may contain
    /// `user:password@` for basic authentication (percent-encoded if they contain one of `/?#@:%`), and a path prefix.
    /// The `/metrics/job/…` of the push is appended to it.
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
    /// A [configuration error](Error::is_config) if the URL cannot be parsed, is neither `http` nor `https`, has no
    /// host, or has a query or a fragment; if it is `https` without the feature `tls`; if the job is empty.
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
            format: None,
            files: GatewayFiles::default(),
            clock: Arc::default(),
        })
    }

    /// Adds a label to the grouping key. Without grouping labels, the job alone names the group.
    ///
    /// Any text is a valid value, also one with a `/` or, but for `instance`, an empty one. The gateway sets the label on every
    /// metric of the group, and replaces a label of the same name that the metric has.
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
    /// A [configuration error](Error::is_config) if the name is not a label name (`[a-zA-Z_][a-zA-Z0-9_]*`), is set
    /// already, is reserved (`job`, `le`, `quantile`, anything that starts with `__`), or is a label of this crate's
    /// own metrics (`stage_id`, `status`, `reason`, `resource_type`, `node`, `result`). `profile` and `run_id` are
    /// allowed: they set that label for the whole process. An empty `instance` is an error too: a gateway that has the group
    /// without the label and the one with an empty one cannot be scraped.
    pub fn with_grouping_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Result<Self, Error> {
        self.grouping.add(name, value)?;
        Ok(self)
    }

    /// Authenticates with a user and a password. Without it, requests carry those of the URL, if it has them.
    ///
    /// The last call of this, [`with_bearer_token`](Self::with_bearer_token) and [`with_header`](Self::with_header) with
    /// `Authorization` wins.
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

    /// Authenticates with a token, sent as `Authorization: Bearer <token>`. Without it, no token is sent.
    ///
    /// A token that a header cannot carry, for instance one with a line break at its end, is an error of the first
    /// push, and of the layer's `install()`.
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

    /// Adds a header to every request. It replaces a header of the same name. Without it, requests have the headers
    /// that HTTP needs.
    ///
    /// A name or value that a request cannot carry, and a header that describes the body (such as `Content-Type`), is
    /// an error of the first push, and of the layer's `install()`.
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

    /// Sets the timeout of one request, from the connection to the response. Without it, [`DEFAULT_REQUEST_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of a connection, within the timeout of the request: the lookup of the host's name, and the
    /// handshakes of TCP and TLS. Without it, [`DEFAULT_CONNECT_TIMEOUT`].
    ///
    /// A lookup that takes longer fails the request and continues on its own. A request that follows before the lookup
    /// ends, or within 5 seconds after it, uses its result.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self.files.forget_client();
        self
    }

    /// Sends every body uncompressed, for gateways before 1.5.0, which read a compressed body as text. Without it,
    /// bodies of [`COMPRESSION_THRESHOLD`](crate::COMPRESSION_THRESHOLD) bytes and more are compressed with gzip.
    #[must_use]
    pub fn without_compression(mut self) -> Self {
        self.compression = false;
        self
    }

    /// Sets the format in which the layer pushes. Without it, [`PushFormat::Text`], or [`PushFormat::Protobuf`] with
    /// [`with_native_histograms`](crate::MetricsLayerBuilder::with_native_histograms).
    ///
    /// The methods of this client that take a text send it as it is.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// use tracing_stage_metrics::PushFormat;
    ///
    /// let gateway = Pushgateway::new("http://pushgateway:9091", "quant_pipeline")?.with_format(PushFormat::Protobuf);
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    ///
    /// VictoriaMetrics answers 200 to protobuf and stores nothing, so [`Protobuf`](PushFormat::Protobuf) with a URL that
    /// contains `/api/v1/import` is an error of the first request, and of the layer's `install()`.
    #[must_use]
    pub fn with_format(mut self, format: PushFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Sets the format in which the layer pushes, unless it is set.
    pub(crate) fn with_default_format(mut self, format: PushFormat) -> Self {
        self.format.get_or_insert(format);
        self
    }

    /// Returns the format in which the layer pushes.
    pub(crate) fn format(&self) -> PushFormat {
        self.format.unwrap_or_default()
    }

    pub(crate) fn has_authorization(&self) -> bool {
        self.headers.names().any(|name| name.eq_ignore_ascii_case("authorization"))
    }

    pub(crate) fn grouping(&self) -> &Grouping {
        &self.grouping
    }

    /// Returns the timeout of one request.
    pub(in crate::delivery) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the gateway's base URL for messages, without user and password.
    pub(crate) fn endpoint(&self) -> &str {
        self.address.as_str()
    }

    /// Returns whether the gateway stores samples, as VictoriaMetrics does, and has no groups.
    pub(crate) fn stores_samples(&self) -> bool {
        self.address.stores_samples()
    }

    /// Returns the gateway's clock minus this node's, in seconds; `None` before the gateway's first response.
    pub(in crate::delivery) fn clock_offset(&self) -> Option<f64> {
        self.clock.get()
    }

    /// Returns this client with another group.
    pub(crate) fn for_group(&self, grouping: Grouping) -> Self {
        Self { grouping, ..self.clone() }
    }
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
    use super::*;

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

    /// A spawned future must be `Send`.
    #[test]
    fn pushes_can_be_spawned() {
        fn spawnable<T: Send>(_: &T) {}
        let gateway = gateway();
        spawnable(&gateway.push_add("x 1\n"));
        spawnable(&gateway.delete());
    }

    #[test]
    fn debug_hides_secrets() {
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
    fn check_finds_a_wrong_configuration() {
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
        assert!(gateway().with_grouping_label("x", "y".repeat(65_534 - 48)).unwrap().check().is_ok());
        let gateway = |url| Pushgateway::new(url, "job").unwrap();
        let victoria_metrics = gateway("http://vm:8428/x/api/v1/import/prometheus");
        assert_eq!(
            check_error(&victoria_metrics.clone().with_format(PushFormat::Protobuf)),
            "gateway http://vm:8428/x/api/v1/import/prometheus is an import path of VictoriaMetrics, which takes text \
             alone: set the push format to text"
        );
        assert!(victoria_metrics.check().is_ok());
        assert!(victoria_metrics.with_format(PushFormat::Text).check().is_ok());
        assert!(gateway("http://gw/api/v1").with_format(PushFormat::Protobuf).check().is_ok());
        let Err(error) = Pushgateway::new("http://hu%3Ash:x@gw", "job") else { panic!("accepted") };
        assert_eq!(
            error.to_string(),
            "the user name has a colon in it, which basic authentication cannot carry: \
             give user and password apart from each other"
        );
    }

    #[test]
    fn push_outside_of_a_runtime_is_an_error() {
        let gateway = gateway();
        let mut push = std::pin::pin!(gateway.push_add("x 1\n"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Err(error)) = push.as_mut().poll(&mut context) else { panic!("no error") };
        assert_eq!(
            error.to_string(),
            "cannot reach gateway http://127.0.0.1:1/prefix: there is no tokio runtime here, call it inside one"
        );
    }
}
