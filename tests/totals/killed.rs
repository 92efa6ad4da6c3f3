//! Runs that are killed count as failed, once.

use tracing_subscriber::prelude::*;

use super::support::child::{self, Signal};
use super::support::measured::stage;
use super::{builder, run, shown, support, totals};

/// Not a test: the scenario of the child processes.
#[test]
fn scenarios() {
    let Some(url) = child::scenario() else { return };
    let (layer, guard) = builder(&url).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    stage("a");
    guard.flush().unwrap();
    println!("pushed");
    loop {
        std::thread::park();
    }
}

#[test]
fn killed_run_is_counted_as_failed_by_the_next_one() {
    let Some(server) = support::pushgateway() else { return };
    let kill = || {
        let mut running = child::start(child::command("killed::scenarios", &server.url()));
        running.await_line("pushed");
        running.signal(Signal::KILL);
        running.wait();
    };
    kill();
    assert_eq!(totals(&server), Some(shown([0, 0], [1, 0])));
    kill();
    assert_eq!(totals(&server), Some(shown([0, 1], [2, 0])));
    assert!(run(builder(&server.url()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([1, 2], [3, 0])));
    assert!(run(builder(&server.url()), &["a"], &[]));
    assert_eq!(totals(&server), Some(shown([2, 2], [4, 0])), "a run that ended is not counted again");
}
