//! The scenarios, by subject. Time zero is a Thursday.

mod changes;
mod gateway;
mod missed;
mod quiet;
mod runs;

use super::scenario::Scenario;

/// Makes a list of scenarios by name, and a test of each.
macro_rules! scenarios {
    ($($(#[$doc:meta])* $name:ident => $scenario:expr;)*) => {
        pub(super) fn all() -> Vec<(&'static str, $crate::simulator::scenario::Scenario)> {
            vec![$((stringify!($name), $scenario)),*]
        }

        mod tests {
            use super::*;

            $(
                $(#[$doc])*
                #[test]
                #[ignore = "runs with others"]
                fn $name() {
                    let variants = $crate::simulator::variants(stringify!($name), $scenario);
                    $crate::simulator::check(&variants.into_iter().map(|variant| vec![variant]).collect::<Vec<_>>());
                }
            )*
        }
    };
}
use scenarios;

pub(super) fn all() -> Vec<(&'static str, Scenario)> {
    [quiet::all(), runs::all(), missed::all(), gateway::all(), changes::all()].concat()
}
