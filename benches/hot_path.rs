//! Runs one case of `span_cost` alone, for a profiler: `hot-path layer/own 1000000`. Built without the libraries that
//! `span_cost` compares with, in a tenth of the time.
#![allow(dead_code)]

#[path = "span_cost/by_hand.rs"]
mod by_hand;
#[path = "span_cost/cases.rs"]
mod cases;

/// The profiled cases need no published alternatives.
mod peers {
    use super::cases::{LabelSet, Recorded};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Peer {}

    impl Peer {
        pub(crate) const ALL: [Self; 0] = [];

        pub(crate) fn once(self) -> fn(&LabelSet) {
            match self {}
        }

        pub(crate) fn install(self) -> Recorded {
            match self {}
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [case, times] = arguments.as_slice() else { return Err("hot-path CASE TIMES".into()) };
    cases::Case::named(case)?.alone(times.parse()?);
    Ok(())
}
