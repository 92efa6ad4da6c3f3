mod selection;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::format::Payload;
use super::names::{self, CORRUPT};
use super::select::{Query, Scope};
use super::store::{Entry, Spool, WriteState, Written};
use super::{lock, names::FileName};
use crate::Pushgateway;
use crate::delivery::event::DeliveryEvent;
use crate::delivery::pushgateway::{EncodedState, PushFormat};
use crate::error::{Error, Kind};

const URL: &str = "http://gw:9091";

fn spool(directory: &tempfile::TempDir) -> Spool {
    Spool::open(directory.path().join("a/b"), "x").unwrap()
}

fn gateway(job: &str) -> Pushgateway {
    Pushgateway::new(URL, job).unwrap().with_grouping_label("profile", "a/b ü").unwrap()
}

fn payload(spool: &Spool, job: &str, text: &str) -> Payload {
    spool.payload(&gateway(job), EncodedState::of_text(text, PushFormat::Text))
}

/// The state of a write after its push.
fn delivered() -> WriteState {
    WriteState { is_delivered: true.into(), ..WriteState::default() }
}

fn write_as(spool: &Spool, payload: &Payload) -> Written {
    spool.write(payload, &WriteState::default()).unwrap()
}

fn write(spool: &Spool, job: &str, text: &str) -> PathBuf {
    spool.path(&write_as(spool, &payload(spool, job, text)).entry.unwrap().name)
}

fn select(spool: &Spool, own_job: &str, scope: Scope) -> Option<Entry> {
    spool.next(&Query::new(&gateway(own_job), scope))
}

fn next(spool: &Spool) -> Option<Entry> {
    select(spool, "own", Scope::OtherGroups)
}

fn names_in(spool: &Spool) -> Vec<String> {
    let entries = fs::read_dir(&spool.directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn payloads_come_back_oldest_first() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let payloads = [payload(&spool, "one", "a 1\n"), payload(&spool, "two", "b 2\n\nc 3\n")];
    payloads.iter().for_each(|payload| drop(write_as(&spool, payload)));
    assert_eq!(spool.len(), 2);
    let first = next(&spool).unwrap();
    let second = next(&spool).unwrap();
    assert_eq!([first.payload.clone(), second.payload.clone()], payloads);
    assert!(next(&spool).is_none());
    assert!(spool.remove(&first));
    let refused = Error::new(Kind::Refused(400), "refused");
    assert!(spool.refuse(&[second], &refused));
    assert!(matches!(spool.take_notices()[..], [DeliveryEvent::ReplayRefused(_)]));
    assert_eq!(spool.len(), 0);
    assert!(names_in(&spool)[0].ends_with(".refused"), "{:?}", names_in(&spool));
}

#[test]
fn lock_is_kept_until_the_request_has_a_response() {
    let directory = tempfile::tempdir().unwrap();
    let (mine, other) = (spool(&directory), spool(&directory));
    write(&mine, "one", "a 1\n");
    let entry = next(&mine).unwrap();
    assert!(mine.keep_locked(&entry));
    drop(entry);
    assert!(next(&other).is_none(), "its request may still be applied");
    let retried = next(&mine).expect("this process may try again");
    assert_eq!(&*retried.payload.body, b"a 1\n");
    assert!(!mine.keep_locked(&retried), "kept since the first request");
    drop(retried);
    assert!(next(&other).is_none());
    let last = next(&mine).unwrap();
    mine.release(&last);
    assert!(next(&other).is_none(), "the entry has the lock");
    drop(last);
    assert!(next(&other).is_some());
}

#[test]
fn replay_of_an_earlier_payload_and_the_end_of_a_run_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let (replaying, ending) = (spool(&directory), spool(&directory));
    write(&replaying, "one", "a 1\n");
    let earlier = next(&replaying).unwrap();
    assert!(!replaying.is_run_ending(&earlier.name));
    // The file is kept though the gateway has the payload, since the group is in use.
    let written = ending.write(&payload(&ending, "one", "a 2\n"), &delivered()).unwrap();
    let later = written.entry.unwrap();
    assert!(written.group_in_use && ending.is_group_in_use(&later));
    assert!(replaying.is_run_ending(&earlier.name));
    // A process waits neither for its own file nor for another group.
    let unrelated = write_as(&ending, &payload(&ending, "two", "a 1\n"));
    assert!(!unrelated.group_in_use);
    drop(earlier);
    assert!(!ending.is_group_in_use(&later));
    // The later payload does not wait for the earlier one, which waits for it.
    let second = write_as(&replaying, &payload(&replaying, "one", "a 3\n"));
    assert!(second.group_in_use && !ending.is_group_in_use(&later));
    assert!(!replaying.is_run_ending(&second.entry.unwrap().name), "the ending run is an earlier one");
}

