//! The command line.

use std::path::PathBuf;
use std::time::SystemTime;
use std::{env, fmt};

use crate::momentum::date::utc_stamp;
use crate::momentum::fault::{Fault, Faults};
use crate::momentum::{Job, PRICES, STAGES};

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) job: Job,
    pub(crate) textfile: PathBuf,
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum Stop {
    /// `--help`.
    Help,
    UnknownArgument(String),
    NoValue(String),
    UnknownStage(String),
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, Stop> {
        let mut job = Job {
            data: PRICES.into(),
            profile: "multi_asset_daily".to_owned(),
            run_id: utc_stamp(SystemTime::now()),
            faults: Faults::default(),
        };
        let mut textfile = default_textfile();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Err(Stop::Help);
            }
            let target = match name.as_str() {
                "--data" | "--textfile" | "--profile" | "--run-id" | "--fail" | "--panic" => arguments.next(),
                _ => return Err(Stop::UnknownArgument(name)),
            };
            let Some(value) = target.filter(|value| !value.is_empty()) else {
                return Err(Stop::NoValue(name));
            };
            match name.as_str() {
                "--data" => job.data = value.into(),
                "--textfile" => textfile = value.into(),
                "--profile" => job.profile = value,
                "--run-id" => job.run_id = value,
                "--fail" => job.faults.add(known(&value)?, Fault::Error),
                _ => job.faults.add(known(&value)?, Fault::Panic),
            }
        }
        Ok(Self { job, textfile })
    }
}

fn known(stage: &str) -> Result<&'static str, Stop> {
    STAGES.into_iter().find(|known| *known == stage).ok_or_else(|| Stop::UnknownStage(stage.to_owned()))
}

/// Where the environment says, or beside the executable: a place that exists, can be written and is nobody else's.
fn default_textfile() -> PathBuf {
    match env::var_os("TV_PROMETHEUS_TEXTFILE").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => {
            env::current_exe().map_or_else(|_| "pipeline.prom".into(), |executable| executable.with_extension("prom"))
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Help => write!(f, "{USAGE}"),
            Self::UnknownArgument(name) => write!(f, "unknown argument `{name}`, see --help"),
            Self::NoValue(name) => write!(f, "{name} needs a value, see --help"),
            Self::UnknownStage(name) => write!(f, "unknown stage `{name}`, the stages are: {}", STAGES.join(", ")),
        }
    }
}

const USAGE: &str = "\
Volatility-weighted momentum over S&P 500, NASDAQ and crude oil, against buy and hold.

Usage: pipeline [OPTIONS]

  --data PATH       prices, `date,symbol,close`     [examples/data/daily_closes.csv]
  --textfile PATH   where the metrics are written   [TV_PROMETHEUS_TEXTFILE, or beside the executable]
  --profile NAME    label of the metrics            [multi_asset_daily]
  --run-id ID       label of the metrics            [the time in UTC, YYYYMMDD-HHMMSS]
  --fail STAGE      let this stage return an error
  --panic STAGE     let this stage panic
  -h, --help        print this

Stages: foundation.ingest, foundation.features, alpha.inference, alpha.policy, risk.optimize, allocation.simulate

With TV_PROMETHEUS_PUSHGATEWAY=http://HOST:9091 the metrics are pushed there as well. RUST_LOG sets what is logged.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::momentum::error::PipelineError;

    fn parse(arguments: &[&str]) -> Result<Options, Stop> {
        Options::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn every_argument_is_taken() {
        let options = parse(&["--data", "a.csv", "--textfile", "b.prom", "--profile", "c", "--run-id", "d"]).unwrap();
        let Options { job, textfile } = options;
        assert_eq!((job.data, textfile), (PathBuf::from("a.csv"), PathBuf::from("b.prom")));
        assert_eq!((job.profile.as_str(), job.run_id.as_str()), ("c", "d"));
        assert_eq!(job.faults, Faults::default());
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let job = parse(&[]).unwrap().job;
        assert!(job.data.is_file(), "{}", job.data.display());
        assert_eq!((job.profile.as_str(), job.run_id.len()), ("multi_asset_daily", 15));
    }

    #[test]
    fn faults_reach_their_stage_only() {
        let faults = parse(&["--fail", "alpha.policy", "--panic", "risk.optimize"]).unwrap().job.faults;
        assert!(matches!(faults.check("alpha.policy"), Err(PipelineError::Injected { stage: "alpha.policy" })));
        assert!(matches!(faults.check("alpha.inference"), Ok(())));
        assert!(std::panic::catch_unwind(|| faults.check("risk.optimize")).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, expected) in [
            (&["--quick"][..], "`--quick`"),
            (&["--run-id"], "--run-id needs a value"),
            (&["--profile", ""], "--profile needs a value"),
            (
                &["--fail", "alpha.polcy"],
                "`alpha.polcy`, the stages are: foundation.ingest, foundation.features, alpha",
            ),
            (&["--panic", "all"], "`all`"),
            (&["--fail", "alpha.policy", "--help"], "Usage: "),
        ] {
            let text = parse(arguments).expect_err(expected).to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_help_lists_the_stages() {
        assert!(USAGE.contains(&format!("Stages: {}\n", STAGES.join(", "))));
    }
}
