//! Certificates and keys in PEM files.

use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::pem::{PemObject as _, SectionKind};

use super::tls::{IdentityFiles, TlsFiles, TlsPem};
use super::tls_error;
use crate::error::Error;

impl TlsFiles {
    /// Gives a client the certificates in `pem`, which these files contain.
    ///
    /// # Errors
    ///
    /// An error that names the file, and shows nothing of its contents.
    pub(in crate::delivery) fn configure(
        &self,
        mut builder: ClientBuilder,
        pem: &TlsPem,
    ) -> Result<ClientBuilder, Error> {
        if let (Some(file), Some(pem)) = (&self.roots, &pem.roots) {
            let roots = roots(pem).map_err(|problem| file.error(&problem))?;
            builder = builder.tls_certs_only(roots);
        }
        if let (Some(files), Some((certificate, key))) = (&self.identity, &pem.identity) {
            let sections = certificate_chain(certificate).map_err(|problem| files.certificate.error(&problem))?;
            let key = private_key(key).map_err(|problem| files.key.error(&problem))?;
            let identity = Identity::from_pem(&to_pem(sections.into_iter().chain([key])));
            builder = builder.identity(identity.map_err(|_| files.certificate.error("cannot be used"))?);
        }
        Ok(builder)
    }

    /// Returns the error of a client that could not be built with the client certificate; `None` for any other cause.
    pub(in crate::delivery) fn identity_error(&self, error: &Error) -> Option<Error> {
        let IdentityFiles { certificate, key } = self.identity.as_ref()?;
        match tls_error::find(error)? {
            rustls::Error::InconsistentKeys(_) => {
                Some(key.error(&format!("is not the key of the certificate in {:?}", certificate.path())))
            }
            rustls::Error::General(_) => Some(key.error("is a key that cannot be used: RSA, ECDSA and Ed25519 can")),
            rustls::Error::InvalidCertificate(problem) => Some(certificate.error(match tls_error::is_of_version_1(problem) {
                true => "has a certificate of X.509 version 1: issue one of version 3, with `openssl x509 -req -extfile FILE`",
                false => "has a certificate that cannot be used",
            })),
            _ => None,
        }
    }
}

type Section = (SectionKind, Vec<u8>);

/// Returns the authorities in a PEM file, or what is wrong with it. A bundle may contain certificates that only other
/// libraries can use: these are left out.
fn roots(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut store = rustls::RootCertStore::empty();
    let mut certificates = certificate_chain(pem)?;
    certificates.retain(|(_, der)| store.add(der.as_slice().into()).is_ok());
    let roots: Vec<_> = certificates.iter().filter_map(|(_, der)| Certificate::from_der(der).ok()).collect();
    if roots.is_empty() { Err("has no certificate that can be used".to_owned()) } else { Ok(roots) }
}

fn certificate_chain(pem: &[u8]) -> Result<Vec<Section>, String> {
    let sections = sections(pem)?;
    let holds_key = sections.iter().any(|(kind, _)| is_private_key(*kind));
    let certificates: Vec<_> = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Certificate).collect();
    match certificates.is_empty() {
        false => Ok(certificates),
        true if holds_key => Err("holds a private key and no certificate".to_owned()),
        true => Err(nothing_found(pem, "certificate", "x509")),
    }
}

fn private_key(pem: &[u8]) -> Result<Section, String> {
    let is_encrypted = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"];
    if is_encrypted.iter().any(|mark| pem.windows(mark.len()).any(|window| window == *mark)) {
        return Err("holds an encrypted key: decrypt it with `openssl pkey -in FILE -out FILE.pem`".to_owned());
    }
    let sections = sections(pem)?;
    let holds_certificate = sections.iter().any(|(kind, _)| *kind == SectionKind::Certificate);
    match sections.into_iter().find(|(kind, _)| is_private_key(*kind)) {
        Some(key) => Ok(key),
        None if holds_certificate => Err("holds a certificate and no private key".to_owned()),
        None => Err(nothing_found(pem, "private key", "pkey")),
    }
}