#[test]
fn group_is_in_use_when_another_process_takes_a_released_payload() {
    let directory = tempfile::tempdir().unwrap();
    let (mine, other) = (spool(&directory), spool(&directory));
    write(&mine, "one", "a 1\n");
    drop(next(&mine).unwrap());
    let _theirs = next(&other).unwrap();
    assert!(write_as(&mine, &payload(&mine, "one", "a 2\n")).group_in_use);
}

#[test]
fn file_that_is_being_written_means_that_a_run_ends() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let earlier = write_as(&spool, &payload(&spool, "one", "a 1\n")).entry.unwrap();
    let stem = names::next_stem([earlier.name.as_str()], FileName::parse(&earlier.name).unwrap().group);
    let file = lock::create(&spool.path(&format!(".{stem}.tmp"))).unwrap();
    assert!(!spool.is_run_ending(&earlier.name), "its writer is gone");
    file.lock().unwrap();
    assert!(spool.is_run_ending(&earlier.name));
    let second = write_as(&spool, &payload(&spool, "one", "a 2\n"));
    assert!(!second.group_in_use, "no process delivers an unfinished payload");
}

#[test]
fn delivered_payload_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let written = spool.write(&payload(&spool, "one", "a 1\n"), &delivered()).unwrap();
    assert!(written.entry.is_none() && !written.group_in_use);
    assert_eq!(names_in(&spool), [""; 0]);
}

#[test]
fn payload_lists_the_runs_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let run = |start: u32, job: &str| write(&spool, job, &format!("x_run_start_timestamp_seconds {start}\n"));
    run(30, "one");
    run(10, "two");
    // The clock went back.
    run(20, "one");
    let last = run(25, "one");
    let payload = Payload::parse(fs::read(last).unwrap().into()).unwrap();
    assert_eq!((payload.run_start, payload.follows), (Some(25.0), vec![30.0, 20.0]));
}

#[test]
fn only_payloads_that_were_carried_over_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    for (job, value) in [("own", 5), ("own", 7), ("other", 9)] {
        write(&spool, job, &format!("x_run_last_success_timestamp_seconds {value}\n"));
    }
    let carried = spool.carry_over(&gateway("own"));
    for format in [PushFormat::Text, PushFormat::Protobuf] {
        let state = carried.complete(EncodedState::of_text("a 1\n", format), format);
        let text = state.families.to_text();
        assert!(text.ends_with("\nx_run_last_success_timestamp_seconds 7\n"), "{text}");
        assert_eq!(format.decode(&state.body).unwrap().to_text(), text);
    }
    write(&spool, "own", "later 1\n");
    spool.remove_carried_over(&carried);
    assert_eq!(spool.len(), 2);
    assert_eq!(&*select(&spool, "own", Scope::OwnGroup).unwrap().payload.body, b"later 1\n");
}

