//! Watching files that people, editors and configuration management replace in every possible way.
//!
//! What is watched is the way to the file rather than the file: every folder on it that holds a symbolic link, and the
//! folder that holds the file at its end. So a rename over the file, a link that is switched (at any place of the
//! chain), and a folder that disappears are all seen. Where a part of the way is missing, the nearest folder that
//! exists is watched until the part returns. inotify does not see everything (network file systems, the rename of a
//! folder further up), so the way is also walked every two seconds.
//!
//! A change is reported when it has settled. Whether the content differs is for the reader to find out.

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, INotifyWatcher, RecursiveMode, Watcher as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::{debug, warn};

/// How long nothing may happen before a change counts as settled.
const QUIET: Duration = Duration::from_millis(100);
/// How long a change may go on before it is reported although it has not settled.
const LONGEST: Duration = Duration::from_secs(1);
/// How often the way is walked without any event.
const POLL: Duration = Duration::from_secs(2);
/// Links that are followed before the way counts as a loop (`MAXSYMLINKS`, linux/namei.h).
const MOST_LINKS: usize = 40;

/// Watches some files.
pub(super) struct Watcher {
    files: Vec<PathBuf>,
    notifier: Option<INotifyWatcher>,
    happened: Arc<Notify>,
    /// What an event must be about; shared with the thread that reads them.
    relevant: Arc<RwLock<BTreeSet<PathBuf>>>,
    folders: BTreeMap<PathBuf, Identity>,
    ends: Vec<Option<Stamp>>,
}

impl Watcher {
    /// Begins to watch these files, which need not exist.
    ///
    /// # Errors
    ///
    /// A relative path when there is no current folder.
    pub(super) fn new(files: &[PathBuf]) -> io::Result<Self> {
        let files = files.iter().map(std::path::absolute).collect::<io::Result<Vec<_>>>()?;
        let happened = Arc::new(Notify::new());
        let relevant = Arc::new(RwLock::new(BTreeSet::new()));
        let notifier = new_notifier(happened.clone(), relevant.clone())
            .inspect_err(|error| warn!(%error, "inotify is not available; files are looked at every {POLL:?} only"))
            .ok();
        let mut watcher = Self { files, notifier, happened, relevant, folders: BTreeMap::new(), ends: Vec::new() };
        watcher.look();
        Ok(watcher)
    }

