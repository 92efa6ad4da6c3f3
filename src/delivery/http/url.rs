//! The base URL of a gateway: its syntax, and its redaction.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::error::Error;

/// Replaces text that must not be shown.
pub(super) const HIDDEN: &str = "***";

/// The base URL of a server, without user and password.
#[derive(Clone, Debug)]
pub(in crate::delivery) struct Address {
    url: Url,
}

/// User and password of a URL, percent-decoded. Has no `Debug`, so that nothing can print it.
pub(in crate::delivery) struct Credentials {
    pub(in crate::delivery) user: Vec<u8>,
    pub(in crate::delivery) password: Vec<u8>,
}

impl Address {
    /// Parses `http://[user:password@]host[:port][/prefix]`, the same with https, and `host[:port][/prefix]` as http.
    pub(in crate::delivery) fn parse(text: &str) -> Result<(Self, Option<Credentials>), Error> {
        let text = text.trim();
        let invalid = |reason: &str| Error::config(format!("gateway address {:?} {reason}", redact(text)));

        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let after_scheme = with_scheme.split_once("://").map_or("", |(_, rest)| rest);
        // The parser would read the next segment of the path as the host.
        if after_scheme.is_empty() || after_scheme.starts_with(['/', '\\', '?', '#']) {
            return Err(invalid("has no host: write it as http://host:port"));
        }
        if text.starts_with("http:/") && !text.starts_with("http://")
            || text.starts_with("https:/") && !text.starts_with("https://")
        {
            return Err(invalid("lacks a slash after its scheme: write it as http://host:port"));
        }
        let mut url = Url::parse(&with_scheme).map_err(|err| match err {
            url::ParseError::EmptyHost => invalid("has no host: write it as http://host:port"),
            err => invalid(&format!("cannot be read ({err}): write it as http://host:port")),
        })?;
        match url.scheme() {
            "http" => {}
            "https" if cfg!(feature = "tls") => {}
            "https" => {
                return Err(invalid(
                    "is https, which this build cannot speak: enable the feature `tls` of tracing-stage-metrics",
                ));
            }
            scheme => return Err(invalid(&format!("has the scheme {scheme:?}: only http and https can be pushed to"))),
        }
        if url.host().is_none() {
            return Err(invalid("has no host: write it as http://host:port"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("has a query or a fragment: leave out everything from the `?` or `#` on"));
        }
        // Most likely the end of a password with a slash, which an error would then show as part of the path.
        if url.path().contains('@') {
            return Err(invalid(
                "has an `@` in its path: a `/` in a user name or password is written %2F, an `@` in a path %40",
            ));
        }
        let credentials = (!url.username().is_empty() || url.password().is_some()).then(|| Credentials {
            user: percent_decode_str(url.username()).collect(),
            password: percent_decode_str(url.password().unwrap_or_default()).collect(),
        });
        // Both calls fail only for a URL without a host.
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(invalid("cannot be read: write it as http://host:port"));
        }
        let prefix = url.path().trim_end_matches('/').to_owned();
        if prefix.ends_with("/metrics") || prefix.contains("/metrics/job") {
            // Later errors show a valid address in full too.
            return Err(Error::config(format!(
                "gateway address {:?} must be the base URL: `/metrics/job/…` is appended",
                url.as_str()
            )));
        }
        url.set_path(&prefix);
        Ok((Self { url }, credentials))
    }

    /// Wraps a URL that was checked before and has no user and password.
    pub(in crate::delivery) fn from_url(url: Url) -> Self {
        Self { url }
    }

    /// Returns the URL without a slash at its end.
    pub(in crate::delivery) fn as_str(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    pub(in crate::delivery) fn url(&self) -> &Url {
        &self.url
    }

    /// Returns whether this is an import path of VictoriaMetrics, which takes the requests of a Pushgateway and has no
    /// groups: it stores each push as samples.
    pub(in crate::delivery) fn stores_samples(&self) -> bool {
        self.url.path().contains("/api/v1/import")
    }

    #[cfg(feature = "tls")]
    pub(in crate::delivery) fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Returns whether the host is a loopback host, which a proxy cannot reach for this process.
    pub(in crate::delivery) fn is_loopback(&self) -> bool {
        match self.url.host() {
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                name == "localhost" || name.ends_with(".localhost")
            }
            Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified(),
            Some(Host::Ipv6(ip)) => {
                ip.is_loopback() || ip.is_unspecified() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
            }
            None => false,
        }
    }

