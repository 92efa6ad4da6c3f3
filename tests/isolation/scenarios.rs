//! The scenarios of the child processes: each blocks a resource that the crate needs.

use std::io::Write as _;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getpid, kill_process, setrlimit, waitpid};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::support::child;

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// Not a test: the scenarios of the child processes.
#[test]
fn run_scenario() {
    let Some(scenario) = child::scenario() else { return };
    match scenario.as_str() {
        "stdout locked" => stdout_locked(),
        "log blocks" => log_blocks(),
        "report waits" => report_waits(),
        "pipe full" => pipe_full(),
        "recorder locked" => recorder_locked(),
        "no file handles" => no_file_handles(),
        "fork" => fork(),
        "fork with signals" => fork_with_signals(),
        unknown => panic!("unknown scenario: {unknown}"),
    }
}

fn stdout_locked() {
    let (layer, _guard) = MetricsLayer::builder().with_env().unwrap().with_flush_on_signals().install().unwrap();
    tracing_subscriber::registry().with(layer).with(tracing_subscriber::fmt::layer()).init();
    let _open = tracing::info_span!("work", stage_id = "open").entered();
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "blocked").unwrap();
    park()
}

/// The main thread holds the lock of stdout while an event of the crate waits for it.
fn log_blocks() {
    let (layer, _guard) = MetricsLayer::builder().with_env().unwrap().with_flush_on_signals().install().unwrap();
    let (sender, is_writing) = sync_channel(1);
    let writer = move || {
        let _ = sender.try_send(());
        std::io::stdout()
    };
    let mut stdout = std::io::stdout().lock();
    tracing_subscriber::registry().with(layer).with(tracing_subscriber::fmt::layer().with_writer(writer)).init();
    let _open = tracing::info_span!("work", stage_id = "open").entered();
    is_writing.recv().unwrap();
    writeln!(stdout, "blocked").unwrap();
    park()
}

fn report_waits() {
    let lock = Arc::new(Mutex::new(()));
    let lock_of_report = Arc::clone(&lock);
    let builder = MetricsLayer::builder().with_env().unwrap().with_flush_on_signals();
    let report = move |_| drop(lock_of_report.lock());
    let (layer, _guard) = builder.with_run_report(report).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    let _open = tracing::info_span!("work", stage_id = "open").entered();
    let _held = lock.lock();
    println!("blocked");
    park()
}

fn pipe_full() {
    let (_reader, writer) = std::io::pipe().unwrap();
    // The capacity of a pipe.
    (&writer).write_all(&vec![b'x'; 64 * 1024]).unwrap();
    let (layer, guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_writer(Mutex::new(writer));
    tracing_subscriber::registry().with(layer).with(log).init();
    let _open = tracing::info_span!("work", stage_id = "open");
    println!("shutdown: {:?}", guard.shutdown());
    // The delivery thread still holds the lock of the writer: a further event of this process would block.
    std::process::exit(0);
}

fn recorder_locked() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let lock = Arc::new(Mutex::new(()));
    let lock_of_render = Arc::clone(&lock);
    let render = move || {
        drop(lock_of_render.lock());
        recorder.render()
    };
    let (layer, guard) = MetricsLayer::builder().with_env().unwrap().with_exposition(render).install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    metrics::counter!("rows_total").increment(7);
    guard.flush().unwrap();
    let held = lock.lock();
    println!("blocked");
    println!("shutdown: {:?}", guard.shutdown());
    drop(held);
}

fn no_file_handles() {
    // Open descriptors stay open; the process cannot open others.
    let limit = Rlimit { current: Some(3), maximum: Some(3) };
    let builder = MetricsLayer::builder().with_env().unwrap();
    setrlimit(Resource::Nofile, limit).unwrap();
    println!("install: {:?}", builder.install().map(|_| ()).unwrap_err());
}

fn fork() {
    let (layer, guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    guard.flush().unwrap();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            println!("flush: {}", guard.flush().unwrap_err());
            println!("shutdown: {}", guard.shutdown().unwrap_err());
            std::process::exit(0);
        }
        fork::Fork::Parent(child) => {
            waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap();
            std::process::exit(0);
        }
    }
}

fn fork_with_signals() {
    let with_signals = || MetricsLayer::builder().with_env().unwrap().with_flush_on_signals();
    let (_layer, guard) = with_signals().install().unwrap();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            println!("second guard: {}", with_signals().build().unwrap_err());
            // A signal to a process with one thread is handled before the call returns.
            kill_process(getpid(), Signal::TERM).unwrap();
            println!("the fork survives a signal");
            kill_process(getpid(), Signal::TERM).unwrap();
            println!("the fork survives two signals");
            std::process::exit(0);
        }
        fork::Fork::Parent(child) => {
            let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
            println!("the fork ended by signal {:?}", status.terminating_signal());
            println!("flush: {:?}", guard.flush());
        }
    }
}
