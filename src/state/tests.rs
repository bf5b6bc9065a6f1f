use super::*;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;
use tempfile::TempDir;

fn applied(policy: &str) -> Applied {
    Applied {
        time: 1_790_000_000,
        user: "root (logged in as alice)".to_owned(),
        cause: "a reload was asked for".to_owned(),
        host: "console".to_owned(),
        policy: policy.to_owned(),
        catalogue: None,
    }
}

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path().join("state"));
    (folder, store)
}

#[track_caller]
fn assert_damaged<T: std::fmt::Debug>(result: Result<T, Error>, expected: &Damage) {
    match result {
        Err(Error::Damaged { damage, .. }) => assert_eq!(&damage, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_store_holds_nothing() {
    let (_folder, store) = store();
    assert_eq!(store.last_good().unwrap(), None);
    assert_eq!(store.trial().unwrap(), None);
    assert_eq!(store.fail_safe().unwrap(), None);
    assert!(store.history().unwrap().is_empty());
    store.clear_trial().unwrap();
    assert!(!store.folder().exists(), "reading makes nothing");
}

#[test]
fn the_last_ten_are_kept_and_the_newest_is_the_last_good_one() {
    let (_folder, store) = store();
    for number in 0..25 {
        let mut applied = applied(&format!("number = {number}\n"));
        applied.catalogue = (number % 2 == 0).then(|| format!("# catalogue {number}"));
        assert!(store.record(&applied).unwrap());
        assert!(!store.record(&applied).unwrap(), "the same again is no news");
        assert_eq!(store.last_good().unwrap(), Some(applied));
    }
    let history = store.history().unwrap();
    assert_eq!(history.iter().map(|entry| entry.number).collect::<Vec<_>>(), (16..=25).rev().collect::<Vec<_>>());
    let policies: Vec<_> = history.iter().map(|entry| entry.applied.as_ref().unwrap().policy.clone()).collect();
    assert_eq!(policies[0], "number = 24\n");
    assert_eq!(policies[9], "number = 15\n");
    assert_eq!(fs::read_dir(store.folder()).unwrap().count(), KEPT + 1, "nothing unfinished is left");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(store.folder()), mode(&history[0].path)), (0o700, 0o600));
}

#[test]
fn a_policy_that_returns_is_news_again() {
    let (_folder, store) = store();
    for policy in ["a", "b", "a"] {
        assert!(store.record(&applied(policy)).unwrap());
    }
    assert_eq!(store.history().unwrap().len(), 3);
}

#[test]
fn the_hash_is_that_of_the_file() {
    // printf 'format = 1\n' | sha256sum
    let expected = "a1af1bccf46862c1ce45d1064094b00a0808329540e06a44bcedd8c921849f1e";
    assert_eq!(applied("format = 1\n").hash(), expected);
}

#[test]
fn what_was_damaged_is_told_and_replaced_by_the_next() {
    let (_folder, store) = store();
    store.record(&applied("first")).unwrap();
    store.record(&applied("second")).unwrap();
    let path = store.folder().join(LAST_GOOD);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_damaged(store.last_good(), &Damage::Checksum);
    let history = store.history().unwrap();
    assert!(history[0].applied.is_err(), "the newest entry is the same file");
    assert_eq!(history[1].applied.as_ref().unwrap().policy, "first");
    assert!(store.record(&applied("second")).unwrap());
    assert_eq!(store.last_good().unwrap().unwrap().policy, "second");
    assert_eq!(store.history().unwrap().len(), 3);
}

#[test]
fn modes_and_links_are_looked_at() {
    let (folder, store) = store();
    store.record(&applied("policy")).unwrap();
    let path = store.folder().join(LAST_GOOD);
    fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
    assert_damaged(store.last_good(), &Damage::Mode(0o604));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(store.last_good().is_ok());

    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_damaged(store.last_good(), &Damage::NotAFile("a symbolic link"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_damaged(store.last_good(), &Damage::NotAFile("a directory"));
    fs::remove_dir(&path).unwrap();
    fs::rename(&elsewhere, &path).unwrap();

    // Somebody who may write to the folder could bring back an old file.
    fs::set_permissions(store.folder(), Permissions::from_mode(0o770)).unwrap();
    assert_damaged(store.last_good(), &Damage::Mode(0o770));
    assert_damaged(store.record(&applied("other")), &Damage::Mode(0o770));
    fs::set_permissions(store.folder(), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_trial_comes_and_goes() {
    let (_folder, store) = store();
    let pending = Pending {
        time: 7,
        user: "root".to_owned(),
        label: "/tmp/new.toml".to_owned(),
        policy: "\n\nformat = 1\n".to_owned(),
    };
    store.set_trial(&pending).unwrap();
    assert_eq!(store.trial().unwrap(), Some(pending));
    // Renaming makes no policy of it that would be enforced after a boot.
    fs::copy(store.folder().join(TRIAL), store.folder().join(LAST_GOOD)).unwrap();
    assert_damaged(store.last_good(), &Damage::Format);
    store.clear_trial().unwrap();
    assert_eq!(store.trial().unwrap(), None);
    store.clear_trial().unwrap();
}

#[test]
fn the_fail_safe_is_read_as_it_was_written() {
    let (_folder, store) = store();
    let networks = ["192.0.2.0/26", "192.0.2.200/32", "2001:db8::/64"];
    for (mode, fail, admins) in [
        (Mode::Enforce, Fail::Closed, &networks[..]),
        (Mode::Observe, Fail::Open, &networks[..1]),
        (Mode::Enforce, Fail::Open, &[]),
    ] {
        let admins = admins.iter().map(|network| network.parse().unwrap()).collect();
        let fail_safe = FailSafe { host: "console".to_owned(), mode, fail, admins };
        store.set_fail_safe(&fail_safe).unwrap();
        assert_eq!(store.fail_safe().unwrap(), Some(fail_safe));
    }
}

#[test]
fn concurrent_writers_leave_whole_files() {
    let (_folder, store) = store();
    thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..15 {
                    store.record(&applied(&format!("writer {writer} number {number}\n").repeat(200))).unwrap();
                }
            });
        }
        // A reader finds a whole file at any time.
        scope.spawn(|| {
            for _ in 0..200 {
                store.last_good().unwrap();
            }
        });
    });
    let history = store.history().unwrap();
    assert_eq!(history.len(), KEPT);
    assert_eq!(history[0].number, 60);
    for entry in &history {
        entry.applied.as_ref().unwrap();
    }
    assert_eq!(store.last_good().unwrap(), history.into_iter().next().unwrap().applied.ok());
}

#[test]
fn foreign_names_are_no_entries() {
    let (_folder, store) = store();
    store.record(&applied("policy")).unwrap();
    for name in ["applied-", "applied-+7", "applied-1", "applied-99999999999999999999999", "applied-x", ".unfinished"] {
        fs::write(store.folder().join(name), "x").unwrap();
    }
    assert_eq!(store.history().unwrap().len(), 1);
    // The highest number that there can be ends in an error, not in a panic.
    fs::write(store.folder().join(file_name(u64::MAX)), "x").unwrap();
    assert!(store.record(&applied("next")).is_err());
}

#[test]
fn where_nothing_can_be_written_the_old_stays() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let store = Store::new(folder.path().join("file/state"));
    assert!(matches!(store.record(&applied("policy")), Err(Error::System { .. })));
    assert!(matches!(Store::new("/proc/portward").record(&applied("policy")), Err(Error::System { .. })));
}
