//! Removes the credentials of a request from a server's text: error pages of proxies and debugging servers show the
//! headers of the request.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::percent_decode;
use reqwest::header::{AUTHORIZATION, HeaderMap};

use super::headers::is_set_by_client;
use super::url::{Address, HIDDEN};

/// Length in bytes from which a value is hidden. Shorter values occur in any text.
const MIN_LENGTH: usize = 4;

/// Values that must not be shown. Has no `Debug`, so that nothing can print them.
pub(super) struct Secrets(Vec<Vec<u8>>);

/// A decoded byte, and the range of the text that encodes it.
type DecodedByte = (u8, std::ops::Range<usize>);

impl Secrets {
    /// Collects the values of all headers that the caller set, with the parts of an authorization, and the credentials
    /// of the system's proxies.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let mut secrets = Self(Vec::new());
        for (name, value) in headers.iter().filter(|(name, _)| !is_set_by_client(name)) {
            secrets.add(value.as_bytes());
            let Some(space) = value.as_bytes().iter().position(|byte| *byte == b' ').filter(|_| name == AUTHORIZATION)
            else {
                continue;
            };
            let token = value.as_bytes()[space..].trim_ascii();
            secrets.add(token);
            if let Ok(pair) = STANDARD.decode(token) {
                let user = pair.split(|byte| *byte == b':').next().unwrap_or_default();
                secrets.add_credentials(user, pair.get(user.len() + 1..).unwrap_or_default());
            }
        }
        for credentials in system_proxies().filter_map(|proxy| Address::parse(&proxy).ok()?.1) {
            secrets.add_credentials(&credentials.user, &credentials.password);
        }
        secrets
    }

    fn add_credentials(&mut self, user: &[u8], password: &[u8]) {
        self.add(user);
        self.add(password);
        self.add(&[user, b":", password].concat());
    }

    /// Adds a value, and its base64 form at every offset in an encoded text.
    fn add(&mut self, value: &[u8]) {
        // A decoded text has no white space.
        let value: Vec<u8> = value.iter().copied().filter(|byte| !is_blank(*byte)).collect();
        if value.len() < MIN_LENGTH {
            return;
        }
        for before in 0..3 {
            // Characters that depend on neighbouring bytes are left out.
            let bytes = [&b"\0\0"[..before], &value].concat();
            for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = alphabet.encode(&bytes).into_bytes();
                let whole = encoded.len() - usize::from(bytes.len() % 3 != 0);
                self.0.push(encoded[[0, 2, 3][before]..whole].to_vec());
            }
        }
        // Servers that read a header as Latin-1 respond in UTF-8.
        self.0.push(value.iter().map(|&byte| char::from(byte)).collect::<String>().into_bytes());
        self.0.push(value);
    }

    /// Returns the text with `***` in place of every secret, whether the secret is percent-encoded, escaped in JSON or
    /// HTML, broken into lines, or cut off at the end of the text.
    pub(super) fn redact(&self, text: &[u8]) -> Vec<u8> {
        let mut is_hidden = vec![false; text.len()];
        for decoded in DECODERS.map(|decoder| decode(text, decoder)) {
            let bytes: Vec<u8> = decoded.iter().map(|(byte, _)| *byte).collect();
            for secret in &self.0 {
                for start in 0..bytes.len() {
                    let length = secret.len().min(bytes.len() - start);
                    if length >= MIN_LENGTH && bytes[start..start + length] == secret[..length] {
                        let (first, last) = (&decoded[start].1, &decoded[start + length - 1].1);
                        is_hidden[first.start..last.end].fill(true);
                    }
                }
            }
        }
        let mut shown = Vec::with_capacity(text.len());
        for (at, byte) in text.iter().enumerate() {
            if !is_hidden[at] {
                shown.push(*byte);
            } else if at == 0 || !is_hidden[at - 1] {
                shown.extend(HIDDEN.bytes());
            }
        }
        shown
    }
}

/// Returns the URLs of the system's proxies, whose credentials are sent with the request.
fn system_proxies() -> impl Iterator<Item = String> {
    let names = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    names.into_iter().filter_map(|name| std::env::var(name).ok())
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte.is_ascii_control()
}

/// Decodes a text, and leaves out blanks.
fn decode(text: &[u8], decoder: Decoder) -> Vec<DecodedByte> {
    let (mut decoded, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        let (bytes, length) = decoder(&text[at..]).unwrap_or_else(|| (vec![text[at]], 1));
        decoded.extend(bytes.into_iter().filter(|byte| !is_blank(*byte)).map(|byte| (byte, at..at + length)));
        at += length;
    }
    decoded
}

/// Decodes an escape at the beginning of a text. Returns the decoded bytes and the length of the escape.
type Decoder = fn(&[u8]) -> Option<(Vec<u8>, usize)>;

/// The encodings of a header in a text.
const DECODERS: [Decoder; 4] = [|_| None, decode_percent, decode_json, decode_html];

fn decode_percent(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let decoded: Vec<u8> = percent_decode(text.get(..3)?).collect();
    (decoded.len() == 1).then_some((decoded, 3))
}

fn decode_json(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    match text {
        [b'\\', b'u', rest @ ..] => Some((character(rest.get(..4)?, 16)?, 6)),
        [b'\\', escaped, ..] => Some((vec![*escaped], 2)),
        _ => None,
    }
}

