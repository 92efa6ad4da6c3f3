//! Label values: the label is what the recorded value prints, whatever its type.

use std::fmt;

use tracing::field::{debug, display};
use tracing::{Span, info_span};

use super::Pipeline;

struct Sample;

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("displayed")
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Debugged { sample }")
    }
}

/// Runs the span as the only stage; returns its three labels.
#[track_caller]
fn labels(span: impl FnOnce() -> Span) -> String {
    let pipeline = Pipeline::start();
    drop(span());
    let runs = pipeline.now().runs();
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs[0].strip_suffix(" 1").unwrap().to_owned()
}

macro_rules! all_three {
    ($($value:tt)+) => {
        labels(|| info_span!("x", stage_id = $($value)+, profile = $($value)+, run_id = $($value)+))
    };
}

#[test]
fn every_value_type_prints_as_its_label() {
    let owned = String::from("owned");
    assert_eq!(all_three!("text"), "text,text,text");
    assert_eq!(all_three!(owned), "owned,owned,owned");
    assert_eq!(all_three!(owned.as_str()), "owned,owned,owned");
    assert_eq!(all_three!(Some("option")), "option,option,option");
    assert_eq!(all_three!(%Sample), "displayed,displayed,displayed");
    assert_eq!(all_three!(?Sample), "Debugged { sample },Debugged { sample },Debugged { sample }");
    assert_eq!(all_three!(?"quoted"), r#""quoted","quoted","quoted""#);
    assert_eq!(all_three!(display(7)), "7,7,7");
    assert_eq!(all_three!(debug(Some(7))), "Some(7),Some(7),Some(7)");
    assert_eq!(all_three!(-7_i64), "-7,-7,-7");
    assert_eq!(all_three!(7_u8), "7,7,7");
    assert_eq!(all_three!(u64::MAX), "18446744073709551615,18446744073709551615,18446744073709551615");
    let wide = i128::MIN.to_string();
    assert_eq!(all_three!(i128::MIN), format!("{wide},{wide},{wide}"));
    assert_eq!(all_three!(2.5_f64), "2.5,2.5,2.5");
    assert_eq!(all_three!(f64::NAN), "NaN,NaN,NaN");
    assert_eq!(all_three!(true), "true,true,true");
    let error: &(dyn std::error::Error + 'static) = &fmt::Error;
    let text = error.to_string();
    assert_eq!(all_three!(error), format!("{text},{text},{text}"));
}

#[test]
fn every_late_value_type_prints_as_its_label() {
    #[track_caller]
    fn late(record: impl for<'a> Fn(&'a Span, &'static str) -> &'a Span) -> String {
        use tracing::field::Empty;
        labels(|| {
            let span = info_span!("x", stage_id = Empty, profile = Empty, run_id = Empty);
            for label in ["stage_id", "profile", "run_id"] {
                record(&span, label);
            }
            span
        })
    }
    assert_eq!(late(|span, label| span.record(label, "text")), "text,text,text");
    assert_eq!(late(|span, label| span.record(label, String::from("s"))), "s,s,s");
    assert_eq!(late(|span, label| span.record(label, display(Sample))), "displayed,displayed,displayed");
    assert_eq!(late(|span, label| span.record(label, debug(Some(1)))), "Some(1),Some(1),Some(1)");
    assert_eq!(late(|span, label| span.record(label, -1)), "-1,-1,-1");
    assert_eq!(late(|span, label| span.record(label, 1.5)), "1.5,1.5,1.5");
    assert_eq!(late(|span, label| span.record(label, false)), "false,false,false");
}

#[test]
fn escaped_characters_round_trip() {
    for value in ["a\"b", "a\\b", "a\\\\b", "a\nb", "\\n", "{x=\"y\"}", "ü…🦀", "\t", " a ", ","] {
        assert_eq!(all_three!(value), format!("{value},{value},{value}"));
    }
}

#[test]
fn value_is_cut_beyond_256_bytes() {
    let (longest, longer) = ("x".repeat(256), "x".repeat(257));
    assert_eq!(all_three!(longest), format!("{longest},{longest},{longest}"));
    for cut in all_three!(longer).split(',') {
        let prefix = cut.strip_suffix('…').unwrap();
        assert!(longer.starts_with(prefix) && prefix.len() > 240 && cut.len() <= 256, "{cut}");
    }
}

#[test]
fn value_is_cut_at_a_character_boundary() {
    // Characters of 2, 3 and 4 bytes, shifted so that the limit falls on every byte of a character.
    for character in ["ü", "€", "🦀"] {
        for shift in 0..4 {
            let long = format!("{}{}", "-".repeat(shift), character.repeat(200));
            let labels = all_three!(%long);
            let cut = labels.split(',').next().unwrap();
            let prefix = cut.strip_suffix('…').unwrap();
            assert!(long.starts_with(prefix) && prefix.len() > 240 && cut.len() <= 256, "{cut}");
        }
    }
}

#[test]
fn values_equal_up_to_the_cut_are_one_stage() {
    let pipeline = Pipeline::start();
    for end in ["a", "b"] {
        drop(info_span!("x", stage_id = format!("{}{end}", "x".repeat(300))));
    }
    let totals = pipeline.now().totals();
    assert_eq!(totals.len(), 1);
    assert!(totals[0].ends_with("… 2 0"), "{totals:?}");
}

#[test]
fn value_that_opens_spans_while_printing_is_recorded() {
    struct Nested;
    impl fmt::Display for Nested {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            drop(info_span!("inner", stage_id = %Sample));
            f.write_str("nested")
        }
    }
    let pipeline = Pipeline::start();
    let span = info_span!("x", stage_id = %Nested, profile = %Nested);
    span.record("profile", display(Nested));
    drop(span);
    // During the creation of a span the thread has no subscriber, so the inner span is not measured then.
    let runs = pipeline.now().runs();
    assert!(runs.contains(&"nested,nested, 1".to_owned()), "{runs:?}");
}

#[test]
fn failing_or_panicking_value_leaves_the_layer_working() {
    struct Fails;
    impl fmt::Debug for Fails {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("partial")?;
            Err(fmt::Error)
        }
    }
    struct Panics;
    impl fmt::Debug for Panics {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("on purpose")
        }
    }
    let pipeline = Pipeline::start();
    drop(info_span!("x", stage_id = ?Fails));
    std::panic::catch_unwind(|| drop(info_span!("x", stage_id = ?Panics))).unwrap_err();
    drop(info_span!("x", stage_id = ?"after"));
    let totals = pipeline.now().totals();
    assert!(totals.contains(&"partial 1 0".to_owned()) && totals.contains(&"\"after\" 1 0".to_owned()), "{totals:?}");
}
