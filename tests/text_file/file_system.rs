//! The text file in its file system: other users, links, mount points, concurrent processes, and leftovers of killed
//! ones.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

use super::support::child::{self, Ended, Signal};
use super::support::measured::{Measured, failing_stage, measured, stage};
use super::support::{NodeExporter, exposition, free_addr, servers};

/// Entry point of the child processes, which run in the directory they are started in.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_textfile("job.prom");
    match scenario.as_str() {
        "run" => {
            let (layer, guard) = builder.install().unwrap();
            tracing_subscriber::registry().with(layer).init();
            stage("a");
            guard.shutdown().unwrap();
        }
        "change directory" => {
            let gateway = Pushgateway::new(free_addr().to_string(), "j").unwrap();
            let (_layer, guard) = builder.with_spool_dir("spool").with_pushgateway(gateway).install().unwrap();
            std::env::set_current_dir("/").unwrap();
            assert!(guard.shutdown().is_err(), "no server accepts the push");
        }
        "install" => println!("\nthe error: {}", builder.install().unwrap_err()),
        // Exceeds the file size limit, so the system kills the process in the middle of the write.
        "write too much" => {
            let large = series_of(1 << 20);
            let (_layer, guard) = builder.with_exposition(move || large.clone()).build().unwrap();
            let _ = guard.flush();
            unreachable!("the file size limit did not apply");
        }
        unknown => panic!("no scenario {unknown}"),
    }
}

/// One series with a label value of this many bytes.
fn series_of(size: usize) -> String {
    format!("rows{{text=\"{}\"}} 1\n", "x".repeat(size))
}

#[track_caller]
fn run(directory: &Path, scenario: &str, shell: &str) -> Ended {
    let mut command = child::command("file_system::scenarios", scenario);
    command.current_dir(directory);
    let mut outer = Command::new("sh");
    outer.args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")]);
    child::wrap(&mut outer, &command);
    let ended = child::start(outer).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    ended
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory that every user can read.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    directory
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

/// Cron jobs and hardened services have such a umask.
#[test]
fn text_file_is_readable_by_others_whatever_the_umask() {
    let directory = directory();
    let path = directory.path().join("job.prom");
    for existing_mode in [None, Some(0o644), Some(0o640), Some(0o600)] {
        if let Some(mode) = existing_mode {
            set_mode(&path, mode);
        }
        run(directory.path(), "run", "umask 077");
        assert_eq!(mode(&path), existing_mode.unwrap_or(0o644));
        assert_eq!(names(directory.path()), std::slice::from_ref(&path));
    }
}

#[test]
fn node_exporter_of_another_user_reads_the_text_file_through_a_link() {
    if !servers::installed(servers::NODE_EXPORTER) {
        return;
    }
    let (collected, job) = (directory(), directory());
    let target = collected.path().join("quant.prom");
    symlink(&target, job.path().join("job.prom")).unwrap();
    let exporter = NodeExporter::start_as_another_user(collected.path());
    run(job.path(), "run", "umask 077");
    let exposition = exposition::parse(&exporter.metrics());
    assert_eq!(exposition.expect("node_textfile_scrape_error", &[]), 0.0);
    let stages = exposition.matching("quant_stage_total", &[("stage_id", "a"), ("status", "success")]);
    assert_eq!(stages.iter().map(|sample| sample.value).collect::<Vec<_>>(), [1.0]);
    assert!(job.path().join("job.prom").is_symlink());
    // An existing mode is kept. Only then can the test tell that the exporter runs as another user.
    set_mode(&target, 0o600);
    run(job.path(), "run", "umask 022");
    let readable = rustix::process::geteuid().is_root();
    let error = exposition::parse(&exporter.metrics()).expect("node_textfile_scrape_error", &[]);
    assert_eq!(error == 1.0, readable, "the exporter runs as this user, unless this is root");
}

#[test]
fn relative_paths_refer_to_the_directory_at_install() {
    let directory = directory();
    run(directory.path(), "change directory", ":");
    let spool = directory.path().join("spool");
    assert_eq!(names(directory.path()), [directory.path().join("job.prom"), spool.clone()]);
    let [payload] = &names(&spool)[..] else { panic!("{:?}", names(&spool)) };
    assert_eq!(payload.extension().unwrap(), "spool");
}

#[test]
fn link_of_another_user_is_a_config_error() {
    let directory = directory();
    let (link, victim) = (directory.path().join("job.prom"), directory.path().join("victim"));
    fs::write(&victim, "of value").unwrap();
    symlink(&victim, &link).unwrap();
    if !rustix::process::geteuid().is_root() {
        servers::left_out("only root can create a link of another user");
        return;
    }
    lchown(&link, Some(12_345), None).unwrap();
    let error = MetricsLayer::builder().with_textfile(&link).build().unwrap_err();
    assert!(error.is_config());
    assert_eq!(
        error.to_string(),
        format!(
            "text file {link:?} leads through {link:?}, a symbolic link that belongs to another user (uid 12345): give \
             the path of the file itself"
        )
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "of value");
    lchown(&link, Some(0), None).unwrap();
    let Measured { guard, log: _, default: _default } = measured(MetricsLayer::builder().with_textfile(&link));
    guard.shutdown().unwrap();
    assert!(fs::read_to_string(&victim).unwrap().contains("quant_run_duration_seconds"), "root's link is followed");
}

/// A container may mount a single file.
#[test]
fn mount_point_is_a_config_error() {
    let directory = directory();
    for name in ["job.prom", "outside"] {
        fs::write(directory.path().join(name), "of before\n").unwrap();
    }
    let probe = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        servers::left_out("mounting is not permitted");
        return;
    }
    let mut command = child::command("file_system::scenarios", "install");
    command.current_dir(directory.path());
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", "mount --bind outside job.prom && exec \"$0\" \"$@\""]);
    child::wrap(&mut outer, &command);
    let ended = child::start(outer).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let path = directory.path().join("job.prom");
    let text = format!(
        "the error: text file {path:?} is a mount point, which cannot be replaced: mount its directory instead, and give \
         the path of a file in it\n"
    );
    assert!(ended.stdout.contains(&text), "{ended:?}");
}

