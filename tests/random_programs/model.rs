//! A model of the contract: spans in a list, with a walk up the parents where a value is inherited.

use std::collections::BTreeMap;

use tracing_stage_metrics::FailurePolicy;

use super::Observed;
use super::program::{Field, Kind, Node, Step};

struct Span {
    kind: Kind,
    parent: Option<usize>,
    stage: Option<&'static str>,
    profile: Option<&'static str>,
    run_id: Option<&'static str>,
    /// The span repeats the id of its nearest stage ancestor.
    nested_same_stage: bool,
    error: bool,
    error_within: bool,
    panicked: bool,
    open: bool,
}

impl Span {
    fn is_stage(&self) -> bool {
        self.kind == Kind::Stage && !self.nested_same_stage
    }
}

struct Model {
    spans: Vec<Span>,
    policy: FailurePolicy,
    totals: BTreeMap<String, [u64; 2]>,
    runs: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    active_readings: Vec<Vec<String>>,
    /// The contract does not define how the program counts.
    unspecified: bool,
}

/// Where a part of the program runs.
#[derive(Clone, Copy)]
struct Place {
    /// No panic is raised here.
    in_cleanup: bool,
    other_thread: bool,
}

/// Returns `None` where the contract leaves the result open.
pub(crate) fn run(programs: &[Node], policy: FailurePolicy) -> Option<Observed> {
    let mut model = Model {
        spans: Vec::new(),
        policy,
        totals: BTreeMap::new(),
        runs: BTreeMap::new(),
        failures: BTreeMap::new(),
        active_readings: Vec::new(),
        unspecified: false,
    };
    for program in programs {
        let (span, _) = model.node(program, None, Place { in_cleanup: false, other_thread: false });
        model.close(span);
    }
    let lines = |counts: BTreeMap<String, u64>| {
        let mut lines: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
        lines.sort();
        lines
    };
    let totals = model.totals.into_iter().map(|(stage, [good, bad])| format!("{stage} {good} {bad}")).collect();
    let (runs, failures) = (lines(model.runs), lines(model.failures));
    (!model.unspecified).then_some(Observed { totals, runs, failures, active_readings: model.active_readings })
}

impl Model {
    /// Executes the node. Returns its span, still open, and whether a panic leaves the node.
    fn node(&mut self, node: &Node, parent: Option<usize>, place: Place) -> (usize, bool) {
        let at = self.spans.len();
        let declared_value =
            |name: Kind, value| if node.kind == name || node.kind == Kind::Stage { value } else { None };
        self.spans.push(Span {
            kind: node.kind,
            parent,
            stage: declared_value(Kind::Stage, node.stage),
            profile: declared_value(Kind::Context, node.profile),
            run_id: declared_value(Kind::Context, node.run_id),
            nested_same_stage: false,
            error: false,
            error_within: false,
            panicked: false,
            open: true,
        });
        if self.spans[at].stage.is_some() {
            self.update_nested(at);
        }
        let (mut kept, mut cleanups, mut panicking) = (Vec::new(), Vec::new(), false);
        for step in &node.steps {
            match step {
                Step::Child(child) => {
                    let other_thread = place.other_thread || child.thread;
                    let (span, panics) = self.node(child, Some(at), Place { other_thread, ..place });
                    if child.kept && !panics && !child.thread {
                        kept.push(span);
                    } else {
                        self.close(span);
                    }
                    panicking = panics && !child.caught && !child.thread;
                }
                Step::Cleanup(child) => cleanups.push(child),
                Step::Error => self.error(at),
                Step::Record(up, field, value) => self.record(at, *up, *field, value),
                Step::ReadActive if !place.other_thread => self.read_active(),
                Step::ReadActive => {}
                Step::Panic => panicking = !place.in_cleanup,
            }
            if panicking {
                break;
            }
        }
        for cleanup in cleanups {
            let (span, _) = self.node(cleanup, Some(at), Place { in_cleanup: true, ..place });
            self.close(span);
        }
        for span in kept {
            self.close(span);
        }
        self.spans[at].panicked |= panicking && node.entered;
        (at, panicking)
    }

