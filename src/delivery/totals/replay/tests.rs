//! A model of the writers of one group: runs, one after the other, and the gateway and the spool between them.

use proptest::prelude::*;

use super::super::base::{Base, CumulativeTotals};
use super::super::ledger::Ledger;
use super::super::model::tests::{counts, increments, key};
use super::super::model::{StageCounts, StageKey};
use super::*;
use crate::delivery::totals::OutgoingTotals;
use crate::exposition::{Families, Labels};

/// The state of the group on the gateway.
#[derive(Clone, Debug, Default)]
struct Gateway {
    totals: Totals,
    run: Option<u32>,
    has_ended: bool,
}

#[derive(Clone, Debug)]
struct Payload {
    run: u32,
    spooled: SpooledIncrements,
    after: Option<Totals>,
}

/// The fate of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    /// The gateway applies it, and the response is lost.
    Applied,
    Lost,
    /// It cannot have arrived.
    Refused,
}

#[derive(Clone, Debug)]
struct Run {
    /// Of the requests that replay payloads; the first one that is not answered ends the replay.
    replays: Vec<Fate>,
    /// Whether the replay rests with the file, because the process is killed or the file cannot be removed.
    is_file_kept: bool,
    can_read_base: bool,
    /// Pushes on the interval, with the stages since the one before.
    pushes: Vec<(Increments, Fate)>,
    /// `None`: the run is killed.
    end: Option<(Increments, Fate)>,
    /// Whether the process is killed right after the request of the final flush.
    is_killed_at_end: bool,
    /// Whether payloads of other runs than the shown one count as outdated.
    is_outdated: bool,
}

#[derive(Default)]
struct World {
    gateway: Gateway,
    spool: Vec<Payload>,
    /// The runs and stages that must be counted.
    expected: Totals,
    runs: u32,
}

impl World {
    fn apply(&mut self, totals: Option<&Totals>, run: u32, has_ended: bool) {
        if let Some(totals) = totals {
            self.gateway.totals = totals.clone();
        }
        (self.gateway.run, self.gateway.has_ended) = (Some(run), has_ended);
    }

    /// Replays payloads until a request fails. Returns whether none waits.
    fn replay(&mut self, run: &Run) {
        let mut fates = run.replays.iter();
        while let Some(payload) = self.spool.first().cloned() {
            let shown = Shown {
                totals: &self.gateway.totals,
                is_same_run: self.gateway.run == Some(payload.run),
                is_other_run_open: false,
            };
            let is_outdated = run.is_outdated && !shown.is_same_run;
            let totals = match decide(&payload.spooled, payload.after.as_ref(), shown) {
                Decision::Write(totals, sent) => {
                    (self.spool[0].after, self.spool[0].spooled) = (Some(totals.clone()), sent);
                    Some(totals)
                }
                Decision::Keep => None,
                other => panic!("one writer never comes to {other:?}"),
            };
            let fate = *fates.next().unwrap_or(&Fate::Answered);
            if matches!(fate, Fate::Answered | Fate::Applied) {
                if is_outdated {
                    self.gateway.totals = totals.unwrap_or(self.gateway.totals.clone());
                } else {
                    self.apply(totals.as_ref(), payload.run, true);
                }
            }
            if fate != Fate::Answered || run.is_file_kept {
                return;
            }
            self.spool.remove(0);
        }
    }

    fn run(&mut self, run: &Run) {
        self.runs += 1;
        let number = self.runs;
        self.replay(run);
        let mut base = None;
        let mut read = |world: &mut Self| {
            if base.is_none() && run.can_read_base && world.spool.is_empty() {
                let gateway = &world.gateway;
                let killed = gateway.run.filter(|shown| *shown != number && !gateway.has_ended);
                base = Some(Base { shown: gateway.totals.clone(), killed_run: killed.map(f64::from) });
            }
            base.clone()
        };
        let (mut ledger, mut sum) = (Ledger::default(), Increments::default());
        // Of a killed run, what has arrived counts: its stages, and that the run before it was killed.
        let mut arrived = Increments::default();
        let killed = |base: Option<&Base>| Outcomes {
            success: 0,
            failure: u64::from(base.is_some_and(|base| base.killed_run.is_some())),
        };
        for (more, fate) in &run.pushes {
            sum.stages.extend(more.stages.iter().cloned());
            let base = read(self);
            let outgoing = outgoing(base.as_ref(), &sum);
            if matches!(fate, Fate::Answered | Fate::Applied) {
                self.apply(outgoing.totals.as_ref(), number, false);
                if base.is_some() {
                    arrived = Increments { runs: killed(base.as_ref()), ..sum.clone() };
                }
            }
            if *fate == Fate::Answered {
                ledger.confirm(&outgoing);
            }
        }
        let Some((more, fate)) = &run.end else {
            self.expected = self.expected.plus(&arrived);
            return;
        };
        sum.stages.extend(more.stages.iter().cloned());
        sum.runs = Outcomes { success: 1, failure: 0 };
        self.expected = self.expected.plus(&sum);
        let base = read(self);
        self.expected.add_runs(killed(base.as_ref()));
        let outgoing = outgoing(base.as_ref(), &sum);
        let mut payload =
            Payload { run: number, spooled: ledger.spooled(&outgoing, base.as_ref()), after: outgoing.totals.clone() };
        if matches!(fate, Fate::Answered | Fate::Applied) {
            self.apply(outgoing.totals.as_ref(), number, true);
        }
        let has_unanswered = run.pushes.iter().rev().take_while(|(_, fate)| *fate != Fate::Answered);
        let has_unanswered = has_unanswered.into_iter().any(|(_, fate)| *fate != Fate::Refused);
        if *fate == Fate::Refused && !has_unanswered && !run.is_killed_at_end {
            payload.spooled.may_have_arrived = false;
        }
        if *fate != Fate::Answered || run.is_killed_at_end || outgoing.totals.is_none() {
            self.spool.push(payload);
        }
    }
}

