//! Minima and ratios, compared with the goals.

use std::io::{self, Write};
use std::time::Duration;

use super::cases::{Case, Stack, Work};
use super::peers::Peer;

/// Nanoseconds of one case, one value per round.
pub(crate) struct Measured {
    pub(crate) case: Case,
    rounds: Vec<f64>,
}

impl Measured {
    pub(crate) fn new(case: Case) -> Self {
        Self { case, rounds: Vec::new() }
    }

    pub(crate) fn add(&mut self, took: Duration, times: u64) {
        self.rounds.push(took.as_nanos() as f64 / times as f64);
    }

    fn min(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

struct Table<'a>(&'a [Measured]);

impl Table<'_> {
    fn min(&self, work: Work, stack: Stack) -> Option<f64> {
        self.0.iter().find(|measured| measured.case == Case { work, stack }).map(Measured::min)
    }

    /// Cost of a case above its floor; the whole cost if it opens no spans.
    fn over(&self, work: Work, stack: Stack) -> Option<f64> {
        let min = self.min(work, stack)?;
        if has_spans(stack) { Some(min - self.min(work, Stack::Floor)?) } else { Some(min) }
    }

    /// Ratio to handles that do the same, on as many threads and with as many label sets.
    fn to_kept(&self, work: Work, stack: Stack, kept: Stack) -> Option<f64> {
        let same = if self.min(work, kept).is_some() { work } else { Work::Own };
        Some(self.over(work, stack)? / self.min(same, kept)?)
    }
}

fn title_of(work: Work) -> String {
    match work {
        Work::Own => "a stage, with stage_id, profile and run_id on its span".to_owned(),
        Work::Child => "a stage that inherits profile and run_id from a root span".to_owned(),
        Work::Through => "the same, through a plain span".to_owned(),
        Work::Untagged => "a span that is no stage".to_owned(),
        Work::UntaggedAmid => "a span that is no stage, while stages open and close".to_owned(),
        Work::UntaggedAfter => "a span that is no stage, after 5 000 stages were open at once".to_owned(),
        Work::ReenterUntagged => "an open span that is no stage entered and left, after the same".to_owned(),
        Work::Event => "an event that is no error".to_owned(),
        Work::Reenter => "an open stage entered and left".to_owned(),
        Work::Record => "a stage in which a field that is no label is recorded late".to_owned(),
        Work::Sets(sets) => format!("a stage, {sets} label sets in turn"),
        Work::Threads(1) => "a stage, on one spawned thread".to_owned(),
        Work::Threads(threads) => format!("a stage, on {threads} threads, each its own (a span of each thread)"),
    }
}

fn name_of(stack: Stack) -> &'static str {
    match stack {
        Stack::Peer(peer) => peer.name(),
        Stack::Floor => "registry, a layer that does nothing",
        Stack::Silent => "the layer, no recorder behind it",
        Stack::Layer => "the layer, Prometheus recorder",
        Stack::Native => "the layer, native histograms too",
        #[cfg(feature = "exemplars")]
        Stack::Traced => "the layer, in a sampled trace",
        #[cfg(feature = "exemplars")]
        Stack::Exemplars => "the layer, in a sampled trace, exemplars too",
        Stack::KeptPair => "kept handles: histogram, counter",
        Stack::KeptFull => "kept handles: the full set",
        Stack::Macros => "histogram! and counter! each time",
        Stack::AnHour => "a layer as written in an hour",
    }
}

/// Whether the case opens spans.
fn has_spans(stack: Stack) -> bool {
    !matches!(stack, Stack::KeptPair | Stack::KeptFull | Stack::Macros | Stack::Peer(Peer::Autometrics))
}

