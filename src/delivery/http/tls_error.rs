//! Errors of TLS: what a person can do about them.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::tls::TlsSettings;

/// Returns the error of the TLS library among the causes of an error.
pub(super) fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |&cause| cause.source()).find_map(within)
}

/// An I/O error does not return the error that it wraps as its source.
fn within<'a>(mut cause: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    while let Some(error) = cause.downcast_ref::<io::Error>() {
        cause = error.get_ref()?;
    }
    cause.downcast_ref()
}

/// Returns what the user can do about an error of TLS; `None` if there is nothing but the cause itself.
pub(super) fn explain(error: &rustls::Error, settings: TlsSettings<'_>) -> Option<String> {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, PeerIncompatible};
    let roots = settings.roots;
    Some(match error {
        InvalidCertificate(problem) => match problem {
            // A signature by another authority of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("its certificate is not trusted; name the certificate of its authority with {roots}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name; use a name that the certificate has".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, by the clock of this machine".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, by the clock of this machine".to_owned()
            }
            // The error itself is private to the library.
            problem if format!("{problem:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is that of an authority; give it one that is not (basicConstraints CA:FALSE), signed by an \
                 authority or by itself"
                    .to_owned()
            }
            problem if is_of_version_1(problem) => {
                "its certificate is of X.509 version 1; give it one of version 3, with `openssl x509 -req -extfile FILE`"
                    .to_owned()
            }
            _ => "its certificate was not accepted".to_owned(),
        },
        AlertReceived(AlertDescription::ProtocolVersion) | PeerIncompatible(_) => {
            "it speaks neither TLS 1.2 nor TLS 1.3 in a way that this client does".to_owned()
        }
        AlertReceived(alert) if is_about_the_client_certificate(*alert) => settings.about_the_client_certificate(),
        InvalidMessage(_) => "it speaks no TLS; is it http?".to_owned(),
        _ => return None,
    })
}

/// Returns whether a certificate is of X.509 version 1, which has no extensions. The error itself is private to the library.
pub(super) fn is_of_version_1(problem: &CertificateError) -> bool {
    format!("{problem:?}").contains("UnsupportedCertVersion")
}

fn is_about_the_client_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        NoCertificate, UnknownCA, UnsupportedCertificate,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | NoCertificate
            | UnknownCA
            | UnsupportedCertificate
    )
}
