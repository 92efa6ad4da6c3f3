//! The files of a gateway: credentials and certificates. They are read again for every request, since they rotate.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, ClientBuilder};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::client::Pushgateway;
use crate::delivery::http::client;
use crate::delivery::http::credentials::CredentialFile;
use crate::delivery::http::file::NamedFile;
use crate::delivery::http::headers;
#[cfg(feature = "tls")]
use crate::delivery::http::tls::IdentityFiles;
use crate::delivery::http::tls::{TlsFiles, TlsPem, TlsSettings};
use crate::error::{Error, Kind};
use crate::job_thread::JobThread;

/// How long a request waits for its files, unless its own timeout is shorter.
const FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// Limit of the requests whose files are read or wait for the thread. Further ones wait for a permit.
const MAX_WAITING_READS: usize = 4;

/// The certificate files, and what is made from them. Clones share it.
#[derive(Clone, Default)]
pub(super) struct GatewayFiles {
    pub(super) tls: TlsFiles,
    settings: SettingNames,
    /// The client of the last request, and the certificates that it was built with.
    client: Arc<Mutex<Option<(TlsPem, Client)>>>,
    /// Reads the files. Started when first needed.
    thread: Arc<OnceLock<JobThread>>,
    reads: Permits,
}

/// Keeps the requests that are made at once from filling the queue of the thread.
#[derive(Clone)]
struct Permits(Arc<Semaphore>);

impl Default for Permits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITING_READS)))
    }
}

/// The settings that errors name.
#[derive(Clone)]
struct SettingNames {
    roots: String,
    identity: String,
}

impl Default for SettingNames {
    fn default() -> Self {
        Self { roots: "`with_root_certificates`".to_owned(), identity: "`with_client_certificate`".to_owned() }
    }
}

