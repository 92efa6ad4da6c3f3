//! Where the state goes: to a gateway, into a text file, to a collector. All at once, so that none waits for another.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
#[cfg(feature = "otlp")]
use tokio::sync::Mutex;

use super::Source;
use super::push::push_state;
use super::pushgateway::Pushgateway;
use super::retry::Budget;
use super::textfile::Textfile;
use crate::error::Error;
#[cfg(feature = "otlp")]
use crate::otlp::Collector;

pub(crate) struct Destinations {
    pub(crate) gateway: Option<Pushgateway>,
    pub(crate) textfile: Option<Textfile>,
    /// One export at a time.
    #[cfg(feature = "otlp")]
    pub(crate) collector: Option<Arc<Mutex<Collector>>>,
}

/// The state of one moment.
pub(crate) struct Rendered {
    pub(crate) exposition: Result<Bytes, Error>,
    /// How it went to write it to the file.
    pub(crate) textfile: Result<(), Error>,
}

impl Destinations {
    /// The state of this moment, which is in the file when this returns. Not rendered where nobody takes it.
    pub(crate) fn render(&self, source: &dyn Source) -> Rendered {
        if self.gateway.is_none() && self.textfile.is_none() {
            return Rendered { exposition: Ok(Bytes::new()), textfile: Ok(()) };
        }
        let exposition = source.exposition().map(|families| families.to_text());
        let textfile = match (&self.textfile, &exposition) {
            (Some(textfile), Ok(exposition)) => textfile.write(exposition),
            _ => Ok(()),
        };
        Rendered { exposition: exposition.map(Bytes::from), textfile }
    }

    /// Pushes it to the gateway.
    pub(crate) fn push(
        &self,
        source: Arc<dyn Source>,
        exposition: Result<Bytes, Error>,
        budget: Budget,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let gateway = self.gateway.clone();
        async move {
            match gateway {
                Some(gateway) => push_state(&gateway, &*source, exposition?, &budget).await,
                None => exposition.map(drop),
            }
        }
    }

    /// Sends the state of the moment in which it begins to the collector. `is_asked_for`: somebody waits for it; it is not
    /// the interval.
    pub(crate) fn export(
        &self,
        source: Arc<dyn Source>,
        budget: Budget,
        is_asked_for: bool,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        #[cfg(feature = "otlp")]
        let collector = self.collector.clone();
        async move {
            #[cfg(feature = "otlp")]
            if let Some(collector) = collector {
                return collector.lock().await.export(&budget, is_asked_for, || source.publish()).await;
            }
            let _ = (source, budget, is_asked_for);
            Ok(())
        }
    }
}
