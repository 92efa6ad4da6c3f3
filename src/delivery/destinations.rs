//! Where the state goes: to a gateway, into a text file, to a collector. All at once, so that none waits for another.

use std::future::Future;
#[cfg(feature = "otlp")]
use std::future::poll_fn;
#[cfg(feature = "otlp")]
use std::pin::pin;
use std::sync::Arc;
#[cfg(feature = "otlp")]
use std::task::Poll;

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

/// How a delivery ended.
pub(crate) struct Delivered {
    /// By text: to the gateway.
    pub(crate) pushed: Result<(), Error>,
    /// By OTLP: to the collector.
    pub(crate) exported: Result<(), Error>,
}

impl Delivered {
    /// What went wrong with the text file goes before what went wrong with the push.
    pub(crate) fn and_file(self, textfile: Result<(), Error>) -> Self {
        Self { pushed: all(textfile, self.pushed), ..self }
    }

    pub(crate) fn whole(self) -> Result<(), Error> {
        all(self.pushed, self.exported)
    }
}

fn all(one: Result<(), Error>, other: Result<(), Error>) -> Result<(), Error> {
    match (one, other) {
        (Err(one), Err(other)) => Err(one.and(other)),
        (one, other) => one.and(other),
    }
}

impl Destinations {
    /// The state of this moment, which is in the file when this returns. Not rendered where nobody takes it.
    pub(crate) fn render(&self, source: &dyn Source) -> Rendered {
        if self.gateway.is_none() && self.textfile.is_none() {
            return Rendered { exposition: Ok(Bytes::new()), textfile: Ok(()) };
        }
        let exposition = source.exposition();
        let textfile = match (&self.textfile, &exposition) {
            (Some(textfile), Ok(exposition)) => textfile.write(exposition),
            _ => Ok(()),
        };
        Rendered { exposition: exposition.map(Bytes::from), textfile }
    }

    /// Sends it. `is_asked_for`: somebody waits for it; it is not the interval.
    pub(crate) fn send(
        &self,
        source: Arc<dyn Source>,
        exposition: Result<Bytes, Error>,
        budget: Budget,
        is_asked_for: bool,
    ) -> impl Future<Output = Delivered> + use<> {
        let gateway = self.gateway.clone();
        #[cfg(feature = "otlp")]
        let collector = self.collector.clone();
        async move {
            let push = async {
                match gateway {
                    Some(gateway) => push_state(&gateway, &*source, exposition?, &budget).await,
                    None => exposition.map(drop),
                }
            };
            #[cfg(feature = "otlp")]
            if let Some(collector) = collector {
                let export =
                    async { collector.lock().await.export(budget.deadline, is_asked_for, || source.publish()).await };
                let (pushed, exported) = both(push, export).await;
                return Delivered { pushed, exported };
            }
            let _ = is_asked_for;
            Delivered { pushed: push.await, exported: Ok(()) }
        }
    }
}

/// Both, side by side.
#[cfg(feature = "otlp")]
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut other) = (None, None);
    poll_fn(|context| {
        if one.is_none()
            && let Poll::Ready(result) = first.as_mut().poll(context)
        {
            one = Some(result);
        }
        if other.is_none()
            && let Poll::Ready(result) = second.as_mut().poll(context)
        {
            other = Some(result);
        }
        match (one.take(), other.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            unfinished => {
                (one, other) = unfinished;
                Poll::Pending
            }
        }
    })
    .await
}