    fn ancestors(&self, at: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(at), |at| self.spans[*at].parent)
    }

    /// The span's own value, or that of its nearest ancestor with one.
    fn inherited(&self, at: usize, value: impl Fn(&Span) -> Option<&'static str>) -> &'static str {
        self.ancestors(at).find_map(|at| value(&self.spans[at])).unwrap_or("")
    }

    /// Updates whether the span repeats its nearest stage ancestor.
    fn update_nested(&mut self, at: usize) {
        let span = &self.spans[at];
        let stage = self.ancestors(at).skip(1).find(|ancestors| self.spans[*ancestors].is_stage());
        let nested_same_stage = stage.is_some_and(|ancestors| {
            let same = |own: Option<&str>, value: fn(&Span) -> Option<&'static str>| {
                own.is_none_or(|own| own == self.inherited(ancestors, value))
            };
            self.spans[ancestors].stage == span.stage
                && same(span.profile, |s| s.profile)
                && same(span.run_id, |s| s.run_id)
        });
        // The contract does not define what happens to errors from before such a change.
        self.unspecified |= nested_same_stage != span.nested_same_stage && (span.error || span.error_within);
        self.spans[at].nested_same_stage = nested_same_stage;
    }

    fn error(&mut self, at: usize) {
        if self.spans[at].kind == Kind::Stage {
            self.spans[at].error = true;
        }
        let stage = self.ancestors(at).find(|ancestors| self.spans[*ancestors].is_stage());
        if let Some(stage) = stage {
            self.spans[stage].error_within = true;
        }
    }

    fn record(&mut self, at: usize, up: usize, field: Field, value: &'static str) {
        let Some(at) = self.ancestors(at).nth(up) else { return };
        let span = &mut self.spans[at];
        match (field, span.kind) {
            (Field::Stage, Kind::Stage) => {
                span.stage = Some(value);
                self.update_nested(at);
            }
            (Field::Profile, Kind::Stage | Kind::Context) => span.profile = Some(value),
            (Field::RunId, Kind::Stage | Kind::Context) => span.run_id = Some(value),
            _ => {}
        }
    }

    fn read_active(&mut self) {
        let mut active = BTreeMap::<String, u64>::new();
        for (at, span) in self.spans.iter().enumerate().filter(|(_, span)| span.open && span.is_stage()) {
            if let Some(stage) = span.stage {
                *active.entry(format!("{stage},{}", self.inherited(at, |s| s.profile))).or_default() += 1;
            }
        }
        let mut lines: Vec<String> = active.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
        lines.sort();
        self.active_readings.push(lines);
    }

    fn close(&mut self, at: usize) {
        if self.spans[at].kind == Kind::Stage && self.spans[at].stage.is_none() {
            self.spans[at].stage = Some("stage");
            self.update_nested(at);
        }
        let span = &self.spans[at];
        if let Some(stage) = span.stage
            && span.is_stage()
        {
            let (profile, run_id) = (self.inherited(at, |s| s.profile), self.inherited(at, |s| s.run_id));
            let failed = match self.policy {
                FailurePolicy::ErrorEvents => span.error,
                FailurePolicy::ErrorsWithin => span.error_within,
                _ => false,
            };
            let reason = if span.panicked { Some("panic") } else { failed.then_some("error") };
            *self.runs.entry(format!("{stage},{profile},{run_id}")).or_default() += 1;
            self.totals.entry(stage.to_owned()).or_default()[usize::from(reason.is_some())] += 1;
            if let Some(reason) = reason {
                *self.failures.entry(format!("{stage},{profile},{reason}")).or_default() += 1;
            }
        }
        self.spans[at].open = false;
    }
}
