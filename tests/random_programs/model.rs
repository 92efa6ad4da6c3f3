//! What the contract says of a program: spans as a list, walked up where something is inherited.

use std::collections::BTreeMap;

use tracing_stage_metrics::FailurePolicy;

use super::Seen;
use super::program::{Field, Kind, Node, Step};

struct Span {
    kind: Kind,
    parent: Option<usize>,
    stage: Option<&'static str>,
    profile: Option<&'static str>,
    run_id: Option<&'static str>,
    /// It repeats the stage around it.
    part: bool,
    error: bool,
    error_within: bool,
    panicked: bool,
    open: bool,
}

impl Span {
    fn is_stage(&self) -> bool {
        self.kind == Kind::Stage && !self.part
    }
}

struct Model {
    spans: Vec<Span>,
    policy: FailurePolicy,
    totals: BTreeMap<String, [u64; 2]>,
    runs: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    looks: Vec<Vec<String>>,
    /// The program does something of which the contract does not say how it counts.
    open_question: bool,
}

/// Where a part of the program runs.
#[derive(Clone, Copy)]
struct Place {
    /// Panics are left out.
    cleaning: bool,
    other_thread: bool,
}

/// `None` where the contract leaves the result open.
pub(crate) fn run(programs: &[Node], policy: FailurePolicy) -> Option<Seen> {
    let mut model = Model {
        spans: Vec::new(),
        policy,
        totals: BTreeMap::new(),
        runs: BTreeMap::new(),
        failures: BTreeMap::new(),
        looks: Vec::new(),
        open_question: false,
    };
    for program in programs {
        let (span, _) = model.node(program, None, Place { cleaning: false, other_thread: false });
        model.close(span);
    }
    let lines = |counts: BTreeMap<String, u64>| {
        let mut lines: Vec<String> = counts.into_iter().map(|(of, count)| format!("{of} {count}")).collect();
        lines.sort();
        lines
    };
    let totals = model.totals.into_iter().map(|(stage, [good, bad])| format!("{stage} {good} {bad}")).collect();
    let (runs, failures) = (lines(model.runs), lines(model.failures));
    (!model.open_question).then_some(Seen { totals, runs, failures, looks: model.looks })
}

impl Model {
    /// Runs it; returns its span, still open, and whether a panic goes on from there.
    fn node(&mut self, node: &Node, parent: Option<usize>, place: Place) -> (usize, bool) {
        let at = self.spans.len();
        let given = |of: Kind, value| if node.kind == of || node.kind == Kind::Stage { value } else { None };
        self.spans.push(Span {
            kind: node.kind,
            parent,
            stage: given(Kind::Stage, node.stage),
            profile: given(Kind::Context, node.profile),
            run_id: given(Kind::Context, node.run_id),
            part: false,
            error: false,
            error_within: false,
            panicked: false,
            open: true,
        });
        if self.spans[at].stage.is_some() {
            self.decide(at);
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
                Step::Look if !place.other_thread => self.look(),
                Step::Look => {}
                Step::Panic => panicking = !place.cleaning,
            }
            if panicking {
                break;
            }
        }
        for cleanup in cleanups {
            let (span, _) = self.node(cleanup, Some(at), Place { cleaning: true, ..place });
            self.close(span);
        }
        for span in kept {
            self.close(span);
        }
        self.spans[at].panicked |= panicking && node.entered;
        (at, panicking)
    }

    fn around(&self, at: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(at), |at| self.spans[*at].parent)
    }

    /// Its own, or that of the nearest span around it that has one.
    fn inherited(&self, at: usize, value: impl Fn(&Span) -> Option<&'static str>) -> &'static str {
        self.around(at).find_map(|at| value(&self.spans[at])).unwrap_or("")
    }

    /// Whether it repeats the nearest stage around it.
    fn decide(&mut self, at: usize) {
        let span = &self.spans[at];
        let stage = self.around(at).skip(1).find(|around| self.spans[*around].is_stage());
        let part = stage.is_some_and(|around| {
            let same = |own: Option<&str>, value: fn(&Span) -> Option<&'static str>| {
                own.is_none_or(|own| own == self.inherited(around, value))
            };
            self.spans[around].stage == span.stage
                && same(span.profile, |s| s.profile)
                && same(span.run_id, |s| s.run_id)
        });
        // What was told of it before it became another thing: the contract does not say.
        self.open_question |= part != span.part && (span.error || span.error_within);
        self.spans[at].part = part;
    }

    fn error(&mut self, at: usize) {
        if self.spans[at].kind == Kind::Stage {
            self.spans[at].error = true;
        }
        let stage = self.around(at).find(|around| self.spans[*around].is_stage());
        if let Some(stage) = stage {
            self.spans[stage].error_within = true;
        }
    }

    fn record(&mut self, at: usize, up: usize, field: Field, value: &'static str) {
        let Some(at) = self.around(at).nth(up) else { return };
        let span = &mut self.spans[at];
        match (field, span.kind) {
            (Field::Stage, Kind::Stage) => {
                span.stage = Some(value);
                self.decide(at);
            }
            (Field::Profile, Kind::Stage | Kind::Context) => span.profile = Some(value),
            (Field::RunId, Kind::Stage | Kind::Context) => span.run_id = Some(value),
            _ => {}
        }
    }

    fn look(&mut self) {
        let mut active = BTreeMap::<String, u64>::new();
        for (at, span) in self.spans.iter().enumerate().filter(|(_, span)| span.open && span.is_stage()) {
            if let Some(stage) = span.stage {
                *active.entry(format!("{stage},{}", self.inherited(at, |s| s.profile))).or_default() += 1;
            }
        }
        let mut lines: Vec<String> = active.into_iter().map(|(of, count)| format!("{of} {count}")).collect();
        lines.sort();
        self.looks.push(lines);
    }

    fn close(&mut self, at: usize) {
        if self.spans[at].kind == Kind::Stage && self.spans[at].stage.is_none() {
            self.spans[at].stage = Some("stage");
            self.decide(at);
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