#[test]
fn corrupt_files_are_quarantined_and_foreign_ones_are_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    fs::write(spool.directory.join("notes.txt"), "hands off").unwrap();
    let whole = write(&spool, "one", "a 1\n");
    let content = fs::read(&whole).unwrap();
    for cut in 0..content.len() {
        fs::write(&whole, &content[..cut]).unwrap();
        assert!(next(&spool).is_none(), "cut to {cut} bytes");
        let torn = whole.with_extension(CORRUPT);
        assert!(torn.exists() && !whole.exists(), "cut to {cut} bytes");
        fs::remove_file(torn).unwrap();
    }
    let mut changed = content.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&whole, changed).unwrap();
    assert!(next(&spool).is_none());
    assert_eq!(fs::read(spool.directory.join("notes.txt")).unwrap(), b"hands off");
    // A file of a later version of this crate.
    fs::write(&whole, String::from_utf8(content).unwrap().replacen("spool 2\n", "spool 3\n", 1)).unwrap();
    assert!(next(&spool).is_none() && whole.exists());
}

#[test]
fn bounds_hold_and_dropped_payloads_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = spool(&directory);
    spool.set_bounds(3, 10_000);
    for n in 0..5 {
        write(&spool, &format!("job{n}"), "a 1\n");
    }
    assert_eq!((spool.len(), spool.dropped()), (3, 2));
    assert_eq!(next(&spool).unwrap().payload.group.job(), "job2");
    write(&spool, "large", &"a 1\n".repeat(2_499));
    assert_eq!((spool.len(), spool.dropped()), (1, 5));
    let held = next(&spool).unwrap();
    write(&spool, "last", "a 1\n".repeat(1_000).as_str());
    assert_eq!(spool.len(), 2, "a payload that is being sent stays");
    assert!(spool.remove(&held));
    // The writer of these files is gone, and the clock was set forward or back since.
    for (number, age) in [(1, -3_600), (2, 3_600)] {
        let left = File::create(spool.path(&format!(".{number:020}-0-1-1.tmp"))).unwrap();
        let hour = Duration::from_secs(3_600);
        left.set_modified(if age < 0 { SystemTime::now() - hour } else { SystemTime::now() + hour }).unwrap();
    }
    let at_work = format!(".{}.tmp", names::next_stem([], "0"));
    fs::write(spool.path(&at_work), "half").unwrap();
    write(&spool, "after", "a 1\n");
    let temporary: Vec<_> = names_in(&spool).into_iter().filter(|name| name.ends_with(".tmp")).collect();
    assert_eq!(temporary, [at_work], "its writer is about to lock it");
    assert_eq!(spool.dropped(), 5, "an incomplete payload does not count");
}

#[test]
fn eviction_drops_no_more_than_a_payload_needs() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = spool(&directory);
    spool.set_bounds(100, 10_000);
    for n in 0..4 {
        write(&spool, &format!("job{n}"), &"a 1\n".repeat(700));
    }
    // Each payload has 2 800 bytes and its head, so the fourth replaces the first.
    assert_eq!((spool.len(), spool.dropped()), (3, 1));
    write(&spool, "large", &"a 1\n".repeat(1_400));
    assert_eq!((spool.len(), spool.dropped()), (2, 3));
}

#[test]
fn payload_may_be_as_large_as_the_spool() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = spool(&directory);
    spool.set_bounds(100, 8);
    write(&spool, "one", "a 1\nb 2\n");
    let error = spool.write(&payload(&spool, "one", "a 1\nbc 2\n"), &WriteState::default()).unwrap_err();
    assert_eq!(error.to_string(), "a payload of 9 bytes is more than the spool's 8");
    assert_eq!((spool.len(), spool.dropped()), (1, 0));
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_files_and_directory() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let path = write(&spool, "one", "a 1\n");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&spool.directory).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn directory_that_cannot_be_written_is_a_configuration_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Spool::open(file, "x").unwrap_err();
    assert!(error.is_config() && error.to_string().starts_with("cannot write to spool directory "), "{error}");
}

#[test]
fn relative_path_does_not_follow_the_working_directory() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(directory.path().file_name().unwrap()).to_owned();
    let spool = Spool::open(relative.clone(), "x").unwrap();
    assert_eq!(spool.directory, std::env::current_dir().unwrap().join(relative));
}
