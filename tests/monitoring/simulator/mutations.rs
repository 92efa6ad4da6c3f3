//! Changes the rules in one place at a time. The cases (`*.test.yml`) or the scenarios must notice each change.

use promql_parser::parser::{self, BinaryExpr, Expr};
use serde_json::Value;

use super::promtool::{self, Rules};
use super::{batches, scenarios, variants};
use crate::dashboard::{list, text};
use crate::files;
use crate::render::rendered;
use crate::rules::rules;
use crate::support::servers::installed;

/// A changed rule file, and what was changed.
struct Mutant {
    what: String,
    rules: String,
}

/// Returns a rule file for each comparison, each constant, each set operation and each waiting time of the rules.
fn mutants(file: &Value) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (index, rule) in rules(file).into_iter().enumerate() {
        let name = format!("{}{}", text(rule, "alert"), text(rule, "record"));
        let mut add = |what: String, key: &str, value: Option<String>| {
            let mut file = file.clone();
            let mut rules = file["groups"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .flat_map(|group| group["rules"].as_array_mut().unwrap());
            let rule = rules.nth(index).unwrap().as_object_mut().unwrap();
            match value {
                Some(value) => _ = rule.insert(key.to_owned(), value.into()),
                None => _ = rule.remove(key),
            }
            drop(rules);
            mutants.push(Mutant { what: format!("{name}: {what}"), rules: file.to_string() });
        };
        let expression = text(rule, "expr");
        for (what, changed) in
            changed_comparisons(expression).chain(changed_constants(expression)).chain(dropped_operands(expression))
        {
            // A change that does not parse would be noticed anyway.
            if parser::parse(&changed).is_ok() {
                add(what, "expr", Some(changed));
            }
        }
        for key in ["for", "keep_firing_for"] {
            if !rule[key].is_null() {
                add(format!("without {key}"), key, None);
            }
        }
    }
    mutants
}

fn changed_comparisons(expression: &str) -> impl Iterator<Item = (String, String)> {
    let opposites =
        [(" >= ", " < "), (" <= ", " > "), (" == ", " != "), (" != ", " == "), (" > ", " <= "), (" < ", " >= ")];
    opposites.into_iter().flat_map(move |(from, to)| {
        expression.match_indices(from).map(move |(at, _)| {
            (
                format!("{from}at {at} becomes{to}"),
                format!("{}{to}{}", &expression[..at], &expression[at + from.len()..]),
            )
        })
    })
}

/// Multiplies each number and each range by ten. Zero and one are no constants.
fn changed_constants(expression: &str) -> impl Iterator<Item = (String, String)> {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '"' | '.');
    let words = expression.split(move |c| !is_word(c)).filter_map(|word| {
        let digits = word.trim_end_matches(['s', 'm', 'h', 'd']);
        let number: f64 = digits.parse().ok()?;
        (number > 1.0 || digits != word).then_some(digits)
    });
    words.map(move |digits| {
        let end = digits.as_ptr() as usize - expression.as_ptr() as usize + digits.len();
        let (before, after) = expression.split_at(end);
        (format!("{digits} at {} becomes {digits}0", end - digits.len()), format!("{before}0{after}"))
    })
}

/// Leaves out the right side of each `and`, `or` and `unless`.
fn dropped_operands(expression: &str) -> impl Iterator<Item = (String, String)> {
    let parsed = parser::parse(expression).unwrap();
    (0..).map_while(move |number| {
        let mut left = number;
        let changed = without_operand(&parsed, &mut left);
        changed.map(|(changed, dropped)| (format!("without {:.80}", dropped.to_string()), changed.to_string()))
    })
}

/// Returns the expression without the right side of its set operation with this number, and that side.
fn without_operand(expression: &Expr, number: &mut usize) -> Option<(Expr, Expr)> {
    let in_box =
        |inner: &Expr, number: &mut usize| without_operand(inner, number).map(|(e, dropped)| (Box::new(e), dropped));
    match expression {
        Expr::Binary(binary) => {
            if matches!(binary.op.to_string().as_str(), "and" | "or" | "unless") {
                if *number == 0 {
                    return Some(((*binary.lhs).clone(), (*binary.rhs).clone()));
                }
                *number -= 1;
            }
            if let Some((lhs, dropped)) = in_box(&binary.lhs, number) {
                return Some((Expr::Binary(BinaryExpr { lhs, ..binary.clone() }), dropped));
            }
            let (rhs, dropped) = in_box(&binary.rhs, number)?;
            Some((Expr::Binary(BinaryExpr { rhs, ..binary.clone() }), dropped))
        }
        Expr::Paren(paren) => {
            let (expr, dropped) = in_box(&paren.expr, number)?;
            Some((Expr::Paren(parser::ParenExpr { expr }), dropped))
        }
        Expr::Aggregate(aggregate) => {
            let (expr, dropped) = in_box(&aggregate.expr, number)?;
            Some((Expr::Aggregate(parser::AggregateExpr { expr, ..aggregate.clone() }), dropped))
        }
        Expr::Call(call) => (0..call.args.args.len()).find_map(|index| {
            let (argument, dropped) = in_box(&call.args.args[index], number)?;
            let mut call = call.clone();
            call.args.args[index] = argument;
            Some((Expr::Call(call), dropped))
        }),
        _ => None,
    }
}

