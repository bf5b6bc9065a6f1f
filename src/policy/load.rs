//! Reading a file that a person named, whatever is there in its place.

use super::Diagnostics;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

/// The largest file that is read, in bytes: 16 MiB, about a million addresses.
pub const LARGEST_SOURCE: u64 = 16 << 20;

/// Why a policy or a catalogue was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no file.
    #[error(
        "{}: no such file; portward needs one there, or a path to another on its command line", path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something else than a file.
    #[error("{}: {found}, not a file; name the file itself", path.display())]
    NotAFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What is there, such as `a directory`.
        found: &'static str,
    },
    /// The file is larger than [`LARGEST_SOURCE`].
    #[error("{}: larger than 16 MiB, which is the most that portward reads; networks in place of single addresses \
             make it smaller", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing but white space and comments in the file.
    #[error("{}: there is nothing in the file but white space or comments", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("{}:{line}: not valid UTF-8; save the file as UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first wrong byte, from 1.
        line: u32,
        /// Where in the file.
        source: Utf8Error,
    },
    /// The system did not let the file be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read and is wrong.
    #[error("{source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Diagnostics,
    },
}

impl LoadError {
    /// The file that was not loaded.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path, .. }
            | Self::NotAFile { path, .. }
            | Self::TooLarge { path }
            | Self::Empty { path }
            | Self::NotUtf8 { path, .. }
            | Self::Read { path, .. }
            | Self::Invalid { path, .. } => path,
        }
    }

    /// What is wrong with the content, when the file could be read.
    pub fn diagnostics(&self) -> Option<&Diagnostics> {
        match self {
            Self::Invalid { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Reads a policy or a catalogue: a regular file of at most [`LARGEST_SOURCE`] bytes, in UTF-8, with something in it.
/// A byte order mark stays.
///
/// # Errors
/// Every variant of [`LoadError`] but `Invalid`. Nothing that a path can name makes it wait for ever or read without end.
pub fn read_source(path: &Path) -> Result<String, LoadError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LoadError::Missing { path: path.to_owned(), source },
        _ => LoadError::Read { path: path.to_owned(), source },
    };
    // Asked before opening, because opening alone does something to some devices, and again afterwards, because the
    // path may lead elsewhere by then.
    check_kind(path, &std::fs::metadata(path).map_err(failed)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    check_kind(path, &metadata)?;
    let too_large = || LoadError::TooLarge { path: path.to_owned() };
    if metadata.len() > LARGEST_SOURCE {
        return Err(too_large());
    }
    let bytes = read_bounded(file, metadata.len()).map_err(failed)?.ok_or_else(too_large)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let breaks = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count();
        let line = u32::try_from(breaks + 1).unwrap_or(u32::MAX);
        LoadError::NotUtf8 { path: path.to_owned(), line, source: error.utf8_error() }
    })?;
    if is_empty(&text) {
        return Err(LoadError::Empty { path: path.to_owned() });
    }
    Ok(text)
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), LoadError> {
    let kind = metadata.file_type();
    let found = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(LoadError::NotAFile { path: path.to_owned(), found })
}

/// The content, or `None` when there is more of it than [`LARGEST_SOURCE`]: a file may grow while it is read.
fn read_bounded(file: File, expected: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    let length = file.take(LARGEST_SOURCE + 1).read_to_end(&mut bytes)?;
    Ok((length as u64 <= LARGEST_SOURCE).then_some(bytes))
}

/// Whether a text holds nothing but white space and comments.
pub(super) fn is_empty(text: &str) -> bool {
    let text = without_mark(text);
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

/// The text without the byte order mark that some editors write before it.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::error::Error as _;
    use std::fs;

    fn written(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        fs::write(&path, content).unwrap();
        (directory, path)
    }

    #[test]
    fn a_file_is_read_whole_and_through_links() {
        let (directory, path) = written("\u{feff}format = 1 # é\n");
        assert_eq!(read_source(&path).unwrap(), "\u{feff}format = 1 # é\n");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_source(&link).unwrap(), "\u{feff}format = 1 # é\n");
    }

    #[test]
    fn a_missing_file_is_told_with_its_path() {
        let error = read_source(Path::new("/nonexistent/policy.toml")).unwrap_err();
        assert!(matches!(error, LoadError::Missing { .. }), "{error:?}");
        assert!(error.to_string().starts_with("/nonexistent/policy.toml: no such file; portward needs one"), "{error}");
        assert!(error.source().is_some());
    }

    #[test]
    fn a_path_through_a_file_cannot_be_read() {
        let (_directory, path) = written("x");
        let error = read_source(&path.join("policy.toml")).unwrap_err();
        assert!(matches!(error, LoadError::Read { .. }), "{error:?}");
        assert_eq!(error.path(), path.join("policy.toml"));
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let expected = [
            (directory.path(), "a directory"),
            (&pipe, "a named pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/zero"), "a device"),
        ];
        for (path, kind) in expected {
            match read_source(path) {
                Err(LoadError::NotAFile { found, .. }) => assert_eq!(found, kind),
                other => panic!("{}: {other:?}", path.display()),
            }
        }
    }

    #[test]
    fn the_size_is_bounded() {
        let (_directory, path) = written("#");
        let resize = |length| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        resize(LARGEST_SOURCE + 1);
        assert!(matches!(read_source(&path), Err(LoadError::TooLarge { .. })));
        // A file whose size the system does not say is bounded while it is read.
        let unsaid = File::open(&path).unwrap();
        assert!(read_bounded(unsaid, 0).unwrap().is_none());
        fs::write(&path, vec![b'x'; usize::try_from(LARGEST_SOURCE).unwrap()]).unwrap();
        assert_eq!(read_source(&path).unwrap().len() as u64, LARGEST_SOURCE);
    }

    #[test]
    fn what_holds_no_setting_is_empty() {
        for content in ["", "\n \t\r\n", "# only\n  # comments\n", "\u{feff}\n"] {
            let (_directory, path) = written(content);
            assert!(matches!(read_source(&path), Err(LoadError::Empty { .. })), "{content:?}");
        }
    }

    #[test]
    fn invalid_utf8_is_told_with_its_line() {
        let (_directory, path) = written(b"format = 1\n# caf\xe9\n");
        let error = read_source(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{}:2: not valid UTF-8; save the file as UTF-8", path.display()));
    }

    #[test]
    fn what_is_wrong_inside_is_told_with_the_path_as_it_was_given() {
        let (_directory, path) = written("format = 1\n");
        let error = crate::policy::Policy::load(&path, crate::policy::Catalogue::embedded()).unwrap_err();
        assert_eq!(error.diagnostics().unwrap().list.len(), 1);
        assert!(error.to_string().starts_with(&format!("{}:1:1: the policy has no hosts", path.display())), "{error}");
    }
}