impl Pushgateway {
    /// Authenticates with a token in a file, sent as `Authorization: Bearer <token>`. Without it, no token is sent.
    ///
    /// The file is read again for every request, so the token may rotate. Line ends at its end are dropped. It has at most
    /// 64 KiB. The last call of this and the other methods that authenticate wins, as for
    /// [`with_basic_auth`](Self::with_basic_auth).
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("https://pushgateway:9091", "quant_pipeline")?
    ///     .with_bearer_token_file("/run/secrets/pushgateway/token");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn with_bearer_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        let file = NamedFile::new("with_bearer_token_file", path);
        self.headers.set_credential_file(CredentialFile::BearerToken(file));
        self
    }

    /// Authenticates with a user, and a password in a file. Without it, requests carry those of the URL, if it has them.
    ///
    /// The file is read again for every request, so the password may rotate. Line ends at its end are dropped; it has one
    /// line, and at most 64 KiB. The last call of this and the other methods that authenticate wins, as for
    /// [`with_basic_auth`](Self::with_basic_auth).
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("https://pushgateway:9091", "quant_pipeline")?
    ///     .with_basic_auth_file("pusher", "/run/secrets/pushgateway/password");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[must_use]
    pub fn with_basic_auth_file(mut self, user: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let password = NamedFile::new("with_basic_auth_file", path);
        self.headers.set_credential_file(CredentialFile::Basic { user: user.into(), password });
        self
    }

    /// Trusts the certificates in this PEM file, instead of the system's: the authority that signed the gateway's
    /// certificate, or that certificate itself. Without it, the system's are trusted. It has no effect on an `http` gateway.
    ///
    /// An `https` proxy needs a certificate of these, too.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("https://pushgateway:9091", "quant_pipeline")?
    ///     .with_root_certificates("/etc/ssl/our-authority.pem");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        let roots = NamedFile::new("with_root_certificates", path);
        self.set_tls_files(TlsFiles { roots: Some(roots), ..TlsFiles::default() });
        self
    }

    /// Presents a client certificate to a gateway that asks for one. Without it, none is presented. It has no effect on an
    /// `http` gateway.
    ///
    /// Both are PEM files: the certificate with the intermediate ones after it, and its key in the form PKCS#8, PKCS#1 or
    /// SEC1, not encrypted. They may be the same file. After they have changed, the next request uses the new ones.
    ///
    /// ```
    /// # use tracing_stage_metrics::Pushgateway;
    /// let gateway = Pushgateway::new("https://pushgateway:9091", "quant_pipeline")?
    ///     .with_client_certificate("/run/secrets/pusher/tls.crt", "/run/secrets/pusher/tls.key");
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let file = |path| NamedFile::new("with_client_certificate", path);
        let identity = IdentityFiles { certificate: file(certificate.into()), key: file(key.into()) };
        self.set_tls_files(TlsFiles { identity: Some(identity), ..TlsFiles::default() });
        self
    }

    /// Sets the files that variables of the environment name. `variable` returns the whole name of a variable.
    pub(crate) fn with_variables(mut self, files: GatewayVariables, variable: impl Fn(&str) -> String) -> Self {
        let identity = format!("{} and {}", variable("CERT_FILE"), variable("KEY_FILE"));
        self.files.settings = SettingNames { roots: variable("CA_FILE"), identity };
        if let Some(credentials) = files.credentials {
            self.headers.set_credential_file(credentials);
        }
        self.set_tls_files(files.tls);
        self
    }

    fn set_tls_files(&mut self, files: TlsFiles) {
        let tls = &mut self.files.tls;
        tls.roots = files.roots.or(tls.roots.take());
        tls.identity = files.identity.or(tls.identity.take());
        self.files.forget_client();
    }

    /// Checks the files, and prepares their thread.
    ///
    /// # Errors
    ///
    /// A configuration error, as the first push would return it; another one if no thread can be started.
    pub(super) fn check_files(&self) -> Result<(), Error> {
        self.connection().map_err(Error::into_config)?;
        if self.named_files().next().is_some() {
            self.files.thread()?;
        }
        Ok(())
    }

    /// Returns the client and the headers of a request, with the files of now.
    pub(super) async fn connection_of_request(&self) -> Result<(Client, HeaderMap), Error> {
        if self.named_files().next().is_none() {
            return self.connection();
        }
        let gateway = self.clone();
        let limit = FILE_TIMEOUT.min(self.timeout);
        let (thread, permits) = (self.files.thread()?, Arc::clone(&self.files.reads.0));
        let read = timeout(limit, async {
            // Held until the thread is done, also where the request no longer waits.
            let permit = permits.acquire_owned().await;
            thread
                .run(move || {
                    let _permit = permit;
                    gateway.connection()
                })
                .await
        });
        let read = read.await;
        // The file system hangs, or holds up the reads of earlier requests.
        let late = || {
            let files: Vec<_> = self.named_files().map(NamedFile::path).collect();
            Error::new(Kind::Timeout, format!("gateway {}: {files:?} could not be read within {limit:?}", self.address))
        };
        match read {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => Err(late().with_source(error)),
            Err(_) => Err(late()),
        }
    }

    /// Reads the files, and builds a client if the certificates have changed.
    fn connection(&self) -> Result<(Client, HeaderMap), Error> {
        let headers = self.headers.to_map()?;
        let pem = self.files.tls.read()?;
        let cached = || self.files.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = cached().as_ref().filter(|(of, _)| *of == pem) {
            return Ok((client.clone(), headers));
        }
        let client = self.build_client(&pem)?;
        *cached() = Some((pem, client.clone()));
        Ok((client, headers))
    }

    fn build_client(&self, pem: &TlsPem) -> Result<Client, Error> {
        let configure = |builder| self.configure(builder, pem);
        let built = client::build("gateway", &self.address, self.connect_timeout, configure);
        #[cfg(feature = "tls")]
        return built.map_err(|error| self.files.tls.identity_error(&error).unwrap_or(error));
        #[cfg(not(feature = "tls"))]
        built
    }

    #[cfg_attr(not(feature = "tls"), allow(unused_variables))]
    fn configure(&self, builder: ClientBuilder, pem: &TlsPem) -> Result<ClientBuilder, Error> {
        // A pooled connection belongs to its runtime, which the client may outlive.
        let builder = builder.pool_max_idle_per_host(0);
        #[cfg(feature = "tls")]
        let builder = self.files.tls.configure(builder, pem)?;
        Ok(builder)
    }

    /// Returns this client with another name lookup.
    #[cfg(test)]
    pub(in crate::delivery) fn with_lookup(mut self, lookup: crate::delivery::http::resolver::LookupFn) -> Self {
        let pem = TlsPem::default();
        let client = client::build_with(lookup, "gateway", &self.address, self.connect_timeout, |builder| {
            self.configure(builder, &pem)
        });
        self.files.client = Arc::new(Mutex::new(Some((pem, client.unwrap()))));
        self
    }

    fn named_files(&self) -> impl Iterator<Item = &NamedFile> {
        self.headers.credential_file().map(CredentialFile::file).into_iter().chain(self.files.tls.iter())
    }

    /// Returns the settings that an error of TLS names.
    pub(super) fn tls_settings(&self) -> TlsSettings<'_> {
        let SettingNames { roots, identity } = &self.files.settings;
        TlsSettings { roots, identity: Some(identity), has_identity: self.files.tls.identity.is_some() }
    }
}