fn of_namespace(rules: &str) -> Rules {
    [("quant", rules.to_owned())].into()
}

/// Whether the scenario notices the changed rules.
fn scenario_notices(name: &str, rules: &str) -> bool {
    let (name, scenario) = scenarios::all().into_iter().find(|(known, _)| *known == name).unwrap();
    variants(name, scenario)
        .into_iter()
        .any(|variant| !promtool::differences(&[variant], &of_namespace(rules)).is_empty())
}

/// Whether a case notices the changed rules.
fn cases_notice(rules: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    for name in files::with_suffix(".yml") {
        std::fs::copy(files::path(&name), directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("quant.rules.yml"), rules).unwrap();
    let mut promtool = std::process::Command::new("promtool");
    promtool.args(["test", "rules"]).args(files::with_suffix(".test.yml")).current_dir(directory.path());
    !promtool.output().unwrap().status.success()
}

/// A change of a rule, and a scenario that notices it. The test below tries all changes.
const CHOSEN: [(&str, &str, &str); 5] = [
    ("BatchNoSuccess", "without for", "hourly_run_that_never_starts"),
    ("BatchNoSuccess", "without (quant:run_failed_since_timestamp_seconds", "failed_run_with_a_text_file"),
    ("BatchRunFailed", "without for", "hourly_run_that_fails_once"),
    ("quant:run_never_ended", "300 at", "killed_run_never_ended"),
    ("BatchTwoWriters", " > at", "two_writers_in_turn"),
];

#[test]
fn scenarios_notice_chosen_changes_of_the_rules() {
    if !installed("promtool") {
        return;
    }
    let mutants = mutants(&serde_saphyr::from_str(&rendered(&["rules"])).unwrap());
    for (rule, change, scenario) in CHOSEN {
        let is_chosen =
            |mutant: &&Mutant| mutant.what.starts_with(&format!("{rule}: ")) && mutant.what.contains(change);
        let mutant = mutants.iter().find(is_chosen).unwrap_or_else(|| panic!("no change {change:?} of {rule}"));
        assert!(scenario_notices(scenario, &mutant.rules), "{scenario} does not notice the change {}", mutant.what);
    }
}

/// With `MUTATIONS_OF=BatchRunFailed` the changes of that rule alone.
#[test]
#[ignore = "takes hours"]
fn cases_or_scenarios_notice_each_change_of_the_rules() {
    let only = std::env::var("MUTATIONS_OF").unwrap_or_default();
    let mutants = mutants(&serde_saphyr::from_str(&rendered(&["rules"])).unwrap());
    // The changed rules are those of one namespace.
    let mut scenarios = scenarios::all();
    scenarios.retain(|(_, scenario)| scenario.jobs.iter().all(|job| job.namespace == "quant"));
    let batches = batches(scenarios);
    let mut unnoticed = Vec::new();
    for mutant in mutants.iter().filter(|mutant| mutant.what.starts_with(&only)) {
        let is_noticed = cases_notice(&mutant.rules)
            || batches.iter().any(|batch| !promtool::differences(batch, &of_namespace(&mutant.rules)).is_empty());
        println!("{} {}", if is_noticed { "noticed" } else { "UNNOTICED" }, mutant.what);
        if !is_noticed {
            unnoticed.push(&mutant.what);
        }
    }
    assert!(unnoticed.is_empty(), "nothing notices: {unnoticed:#?}");
}

#[test]
fn each_comparison_constant_operand_and_wait_is_changed() {
    let file = serde_json::json!({"groups": [{"name": "g", "rules": [
        {"alert": "A", "expr": "a > 300 and on (job) (max_over_time(b[1d]) or c{d=\"40\"} == 1)", "for": "5m"},
    ]}]});
    let changed: Vec<_> = mutants(&file)
        .iter()
        .map(|mutant| {
            let file: Value = serde_json::from_str(&mutant.rules).unwrap();
            let rule = &list(&file["groups"][0]["rules"])[0];
            format!("{} for {}", text(rule, "expr"), rule["for"])
        })
        .collect();
    let expected = [
        ("a > 300 and on (job) (max_over_time(b[1d]) or c{d=\"40\"} != 1)", "\"5m\""),
        ("a <= 300 and on (job) (max_over_time(b[1d]) or c{d=\"40\"} == 1)", "\"5m\""),
        ("a > 3000 and on (job) (max_over_time(b[1d]) or c{d=\"40\"} == 1)", "\"5m\""),
        ("a > 300 and on (job) (max_over_time(b[10d]) or c{d=\"40\"} == 1)", "\"5m\""),
        ("a > 300", "\"5m\""),
        ("a > 300 and on (job) (max_over_time(b[1d]))", "\"5m\""),
        ("a > 300 and on (job) (max_over_time(b[1d]) or c{d=\"40\"} == 1)", "null"),
    ];
    assert_eq!(changed, expected.map(|(expression, wait)| format!("{expression} for {wait}")));
}