fn decode_html(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let length = text.iter().take(9).position(|byte| *byte == b';')? + 1;
    let bytes = match &text[..length - 1] {
        b"&amp" => vec![b'&'],
        b"&lt" => vec![b'<'],
        b"&gt" => vec![b'>'],
        b"&quot" => vec![b'"'],
        b"&apos" => vec![b'\''],
        [b'&', b'#', b'x' | b'X', digits @ ..] => character(digits, 16)?,
        [b'&', b'#', digits @ ..] => character(digits, 10)?,
        _ => return None,
    };
    Some((bytes, length))
}

fn character(digits: &[u8], radix: u32) -> Option<Vec<u8>> {
    let number = u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()?;
    Some(char::from_u32(number)?.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn secrets(headers: &[(&'static str, &[u8])]) -> Secrets {
        let headers = headers.iter().map(|(name, value)| {
            (reqwest::header::HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        });
        Secrets::from_headers(&headers.collect())
    }

    fn redacted(headers: &[(&'static str, &[u8])], text: &str) -> String {
        String::from_utf8(secrets(headers).redact(text.as_bytes())).unwrap()
    }

    #[test]
    fn every_part_of_an_authorization_is_hidden() {
        let basic: &[(&str, &[u8])] = &[("authorization", b"Basic cHVzaGVyOnAvcyZz")];
        for (text, shown) in [
            ("got Basic cHVzaGVyOnAvcyZz", "got ***"),
            ("got cHVzaGVyOnAvcyZz=", "got ***="),
            ("pusher:p/s&s, pusher, p/s&s.", "***, ***, ***."),
            ("p%2Fs%26s p%2fs&s p\\/s\\u0026s p/s&#38;s p&#x2F;s&amp;s", "*** *** *** *** ***"),
            ("cHVzaGVyOn\r\n Avc yZz", "***"),
            ("cut off: pushe", "cut off: ***"),
            ("cut off: pus", "cut off: pus"),
            ("nothing of it: Basic p/s", "nothing of it: Basic p/s"),
            ("", ""),
        ] {
            assert_eq!(redacted(basic, text), shown, "{text}");
        }
        assert_eq!(
            redacted(&[("authorization", b"Bearer tok.en-1")], "Bearer: tok.en-1 tok.en-2"),
            "Bearer: *** tok.en-2"
        );
        assert_eq!(
            redacted(&[("x-key", "schlüssel".as_bytes())], "schlüssel schlÃ¼ssel schl\\u00fcssel"),
            "*** *** ***"
        );
    }

    /// Three bytes are exactly four characters, so a secret can end with a character of its own.
    #[test]
    fn last_base64_character_is_hidden_if_it_depends_on_the_secret_alone() {
        let bearer: &[(&str, &[u8])] = &[("authorization", b"Bearer secret")];
        for (text, shown) in [("c2VjcmV0.", "***."), ("c2VjcmV0Lg==", "***Lg=="), ("LnNlY3JldA==", "Ln***A==")] {
            assert_eq!(redacted(bearer, text), shown, "{text}");
        }
    }

    #[test]
    fn html_entities_are_decoded() {
        let header: &[(&str, &[u8])] = &[("x-key", b"a<b>c\"d'e&f")];
        assert_eq!(redacted(header, "(a&lt;b&gt;c&quot;d&apos;e&amp;f)"), "(***)");
        assert_eq!(redacted(header, "(a&#60;b&#x3e;c&#34;d&#39;e&#38;f)"), "(***)");
    }

    #[test]
    fn client_headers_and_short_values_are_shown() {
        let text = "text/plain is no gzip of 1, Bearer a1b";
        let headers: &[(&str, &[u8])] = &[
            ("content-type", b"text/plain"),
            ("content-encoding", b"gzip"),
            ("x-scope-orgid", b"1"),
            ("authorization", b"Bearer a1b"),
        ];
        assert_eq!(redacted(headers, text), "text/plain is no gzip of 1, ***");
    }

    proptest! {
        #[test]
        fn secret_is_hidden_in_every_encoding(
            before in "[a-z<>&%\\\\\"]{0,9}",
            secret in "[A-Z0-9!-/:-@]{4,40}",
            after in "[a-z<>&%\\\\\"]{0,9}",
        ) {
            let value = format!("Bearer {secret}");
            let secrets = secrets(&[("authorization", value.as_bytes())]);
            let shown = |text: &str| String::from_utf8(secrets.redact(text.as_bytes())).unwrap();
            let whole = format!("{before}{secret}{after}");
            let html = whole.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;").replace('\'', "&#39;");
            let texts = [
                whole.clone(),
                percent_encode(whole.as_bytes(), NON_ALPHANUMERIC).to_string(),
                serde_json::to_string(&whole).unwrap(),
                html,
            ];
            for (text, decoder) in texts.into_iter().zip(DECODERS) {
                let shown = shown(&text);
                let bytes: Vec<u8> = decode(shown.as_bytes(), decoder).into_iter().map(|(byte, _)| byte).collect();
                prop_assert!(!String::from_utf8_lossy(&bytes).contains(&secret), "{text}: {shown}");
            }
            for alphabet in [STANDARD, base64::engine::general_purpose::URL_SAFE] {
                let text = shown(&alphabet.encode(&whole));
                prop_assert!(text.contains(HIDDEN), "{text}");
            }
        }

        #[test]
        fn text_without_secrets_is_unchanged(text in prop::collection::vec(any::<u8>(), 0..200), more in "[%&#;ux\\\\0-9a-f]{0,30}") {
            let text = [&text, more.as_bytes()].concat();
            let headers = HeaderMap::new();
            prop_assert_eq!(Secrets::from_headers(&headers).redact(&text), text);
        }
    }
}