fn outgoing(base: Option<&Base>, sum: &Increments) -> OutgoingTotals {
    let totals = CumulativeTotals::new("x", Labels::default(), None);
    if let Some(base) = base {
        totals.set_base(base.clone());
    }
    let (_, mut outgoing) = totals.complete(&Families::default(), sum.stages.clone());
    outgoing.increments.runs = sum.runs;
    if let Some(totals) = &mut outgoing.totals {
        totals.add_runs(sum.runs);
    }
    outgoing
}

fn fate() -> impl Strategy<Value = Fate> {
    prop::sample::select(vec![Fate::Answered, Fate::Answered, Fate::Applied, Fate::Lost, Fate::Refused])
}

fn run() -> impl Strategy<Value = Run> {
    let pushes = prop::collection::vec((increments(), fate()), 0..3);
    let faults = (prop::collection::vec(fate(), 0..3), prop::bool::weighted(0.2), prop::bool::weighted(0.7));
    let end = (prop::option::weighted(0.8, (increments(), fate())), prop::bool::weighted(0.2), any::<bool>());
    (faults, pushes, end).prop_map(
        |((replays, is_file_kept, can_read_base), pushes, (end, is_killed_at_end, is_outdated))| Run {
            replays,
            is_file_kept,
            can_read_base,
            pushes,
            end,
            is_killed_at_end,
            is_outdated,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn totals_of_one_writer_are_exact_whatever_fails(runs in prop::collection::vec(run(), 1..8)) {
        let mut world = World::default();
        runs.iter().for_each(|run| world.run(run));
        // The next runs deliver everything.
        let calm = Run {
            replays: Vec::new(),
            is_file_kept: false,
            can_read_base: true,
            pushes: Vec::new(),
            end: Some((Increments::default(), Fate::Answered)),
            is_killed_at_end: false,
            is_outdated: false,
        };
        world.run(&calm);
        prop_assert!(world.spool.is_empty());
        prop_assert!(
            world.gateway.totals.counts_are(&world.expected),
            "{:#?}, expected {:#?}", world.gateway.totals, world.expected
        );
    }
}

fn of(stages: &[(&str, StageCounts)], success: u64) -> Increments {
    let stages = stages.iter().map(|(id, counts)| (key(id), *counts)).collect::<Vec<(StageKey, StageCounts)>>();
    Increments { runs: Outcomes { success, failure: 0 }, stages }
}

/// A payload of one successful run of stage `a` on top of ten runs, and what another run has left meanwhile.
fn payload() -> (SpooledIncrements, Totals, Totals) {
    let before = Totals::default().plus(&of(&[("a", counts(10, 0))], 10));
    let increments = of(&[("a", counts(1, 0))], 1);
    let after = before.plus(&increments);
    let other = before.plus(&of(&[("a", StageCounts { seconds: 9.0, ..counts(1, 0) })], 1));
    (SpooledIncrements { increments, ..SpooledIncrements::default() }, after, other)
}

fn shown(totals: &Totals) -> Shown<'_> {
    Shown { totals, is_same_run: false, is_other_run_open: false }
}

#[test]
fn increments_are_added_to_those_of_another_run_if_none_has_arrived() {
    let (spooled, after, other) = payload();
    let Decision::Write(sum, sent) = decide(&spooled, Some(&after), shown(&other)) else { panic!() };
    assert_eq!(sum, other.plus(&spooled.increments));
    // The file has the sum now. A second try finds that the first one has arrived, or that it has not.
    assert_eq!(decide(&sent, Some(&sum), shown(&sum)), Decision::Keep);
    assert_eq!(decide(&sent, Some(&sum), shown(&other)), Decision::Write(sum.clone(), sent.clone()));
    let third = sum.plus(&of(&[("a", counts(1, 0))], 1));
    assert_eq!(decide(&sent, Some(&sum), shown(&third)), Decision::Drop, "nobody knows");
}

#[test]
fn increments_that_may_have_arrived_are_not_added_to_those_of_another_run() {
    let (mut spooled, after, other) = payload();
    spooled.may_have_arrived = true;
    assert_eq!(decide(&spooled, Some(&after), shown(&other)), Decision::Drop);
    let same = Shown { is_same_run: true, ..shown(&other) };
    assert_eq!(decide(&spooled, Some(&after), same), Decision::Write(after.clone(), spooled.clone()));
}

/// The other run saw the start of this one and no end.
#[test]
fn run_that_another_one_counted_as_killed_is_not_counted_again() {
    let (mut spooled, after, other) = payload();
    spooled.is_confirmed = true;
    let Decision::Write(sum, _) = decide(&spooled, Some(&after), shown(&other)) else { panic!() };
    assert_eq!((sum.runs, sum.stages[&key("a")].runs.success), (other.runs, 12));
}

#[test]
fn payload_waits_for_the_end_of_another_run() {
    let (spooled, after, other) = payload();
    let open = |is_same_run| Shown { is_same_run, is_other_run_open: true, ..shown(&other) };
    assert_eq!(decide(&spooled, Some(&after), open(false)), Decision::Wait);
    assert_eq!(decide(&spooled, None, open(false)), Decision::Wait);
    assert!(matches!(decide(&spooled, Some(&after), open(true)), Decision::Write(..)));
}
