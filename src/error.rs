//! The error type of the crate.

use std::error::Error as StdError;
use std::fmt;

type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// A wrong configuration or a failed delivery.
///
/// The text says what was wrong, with which value, and what to do. `Debug` prints the text of `Display` and the chain of
/// causes, since `main` and `expect` print `Debug`. The text never contains user names, passwords or tokens.
///
/// ```
/// # #[cfg(feature = "pushgateway")] {
/// use tracing_stage_metrics::Pushgateway;
///
/// let error = Pushgateway::new("ftp://me:secret@gateway", "nightly_backup").unwrap_err();
/// assert!(error.is_config());
/// let text = error.to_string();
/// assert!(text.contains("only http and https can be pushed to") && !text.contains("secret"), "{text}");
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<BoxError>,
    /// Whether the payload is lost.
    is_loss: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) enum Kind {
    /// The caller's configuration.
    Config,
    /// Nothing listens at the address, or the name does not resolve.
    Unreachable,
    /// The time limit is reached.
    Timeout,
    /// The gateway answered with a status other than success.
    Refused(u16),
    /// Any other failure: a broken connection, a file that could not be written.
    Delivery,
}

#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None, is_loss: false }))
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Makes this an error of the configuration.
    pub(crate) fn into_config(mut self) -> Self {
        self.0.kind = Kind::Config;
        self
    }

    /// Marks the payload as lost: it is not sent again.
    #[cfg(feature = "otlp")]
    #[must_use]
    pub(crate) fn with_loss(mut self) -> Self {
        self.0.is_loss = true;
        self
    }

    pub(crate) fn is_loss(&self) -> bool {
        self.0.is_loss
    }

    /// Adds a second error to the text. The predicates refer to the first one.
    #[must_use]
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.message = format!("{}; and {other:?}", self.0.message);
        self
    }

    /// Clones the error for another waiter. The causes are flattened into the message.
    pub(crate) fn copy(&self) -> Self {
        let mut copy = Self::new(self.0.kind, format!("{self:?}"));
        copy.0.is_loss = self.0.is_loss;
        copy
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Returns whether the configuration is wrong. Another try does not help; the text says what to change.
    ///
    /// ```
    /// # #[cfg(feature = "pushgateway")] {
    /// use tracing_stage_metrics::MetricsLayer;
    ///
    /// let error = MetricsLayer::builder().with_buckets(&[2.0, 1.0]).build().unwrap_err();
    /// assert!(error.is_config());
    /// assert!(error.to_string().ends_with("are not in ascending order: 2 stands before 1"));
    /// # }
    /// ```
    #[must_use]
    pub fn is_config(&self) -> bool {
        self.0.kind == Kind::Config
    }

    /// Returns whether the time limit was reached before the gateway answered.
    ///
    /// ```
    /// # #[cfg(feature = "pushgateway")]
    /// # fn example(guard: tracing_stage_metrics::FlushGuard) {
    /// match guard.flush() {
    ///     Err(error) if error.is_timeout() => println!("the gateway is slow: {error}"),
    ///     Err(error) if error.is_refused() => println!("the gateway does not want it: {error}"),
    ///     Err(error) => println!("not delivered: {error:?}"), // {:?} adds the causes
    ///     Ok(()) => println!("delivered"),
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.kind == Kind::Timeout
    }

    /// Returns whether the gateway answered with a status other than success. [`status`](Self::status) has its code, the text
    /// has the beginning of its body.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.0.kind, Kind::Refused(_))
    }

    /// Returns the HTTP status of a refusal.
    ///
    /// ```
    /// # #[cfg(feature = "pushgateway")]
    /// # async fn example(gateway: tracing_stage_metrics::Pushgateway) {
    /// let pushed = gateway.push_add("backup_bytes 1.5e9\n").await;
    /// if pushed.is_err_and(|error| error.status() == Some(401)) {
    ///     println!("user and password have changed");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self.0.kind {
            Kind::Refused(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = {
        const fn send_sync<T: Send + Sync + 'static>() {}
        send_sync::<Error>();
        assert!(size_of::<Error>() == size_of::<usize>());
    };

    #[test]
    fn debug_reads_like_display_with_its_causes() {
        let cause = std::io::Error::other("disk full");
        let error = Error::new(Kind::Delivery, "cannot write /tmp/x.prom").with_source(cause);
        assert_eq!(error.to_string(), "cannot write /tmp/x.prom");
        assert_eq!(format!("{error:?}"), "cannot write /tmp/x.prom: disk full");
    }

    #[test]
    fn predicates_follow_the_kind() {
        let refused = Error::new(Kind::Refused(400), "refused");
        assert!(refused.is_refused() && !refused.is_config() && !refused.is_timeout());
        assert_eq!(refused.status(), Some(400));
        assert!(Error::config("x").is_config());
        assert!(Error::new(Kind::Timeout, "x").is_timeout());
        assert_eq!(Error::new(Kind::Timeout, "x").status(), None);
    }
}