fn is_private_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// Parses a PEM file. The parser's error is left out, since it may quote a line of a key.
fn sections(pem: &[u8]) -> Result<Vec<Section>, String> {
    let sections: Result<_, _> = Section::pem_slice_iter(pem).collect();
    sections.map_err(|_| "is not valid PEM: it is damaged or incomplete".to_owned())
}

/// Returns the problem of a file without the wanted section. A DER file begins with a sequence.
fn nothing_found(pem: &[u8], what: &str, command: &str) -> String {
    match pem {
        [0x30, 0x80..=0x84, ..] => {
            format!("is DER, not PEM: convert it with `openssl {command} -inform der -in FILE -out FILE.pem`")
        }
        _ => format!("holds no {what} in PEM form"),
    }
}

/// Encodes sections, without whatever else the files contain.
fn to_pem(sections: impl Iterator<Item = Section>) -> Vec<u8> {
    use base64::Engine as _;
    let mut pem = String::new();
    for (kind, der) in sections {
        let label = match kind {
            SectionKind::Certificate => "CERTIFICATE",
            SectionKind::RsaPrivateKey => "RSA PRIVATE KEY",
            SectionKind::EcPrivateKey => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        pem.push_str(&format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"));
    }
    pem.into_bytes()
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

    use super::*;
    use crate::delivery::http::file::NamedFile;

    /// Returns a certificate of this key, in PEM form.
    fn certificate(key: &KeyPair) -> String {
        let parameters = rcgen::CertificateParams::new(["pusher".to_owned()]).unwrap();
        parameters.self_signed(key).unwrap().pem()
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    /// Returns the key within a key of PKCS#8: the contents of the octet string at its end.
    fn inner_key(pkcs8: &[u8]) -> &[u8] {
        let is_start = |at: &usize| {
            let inner = &pkcs8[*at..];
            match inner {
                [0x30, 0x82, high, low, ..] => inner.len() == 4 + usize::from(*high) * 256 + usize::from(*low),
                [0x30, length @ 0..=0x7f, ..] => inner.len() == 2 + usize::from(*length),
                [0x30, 0x81, length, ..] => inner.len() == 3 + usize::from(*length),
                _ => false,
            }
        };
        &pkcs8[(1..pkcs8.len()).find(is_start).unwrap()..]
    }

    /// Builds a client with these files, and returns the problem of one of them.
    fn problem(roots: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, contents: &[u8]| {
            std::fs::write(directory.path().join(name), contents).unwrap();
            NamedFile::new(name, directory.path().join(name))
        };
        let files = TlsFiles {
            roots: roots.map(|roots| file("CA", roots)),
            identity: identity.map(|(certificate, key)| IdentityFiles {
                certificate: file("CERT", certificate),
                key: file("KEY", key),
            }),
        };
        let address = crate::delivery::http::url::Address::parse("https://gw").unwrap().0;
        let pem = files.read().unwrap();
        let second = std::time::Duration::from_secs(1);
        let built = super::super::client::build("gateway", &address, second, |builder| files.configure(builder, &pem));
        built.map(drop).map_err(|error| {
            let text = format!("{:?}", files.identity_error(&error).unwrap_or(error));
            assert!(!text.contains("hush"), "{text}");
            text.replace(&format!("{}/", directory.path().display()), "")
        })
    }

    #[test]
    fn every_form_of_a_key_is_accepted() {
        let (ecdsa, rsa) =
            (KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
        let forms = [
            (&ecdsa, ecdsa.serialize_pem()),
            (&ecdsa, pem("EC PARAMETERS", b"\x06") + &pem("EC PRIVATE KEY", inner_key(ecdsa.serialized_der()))),
            (&rsa, rsa.serialize_pem()),
            (&rsa, pem("RSA PRIVATE KEY", inner_key(rsa.serialized_der()))),
        ];
        for (key, pem) in forms {
            let certificate = certificate(key);
            let roots = Some(certificate.as_bytes());
            assert_eq!(problem(roots, Some((certificate.as_bytes(), pem.as_bytes()))), Ok(()), "{pem}");
            // Both in one file, in either order, with text around them.
            for both in [format!("# a\n{certificate}{pem}"), format!("{pem}{certificate}# b\n")] {
                assert_eq!(problem(roots, Some((both.as_bytes(), both.as_bytes()))), Ok(()), "{both}");
            }
        }
    }

    #[test]
    fn wrong_authorities_are_explained() {
        let key = KeyPair::generate().unwrap();
        let (certificate, key) = (certificate(&key), key.serialize_pem());
        let der = sections(certificate.as_bytes()).unwrap().remove(0).1;
        let (damaged, cut_off) = (certificate.replacen("MII", "!hush", 1), &certificate[..certificate.len() - 9]);
        let unusable = pem("CERTIFICATE", b"hush");
        assert_eq!(problem(Some((unusable.clone() + &certificate).as_bytes()), None), Ok(()));
        for (contents, expected) in [
            (&b""[..], "holds no certificate in PEM form"),
            (b"hush", "holds no certificate in PEM form"),
            (key.as_bytes(), "holds a private key and no certificate"),
            (&der, "is DER, not PEM: convert it with `openssl x509 -inform der -in FILE -out FILE.pem`"),
            (damaged.as_bytes(), "is not valid PEM: it is damaged or incomplete"),
            (cut_off.as_bytes(), "is not valid PEM: it is damaged or incomplete"),
            (unusable.as_bytes(), "has no certificate that can be used"),
        ] {
            assert_eq!(problem(Some(contents), None).unwrap_err(), format!("CA: file \"CA\" {expected}"));
        }
    }

    #[test]
    fn wrong_client_certificates_are_explained() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap().serialize_pem());
        let (certificate, key) = (certificate(&key), key.serialize_pem());
        let key_der = sections(key.as_bytes()).unwrap().remove(0).1;
        let encrypted = "holds an encrypted key: decrypt it with `openssl pkey -in FILE -out FILE.pem`";
        let old_encryption = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,hush\n\nhush\n\
                              -----END RSA PRIVATE KEY-----\n";
        for (contents, expected) in [
            (&b"hush"[..], "holds no private key in PEM form"),
            (certificate.as_bytes(), "holds a certificate and no private key"),
            (&key_der, "is DER, not PEM: convert it with `openssl pkey -inform der -in FILE -out FILE.pem`"),
            (pem("ENCRYPTED PRIVATE KEY", b"hush").as_bytes(), encrypted),
            (old_encryption.as_bytes(), encrypted),
            (pem("PRIVATE KEY", b"hush").as_bytes(), "is a key that cannot be used: RSA, ECDSA and Ed25519 can"),
            (other.as_bytes(), "is not the key of the certificate in \"CERT\""),
        ] {
            let problem = problem(None, Some((certificate.as_bytes(), contents))).unwrap_err();
            assert_eq!(problem, format!("KEY: file \"KEY\" {expected}"));
        }
        let swapped = problem(None, Some((key.as_bytes(), certificate.as_bytes()))).unwrap_err();
        assert_eq!(swapped, "CERT: file \"CERT\" holds a private key and no certificate");
        // An older `openssl x509 -req` makes such certificates by default.
        let mut der = sections(certificate.as_bytes()).unwrap().remove(0).1;
        let version = der.windows(5).position(|window| window == [0xa0, 3, 2, 1, 2]).unwrap();
        der[version + 4] = 0;
        for (unusable, expected) in [
            (&b"hush"[..], "has a certificate that cannot be used"),
            (
                &der,
                "has a certificate of X.509 version 1: issue one of version 3, with `openssl x509 -req -extfile FILE`",
            ),
        ] {
            let unusable = problem(None, Some((pem("CERTIFICATE", unusable).as_bytes(), key.as_bytes()))).unwrap_err();
            assert_eq!(unusable, format!("CERT: file \"CERT\" {expected}"));
        }
    }
}