impl GatewayFiles {
    /// Makes the next request build a client, which earlier clones do not share.
    pub(super) fn forget_client(&mut self) {
        self.client = Arc::default();
    }

    fn thread(&self) -> Result<&JobThread, Error> {
        if let Some(thread) = self.thread.get() {
            return Ok(thread);
        }
        // Two threads may start one at the same time; the first one is kept.
        let started = JobThread::start("metrics-secrets", MAX_WAITING_READS)?;
        Ok(self.thread.get_or_init(|| started))
    }
}

/// The files that variables of the environment name.
#[derive(Debug, Default)]
pub(crate) struct GatewayVariables {
    credentials: Option<CredentialFile>,
    tls: TlsFiles,
}

/// A variable and its value.
pub(crate) type Variable = (String, String);

impl GatewayVariables {
    pub(crate) fn set_bearer_token_file(&mut self, (name, path): Variable) {
        self.credentials = Some(CredentialFile::BearerToken(NamedFile::new(name, path)));
    }

    /// # Errors
    ///
    /// A user name that basic authentication cannot carry.
    pub(crate) fn set_basic_auth_file(&mut self, user: String, (name, path): Variable) -> Result<(), Error> {
        headers::basic(user.as_bytes(), b"").map_err(Error::config)?;
        self.credentials = Some(CredentialFile::Basic { user, password: NamedFile::new(name, path) });
        Ok(())
    }

    #[cfg(feature = "tls")]
    pub(crate) fn set_root_certificates(&mut self, (name, path): Variable) {
        self.tls.roots = Some(NamedFile::new(name, path));
    }

    #[cfg(feature = "tls")]
    pub(crate) fn set_client_certificate(&mut self, certificate: Variable, key: Variable) {
        let file = |(name, path): Variable| NamedFile::new(name, path);
        self.tls.identity = Some(IdentityFiles { certificate: file(certificate), key: file(key) });
    }

    /// Returns the variables with their paths.
    #[cfg(test)]
    pub(crate) fn paths(&self) -> Vec<(String, PathBuf)> {
        let files = self.credentials.iter().map(CredentialFile::file).chain(self.tls.iter());
        files.map(|file| (file.setting().to_owned(), file.path().to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn gateway() -> Pushgateway {
        Pushgateway::new("http://127.0.0.1:1", "job").unwrap()
    }

    fn has_client(gateway: &Pushgateway) -> bool {
        gateway.files.client.lock().unwrap().is_some()
    }

    #[test]
    fn clones_with_the_same_connection_settings_share_a_client() {
        let first = gateway();
        let same = first.clone().with_timeout(Duration::from_secs(1)).with_bearer_token("x");
        let other = first.clone().with_connect_timeout(Duration::from_secs(1));
        first.check().unwrap();
        assert!(has_client(&same));
        assert!(!has_client(&other));
        #[cfg(feature = "tls")]
        assert!(!has_client(&first.with_root_certificates("/x")));
    }

    #[test]
    fn last_authorization_wins() {
        let gateway = gateway().with_basic_auth("hush", "hush").with_bearer_token_file("/1").with_header("X-A", "a");
        assert_eq!(gateway.named_files().count(), 1);
        assert!(gateway.clone().with_bearer_token("hush").check().is_ok());
        let error = gateway.with_basic_auth_file("hush", "/2").check().unwrap_err();
        assert!(error.is_config());
        assert!(format!("{error:?}").starts_with("with_basic_auth_file: file \"/2\" cannot be read: No such file"));
    }

    /// The thread hangs on the file of an earlier request, as it does on a dead file system.
    #[tokio::test]
    async fn file_that_does_not_return_fails_the_request_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush").unwrap();
        let gateway = gateway().with_timeout(Duration::from_millis(50)).with_bearer_token_file(file.path());
        gateway.check().unwrap();
        let (release, is_released) = channel::<()>();
        assert!(gateway.files.thread().unwrap().post(move || is_released.recv().unwrap()));
        let expected = format!("gateway http://127.0.0.1:1: [{:?}] could not be read within 50ms", file.path());
        // The last of them gets no permit.
        for _ in 0..=MAX_WAITING_READS {
            let error = gateway.push_add("x 1\n").await.unwrap_err();
            assert_eq!((error.to_string(), error.is_timeout()), (expected.clone(), true));
        }
        release.send(()).unwrap();
        assert!(gateway.files.thread().unwrap().wait_idle(std::time::Instant::now() + Duration::from_secs(60)));
        let error = gateway.push_add("x 1\n").await.unwrap_err();
        assert!(error.to_string().ends_with("no server answers there"), "{error}");
    }
}
