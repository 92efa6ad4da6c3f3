//! Credentials in files. They are read again for every request, since they rotate.

use std::fmt;

use reqwest::header::HeaderValue;

use super::file::NamedFile;
use super::headers;
use crate::error::Error;

/// Limit in bytes of a file with a token or a password.
const MAX_SECRET: usize = 64 * 1024;

/// The file of a request's authorization.
#[derive(Clone)]
pub(in crate::delivery) enum CredentialFile {
    BearerToken(NamedFile),
    Basic { user: String, password: NamedFile },
}

impl CredentialFile {
    /// Reads the file, and returns the value of the header `Authorization`.
    ///
    /// # Errors
    ///
    /// An error that names the file and shows nothing of its contents.
    pub(super) fn header(&self) -> Result<HeaderValue, Error> {
        let (file, what) = match self {
            Self::BearerToken(file) => (file, "token"),
            Self::Basic { password, .. } => (password, "password"),
        };
        let secret = file.read(MAX_SECRET)?;
        let end = secret.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        let secret = &secret[..end];
        if secret.is_empty() {
            return Err(file.error(&format!("is empty: write the {what} into it")));
        }
        match self {
            Self::BearerToken(_) => headers::bearer(secret).ok_or_else(|| {
                file.error("is no token: it has a blank or a character outside ASCII; write the token alone")
            }),
            // A file of several lines is not the file of a password.
            Self::Basic { .. } if secret.iter().any(u8::is_ascii_control) => {
                Err(file.error("is no password: it has a control character, or more than one line"))
            }
            Self::Basic { user, .. } => headers::basic(user.as_bytes(), secret).map_err(Error::config),
        }
    }

    pub(in crate::delivery) fn file(&self) -> &NamedFile {
        match self {
            Self::BearerToken(file) | Self::Basic { password: file, .. } => file,
        }
    }
}

/// Shows the file alone: a user name is hidden too.
impl fmt::Debug for CredentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the header, or the text of the error after the name of the file.
    fn read(contents: &[u8], credentials: impl Fn(NamedFile) -> CredentialFile) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        let header = credentials(NamedFile::new("X_FILE", file.path())).header();
        header.map(|header| header.to_str().unwrap().to_owned()).map_err(|error| {
            let text = format!("{error:?}");
            assert!(!text.contains("hush"), "{text}");
            text.strip_prefix(&format!("X_FILE: file {:?} ", file.path())).unwrap_or(&text).to_owned()
        })
    }

    fn bearer(contents: &[u8]) -> Result<String, String> {
        read(contents, CredentialFile::BearerToken)
    }

    fn basic(contents: &[u8]) -> Result<String, String> {
        read(contents, |password| CredentialFile::Basic { user: "Aladdin".to_owned(), password })
    }

    #[test]
    fn line_end_is_dropped() {
        for end in ["", "\n", "\r\n", "\n\n"] {
            assert_eq!(bearer(format!("hush{end}").as_bytes()).unwrap(), "Bearer hush");
            let header = basic(format!("open sesame{end}").as_bytes()).unwrap();
            assert_eq!(header, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        }
    }

    #[test]
    fn blank_at_the_end_belongs_to_a_password() {
        assert_ne!(basic(b"open sesame ").unwrap(), basic(b"open sesame").unwrap());
    }

    #[test]
    fn errors_hide_the_contents() {
        assert_eq!(bearer(b"\n").unwrap_err(), "is empty: write the token into it");
        assert_eq!(basic(b"").unwrap_err(), "is empty: write the password into it");
        for token in [&b"hu sh hush"[..], b"hush\nhush", b"hush\xff", "hüsh hush".as_bytes()] {
            let problem = "is no token: it has a blank or a character outside ASCII; write the token alone";
            assert_eq!(bearer(token).unwrap_err(), problem);
        }
        let problem = "is no password: it has a control character, or more than one line";
        assert_eq!(basic(b"hush\nhush").unwrap_err(), problem);
        assert_eq!(bearer(&[b'h'; MAX_SECRET + 1]).unwrap_err(), "is larger than 65536 bytes");
        let error = read(b"hush", |password| CredentialFile::Basic { user: "hu:sh".to_owned(), password });
        assert!(error.unwrap_err().starts_with("the user name has a colon in it"));
    }

    #[test]
    fn debug_hides_the_user() {
        let password = NamedFile::new("X_FILE", "/x");
        let shown = format!("{:?}", CredentialFile::Basic { user: "hush".to_owned(), password: password.clone() });
        assert_eq!(shown, format!("{password:?}"));
    }
}
