//! The caller's request headers, credentials among them. Their values are never shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    TRANSFER_ENCODING, USER_AGENT,
};

use crate::error::Error;

/// Headers that say how the body is to be read, which only the client knows.
const OWN: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING];

/// Headers in the order given. One that cannot be sent is kept with the reason, so that the setters need not fail.
#[derive(Clone, Default)]
pub(crate) struct Headers(Vec<(String, Parsed)>);

type Parsed = Result<(HeaderName, HeaderValue), String>;

impl Headers {
    /// Sets a header, in place of one of the same name.
    pub(crate) fn set(&mut self, name: &str, value: &[u8]) {
        let parsed = parse(name, value);
        self.put(name, parsed);
    }

    pub(crate) fn set_basic_auth(&mut self, user: &[u8], password: &[u8]) {
        let parsed = if user.contains(&b':') {
            Err("the user name has a colon in it, which basic authentication cannot carry: \
                 give user and password apart from each other"
                .to_owned())
        } else {
            let pair = [user, b":", password].concat();
            parse(AUTHORIZATION.as_str(), format!("Basic {}", STANDARD.encode(pair)).as_bytes())
        };
        self.put(AUTHORIZATION.as_str(), parsed);
    }

    pub(crate) fn set_bearer_token(&mut self, token: &str) {
        let parsed = if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err("the bearer token is empty or has a character that a header cannot carry: \
                 a line break at its end, perhaps, as files have it"
                .to_owned())
        } else {
            parse(AUTHORIZATION.as_str(), format!("Bearer {token}").as_bytes())
        };
        self.put(AUTHORIZATION.as_str(), parsed);
    }

    fn put(&mut self, name: &str, parsed: Parsed) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.0.push((name.to_owned(), parsed));
    }

    /// The headers as they are sent, or why one of them cannot be.
    pub(crate) fn to_map(&self) -> Result<HeaderMap, Error> {
        self.0.iter().map(|(_, parsed)| parsed.clone()).collect::<Result<HeaderMap, String>>().map_err(Error::config)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// Whether the client sets this header itself: nothing of the caller's is in it.
pub(crate) fn is_of_client(name: &HeaderName) -> bool {
    OWN.contains(name) || name == USER_AGENT
}

fn parse(name: &str, value: &[u8]) -> Parsed {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        format!("{name:?} is not the name of a header: letters, digits and hyphens make one, without the colon")
    })?;
    if OWN.contains(&parsed) {
        return Err(format!("header {name:?} belongs to the client, which knows what it sends: leave it out"));
    }
    let mut value = HeaderValue::from_bytes(value).map_err(|_| {
        format!(
            "the value of header {name:?} has a character that a header cannot carry: a line break at its end, perhaps"
        )
    })?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use crate::delivery::http::headers::*;

    fn headers(build: impl FnOnce(&mut Headers)) -> Headers {
        let mut headers = Headers::default();
        build(&mut headers);
        headers
    }

    fn sent(headers: &Headers) -> Vec<(String, String)> {
        let map = headers.to_map().unwrap();
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn fault(build: impl FnOnce(&mut Headers)) -> String {
        let error = headers(build).to_map().unwrap_err();
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn the_last_of_a_name_is_sent() {
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
    fn values_are_marked_as_secret() {
        let map = headers(|headers| headers.set("x-key", b"hush")).to_map().unwrap();
        assert!(!format!("{map:?}").contains("hush"));
    }

    #[test]
    fn errors_do_not_show_values() {
        assert_eq!(
            fault(|headers| headers.set("x key", b"hush")),
            "\"x key\" is not the name of a header: letters, digits and hyphens make one, without the colon"
        );
        assert_eq!(
            fault(|headers| headers.set("x-key", b"hush\n")),
            "the value of header \"x-key\" has a character that a header cannot carry: a line break at its end, perhaps"
        );
        assert_eq!(
            fault(|headers| headers.set("Content-Length", b"3")),
            "header \"Content-Length\" belongs to the client, which knows what it sends: leave it out"
        );
        for token in ["", "hush\n", "hu sh", "hüsh"] {
            assert_eq!(
                fault(|headers| headers.set_bearer_token(token)),
                "the bearer token is empty or has a character that a header cannot carry: \
                 a line break at its end, perhaps, as files have it"
            );
        }
        assert_eq!(
            fault(|headers| headers.set_basic_auth(b"hu:sh", b"x")),
            "the user name has a colon in it, which basic authentication cannot carry: \
             give user and password apart from each other"
        );
    }
}
