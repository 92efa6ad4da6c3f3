//! What a PromQL query asks for.

use std::collections::BTreeSet;
use std::convert::Infallible;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

/// One query, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    pub(crate) functions: BTreeSet<&'static str>,
    /// The labels of all `by (…)`.
    pub(crate) kept: BTreeSet<String>,
}

#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// As they are written, variables of the dashboard and all: label, operator, value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

impl Selector {
    /// Whether it has this matcher, `job=~"$job"`.
    pub(crate) fn has(&self, matcher: &str) -> bool {
        self.matchers.iter().any(|(label, operator, value)| format!("{label}{operator}{value:?}") == matcher)
    }

    /// The value the label is tied to by `=`.
    pub(crate) fn fixed(&self, label: &str) -> Option<&str> {
        let fixed = |(name, operator, _): &&(String, String, String)| name == label && operator == "=";
        self.matchers.iter().find(fixed).map(|(_, _, value)| value.as_str())
    }
}

/// Parses a query, in which `$__range` may stand for a duration.
pub(crate) fn parse(query: &str) -> Result<Query, String> {
    let expression = parser::parse(&query.replace("$__range", "1h"))?;
    let mut found = Query::default();
    let Ok(_) = walk_expr(&mut found, &expression);
    Ok(found)
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
        let matchers = matchers.map(|one| (one.name.clone(), one.op.to_string(), one.value.clone()));
        Self { metric: selector.name.clone().unwrap_or_default(), matchers: matchers.collect() }
    }
}

#[test]
fn a_query_is_taken_apart() {
    let query =
        parse(r#"sum by (stage_id) (rate(a_total{job=~"$job|x"}[$__range])) / on (job) b{c="d"} > time()"#).unwrap();
    let names: Vec<_> = query.selectors.iter().map(|selector| selector.metric.as_str()).collect();
    assert_eq!(names, ["a_total", "b"]);
    let [first, second] = &query.selectors[..] else { panic!("two selectors: {query:?}") };
    assert!(first.has(r#"job=~"$job|x""#) && !first.has(r#"job="$job|x""#) && !second.has(r#"job=~"$job|x""#));
    assert_eq!((first.fixed("job"), second.fixed("c")), (None, Some("d")));
    assert_eq!(query.functions, ["rate", "time"].into());
    assert_eq!(query.kept, ["stage_id".to_owned()].into());
    assert!(parse("sum(a").is_err() && parse("a{").is_err() && parse("").is_err());
}
