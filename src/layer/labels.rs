//! The labels of a span, from its fields and from what it inherits, and those of the run.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::fields::SpanFields;
use super::span::label_cache::{CacheKey, LabelCache};
use super::span::state::SlotRef;
use super::span::tree::{ContextLabels, Epoch, SpanTree};
use crate::series::append_only_map::EntryId;
use crate::series::interner::{Interner, LabelId, Role, SpanLabels, ValueHashes};
use crate::series::{CachedSeries, SeriesTable};

/// Turns the values of fields into labels, with a cache of the values seen so far.
pub(super) struct LabelResolver {
    interner: Arc<Interner>,
    cache: LabelCache,
}

/// The labels of a new span.
pub(super) struct ResolvedLabels {
    /// The labels of its own fields.
    pub(super) values: SpanLabels,
    /// Its profile and run id, own or inherited.
    pub(super) context: ContextLabels,
    /// The label-cache entry, if there is one.
    pub(super) cached: Option<EntryId>,
}

impl LabelResolver {
    pub(super) fn new(interner: Arc<Interner>, max_series: usize) -> Self {
        Self { interner, cache: LabelCache::new(max_series) }
    }

    #[cfg(all(test, feature = "pushgateway"))]
    pub(super) fn lock(&self) -> impl Sized {
        (self.interner.lock(), self.cache.lock())
    }

    /// Returns the labels of a new span below `parent`. The caller has read `epoch` before.
    #[inline]
    pub(super) fn resolve(
        &self,
        fields: &SpanFields<'_>,
        spans: &SpanTree,
        series: &SeriesTable,
        parent: SlotRef,
        epoch: Epoch,
    ) -> ResolvedLabels {
        let inherited = if spans.is_inheriting(fields.profile().is_some(), fields.run_id().is_some()) {
            spans.inherited_from(parent, epoch)
        } else {
            ContextLabels::default()
        };
        let key = fields.compared().map(|(text, offsets)| CacheKey { text, offsets, inherited });
        if let Some((number, cached)) = key.as_ref().and_then(|key| self.cache.find(key)) {
            return ResolvedLabels { values: cached.values, context: cached.resolved, cached: Some(number) };
        }
        self.resolve_new(fields, spans, series, key.as_ref(), inherited)
    }

    #[cold]
    fn resolve_new(
        &self,
        fields: &SpanFields<'_>,
        spans: &SpanTree,
        series: &SeriesTable,
        key: Option<&CacheKey<'_>>,
        inherited: ContextLabels,
    ) -> ResolvedLabels {
        let values = self.values(fields, series);
        let context = spans.resolved(values, inherited);
        // Overflow results are not cached: capacity may appear later.
        let all = [values.stage, values.profile, values.run_id, context.profile, context.run_id];
        let key = key.filter(|_| !all.contains(&LabelId::OVERFLOW));
        let cached = key.and_then(|key| self.cache.add(key, values, context));
        ResolvedLabels { values, context, cached }
    }

    /// Returns the labels of the fields that have a value.
    #[cold]
    pub(super) fn values(&self, fields: &SpanFields<'_>, series: &SeriesTable) -> SpanLabels {
        let label = |role, value: Option<&str>| value.map_or(LabelId::NONE, |value| self.interner.intern(role, value));
        // A new run id overflows once the metric with run ids has all its label sets.
        let run_id = match fields.run_id() {
            Some(run_id) if !series.has_room_for_runs() => self.interner.find(run_id).unwrap_or(LabelId::OVERFLOW),
            run_id => label(Role::RunId, run_id),
        };
        SpanLabels {
            stage: label(Role::Stage, fields.stage()),
            profile: label(Role::Profile, fields.profile()),
            run_id,
        }
    }

    /// Returns the hashes of the values of a span if one of them is beyond a limit.
    #[cold]
    pub(super) fn hashes(&self, fields: &SpanFields<'_>, values: SpanLabels) -> Option<ValueHashes> {
        let hash = |value: Option<&str>| value.map_or(0, |value| self.interner.hash(value));
        values.contain(LabelId::OVERFLOW).then(|| ValueHashes {
            stage: hash(fields.stage()),
            profile: hash(fields.profile()),
            run_id: hash(fields.run_id()),
        })
    }

    /// Returns the label and the hash of a stage id.
    #[cold]
    pub(super) fn stage(&self, stage_id: &str) -> (SpanLabels, ValueHashes) {
        (
            SpanLabels { stage: self.interner.intern(Role::Stage, stage_id), ..SpanLabels::default() },
            ValueHashes { stage: self.interner.hash(stage_id), ..ValueHashes::default() },
        )
    }

    pub(super) fn text(&self, label: LabelId) -> &str {
        self.interner.text(label)
    }

    /// Returns the place for the series of the spans with this cache entry.
    #[inline]
    pub(super) fn series(&self, cached: EntryId) -> Option<&CachedSeries> {
        self.cache.get(cached).map(|cached| &cached.series)
    }
}

/// Takes the run id and the profile when one of them has become known.
pub(crate) type OnRunInfo = Box<dyn Fn([&str; 2]) + Send + Sync>;

/// The first run id and the first profile that a stage of this run had: the labels of `quant_run_info`.
pub(super) struct RunInfo {
    interner: Arc<Interner>,
    /// The run id and the profile. A value that is unknown is none.
    labels: [AtomicU32; 2],
    on_change: Option<OnRunInfo>,
    /// Held while a label and its receiver change, so that a former state does not follow a later one.
    changing: Mutex<()>,
}

impl RunInfo {
    pub(super) fn new(interner: Arc<Interner>, on_change: Option<OnRunInfo>) -> Self {
        Self { interner, labels: Default::default(), on_change, changing: Mutex::default() }
    }

    fn label(&self, at: usize) -> LabelId {
        LabelId::from_bits(self.labels[at].load(Ordering::Relaxed))
    }

    /// Returns whether one of these labels of a stage, run id and profile, is the first of its kind.
    pub(super) fn is_news(&self, labels: [LabelId; 2]) -> bool {
        let has_value = |label: LabelId| !(label.is_none() || label == LabelId::EMPTY);
        (0..2).any(|at| self.label(at).is_none() && has_value(labels[at]))
    }

    /// Keeps those labels of a stage that are the first of their kind.
    pub(super) fn note(&self, labels: [LabelId; 2]) {
        if !self.is_news(labels) {
            return;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for (known, label) in self.labels.iter().zip(labels).filter(|(_, label)| *label != LabelId::EMPTY) {
            // Fails if it is known.
            let _ = known.compare_exchange(0, label.bits(), Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(on_change) = &self.on_change {
            on_change(self.texts());
        }
    }

    /// Returns the run id and the profile, empty while they are unknown.
    pub(super) fn texts(&self) -> [&str; 2] {
        [0, 1].map(|at| self.interner.text(self.label(at)))
    }
}