pub(crate) fn print(out: &mut impl Write, measured: &[Measured]) -> io::Result<()> {
    let table = Table(measured);
    let mut work = None;
    for measured in measured {
        let Case { work: this, stack } = measured.case;
        if work != Some(this) {
            work = Some(this);
            writeln!(out, "\n{}", title_of(this))?;
            writeln!(
                out,
                "  {:<38} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
                "", "min ns", "median", "x floor", "over", "x pair", "x full"
            )?;
        }
        let floor = table.min(this, Stack::Floor).filter(|_| has_spans(stack));
        let counts = this.is_stage() && stack != Stack::Floor;
        let to_kept = |kept| table.to_kept(this, stack, kept).filter(|_| counts);
        writeln!(
            out,
            "  {:<38} {:>8.1} {:>8.1} {} {} {} {}",
            name_of(stack),
            measured.min(),
            measured.median(),
            column(floor.map(|floor| measured.min() / floor), 2),
            column(table.over(this, stack).filter(|_| stack != Stack::Floor), 1),
            column(to_kept(Stack::KeptPair), 2),
            column(to_kept(Stack::KeptFull), 2),
        )?;
    }
    writeln!(out, "\nover: above the floor, or all of it where no span is opened.")?;
    writeln!(out, "x pair, x full: that, beside kept handles (histogram and counter; with active, last duration and")?;
    writeln!(out, "last success).")?;
    goals(out, &table)
}

fn column(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| format!("{:>8}", "-"), |value| format!("{value:>8.digits$}"))
}

fn goals(out: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
    use Stack::{AnHour, KeptFull, KeptPair, Layer, Native, Silent};
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let difference = |a, b| Some(table.min(Work::Own, a)? - table.min(Work::Own, b)?);
    // Spans per second of two threads, relative to one.
    let scales = |stack| ratio(table.min(Work::Threads(1), stack), table.min(Work::Threads(2), stack)).map(|r| 2.0 * r);
    let at_most = [
        ("a stage over the floor / the full set of kept handles", 0.8, table.to_kept(Work::Own, Layer, KeptFull)),
        ("with inheritance from a root span", 1.0, table.to_kept(Work::Child, Layer, KeptFull)),
        ("with inheritance through a plain span", 1.0, table.to_kept(Work::Through, Layer, KeptFull)),
        (
            "a stage over the floor / what the layer written in an hour adds",
            0.25,
            ratio(table.over(Work::Own, Layer), table.over(Work::Own, AnHour)),
        ),
        (
            "a stage over the floor / what the OpenTelemetry layer adds",
            0.2,
            ratio(table.over(Work::Own, Layer), table.over(Work::Own, Stack::Peer(Peer::OpenTelemetry))),
        ),
        ("native histograms, ns over a stage without", 20.0, difference(Native, Layer)),
        ("a span that is no stage, ns over the floor", 2.0, table.over(Work::Untagged, Layer)),
        ("the same while stages open and close", 4.0, table.over(Work::UntaggedAmid, Layer)),
        ("the same after 5 000 stages were open at once", 4.0, table.over(Work::UntaggedAfter, Layer)),
        ("enter and exit of such a span, after the same", 2.0, table.over(Work::ReenterUntagged, Layer)),
        ("an event that is no error, ns over the floor", 1.0, table.over(Work::Event, Layer)),
        ("enter and exit of a stage, ns over the floor", 25.0, table.over(Work::Reenter, Layer)),
        ("4096 label sets / 16", 2.5, ratio(table.min(Work::Sets(4096), Layer), table.min(Work::Sets(16), Layer))),
    ];
    let at_least = [
        ("spans of two threads / of one, no recorder", 1.9, scales(Silent)),
        ("the same with the recorder / kept handles", 0.9, ratio(scales(Layer), scales(KeptPair))),
    ];
    writeln!(out, "\n{:<66} {:>8} {:>10}", "goals", "measured", "")?;
    let lines = at_most.map(|goal| (goal, true)).into_iter().chain(at_least.map(|goal| (goal, false)));
    for ((goal, bound, measured), at_most) in lines {
        let Some(measured) = measured else { continue };
        let met = if at_most { measured <= bound } else { measured >= bound };
        let (sign, met) = (if at_most { "<=" } else { ">=" }, if met { "met" } else { "NOT MET" });
        writeln!(out, "{goal:<66} {measured:>8.2} {:>10}  {met}", format!("{sign} {bound}"))?;
    }
    Ok(())
}
