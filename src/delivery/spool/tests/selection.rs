//! The choice of the payload that is delivered next.

use super::*;

#[test]
fn payloads_behind_a_locked_one_of_their_group_wait() {
    let directory = tempfile::tempdir().unwrap();
    let (mine, other) = (spool(&directory), spool(&directory));
    for job in ["one", "two", "one"] {
        write(&mine, job, "a 1\n");
    }
    let first = next(&mine).unwrap();
    let second = next(&other).unwrap();
    assert_eq!((first.payload.group.job(), second.payload.group.job()), ("one", "two"));
    assert!(other.remove(&second));
    assert!(next(&other).is_none(), "the second of one is behind the first");
    mine.skip_group(&first.name);
    drop(first);
    assert!(next(&mine).is_none(), "the group is skipped");
    let first = next(&other).unwrap();
    let query = Query::new(&gateway("own"), Scope::OtherGroups);
    let behind = other.next_behind(&first.name, &query).expect("it is behind");
    assert_eq!(behind.payload.group.job(), "one");
    assert!(other.remove(&first));
    assert!(other.next_behind(&behind.name, &query).is_none());
}

/// Without file locks, only this process knows which files it works with.
#[test]
fn payload_in_use_is_not_selected_again() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    for job in ["one", "one", "two"] {
        write(&spool, job, "a 1\n");
    }
    let held = next(&spool).unwrap();
    held.file.unlock().unwrap();
    assert_eq!(next(&spool).unwrap().payload.group.job(), "two");
    drop(held);
    assert_eq!(next(&spool).unwrap().payload.group.job(), "one");
}

#[test]
fn group_of_an_undeletable_payload_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let path = write(&spool, "one", "a 1\n");
    let entry = next(&spool).unwrap();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(!spool.remove_or_skip(&entry));
    write(&spool, "one", "a 2\n");
    assert!(next(&spool).is_none());
}

#[test]
fn scope_selects_the_own_group_or_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    for job in ["own", "other", "own"] {
        write(&spool, job, "a 1\n");
    }
    assert_eq!(next(&spool).unwrap().payload.group.job(), "other");
    assert_eq!(select(&spool, "own", Scope::OwnGroup).unwrap().payload.group.job(), "own");
    let held = next(&spool).unwrap();
    assert!(next(&spool).is_none());
    drop(held);
    assert!(select(&spool, "third", Scope::OwnGroup).is_none());
}

#[test]
fn group_with_the_hash_of_the_own_group_is_another_group() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let path = write(&spool, "other", "a 1\n");
    let [own, other] = ["own", "other"].map(|job| names::group_hash(gateway(job).grouping()));
    let name = path.file_name().unwrap().to_str().unwrap();
    fs::rename(&path, path.with_file_name(name.replace(&other, &own))).unwrap();
    assert!(select(&spool, "own", Scope::OwnGroup).is_none());
    assert!(spool.carry_over(&gateway("own")).names().is_empty());
    assert_eq!(spool.len(), 1);
}

#[test]
fn payload_for_another_gateway_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(&directory);
    let mut for_other = payload(&spool, "one", "a 1\n");
    for_other.gateway = Some("http://other:9091".to_owned());
    write_as(&spool, &for_other);
    write(&spool, "one", "a 2\n");
    for _ in 0..2 {
        assert_eq!(&*next(&spool).unwrap().payload.body, b"a 2\n");
    }
    assert_eq!(spool.carry_over(&gateway("one")).names().len(), 1);
    assert_eq!(spool.len(), 2);
}

#[test]
fn locked_and_removed_files_are_not_selected() {
    let directory = tempfile::tempdir().unwrap();
    let (mine, other) = (spool(&directory), spool(&directory));
    write(&mine, "one", "a 1\n");
    let held = next(&mine).unwrap();
    assert!(next(&other).is_none(), "locked");
    drop(held);
    let held = next(&other).unwrap();
    // One process opens the file while the other holds it, and the other removes it before it releases the lock.
    let late = File::open(other.path(&held.name)).unwrap();
    assert!(other.remove(&held));
    let path = other.path(&held.name);
    drop(held);
    late.try_lock().unwrap();
    assert!(!lock::is_at(&late, &path));
    fs::write(&path, "another file of that name").unwrap();
    assert!(!lock::is_at(&late, &path));
    assert!(lock::is_at(&File::open(&path).unwrap(), &path));
    fs::remove_file(&path).unwrap();
    assert!(next(&mine).is_none());
}
