//! The increments of cumulative totals, as lines in the head of a file.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::delivery::totals::{Increments, Outcomes, SpooledIncrements, StageCounts, StageKey};

const RUNS: &str = "increments";
const STAGE: &str = "increments-stage";
/// The words of the line for the runs, after its two counts.
const FLAGS: [&str; 3] = ["killed", "confirmed", "sent"];
/// Limit of the lines in bytes.
pub(super) const MAX_LINES: usize = 4 << 20;

/// Writes the lines. Stages that take too much room become one `_overflow`.
pub(super) fn write(head: &mut String, spooled: &SpooledIncrements) {
    let Outcomes { success, failure } = spooled.increments.runs;
    let flags = [spooled.has_killed_run, spooled.is_confirmed, spooled.may_have_arrived];
    let _ = write!(head, "{RUNS}: {success} {failure}");
    for (flag, _) in FLAGS.iter().zip(flags).filter(|(_, is_set)| *is_set) {
        let _ = write!(head, " {flag}");
    }
    head.push('\n');
    let start = head.len();
    spooled.increments.stages.iter().for_each(|(key, counts)| write_stage(head, key, *counts));
    if head.len() - start > MAX_LINES {
        head.truncate(start);
        let all = spooled.increments.stages.iter().map(|(_, counts)| *counts);
        let sum = all.fold(StageCounts::default(), |sum, counts| StageCounts {
            runs: sum.runs.plus(counts.runs),
            seconds: sum.seconds + counts.seconds,
        });
        write_stage(head, &StageKey::overflow(), sum);
    }
}

fn write_stage(head: &mut String, key: &StageKey, counts: StageCounts) {
    let [stage_id, profile] = [&key.stage_id, &key.profile].map(|value| utf8_percent_encode(value, NON_ALPHANUMERIC));
    let StageCounts { runs: Outcomes { success, failure }, seconds } = counts;
    if success > 0 || failure > 0 {
        let _ = writeln!(head, "{STAGE}: {stage_id} {profile} {success} {failure} {seconds}");
    }
}

/// Reads the lines. `Some(None)` if there are none, `None` if one is invalid.
pub(super) fn read(lines: &str) -> Option<Option<SpooledIncrements>> {
    let value = |key: &str, line: &'_ str| line.strip_prefix(key)?.strip_prefix(": ").map(str::to_owned);
    let Some(runs) = lines.lines().find_map(|line| value(RUNS, line)) else { return Some(None) };
    let mut words = runs.split(' ');
    let runs = Outcomes { success: words.next()?.parse().ok()?, failure: words.next()?.parse().ok()? };
    let flags: Vec<_> = words.collect();
    let [has_killed_run, is_confirmed, may_have_arrived] = FLAGS.map(|flag| flags.contains(&flag));
    let stages = lines.lines().filter_map(|line| value(STAGE, line)).map(|line| read_stage(&line));
    let increments = Increments { runs, stages: stages.collect::<Option<_>>()? };
    Some(Some(SpooledIncrements { increments, has_killed_run, is_confirmed, may_have_arrived }))
}

fn read_stage(line: &str) -> Option<(StageKey, StageCounts)> {
    let mut values = line.split(' ');
    let mut text = || Some(percent_decode_str(values.next()?).decode_utf8().ok()?.into_owned());
    let key = StageKey { stage_id: text()?, profile: text()? };
    let runs = Outcomes { success: values.next()?.parse().ok()?, failure: values.next()?.parse().ok()? };
    let seconds: f64 = values.next()?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some((key, StageCounts { runs, seconds }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stage() -> impl Strategy<Value = (StageKey, StageCounts)> {
        let key = ("(?s).{0,8}", "(?s).{0,8}").prop_map(|(stage_id, profile)| StageKey { stage_id, profile });
        (key, 1..u64::MAX, any::<u64>(), 0.0..1e12_f64).prop_map(|(key, success, failure, seconds)| {
            (key, StageCounts { runs: Outcomes { success, failure }, seconds })
        })
    }

    proptest! {
        #[test]
        fn increments_round_trip(
            stages in prop::collection::vec(stage(), 0..4),
            success in any::<u64>(),
            failure in any::<u64>(),
            flags in any::<[bool; 3]>(),
        ) {
            let [has_killed_run, is_confirmed, may_have_arrived] = flags;
            let increments = Increments { runs: Outcomes { success, failure }, stages };
            let spooled = SpooledIncrements { increments, has_killed_run, is_confirmed, may_have_arrived };
            let mut head = String::new();
            write(&mut head, &spooled);
            prop_assert_eq!(read(&head), Some(Some(spooled)));
        }
    }

    #[test]
    fn damaged_line_is_invalid_and_no_line_is_no_increments() {
        assert_eq!(read("group: /metrics/job/a\n"), Some(None));
        for lines in [
            "increments: 1",
            "increments: 1 -1",
            "increments: 1 0\nincrements-stage: a b 1 0",
            "increments: 1 0\nincrements-stage: a b 1 0 NaN",
            "increments: 1 0\nincrements-stage: %ff b 1 0 1",
        ] {
            assert_eq!(read(lines), None, "{lines}");
        }
    }

    #[test]
    fn stages_without_room_become_one() {
        let stage_id = "x".repeat(250);
        let stage = |n: u64| {
            let key = StageKey { stage_id: format!("{stage_id}{n}"), profile: String::new() };
            (key, StageCounts { runs: Outcomes { success: n, failure: 1 }, seconds: 0.5 })
        };
        let stages: Vec<_> = (0..20_000).map(stage).collect();
        let spooled =
            SpooledIncrements { increments: Increments { stages, ..Increments::default() }, ..Default::default() };
        let mut head = String::new();
        write(&mut head, &spooled);
        assert_eq!(head, "increments: 0 0\nincrements-stage: %5Foverflow %5Foverflow 199990000 20000 10000\n");
    }
}
