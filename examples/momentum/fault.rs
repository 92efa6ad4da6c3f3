//! Faults on demand: `--fail STAGE` and `--panic STAGE`, to watch what a failure looks like from outside.

use super::error::PipelineError;

/// How a stage is to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Error,
    Panic,
}

/// The stages that are to go wrong in this run; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults(Vec<(String, Fault)>);

impl Faults {
    pub(crate) fn add(&mut self, stage: &str, fault: Fault) {
        self.0.push((stage.to_owned(), fault));
    }

    /// Every stage asks this before its work.
    pub(crate) fn check(&self, stage: &'static str) -> Result<(), PipelineError> {
        match self.0.iter().find(|(name, _)| name == stage) {
            None => Ok(()),
            Some((_, Fault::Error)) => Err(PipelineError::Injected { stage }),
            Some((_, Fault::Panic)) => panic!("{stage} panics because --panic asked for it"),
        }
    }
}
