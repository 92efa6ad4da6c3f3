//! Which ways out carry what the text format does not have: native histograms and exemplars.

use super::builder::MetricsLayerBuilder;
use crate::delivery::PushFormat;
#[cfg(feature = "otlp")]
use crate::delivery::otlp::Otlp;

/// The ways out that may carry native histograms and exemplars, where these are wanted. A text file never has them.
#[derive(Clone, Copy)]
pub(super) struct WaysOut {
    /// The name of the wanted features: native histograms, exemplars or both.
    wanted: Option<&'static str>,
    /// The format of pushes; `None` without a gateway.
    push: Option<PushFormat>,
    has_listener: bool,
    /// Whether an export over OTLP carries what is wanted: exemplars. Its histograms have settings of their own.
    exports_exemplars: bool,
    /// Whether all of them deliver the text of `with_exposition`.
    is_foreign: bool,
}

impl MetricsLayerBuilder {
    /// Makes protobuf the format of pushes if something asks for it and no format is set. Returns what the ways out carry.
    pub(super) fn ways_out(&mut self) -> WaysOut {
        #[cfg(feature = "trace-id")]
        let exemplars = self.exemplars;
        #[cfg(not(feature = "trace-id"))]
        let exemplars = false;
        let wanted = match (self.native_histograms, exemplars) {
            (true, true) => Some("native histograms and exemplars"),
            (true, false) => Some("native histograms"),
            (false, true) => Some("exemplars"),
            (false, false) => None,
        };
        let is_foreign = self.exposition.is_some();
        if wanted.is_some() && !is_foreign {
            self.gateway = self.gateway.take().map(|gateway| gateway.with_default_format(PushFormat::Protobuf));
        }
        let push = self.gateway.as_ref().map(crate::Pushgateway::format);
        #[cfg(feature = "http")]
        let has_listener = self.listen.is_some();
        #[cfg(not(feature = "http"))]
        let has_listener = false;
        #[cfg(feature = "otlp")]
        let exports_exemplars = exemplars && matches!(self.otlp, Some(Otlp::Environment));
        #[cfg(not(feature = "otlp"))]
        let exports_exemplars = false;
        WaysOut { wanted, push, has_listener, exports_exemplars, is_foreign }
    }
}

impl MetricsLayerBuilder {
    /// Switches cumulative totals off where no way out has them. Returns a warning that names the ways out without them.
    pub(super) fn totals_warning(&mut self) -> Option<String> {
        if !self.cumulative_totals {
            return None;
        }
        #[cfg(feature = "otlp")]
        let has_otlp = self.otlp.is_some();
        #[cfg(not(feature = "otlp"))]
        let has_otlp = false;
        let is_of_process = self.gateway.is_some() && self.instance_grouping;
        self.cumulative_totals = (self.gateway.is_some() || self.textfile.is_some()) && !is_of_process;
        let reason = match self.cumulative_totals {
            true if has_otlp => return Some("cumulative totals are not exported over OTLP".to_owned()),
            true => return None,
            false if is_of_process => "with the instance in the grouping, no later run continues a group",
            false => "only a gateway or a text file keeps those of earlier runs: set one of them",
        };
        Some(format!("cumulative totals are left out: {reason}"))
    }
}

impl WaysOut {
    /// Whether any way out carries exemplars. If none does, they are not even kept.
    #[cfg(feature = "trace-id")]
    pub(super) fn carry_exemplars(self) -> bool {
        self.carry() || self.exports_exemplars
    }

    /// Whether a push or a scrape carries what is wanted. If none does, native histograms are not even kept.
    pub(super) fn carry(self) -> bool {
        self.scrapes_carry() || (self.push == Some(PushFormat::Protobuf) && self.renders())
    }

    /// Whether scrapes carry what is wanted, in the formats that have it.
    pub(super) fn scrapes_carry(self) -> bool {
        self.has_listener && self.renders()
    }

    /// Whether something is wanted and the recorder of this crate has it.
    fn renders(self) -> bool {
        self.wanted.is_some() && !self.is_foreign
    }

    /// Says what is wanted and missing on a way out.
    pub(super) fn warning(self) -> Option<String> {
        const TEXT: &str = "pushes are text, which has none: set the push format to protobuf";
        let wanted = self.wanted?;
        match self.push {
            _ if self.is_foreign => (self.push.is_some() || self.has_listener)
                .then(|| format!("{wanted} are not delivered: `with_exposition` renders text, which has none")),
            Some(PushFormat::Text) if self.has_listener => {
                Some(format!("{wanted} are not pushed, but scraped from `/metrics`: {TEXT}"))
            }
            Some(PushFormat::Text) if self.exports_exemplars => Some(format!("{wanted} are not pushed: {TEXT}")),
            Some(PushFormat::Text) => Some(format!("{wanted} are not delivered: {TEXT}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_way_out_carries_is_not_kept_and_reported() {
        const WANTED: Option<&str> = Some("exemplars");
        let (text, protobuf) = (Some(PushFormat::Text), Some(PushFormat::Protobuf));
        let delivered = "exemplars are not delivered: ";
        for (wanted, push, has_listener, is_foreign, carry, warning) in [
            (WANTED, protobuf, false, false, true, None),
            (WANTED, protobuf, true, false, true, None),
            (WANTED, None, true, false, true, None),
            (WANTED, None, false, false, false, None),
            (WANTED, text, false, false, false, Some(delivered)),
            (WANTED, text, true, false, true, Some("exemplars are not pushed, but scraped from `/metrics`: ")),
            (WANTED, text, false, true, false, Some(delivered)),
            (WANTED, None, true, true, false, Some(delivered)),
            (WANTED, protobuf, false, true, false, Some(delivered)),
            (WANTED, None, false, true, false, None),
            (None, protobuf, true, false, false, None),
            (None, text, true, false, false, None),
        ] {
            let ways_out = WaysOut { wanted, push, has_listener, exports_exemplars: false, is_foreign };
            assert_eq!(ways_out.carry(), carry, "{push:?} {has_listener} {is_foreign}");
            assert_eq!(ways_out.scrapes_carry(), carry && has_listener, "{push:?} {has_listener} {is_foreign}");
            let reported = ways_out.warning();
            assert_eq!(reported.is_some(), warning.is_some(), "{push:?} {has_listener} {is_foreign}: {reported:?}");
            assert!(reported.unwrap_or_default().starts_with(warning.unwrap_or_default()));
        }
    }

    #[test]
    #[cfg(feature = "trace-id")]
    fn exemplars_are_kept_for_an_export() {
        let alone = WaysOut {
            wanted: Some("exemplars"),
            push: None,
            has_listener: false,
            exports_exemplars: true,
            is_foreign: false,
        };
        assert!(alone.carry_exemplars() && !alone.carry() && alone.warning().is_none());
        let text = WaysOut { push: Some(PushFormat::Text), ..alone };
        assert!(text.carry_exemplars() && text.warning().unwrap().starts_with("exemplars are not pushed: "));
    }
}