/// Another user could plant a link or a FIFO if the name of the temporary file were predictable.
#[test]
fn planted_temporary_files_are_ignored() {
    let directory = directory();
    let path = directory.path().join("job.prom");
    let (planted, victim) =
        (directory.path().join(format!(".job.prom.{}.tmp", std::process::id())), directory.path().join("victim"));
    fs::write(&victim, "of value").unwrap();
    symlink(&victim, &planted).unwrap();
    let Measured { guard, log, default: _default } = measured(MetricsLayer::builder().with_textfile(&path));
    guard.flush().unwrap();
    fs::remove_file(&planted).unwrap();
    assert!(Command::new("mkfifo").arg(&planted).status().unwrap().success());
    guard.shutdown().unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "of value");
    assert!(path.metadata().unwrap().is_file());
    assert_eq!(log.own(), [""; 0]);
}

/// Two containers on one volume have the same process id, and may get the same file by mistake.
#[test]
fn writers_with_the_same_process_id_do_not_interfere() {
    let directory = directory();
    let path = directory.path().join("job.prom");
    let large = series_of(1 << 20);
    let guards = [(); 2].map(|()| {
        let large = large.clone();
        MetricsLayer::builder().with_textfile(&path).with_exposition(move || large.clone()).build().unwrap().1
    });
    guards[0].flush().unwrap();
    std::thread::scope(|scope| {
        let writers = guards.each_ref().map(|guard| scope.spawn(|| (0..50).for_each(|_| guard.flush().unwrap())));
        let mut reads = 0;
        while reads == 0 || !writers.iter().all(|writer| writer.is_finished()) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(&large), "{} bytes", text.len());
            reads += 1;
        }
    });
    drop(guards);
    assert_eq!(names(directory.path()), [path]);
}

/// A young temporary file may belong to a running process in another container.
#[test]
fn leftover_of_a_killed_process_is_removed_once_old() {
    let directory = directory();
    let path = directory.path().join("job.prom");
    let temporaries = || names(directory.path()).into_iter().filter(|name| *name != path).collect::<Vec<_>>();
    let mut outer = Command::new("sh");
    outer.args(["-c", "ulimit -f 64; exec \"$0\" \"$@\""]);
    let mut command = child::command("file_system::scenarios", "write too much");
    command.current_dir(directory.path());
    child::wrap(&mut outer, &command);
    let ended = child::start(outer).wait();
    assert_eq!(ended.status.signal(), Some(Signal::XFSZ.as_raw()), "{ended:?}");
    let leftovers = temporaries();
    assert_eq!(leftovers.len(), 1, "{leftovers:?}");

    let install = || {
        let (_layer, guard) = MetricsLayer::builder().with_textfile(&path).build().unwrap();
        guard.shutdown().unwrap();
    };
    install();
    assert_eq!(temporaries(), leftovers);
    let old = SystemTime::now() - Duration::from_secs(3_600);
    File::options().write(true).open(&leftovers[0]).unwrap().set_modified(old).unwrap();
    install();
    assert_eq!(temporaries(), [""; 0].map(PathBuf::from));
}

/// Each file carries its job and grouping, so that the collector keeps the series apart.
#[test]
fn jobs_of_one_node_do_not_collide() {
    if !servers::installed(servers::NODE_EXPORTER) {
        return;
    }
    let directory = directory();
    let exporter = NodeExporter::start_as_another_user(directory.path());
    let gateway = |job: &str, profile: &str| {
        let gateway = Pushgateway::new(free_addr().to_string(), job).unwrap();
        gateway.with_grouping_label("profile", profile).unwrap()
    };
    let jobs = [("nightly", "crypto"), ("nightly", "equities"), ("backup", "crypto")];
    for (job, profile) in jobs {
        let path = directory.path().join(format!("{job}-{profile}.prom"));
        let builder = MetricsLayer::builder().with_textfile(path).with_pushgateway(gateway(job, profile));
        let Measured { guard, log: _, default: _default } = measured(builder);
        match job {
            "backup" => failing_stage("a"),
            _ => stage("a"),
        }
        // The gateway is down, but the file is written.
        assert!(guard.shutdown().is_err());
    }
    let exposition = exposition::parse(&exporter.metrics());
    assert_eq!(exposition.expect("node_textfile_scrape_error", &[]), 0.0);
    let values = |name: &str, job: &str, profile: &str, more: &[(&str, &str)]| {
        let labels = [&[("job", job), ("profile", profile)], more].concat();
        exposition.matching(name, &labels).iter().map(|sample| sample.value).collect::<Vec<_>>()
    };
    for (job, profile) in jobs {
        let has_failed = job == "backup";
        let [run_start] = values("quant_run_start_timestamp_seconds", job, profile, &[])[..] else {
            panic!("no run of {job} with {profile}: {exposition:?}")
        };
        assert!(run_start > 1.7e9);
        assert_eq!(values("quant_run_last_completion_timestamp_seconds", job, profile, &[]).len(), 1);
        let successes = values("quant_run_last_success_timestamp_seconds", job, profile, &[]).len();
        assert_eq!(successes, usize::from(!has_failed), "each job has its own last success");
        let failures = values("quant_stage_total", job, profile, &[("stage_id", "a"), ("status", "failure")]);
        assert_eq!(failures, [f64::from(u8::from(has_failed))]);
    }
}
