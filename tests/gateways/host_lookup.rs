//! The lookup of the gateway's host name in a process that cannot start a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_stage_metrics::Pushgateway;

use super::builder;
use super::support::measured::{Measured, measured};
use super::support::{MockGateway, child};

/// Enough memory for the library, but not for the stack of a thread.
const MEMORY: u64 = 1 << 20;

/// Calls `work` while the process has no memory for the stack of a new thread. A limit on the number of threads would
/// not apply to the superuser.
fn without_threads<T>(work: impl FnOnce() -> T) -> T {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let unlimited = getrlimit(Resource::As);
    let limited = Rlimit { current: Some(pages * rustix::param::page_size() as u64 + MEMORY), ..unlimited };
    setrlimit(Resource::As, limited).unwrap();
    // Uses up the cached stacks of threads that have ended.
    let done = Arc::<AtomicBool>::default();
    let hold = |done: Arc<AtomicBool>| {
        while !done.load(Ordering::Acquire) {
            std::thread::park();
        }
    };
    let spawn = || {
        let done = Arc::clone(&done);
        std::thread::Builder::new().spawn(move || hold(done)).ok()
    };
    let holding: Vec<_> = std::iter::from_fn(spawn).collect();
    let result = work();
    setrlimit(Resource::As, unlimited).unwrap();
    done.store(true, Ordering::Release);
    for thread in holding {
        thread.thread().unpark();
        thread.join().unwrap();
    }
    result
}

/// Not a test: the scenario of the child process.
#[test]
fn scenarios() {
    let Some(url) = child::scenario() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gateway = Pushgateway::new(url, "j").unwrap();
    let push = || runtime.block_on(gateway.push_add("x 1\n"));
    println!("\npush without threads: {:?}", without_threads(push));
    println!("push: {:?}", push());

    // Every push looks up an unknown name again.
    let builder = builder("nonexistent.invalid").with_flush_timeout(Duration::from_millis(700));
    let Measured { guard, log: _, default: _default } = measured(builder);
    println!("flush without threads: {:?}", without_threads(|| guard.flush()));
    println!("flush: {:?}", guard.flush());
}

#[test]
fn failed_lookup_thread_fails_that_push_alone() {
    let server = MockGateway::ok();
    let url = format!("localhost:{}", server.addr().port());
    let ended = child::start(child::command("host_lookup::scenarios", &url)).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let line = |prefix: &str| ended.stdout.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default();
    let expected = format!("Err(POST http://{url}/metrics/job/j failed: the name of its host could not be looked up: ");
    assert!(line("push without threads: ").starts_with(&expected), "{ended:?}");
    assert!(line("push without threads: ").contains("cannot start a thread for the lookup: "), "{ended:?}");
    assert_eq!(line("push: "), "Ok(())");
    assert_eq!(server.requests().len(), 1);
    assert!(line("flush without threads: ").contains("the name of its host could not be looked up"), "{ended:?}");
    assert!(line("flush: ").contains("the name of its host is unknown"), "{ended:?}");
}
