//! Request headers of the caller, including credentials. Their values are never shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    TRANSFER_ENCODING, USER_AGENT,
};

use super::credentials::CredentialFile;
use crate::error::Error;

/// Headers that describe the body. Only the client knows their values.
const BODY_HEADERS: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING];

/// Headers in the order of the calls. A header that cannot be sent is kept with the reason, so that the setters do not
/// fail.
#[derive(Clone, Default)]
pub(in crate::delivery) struct Headers(Vec<(String, Header)>);

type ParsedHeader = Result<(HeaderName, HeaderValue), String>;

#[derive(Clone)]
enum Header {
    Value(ParsedHeader),
    /// An authorization, read for every request.
    File(CredentialFile),
}

impl Headers {
    /// Sets a header. It replaces a header of the same name.
    pub(in crate::delivery) fn set(&mut self, name: &str, value: &[u8]) {
        let parsed = parse(name, value);
        self.insert(name, Header::Value(parsed));
    }

    pub(in crate::delivery) fn set_basic_auth(&mut self, user: &[u8], password: &[u8]) {
        self.set_authorization(basic(user, password));
    }

    pub(in crate::delivery) fn set_bearer_token(&mut self, token: &str) {
        self.set_authorization(bearer(token.as_bytes()).ok_or_else(|| {
            "the bearer token is empty or has a character that a header cannot carry: \
             leave out the line break at the end of a file"
                .to_owned()
        }));
    }

    fn set_authorization(&mut self, value: Result<HeaderValue, String>) {
        self.insert(AUTHORIZATION.as_str(), Header::Value(value.map(|value| (AUTHORIZATION, value))));
    }

    pub(in crate::delivery) fn set_credential_file(&mut self, file: CredentialFile) {
        self.insert(AUTHORIZATION.as_str(), Header::File(file));
    }

    fn insert(&mut self, name: &str, header: Header) {
        self.0.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.0.push((name.to_owned(), header));
    }

    /// Returns the headers as they are sent. Reads the file of the authorization, if there is one.
    ///
    /// # Errors
    ///
    /// The first header that cannot be sent.
    pub(in crate::delivery) fn to_map(&self) -> Result<HeaderMap, Error> {
        let headers = self.0.iter().map(|(_, header)| match header {
            Header::Value(parsed) => parsed.clone().map_err(Error::config),
            Header::File(file) => Ok((AUTHORIZATION, file.header()?)),
        });
        headers.collect()
    }

    /// Returns the file of the authorization.
    pub(in crate::delivery) fn credential_file(&self) -> Option<&CredentialFile> {
        self.0.iter().find_map(|(_, header)| match header {
            Header::File(file) => Some(file),
            Header::Value(_) => None,
        })
    }

    pub(in crate::delivery) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// Returns whether the client sets this header itself: its value does not come from the caller.
pub(super) fn is_set_by_client(name: &HeaderName) -> bool {
    BODY_HEADERS.contains(name) || name == USER_AGENT
}

/// Returns the authorization of a user.
pub(in crate::delivery) fn basic(user: &[u8], password: &[u8]) -> Result<HeaderValue, String> {
    if user.contains(&b':') {
        return Err("the user name has a colon in it, which basic authentication cannot carry: \
                    give user and password apart from each other"
            .to_owned());
    }
    let pair = STANDARD.encode([user, b":", password].concat());
    Ok(parse(AUTHORIZATION.as_str(), format!("Basic {pair}").as_bytes())?.1)
}

/// Returns the authorization of a token; `None` if a header cannot carry the token.
pub(super) fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let is_valid = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    parse(AUTHORIZATION.as_str(), &[b"Bearer ", token].concat()).ok().filter(|_| is_valid).map(|(_, value)| value)
}

fn parse(name: &str, value: &[u8]) -> ParsedHeader {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        format!("{name:?} is not the name of a header: letters, digits and hyphens make one, without the colon")
    })?;
    if BODY_HEADERS.contains(&parsed) {
        return Err(format!("header {name:?} belongs to the client, which knows what it sends: leave it out"));
    }
    let mut value = HeaderValue::from_bytes(value).map_err(|_| {
        format!(
            "the value of header {name:?} has a character that a header cannot carry: leave out a line break at its end"
        )
    })?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(build: impl FnOnce(&mut Headers)) -> Headers {
        let mut headers = Headers::default();
        build(&mut headers);
        headers
    }

    fn sent(headers: &Headers) -> Vec<(String, String)> {
        let map = headers.to_map().unwrap();
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn error_text(build: impl FnOnce(&mut Headers)) -> String {
        let error = headers(build).to_map().unwrap_err();
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn later_header_replaces_one_of_the_same_name() {
        let built = headers(|headers| {
            headers.set_basic_auth(b"Aladdin", b"open sesame");
            headers.set("X-Tenant", b"a");
            headers.set("x-tenant", b"b");
        });
        assert_eq!(
            sent(&built),
            [
                ("authorization".to_owned(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned()),
                ("x-tenant".to_owned(), "b".to_owned())
            ]
        );
        assert_eq!(built.names().collect::<Vec<_>>(), ["authorization", "x-tenant"]);
        let built = headers(|headers| {
            headers.set_bearer_token("bad\n");
            headers.set_bearer_token("good");
        });
        assert_eq!(sent(&built), [("authorization".to_owned(), "Bearer good".to_owned())]);
    }

    #[test]
    fn debug_hides_values() {
        let map = headers(|headers| headers.set("x-key", b"hush")).to_map().unwrap();
        assert!(!format!("{map:?}").contains("hush"));
    }

    #[test]
    fn errors_hide_values() {
        assert_eq!(
            error_text(|headers| headers.set("x key", b"hush")),
            "\"x key\" is not the name of a header: letters, digits and hyphens make one, without the colon"
        );
        assert_eq!(
            error_text(|headers| headers.set("x-key", b"hush\n")),
            "the value of header \"x-key\" has a character that a header cannot carry: leave out a line break at its end"
        );
        assert_eq!(
            error_text(|headers| headers.set("Content-Length", b"3")),
            "header \"Content-Length\" belongs to the client, which knows what it sends: leave it out"
        );
        for token in ["", "hush\n", "hu sh", "hüsh"] {
            assert_eq!(
                error_text(|headers| headers.set_bearer_token(token)),
                "the bearer token is empty or has a character that a header cannot carry: \
                 leave out the line break at the end of a file"
            );
        }
        assert_eq!(
            error_text(|headers| headers.set_basic_auth(b"hu:sh", b"x")),
            "the user name has a colon in it, which basic authentication cannot carry: \
             give user and password apart from each other"
        );
    }
}
