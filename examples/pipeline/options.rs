//! The command line.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use lexopt::prelude::*;

use crate::momentum::{Job, STAGES};

const USAGE: &str = "\
Volatility-weighted momentum over S&P 500, NASDAQ and crude oil, against buy and hold.

Usage: pipeline [OPTIONS]

  --data PATH       prices, `date,symbol,close`     [examples/data/daily_closes.csv]
  --textfile PATH   text file for the metrics       [TV_PROMETHEUS_TEXTFILE, or beside the executable]
  --profile NAME    label `profile`                 [multi_asset_daily]
  --run-id ID       label `run_id`                  [the time in UTC, YYYYMMDD-HHMMSS]
  --fail STAGE      let this stage return an error
  --panic STAGE     let this stage panic
  -h, --help        print this

Stages: foundation.ingest, foundation.features, alpha.inference, alpha.policy, risk.optimize, allocation.simulate

TV_PROMETHEUS_PUSHGATEWAY=http://HOST:9091 pushes the metrics as well. RUST_LOG filters the log.";

/// Returns the job and the path of the text file.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<(Job, PathBuf)> {
    let (mut job, mut textfile) = (Job::default(), default_textfile());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("data") => job.data = value(&mut parser, "--data")?.into(),
            Long("textfile") => textfile = value(&mut parser, "--textfile")?.into(),
            Long("profile") => job.profile = value(&mut parser, "--profile")?.string()?,
            Long("run-id") => job.run_id = value(&mut parser, "--run-id")?.string()?,
            Long("fail") => _ = job.faults.fail.insert(stage(parser.value()?)?),
            Long("panic") => _ = job.faults.panic.insert(stage(parser.value()?)?),
            Short('h') | Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    Ok((job, textfile))
}

/// Returns the value of an option. An unset shell variable would make it empty.
fn value(parser: &mut lexopt::Parser, option: &str) -> Result<OsString> {
    let value = parser.value()?;
    ensure!(!value.is_empty(), "missing argument for option '{option}'");
    Ok(value)
}

fn stage(value: OsString) -> Result<String> {
    let stage = value.string()?;
    ensure!(STAGES.contains(&stage.as_str()), "unknown stage `{stage}`, the stages are: {}", STAGES.join(", "));
    Ok(stage)
}

/// Returns the path in the environment, or one beside the executable, where a directory exists.
fn default_textfile() -> PathBuf {
    match env::var_os("TV_PROMETHEUS_TEXTFILE") {
        Some(path) if !path.is_empty() => path.into(),
        _ => env::current_exe().map_or_else(|_| "pipeline.prom".into(), |program| program.with_extension("prom")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<(Job, PathBuf)> {
        super::parse(lexopt::Parser::from_args(arguments))
    }

    #[test]
    fn every_option_is_parsed() {
        let arguments = ["--data", "a.csv", "--textfile", "b.prom", "--profile=c", "--run-id", "d"];
        let faults = ["--fail", "alpha.policy", "--panic", "risk.optimize"];
        let (job, textfile) = parse(&[&arguments[..], &faults].concat()).unwrap();
        assert_eq!((job.data, textfile), (PathBuf::from("a.csv"), PathBuf::from("b.prom")));
        assert_eq!((job.profile.as_str(), job.run_id.as_str()), ("c", "d"));
        assert!(job.faults.fail.iter().eq([faults[1]]) && job.faults.panic.iter().eq([faults[3]]), "{:?}", job.faults);
    }

    #[test]
    fn defaults_and_stages_match_the_help() {
        let (job, _) = parse(&[]).unwrap();
        assert!(job.data.is_file(), "{}", job.data.display());
        assert_eq!((job.profile.as_str(), job.run_id.len(), job.faults), ("multi_asset_daily", 15, Default::default()));
        assert!(USAGE.contains(&format!("Stages: {}\n", STAGES.join(", "))));
    }

    #[test]
    fn errors_name_the_argument() {
        for (arguments, expected) in [
            (&["--quick"][..], "'--quick'"),
            (&["--run-id"], "'--run-id'"),
            (&["--profile", ""], "'--profile'"),
            (
                &["--fail", "alpha.polcy"],
                "`alpha.polcy`, the stages are: foundation.ingest, foundation.features, alpha",
            ),
            (&["--panic", "all"], "`all`"),
        ] {
            let error = parse(arguments).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