    /// Reports each settled change, until the receiver is gone. Changes that nobody has taken yet are one change.
    pub(super) async fn run(mut self, changes: mpsc::Sender<()>) {
        let mut poll = interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                () = self.happened.notified() => true,
                _ = poll.tick() => self.look(),
                () = changes.closed() => return,
            };
            if changed {
                self.settle().await;
                // A folder that went and came back may have the same inode, and the kernel watches it no more.
                self.forget_folders();
                self.look();
                debug!("the files may have changed");
                // A full channel already holds the news.
                let _ = changes.try_send(());
            }
        }
    }

    async fn settle(&self) {
        let latest = Instant::now() + LONGEST;
        loop {
            let wait = QUIET.min(latest.saturating_duration_since(Instant::now()));
            if wait.is_zero() || timeout(wait, self.happened.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Walks the ways anew, watches what is on them now, and says whether an end of one is not what it was.
    fn look(&mut self) -> bool {
        let mut ways: Vec<Way> = self.files.iter().map(|file| walk(file)).collect();
        // A part that appears between walking and watching would go unseen: so walk again until nothing moves.
        for _ in 0..3 {
            self.watch_folders(&ways);
            let again: Vec<Way> = self.files.iter().map(|file| walk(file)).collect();
            let same = again == ways;
            ways = again;
            if same {
                break;
            }
        }
        let ends: Vec<_> = ways.into_iter().map(|way| way.end).collect();
        let changed = ends != self.ends;
        self.ends = ends;
        changed
    }

    fn forget_folders(&mut self) {
        for folder in std::mem::take(&mut self.folders).into_keys() {
            if let Some(notifier) = &mut self.notifier {
                // The kernel has already forgotten a folder that is gone.
                let _ = notifier.unwatch(&folder);
            }
        }
    }

    fn watch_folders(&mut self, ways: &[Way]) {
        let names = ways.iter().flat_map(|way| way.names.iter().cloned()).collect();
        *self.relevant.write().unwrap_or_else(PoisonError::into_inner) = names;
        let wanted: BTreeMap<PathBuf, Identity> = ways.iter().flat_map(|way| way.folders.clone()).collect();
        if let Some(notifier) = &mut self.notifier {
            for folder in self.folders.iter().filter(|(path, id)| wanted.get(*path) != Some(id)).map(|(path, _)| path) {
                let _ = notifier.unwatch(folder);
            }
            for folder in wanted.iter().filter(|(path, id)| self.folders.get(*path) != Some(id)).map(|(path, _)| path) {
                if let Err(error) = notifier.watch(folder, RecursiveMode::NonRecursive) {
                    warn!(folder = %folder.display(), %error, "cannot be watched; it is looked at every {POLL:?} only");
                }
            }
        }
        self.folders = wanted;
    }
}

fn new_notifier(
    happened: Arc<Notify>,
    relevant: Arc<RwLock<BTreeSet<PathBuf>>>,
) -> Result<INotifyWatcher, notify::Error> {
    INotifyWatcher::new(
        move |event: Result<Event, notify::Error>| {
            let relevant = match event {
                Ok(event) => {
                    let names = relevant.read().unwrap_or_else(PoisonError::into_inner);
                    event.need_rescan() || (changes_something(&event) && event.paths.iter().any(|p| names.contains(p)))
                }
                Err(_) => true,
            };
            if relevant {
                happened.notify_one();
            }
        },
        notify::Config::default(),
    )
}

/// Reading the file is an event as well, and must not lead to reading it again.
fn changes_something(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The way to a file as it is now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Way {
    /// The folders to watch, without any link in their paths.
    folders: BTreeMap<PathBuf, Identity>,
    /// The entries of these folders that are on the way, and the folders themselves.
    names: BTreeSet<PathBuf>,
    /// The end of the way; `None` when a part is missing.
    end: Option<Stamp>,
}

/// Device and inode.
type Identity = (u64, u64);

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    identity: Identity,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Follows an absolute path, one link after the other.
fn walk(path: &Path) -> Way {
    let mut way = Way::default();
    let mut at = PathBuf::from("/");
    let mut left = parts(path);
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let Ok(metadata) = fs::symlink_metadata(&next) else {
            way.pass(&at, next);
            return way;
        };
        if metadata.is_symlink() {
            way.pass(&at, next.clone());
            links += 1;
            let Ok(target) = fs::read_link(&next) else { return way };
            if links > MOST_LINKS {
                return way;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            let mut target = parts(&target);
            target.append(&mut left);
            left = target;
        } else if left.is_empty() {
            way.pass(&at, next.clone());
            way.end = Some(Stamp {
                path: next,
                identity: (metadata.dev(), metadata.ino()),
                size: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            });
            return way;
        } else {
            at = next;
        }
    }
    way
}

impl Way {
    fn pass(&mut self, folder: &Path, entry: PathBuf) {
        if let Ok(metadata) = fs::symlink_metadata(folder) {
            self.folders.insert(folder.to_owned(), (metadata.dev(), metadata.ino()));
        }
        self.names.insert(folder.to_owned());
        self.names.insert(entry);
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// Long enough for a slow machine; nothing waits for it when all is well.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    #[test]
    fn the_way_names_every_folder_that_holds_a_link() {
        let (_keep, root) = folder();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("stow/v1")).unwrap();
        fs::write(root.join("stow/v1/real.toml"), "x").unwrap();
        symlink("../stow/current", root.join("etc/portward")).unwrap();
        symlink("v1", root.join("stow/current")).unwrap();
        symlink(root.join("stow/v1/real.toml"), root.join("stow/v1/policy.toml")).unwrap();

        let way = walk(&root.join("etc/portward/policy.toml"));
        let folders: Vec<_> = way.folders.keys().map(|path| path.strip_prefix(&root).unwrap().to_owned()).collect();
        assert_eq!(folders, [Path::new("etc"), Path::new("stow"), Path::new("stow/v1")]);
        assert_eq!(way.end.unwrap().path, root.join("stow/v1/real.toml"));
    }

    #[test]
    fn a_missing_part_leaves_the_nearest_folder_that_exists() {
        let (_keep, root) = folder();
        let way = walk(&root.join("not/here/policy.toml"));
        assert_eq!(way.folders.keys().collect::<Vec<_>>(), [&root]);
        assert!(way.names.contains(&root.join("not")));
        assert_eq!(way.end, None);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let (_keep, root) = folder();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(walk(&root.join("a/policy.toml")).end, None);
    }

    /// Runs a watcher, does something to the files, and waits for the news.
    fn expect_news(file: &Path, steps: &[&dyn Fn()]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut news) = mpsc::channel(1);
            let watcher = Watcher::new(&[file.to_owned()]).unwrap();
            tokio::spawn(watcher.run(sender));
            for (number, step) in steps.iter().enumerate() {
                tokio::task::yield_now().await;
                step();
                timeout(PATIENCE, news.recv())
                    .await
                    .unwrap_or_else(|_| panic!("step {number} went unseen"))
                    .expect("the watcher runs");
                // What belongs to the same step may still come in two parts.
                while timeout(QUIET * 4, news.recv()).await.is_ok() {}
            }
        });
    }

    #[test]
    fn writing_and_renaming_are_seen() {
        let (_keep, root) = folder();
        let file = root.join("policy.toml");
        fs::write(&file, "one").unwrap();
        expect_news(
            &file,
            &[
                &|| fs::write(&file, "two").unwrap(),
                &|| {
                    fs::write(root.join(".policy.toml.swp"), "three").unwrap();
                    fs::rename(root.join(".policy.toml.swp"), &file).unwrap();
                },
                &|| fs::remove_file(&file).unwrap(),
                &|| fs::write(&file, "four").unwrap(),
            ],
        );
    }

    #[test]
    fn switched_links_are_seen() {
        let (_keep, root) = folder();
        for version in ["v1", "v2"] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("policy.toml"), version).unwrap();
        }
        symlink("v1", root.join("..data")).unwrap();
        symlink("..data/policy.toml", root.join("policy.toml")).unwrap();
        expect_news(
            &root.join("policy.toml"),
            &[
                &|| {
                    symlink("v2", root.join("..new")).unwrap();
                    fs::rename(root.join("..new"), root.join("..data")).unwrap();
                },
                &|| fs::write(root.join("v2/policy.toml"), "v2, edited").unwrap(),
            ],
        );
    }

    #[test]
    fn a_folder_may_go_and_return() {
        let (_keep, root) = folder();
        let file = root.join("etc/portward/policy.toml");
        let make = || {
            fs::create_dir_all(root.join("etc/portward")).unwrap();
            fs::write(&file, "one").unwrap();
        };
        make();
        expect_news(
            &file,
            &[
                &|| fs::remove_dir_all(root.join("etc")).unwrap(),
                &make,
                &|| fs::write(&file, "two").unwrap(),
                &|| fs::rename(root.join("etc"), root.join("gone")).unwrap(),
                &make,
                &|| fs::write(&file, "three").unwrap(),
            ],
        );
    }

    #[test]
    fn reading_and_neighbours_are_no_news() {
        let (_keep, root) = folder();
        let file = root.join("policy.toml");
        fs::write(&file, "one").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut news) = mpsc::channel(1);
            tokio::spawn(Watcher::new(std::slice::from_ref(&file)).unwrap().run(sender));
            tokio::task::yield_now().await;
            fs::read(&file).unwrap();
            fs::write(root.join("neighbour"), "x").unwrap();
            assert!(timeout(POLL + QUIET * 5, news.recv()).await.is_err());
        });
    }
}
