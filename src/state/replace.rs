//! Putting another text into the policy file, for `portward rollback` and `portward confirm`.

use super::Error;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// The mode of a policy file where there was none.
const MODE: u32 = 0o644;
/// So many different backups lie beside the file at most; then somebody has to tidy up.
const MOST_BACKUPS: u32 = 100;

/// What replacing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Where the text that was in the file lies now; `None` when it needs no place.
    pub backup: Option<PathBuf>,
}

/// Makes this text the content of the policy file: all of it or nothing, with the file's mode and owner. A link is
/// followed, and stays. What was in the file is kept beside it, as `policy.toml.replaced`, unless `is_kept` says that
/// it is kept elsewhere.
///
/// # Errors
///
/// A file cannot be read or written; the policy file is as before.
pub fn replace_policy(path: &Path, text: &str, is_kept: impl Fn(&[u8]) -> bool) -> Result<Replaced, Error> {
    // Of a link that leads nowhere the target is unknown, and the name itself is taken.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (current, metadata) = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => {
            (Some(fs::read(&path).map_err(Error::system("read", &path))?), Some(metadata))
        }
        Ok(_) => return Err(Error::system("replace", &path)(ErrorKind::InvalidInput.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
        Err(error) => return Err(Error::system("read", &path)(error)),
    };
    let mode = metadata.as_ref().map_or(MODE, |metadata| metadata.mode() & 0o7777);
    let owner = metadata.map(|metadata| (metadata.uid(), metadata.gid()));
    let mut replaced = Replaced::default();
    if let Some(current) = &current {
        if current == text.as_bytes() {
            return Ok(replaced);
        }
        if !is_kept(current) {
            replaced.backup = backup(&path, current, mode, owner)?;
        }
    }
    write(&path, text.as_bytes(), mode, owner)?;
    Ok(replaced)
}

/// Keeps a text beside the file under the first name that is free, or has this content already.
fn backup(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<Option<PathBuf>, Error> {
    let base = with_suffix(path, ".replaced");
    let names = (1..MOST_BACKUPS).map(|number| with_suffix(&base, &format!(".{number}")));
    for name in std::iter::once(base.clone()).chain(names) {
        match fs::read(&name) {
            Ok(there) if there == content => return Ok(Some(name)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write(&name, content, mode, owner)?;
                return Ok(Some(name));
            }
            Err(error) => return Err(Error::system("read", &name)(error)),
        }
    }
    Err(Error::system("find a free name for what was in the file, beside", &base)(ErrorKind::AlreadyExists.into()))
}

fn write(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let unfinished = folder.join(name);
    let written = || -> std::io::Result<()> {
        // Left by a process of the same number that was killed.
        let _ = fs::remove_file(&unfinished);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(content)?;
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(folder)?.sync_all()
    };
    written().map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        Error::system("write", path)(error)
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn mode_stays_and_what_was_there_is_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let backup = folder.path().join("policy.toml.replaced");
        assert_eq!(replace_policy(&path, "new", |_| false).unwrap().backup, Some(backup.clone()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&backup).unwrap(), "old");

        // The same content has its place, other content gets another.
        fs::write(&path, "old").unwrap();
        assert_eq!(replace_policy(&path, "new", |_| false).unwrap().backup, Some(backup));
        let second = folder.path().join("policy.toml.replaced.1");
        assert_eq!(replace_policy(&path, "newer", |_| false).unwrap().backup, Some(second));
        assert_eq!(replace_policy(&path, "newest", |content| content == b"newer").unwrap().backup, None);
        assert_eq!(names(folder.path()), ["policy.toml", "policy.toml.replaced", "policy.toml.replaced.1"]);
    }

    #[test]
    fn the_same_content_is_left_alone_and_a_missing_file_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        assert_eq!(replace_policy(&path, "text", |_| false).unwrap(), Replaced::default());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(replace_policy(&path, "text", |_| false).unwrap(), Replaced::default());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("v1")).unwrap();
        fs::write(folder.path().join("v1/policy.toml"), "old").unwrap();
        let link = folder.path().join("policy.toml");
        symlink("v1/policy.toml", &link).unwrap();
        replace_policy(&link, "new", |_| true).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(folder.path().join("v1/policy.toml")).unwrap(), "new");
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(replace_policy(folder.path(), "text", |_| true).is_err());
        assert!(replace_policy(&folder.path().join("missing/policy.toml"), "text", |_| true).is_err());
    }
}