    /// Returns the target of a redirect, without secrets.
    pub(in crate::delivery) fn redirect_target(&self, location: &str) -> String {
        match self.url.join(location) {
            Ok(mut target) => {
                let had_query = target.query().is_some();
                target.set_query(None);
                target.set_fragment(None);
                let hidden = target.set_username("").and_then(|()| target.set_password(None));
                match hidden {
                    // A query may contain a token of a login page.
                    Ok(()) if had_query => format!("{target}?{HIDDEN}"),
                    Ok(()) => target.to_string(),
                    Err(()) => redact(location),
                }
            }
            Err(_) => redact(location),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the base URL of a server without user and password, and as little of an invalid one as an error shows.
#[cfg(feature = "cli")]
pub(crate) fn without_credentials(text: &str) -> String {
    Address::parse(text).map_or_else(|_| redact(text), |(address, _)| address.to_string())
}

/// Removes everything that may be a credential from a URL, whether it can be parsed or not.
///
/// The end of the password is unknown in a URL that cannot be parsed: the password may contain a `/`, `?` or `#`, or it
/// stands in place of the port because the host or the `@` is missing. So this hides everything before the last `@`, and
/// everything after the first colon or percent sign of the rest, a port included.
pub(in crate::delivery) fn redact(text: &str) -> String {
    let (scheme, rest) = text.split_at(scheme_length(text));
    let (userinfo, rest) = match rest.rsplit_once('@') {
        // This `@` may be the first character of the password.
        Some((user, _)) if is_without_password(user) => return format!("{scheme}{HIDDEN}"),
        Some((_, rest)) => (format!("{HIDDEN}@"), rest),
        None => (String::new(), rest),
    };
    match rest.find([':', '%', '?', '#']) {
        Some(end) => format!("{scheme}{userinfo}{}{HIDDEN}", &rest[..=end]),
        None => format!("{scheme}{userinfo}{rest}"),
    }
}

fn is_without_password(userinfo: &str) -> bool {
    userinfo.is_empty() || [":", "%3A", "%3a"].iter().any(|colon| userinfo.ends_with(colon))
}

/// Returns the length of the scheme with its colon and slashes; 0 for an unknown scheme, since any other word before a
/// colon may be a user name.
fn scheme_length(text: &str) -> usize {
    let Some((scheme, rest)) = text.split_once(':') else { return 0 };
    let slashes = rest.bytes().take(2).take_while(|byte| *byte == b'/').count();
    let is_known = ["http", "https", "ftp", "grpc", "tcp", "unix"].iter().any(|name| name.eq_ignore_ascii_case(scheme));
    if is_known && slashes > 0 { scheme.len() + 1 + slashes } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> String {
        Address::parse(text).unwrap().0.as_str().to_owned()
    }

    fn error_text(text: &str) -> String {
        let Err(error) = Address::parse(text) else { panic!("{text} was accepted") };
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn path_of_a_push_is_rejected() {
        for (url, shown) in [
            ("http://gateway:9091/metrics", "http://gateway:9091/metrics"),
            ("gateway/a/metrics/", "http://gateway/a/metrics/"),
            ("user:secret@gateway:9091/metrics/job/x", "http://gateway:9091/metrics/job/x"),
        ] {
            let expected = format!("gateway address {shown:?} must be the base URL: `/metrics/job/…` is appended");
            assert_eq!(error_text(url), expected);
        }
        assert!(Address::parse("http://gateway/my-metrics-gateway").is_ok());
    }

    #[test]
    fn addresses_are_parsed() {
        assert_eq!(parsed("http://gw:9091"), "http://gw:9091");
        assert_eq!(parsed(" http://gw:9091/\n"), "http://gw:9091");
        assert_eq!(parsed("gw:9091"), "http://gw:9091");
        assert_eq!(parsed("gw"), "http://gw");
        assert_eq!(parsed("127.0.0.1:9091/a/b//"), "http://127.0.0.1:9091/a/b");
        assert_eq!(parsed("[::1]:9091"), "http://[::1]:9091");
        assert_eq!(parsed("HTTP://gw/prefix/"), "http://gw/prefix");
        assert_eq!(parsed("http://user:password@gw:9091/x"), "http://gw:9091/x");
        assert_eq!(parsed("user:password@gw:9091"), "http://gw:9091");
    }

    #[test]
    #[cfg(feature = "tls")]
    fn https_is_parsed() {
        assert_eq!(parsed("https://gw/x"), "https://gw/x");
        assert!(Address::parse("https://gw").unwrap().0.is_https());
        assert!(!Address::parse("http://gw").unwrap().0.is_https());
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn https_without_tls_names_the_feature() {
        assert_eq!(
            error_text("https://u:p@gw"),
            "gateway address \"https://***@gw\" is https, which this build cannot speak: \
             enable the feature `tls` of tracing-stage-metrics"
        );
    }

    #[test]
    fn credentials_are_percent_decoded() {
        let credentials =
            |text| Address::parse(text).unwrap().1.map(|credentials| (credentials.user, credentials.password));
        assert_eq!(credentials("http://gw"), None);
        assert_eq!(credentials("http://a%40b:p%2Fs%3As@gw"), Some((b"a@b".to_vec(), b"p/s:s".to_vec())));
        assert_eq!(credentials("http://token@gw"), Some((b"token".to_vec(), Vec::new())));
        assert_eq!(credentials("http://:secret@gw"), Some((Vec::new(), b"secret".to_vec())));
        assert_eq!(credentials("http://u:%FF@gw"), Some((b"u".to_vec(), vec![0xff])));
    }

    /// The text before the first colon or after the last `@` may belong to the credentials.
    #[test]
    fn possible_passwords_are_hidden() {
        for (text, shown) in [
            ("http://user:@secret", "http://***"),
            ("http://user%3A@secret", "http://***"),
            ("http://user%3a@secret", "http://***"),
            ("http://@secret", "http://***"),
            ("http://user:p@host", "http://***@host"),
            ("http:secret", "http:***"),
            ("http:/gw", "http:/gw"),
        ] {
            assert_eq!(redact(text), shown, "{text}");
        }
    }

    #[test]
    fn errors_quote_the_address_without_secrets() {
        let no_host = "has no host: write it as http://host:port";
        assert_eq!(error_text(""), format!("gateway address \"\" {no_host}"));
        assert_eq!(error_text("http://"), format!("gateway address \"http://\" {no_host}"));
        assert_eq!(error_text("http:///metrics"), format!("gateway address \"http:///metrics\" {no_host}"));
        assert_eq!(error_text("http://:9091"), format!("gateway address \"http://:***\" {no_host}"));
        assert_eq!(error_text("http://u:p@/x"), format!("gateway address \"http://***@/x\" {no_host}"));
        assert_eq!(
            error_text("http:/gw:9091"),
            "gateway address \"http:/gw:***\" lacks a slash after its scheme: write it as http://host:port"
        );
        assert_eq!(
            error_text("http://gw:99999"),
            "gateway address \"http://gw:***\" cannot be read (invalid port number): write it as http://host:port"
        );
        assert_eq!(
            error_text("ftp://u:p@gw"),
            "gateway address \"ftp://***@gw\" has the scheme \"ftp\": only http and https can be pushed to"
        );
        assert_eq!(
            error_text("http://u:p@gw/x?token=abc"),
            "gateway address \"http://***@gw/x?***\" has a query or a fragment: leave out everything from the `?` or `#` on"
        );
        assert_eq!(
            error_text("gw#abc"),
            "gateway address \"gw#***\" has a query or a fragment: leave out everything from the `?` or `#` on"
        );
        // A slash in the password: first after digits that parse as a port, then after other text.
        assert_eq!(
            error_text("http://user:12/ss@gw"),
            "gateway address \"http://***@gw\" has an `@` in its path: \
             a `/` in a user name or password is written %2F, an `@` in a path %40"
        );
        assert_eq!(
            error_text("http://user:pa/ss@gw"),
            "gateway address \"http://***@gw\" cannot be read (invalid port number): write it as http://host:port"
        );
        // The host is missing.
        for (text, shown) in [
            ("http://user:password", "http://user:***"),
            ("user:password", "user:***"),
            ("user://password", "user:***"),
            ("HTTP://user%3Apassword", "HTTP://user%***"),
        ] {
            assert!(error_text(text).starts_with(&format!("gateway address {shown:?} ")), "{}", error_text(text));
        }
    }

    #[test]
    fn loopback_hosts_are_detected() {
        let loopback = |text| Address::parse(text).unwrap().0.is_loopback();
        for text in
            ["localhost:1", "LOCALHOST", "gw.localhost", "localhost.", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0"]
        {
            assert!(loopback(text), "{text}");
        }
        assert!(loopback("[::ffff:127.0.0.1]"));
        for text in ["gw", "localhost.example", "10.0.0.1", "[::2]", "mylocalhost"] {
            assert!(!loopback(text), "{text}");
        }
    }

    #[test]
    fn redirect_target_hides_secrets() {
        let address = Address::parse("http://gw:9091/x").unwrap().0;
        assert_eq!(address.redirect_target("/metrics/job@base64/eA"), "http://gw:9091/metrics/job@base64/eA");
        assert_eq!(address.redirect_target("https://u:p@login/?state=abc#f"), "https://login/?***");
        assert_eq!(address.redirect_target("http://u:p@:x"), "http://***@:***");
    }

    proptest! {
        /// The secret has digits that occur nowhere else, and every character that ends an authority early.
        #[test]
        fn errors_hide_the_password(
            scheme in prop::sample::select(vec!["http://", "https://", "", "ftp://", "http:/", "://"]),
            user in "[78:/?#%\\\\]{1,6}",
            password in "[78:/?#@%\\\\]{0,10}",
            rest in prop::sample::select(vec!["gw:9091", "gw:99999", "", ":1", "/x", "gw/path", "[::1", "gw?token=78"]),
        ) {
            let text = format!("{scheme}{user}:{password}@{rest}");
            prop_assert!(!redact(&text).contains(['7', '8']), "{}", redact(&text));
            let shown = Address::parse(&text)
                .map_or_else(|error| format!("{error} {error:?}"), |(address, _)| address.to_string());
            prop_assert!(!shown.contains(['7', '8']), "{shown}");
        }

        #[test]
        fn errors_of_a_damaged_url_hide_the_password(
            scheme in prop::sample::select(vec!["http://", "https://", "HTTP://", "http:/", "http:", "ftp://", "//", "://", ""]),
            user in prop::sample::select(vec!["pusher:", "pusher%3A", "", ":"]),
            password in "[a-zA-Z0-9:/?#@%. \\\\-]{4,24}|\\PC{4,24}",
            at in prop::sample::select(vec!["@", "%40", " ", ""]),
            host in prop::sample::select(vec!["", "gw", ":9091", "/", "gw:9091/x", "gw:port", "gw/metrics", "gw?a=b", "#"]),
        ) {
            // Without a colon or an `@` the password looks like a host.
            prop_assume!(!user.is_empty() || at == "@");
            let text = format!("{scheme}{user}{password}{at}{host}");
            if let Err(error) = Address::parse(&text) {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains(&password), "{text:?}: {shown}");
            }
            prop_assert!(!redact(&text).contains(&password), "{text:?}: {}", redact(&text));
        }

        #[test]
        fn any_text_parses_without_a_panic(text in any::<String>()) {
            let _ = redact(&text);
            let _ = Address::parse(&text);
        }
    }
}
