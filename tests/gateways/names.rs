//! Gateways by name, where no thread is to be had for the lookup of the name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_stage_metrics::Pushgateway;

use super::builder;
use super::support::measured::{Measured, measured};
use super::support::{MockGateway, child};

/// More than the library needs, and less than the stack of a thread.
const MEMORY: u64 = 1 << 20;

/// Does this while the process cannot start a thread, for want of memory for its stack. A limit on the number of threads
/// does not hold for the superuser.
fn without_threads<T>(work: impl FnOnce() -> T) -> T {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let unlimited = getrlimit(Resource::As);
    let limited = Rlimit { current: Some(pages * rustix::param::page_size() as u64 + MEMORY), ..unlimited };
    setrlimit(Resource::As, limited).unwrap();
    // Stacks of threads that have ended are there for new ones.
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

/// Not a test: what the child of the test below does.
#[test]
fn scenarios() {
    let Some(url) = child::scenario() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gateway = Pushgateway::new(url, "j").unwrap();
    let push = || runtime.block_on(gateway.push_add("x 1\n"));
    println!("\npush without threads: {:?}", without_threads(push));
    println!("push: {:?}", push());

    // A name that is unknown is looked up for every push.
    let builder = builder("nonexistent.invalid").with_flush_timeout(Duration::from_millis(700));
    let Measured { guard, log: _, default: _default } = measured(builder);
    println!("flush without threads: {:?}", without_threads(|| guard.flush()));
    println!("flush: {:?}", guard.flush());
}

#[test]
fn without_a_thread_for_the_lookup_a_push_is_an_error_and_the_next_one_arrives() {
    let server = MockGateway::ok();
    let url = format!("localhost:{}", server.addr().port());
    let ended = child::start(child::command("names::scenarios", &url)).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let said = |what: &str| ended.stdout.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    let expected = format!("Err(POST http://{url}/metrics/job/j failed: the name of its host could not be looked up: ");
    assert!(said("push without threads: ").starts_with(&expected), "{ended:?}");
    assert!(said("push without threads: ").contains("cannot start a thread for the lookup: "), "{ended:?}");
    assert_eq!(said("push: "), "Ok(())");
    assert_eq!(server.requests().len(), 1);
    assert!(said("flush without threads: ").contains("the name of its host could not be looked up"), "{ended:?}");
    assert!(said("flush: ").contains("the name of its host is unknown"), "{ended:?}");
}
