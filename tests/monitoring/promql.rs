//! The metrics, functions and labels that a PromQL query uses.

use std::collections::BTreeSet;
use std::convert::Infallible;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

/// A parsed query.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    pub(crate) functions: BTreeSet<&'static str>,
    /// Labels of every `by (…)` clause.
    pub(crate) kept: BTreeSet<String>,
}

#[derive(Debug)]
pub(crate) struct Selector {
    /// The metric, or the pattern of several.
    pub(crate) metric: String,
    /// Label, operator and value as written, dashboard variables included.
    pub(crate) matchers: Vec<(String, String, String)>,
}

impl Selector {
    /// Whether the selector contains this matcher, such as `job=~"$job"`.
    pub(crate) fn has(&self, matcher: &str) -> bool {
        self.matchers.iter().any(|(label, operator, value)| format!("{label}{operator}{value:?}") == matcher)
    }

    /// Returns the value of the label's `=` matcher.
    pub(crate) fn exact_value(&self, label: &str) -> Option<&str> {
        let exact_value = |(name, operator, _): &&(String, String, String)| name == label && operator == "=";
        self.matchers.iter().find(exact_value).map(|(_, _, value)| value.as_str())
    }
}

/// Parses a query; `$__range` stands for a duration, `$objective` for a number.
pub(crate) fn parse(query: &str) -> Result<Query, String> {
    let expression = parser::parse(&query.replace("$__range", "1h").replace("$objective", "0.9"))?;
    let mut query = Query::default();
    let Ok(_) = walk_expr(&mut query, &expression);
    Ok(query)
}

impl ExprVisitor for Query {
    type Error = Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Infallible> {
        match expression {
            Expr::VectorSelector(selector) => self.selectors.push(Selector::from(selector)),
            Expr::MatrixSelector(matrix) => self.selectors.push(Selector::from(&matrix.vs)),
            Expr::Call(call) => {
                self.functions.insert(call.func.name);
            }
            Expr::Aggregate(aggregate) => {
                let by = aggregate.modifier.as_ref().filter(|modifier| modifier.is_include());
                self.kept.extend(by.into_iter().flat_map(|modifier| modifier.labels().labels.clone()));
            }
            _ => {}
        }
        Ok(true)
    }
}

impl From<&VectorSelector> for Selector {
    fn from(selector: &VectorSelector) -> Self {
        let matchers = selector.matchers.matchers.iter();
        let pattern = matchers.clone().find(|m| m.name == "__name__").map(|m| m.value.clone());
        let matchers = matchers.map(|m| (m.name.clone(), m.op.to_string(), m.value.clone()));
        Self { metric: selector.name.clone().or(pattern).unwrap_or_default(), matchers: matchers.collect() }
    }
}

#[test]
fn query_parses_into_selectors_functions_and_labels() {
    let query =
        parse(r#"sum by (stage_id) (rate(a_total{job=~"$job|x"}[$__range])) / on (job) b{c="d"} > time()"#).unwrap();
    let names: Vec<_> = query.selectors.iter().map(|selector| selector.metric.as_str()).collect();
    assert_eq!(names, ["a_total", "b"]);
    let [first, second] = &query.selectors[..] else { panic!("two selectors: {query:?}") };
    assert!(first.has(r#"job=~"$job|x""#) && !first.has(r#"job="$job|x""#) && !second.has(r#"job=~"$job|x""#));
    assert_eq!((first.exact_value("job"), second.exact_value("c")), (None, Some("d")));
    assert_eq!(query.functions, ["rate", "time"].into());
    assert_eq!(query.kept, ["stage_id".to_owned()].into());
    assert_eq!(parse(r#"{__name__=~"a(_count)?"}"#).unwrap().selectors[0].metric, "a(_count)?");
    assert!(parse("sum(a").is_err() && parse("a{").is_err() && parse("").is_err());
}
