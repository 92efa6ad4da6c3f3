//! The certificate files of a client. `pem` reads what they contain.

use super::file::NamedFile;
use crate::error::Error;

/// Limit in bytes of a file with certificates or a key. The bundle of a Linux distribution has a fifth of it.
const MAX_PEM: usize = 1024 * 1024;

/// The certificate files of a client.
#[derive(Clone, Debug, Default)]
pub(in crate::delivery) struct TlsFiles {
    /// The authorities to trust instead of the system's.
    pub(in crate::delivery) roots: Option<NamedFile>,
    pub(in crate::delivery) identity: Option<IdentityFiles>,
}

/// The files of the client certificate.
#[derive(Clone, Debug)]
pub(in crate::delivery) struct IdentityFiles {
    pub(in crate::delivery) certificate: NamedFile,
    pub(in crate::delivery) key: NamedFile,
}

/// The contents of the files. Has no `Debug`, so that nothing can print the key.
#[derive(Default, PartialEq)]
pub(in crate::delivery) struct TlsPem {
    pub(super) roots: Option<Vec<u8>>,
    /// The certificate and the key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The settings that an error of TLS names.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub(in crate::delivery) struct TlsSettings<'a> {
    /// The setting of the authorities to trust.
    pub(in crate::delivery) roots: &'a str,
    /// The settings of the client certificate; `None` if there are none.
    pub(in crate::delivery) identity: Option<&'a str>,
    /// Whether there is a client certificate.
    pub(in crate::delivery) has_identity: bool,
}

impl TlsSettings<'_> {
    /// Returns what the user can do about a server that asks for a client certificate, or refuses the one it gets.
    pub(super) fn about_the_client_certificate(self) -> String {
        match self.identity {
            Some(setting) if self.has_identity => format!("it did not accept the client certificate of {setting}"),
            Some(setting) => format!("it asks for a client certificate; name one with {setting}"),
            None => "it asks for a client certificate, which is not supported here".to_owned(),
        }
    }
}

impl TlsFiles {
    pub(in crate::delivery) fn iter(&self) -> impl Iterator<Item = &NamedFile> {
        let identity = self.identity.iter().flat_map(|identity| [&identity.certificate, &identity.key]);
        self.roots.iter().chain(identity)
    }

    /// Reads the files. Does nothing if there are none.
    pub(in crate::delivery) fn read(&self) -> Result<TlsPem, Error> {
        let read = |file: &NamedFile| file.read(MAX_PEM);
        let roots = self.roots.as_ref().map(read).transpose()?;
        let identity = match &self.identity {
            Some(files) => Some((read(&files.certificate)?, read(&files.key)?)),
            None => None,
        };
        Ok(TlsPem { roots, identity })
    }
}
