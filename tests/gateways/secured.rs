//! Gateways with TLS, users and client certificates, and the authority that signs their certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::support::process::Process;
use super::support::{exposition, servers};

/// The user and the password of the gateways.
pub(crate) const USER: &str = "pusher";
pub(crate) const PASSWORD: &str = "p%/word";
/// The part of a configuration that has them. The hash is of the password.
pub(crate) const USERS: &str =
    "basic_auth_users: {pusher: $2a$04$oe99nsT3zvId84p.H6MYd.r1Qjy0XOts7C4miEzQzEqY1qBPxkfVu}\n";

/// An authority, in a directory of its own with the certificates that it issued.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The certificate of the authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Issues a certificate for a host or a client: `NAME.pem` and `NAME.key`.
    pub(crate) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A Pushgateway with the certificate of `localhost`, by its `web.config.file`.
pub(crate) struct SecuredGateway(Process);

/// The requirement of a client certificate of the same authority.
pub(crate) const CLIENT_CERTIFICATES: &str = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem";

impl SecuredGateway {
    /// `clients` is [`CLIENT_CERTIFICATES`] or empty, and `users` is [`USERS`] or empty.
    pub(crate) fn start(authority: &Authority, clients: &str, users: &str) -> Self {
        let config = authority.file("web.yml");
        let server = format!("tls_server_config: {{cert_file: localhost.pem, key_file: localhost.key{clients}}}\n");
        std::fs::write(&config, server + users).unwrap();
        Self(Process::start_listening(servers::PUSHGATEWAY, move |addr| {
            let mut command = Command::new(servers::PUSHGATEWAY);
            command.arg(format!("--web.listen-address={addr}")).arg("--persistence.file=");
            command.arg(format!("--web.config.file={}", config.display()));
            command
        }))
    }

    /// The host and port, with the name of the certificate.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.0.addr().port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.addr().port()
    }

    pub(crate) fn restart(&mut self) {
        self.0.restart();
    }

    /// What a Prometheus would scrape.
    pub(crate) fn scrape(&self, authority: &Authority, arguments: &[&str]) -> exposition::Exposition {
        curl(&format!("https://{}/metrics", self.host()), &authority.ca(), arguments)
    }
}

fn curl(url: &str, ca: &Path, arguments: &[&str]) -> exposition::Exposition {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"]).arg(ca).args(arguments).arg(url);
    let scrape = curl.output().unwrap();
    assert!(scrape.status.success(), "{scrape:?}");
    exposition::parse(str::from_utf8(&scrape.stdout).unwrap())
}

/// Starts an nginx with the certificate of `localhost`, in front of a gateway. It passes on `/gateway/…`, for requests with
/// this authorization. `settings` are further ones of the server.
pub(crate) fn nginx(
    authority: &Authority,
    gateway: &servers::Pushgateway,
    authorization: &str,
    settings: &str,
) -> Process {
    let directory = authority.directory.path().display().to_string();
    let (gateway, authorization, settings) = (gateway.addr(), authorization.to_owned(), settings.to_owned());
    Process::start_listening(servers::NGINX, move |addr| {
        let config = format!(
            "daemon off; pid {directory}/nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
             access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
             fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
             server {{\n\
             listen {addr} ssl; server_name localhost;\n\
             ssl_certificate {directory}/localhost.pem; ssl_certificate_key {directory}/localhost.key;\n\
             {settings}\n\
             location /gateway/ {{\n\
             if ($http_authorization != \"{authorization}\") {{ return 401; }}\n\
             proxy_pass http://{gateway}/;\n\
             }}\n}}\n}}\n"
        );
        let path = format!("{directory}/nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(servers::NGINX);
        // One process, which ends with the drop.
        command.args(["-g", "master_process off;", "-p", &directory, "-c", &path]);
        command
    })
}
