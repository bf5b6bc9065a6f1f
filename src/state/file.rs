//! Files of the state: written so that a power cut leaves the old or the new, and read with suspicion.

use super::{Damage, Error};
use crate::policy::LARGEST_SOURCE;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// The largest state file: a policy, a catalogue and a header.
const LARGEST: u64 = 2 * LARGEST_SOURCE + (64 << 10);
/// What a file is called until it is complete. There is only one at a time, since writers hold the lock.
const UNFINISHED: &str = ".unfinished";
/// How often, and after what pause, a writer looks again whether another one has finished.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// Makes the folder where it is missing, and keeps other writers out until the lock is dropped.
pub(super) fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::system("create the folder", folder))?;
    let mut file = File::open(folder).map_err(Error::system("open the folder", folder))?;
    check_folder(folder, &file.metadata().map_err(Error::system("look at", folder))?)?;
    for _ in 0..ATTEMPTS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((returned, Errno::EWOULDBLOCK)) => file = returned,
            Err((_, errno)) => return Err(Error::system("lock", folder)(errno.into())),
        }
        thread::sleep(PAUSE);
    }
    Err(Error::Busy(folder.to_owned()))
}

/// Writes a file: all of it or nothing. [`sync_folder`] makes it last. The caller holds the lock.
pub(super) fn write(folder: &Path, name: &str, content: &[u8]) -> Result<(), Error> {
    let (unfinished, path) = (folder.join(UNFINISHED), folder.join(name));
    let written = remove_if_there(&unfinished).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    });
    written.map_err(|source| {
        // On a full disk it is in the way of others.
        let _ = fs::remove_file(&unfinished);
        Error::System { action: "write", path, source }
    })
}

/// Gives a file a second name, in place of what has that name. The caller holds the lock.
pub(super) fn link(folder: &Path, from: &str, to: &str) -> Result<(), Error> {
    let (unfinished, path) = (folder.join(UNFINISHED), folder.join(to));
    remove_if_there(&unfinished)
        .and_then(|()| fs::hard_link(folder.join(from), &unfinished))
        .and_then(|()| fs::rename(&unfinished, &path))
        // When both names lead to one file already, rename(2) does nothing.
        .and_then(|()| remove_if_there(&unfinished))
        .map_err(Error::system("write", &path))
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(folder: &Path, name: &str) -> Result<(), Error> {
    let path = folder.join(name);
    remove_if_there(&path).map_err(Error::system("remove", &path))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Makes names that were written or removed outlast a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::system("sync the folder", folder))
}

/// The content of a file that only this user could have written; `None` when there is none.
pub(super) fn read(folder: &Path, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let damaged = |damage| Error::Damaged { path: path.to_owned(), damage };
    let failed = || Error::system("read", path);
    match fs::metadata(folder) {
        Ok(metadata) => check_folder(folder, &metadata)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed()(error)),
    }
    // Asked before opening, because opening alone does something to some devices.
    match fs::symlink_metadata(path) {
        Ok(metadata) => check(&metadata).map_err(damaged)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed()(error)),
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed())?;
    let metadata = file.metadata().map_err(failed())?;
    check(&metadata).map_err(damaged)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    let length = file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed())?;
    if length as u64 > LARGEST {
        return Err(damaged(Damage::TooLarge));
    }
    Ok(Some(bytes))
}

fn check(metadata: &Metadata) -> Result<(), Damage> {
    let kind = metadata.file_type();
    let found = match kind {
        _ if kind.is_file() => None,
        _ if kind.is_symlink() => Some("a symbolic link"),
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a named pipe"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    };
    match found {
        Some(found) => return Err(Damage::NotAFile(found)),
        None if metadata.uid() != geteuid().as_raw() => return Err(Damage::Owner(metadata.uid())),
        None if metadata.mode() & 0o077 != 0 => return Err(Damage::Mode(metadata.mode() & 0o7777)),
        None if metadata.len() > LARGEST => return Err(Damage::TooLarge),
        None => {}
    }
    Ok(())
}

/// Whoever may write to the folder could put an older file in place of a newer one.
fn check_folder(folder: &Path, metadata: &Metadata) -> Result<(), Error> {
    let damage = if !metadata.is_dir() {
        Damage::NotAFile("not a folder")
    } else if metadata.uid() != geteuid().as_raw() {
        Damage::Owner(metadata.uid())
    } else if metadata.mode() & 0o022 != 0 {
        Damage::Mode(metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(Error::Damaged { path: PathBuf::from(folder), damage })
}
