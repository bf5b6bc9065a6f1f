//! Who a process is: what the kernel says of it in /proc, and whether that is what a policy asks for.
#![forbid(unsafe_code)]

use super::procfs;
use super::users::{user_id, user_name};
use crate::policy::ProcessMatch;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More of a command line than this is not read. The kernel allows a quarter of the stack's limit, 2 MiB by default.
const LONGEST_COMMAND_LINE: u64 = 1024 * 1024;
/// More of another file is not read. The longest holds paths of cgroups, each at most a page, one for each of some ten
/// hierarchies.
const LONGEST_FILE: u64 = 64 * 1024;
/// A process that changes while it is looked at is looked at so often.
const LOOKS: usize = 5;

/// A process, by its open folder in /proc.
///
/// The folder stays that of this process: after its death reading fails, and never tells of another process that got
/// the same number.
#[derive(Debug)]
pub struct Process {
    folder: OwnedFd,
    pid: u32,
    start_time: u64,
}

/// Why a process could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// There is no such process, or it has ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The number that it had.
        pid: u32,
    },
    /// The caller may not look at it.
    #[error("process {pid} may not be looked at (needs root or CAP_SYS_PTRACE, and a /proc without hidepid)")]
    Refused {
        /// Its number.
        pid: u32,
    },
    /// It did not stay the same while it was looked at.
    #[error("process {pid} changes all the time")]
    Changing {
        /// Its number.
        pid: u32,
    },
    /// Reading failed otherwise, or what was read was not understood.
    #[error("process {pid}: reading {file} of /proc: {}", source.desc())]
    Unreadable {
        /// Its number.
        pid: u32,
        /// The file in its folder.
        file: &'static str,
        /// The system's answer; `EBADMSG` when it gave something that is no such file.
        #[source]
        source: Errno,
    },
}

/// What is known of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since the machine started. With the number it names the process for good.
    pub start_time: u64,
    /// The short name, at most 15 bytes, which it can choose itself: for people only.
    pub name: String,
    /// The program that it runs.
    pub program: Program,
    /// The real, effective, saved and filesystem user.
    pub uids: [u32; 4],
    /// The systemd system unit that it belongs to, if it is a service.
    pub unit: Option<String>,
    /// The arguments, which it can choose itself, the first mebibyte of them.
    pub arguments: Vec<String>,
}

/// The program that a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The file at this path, without symbolic links. It is the very file that runs.
    File(PathBuf),
    /// A file that has no path any more.
    Deleted(PathBuf),
    /// A file that is not the one that the path leads to: it was replaced, or the process sees other file systems.
    Other(PathBuf),
    /// None: a thread of the kernel.
    None,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Deleted(path) => write!(f, "{}, which has been deleted", path.display()),
            Self::Other(path) => {
                write!(f, "{}, which is another file now (replaced, or in another mount namespace)", path.display())
            }
            Self::None => f.write_str("no program"),
        }
    }
}

impl Process {
    /// Opens the process with this number.
    ///
    /// # Errors
    /// When there is none, or it may not be looked at.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        let path = format!("/proc/{pid}");
        let folder = open(path.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| error(pid, "its folder", errno))?;
        let stat = read(&folder, "stat", LONGEST_FILE).map_err(|errno| error(pid, "stat", errno))?;
        let (_, start_time) = procfs::stat(&stat).ok_or_else(|| error(pid, "stat", Errno::EBADMSG))?;
        Ok(Self { folder, pid, start_time })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it began, see [`Identity::start_time`].
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Whether it still exists; a zombie does.
    pub fn exists(&self) -> bool {
        self.read("stat", LONGEST_FILE).is_ok()
    }

    /// Looks at it until two looks in a row say the same, so that what is told was true at one moment: a process changes
    /// its program and its user in one step each.
    ///
    /// # Errors
    /// When it has ended, may not be looked at, or does not stay the same.
    pub fn identity(&self) -> Result<Identity, ProcessError> {
        let mut last = self.look()?;
        for _ in 1..LOOKS {
            let again = self.look()?;
            if again == last {
                return Ok(last);
            }
            last = again;
        }
        Err(ProcessError::Changing { pid: self.pid })
    }

    /// Which of these sockets, by their inodes, the process holds.
    ///
    /// # Errors
    /// When it has ended, or its descriptors may not be looked at.
    pub fn sockets(&self, inodes: &BTreeSet<u32>) -> Result<BTreeSet<u32>, ProcessError> {
        let mut held = BTreeSet::new();
        let failed = |errno| error(self.pid, "fd", errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = openat(&self.folder, "fd", flags, Mode::empty()).map_err(failed)?;
        let mut entries =
            Dir::from_fd(folder.try_clone().map_err(|error| failed(errno_of(&error)))?).map_err(failed)?;
        for entry in entries.iter() {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            match readlinkat(&folder, entry.file_name()) {
                Ok(target) => {
                    let inode = procfs::socket_inode(target.as_bytes());
                    held.extend(inode.filter(|inode| inodes.contains(inode)));
                }
                // Closed meanwhile.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
            if held.len() == inodes.len() {
                break;
            }
        }
        Ok(held)
    }

    fn look(&self) -> Result<Identity, ProcessError> {
        let malformed = |file| error(self.pid, file, Errno::EBADMSG);
        let stat = self.read("stat", LONGEST_FILE)?;
        let (name, start_time) = procfs::stat(&stat).ok_or_else(|| malformed("stat"))?;
        let uids = procfs::uids(&self.read("status", LONGEST_FILE)?).ok_or_else(|| malformed("status"))?;
        let unit = match self.read("cgroup", LONGEST_FILE) {
            Ok(cgroup) => procfs::unit(&cgroup),
            // A kernel without cgroups has no such file, and one with the process's end inbetween no process.
            Err(ProcessError::Ended { .. }) if self.exists() => None,
            Err(error) => return Err(error),
        };
        Ok(Identity {
            pid: self.pid,
            start_time,
            name: String::from_utf8_lossy(name).into_owned(),
            program: self.program()?,
            uids,
            unit,
            arguments: procfs::arguments(&self.read("cmdline", LONGEST_COMMAND_LINE)?),
        })
    }

    fn program(&self) -> Result<Program, ProcessError> {
        const FILE: &str = "exe";
        let path = match readlinkat(&self.folder, FILE) {
            Ok(path) => PathBuf::from(path),
            // Threads of the kernel have none, and neither has a process that is about to end.
            Err(Errno::ENOENT) if self.exists() => return Ok(Program::None),
            Err(errno) => return Err(error(self.pid, FILE, errno)),
        };
        // Follows the link without its text: the file that runs, in whatever mount namespace.
        let running = match fstatat(&self.folder, FILE, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) if self.exists() => return Ok(Program::None),
            Err(errno) => return Err(error(self.pid, FILE, errno)),
        };
        let seen = if path.is_absolute() { fstatat(AT_FDCWD, &path, AtFlags::AT_SYMLINK_NOFOLLOW).ok() } else { None };
        if seen.is_some_and(|seen| is_same(&seen, &running)) {
            return Ok(Program::File(path));
        }
        // How the kernel marks it (`d_path`, fs/d_path.c).
        Ok(match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(path) => Program::Deleted(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned()),
            None => Program::Other(path),
        })
    }

    fn read(&self, file: &'static str, longest: u64) -> Result<Vec<u8>, ProcessError> {
        read(&self.folder, file, longest).map_err(|errno| error(self.pid, file, errno))
    }
}

/// Reads a file of a folder, at most so many bytes of it.
fn read(folder: &OwnedFd, file: &str, longest: u64) -> Result<Vec<u8>, Errno> {
    let file = openat(folder, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(longest).read_to_end(&mut bytes).map_err(|error| errno_of(&error))?;
    Ok(bytes)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn error(pid: u32, file: &'static str, source: Errno) -> ProcessError {
    match source {
        Errno::ESRCH | Errno::ENOENT => ProcessError::Ended { pid },
        Errno::EACCES | Errno::EPERM => ProcessError::Refused { pid },
        _ => ProcessError::Unreadable { pid, file, source },
    }
}

fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The first property of a process that is not what a policy asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// It runs another program, or one whose file is not certain.
    Program {
        /// What it runs.
        runs: Program,
        /// The patterns, one of which had to match.
        wanted: Vec<String>,
    },
    /// Not all of its users are the one.
    User {
        /// The first other one.
        runs_as: u32,
        /// The user, as the policy has it.
        wanted: String,
    },
    /// There is no such user.
    UnknownUser {
        /// The user, as the policy has it.
        wanted: String,
    },
    /// It belongs to another unit, or to none.
    Unit {
        /// Its unit.
        belongs_to: Option<String>,
        /// The unit that it should belong to.
        wanted: String,
    },
    /// No argument matches.
    Argument {
        /// The pattern.
        wanted: String,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program { runs, wanted } => write!(f, "runs {runs}, not {}", wanted.join(" or ")),
            Self::User { runs_as, wanted } => {
                let wanted = wanted.parse().map_or_else(|_| wanted.clone(), user_name);
                write!(f, "runs as user {}, not {wanted}", user_name(*runs_as))
            }
            Self::UnknownUser { wanted } => write!(f, "should run as user {wanted}, who is not in /etc/passwd"),
            Self::Unit { belongs_to: Some(unit), wanted } => write!(f, "belongs to unit {unit}, not {wanted}"),
            Self::Unit { belongs_to: None, wanted } => write!(f, "belongs to no system unit, not to {wanted}"),
            Self::Argument { wanted } => write!(f, "has no argument {wanted}"),
        }
    }
}

impl Identity {
    /// Whether every property that is given holds.
    ///
    /// # Errors
    /// The first one that does not, those first that nobody can choose for himself.
    pub fn matches(&self, wanted: &ProcessMatch) -> Result<(), Mismatch> {
        if let Some(user) = &wanted.user {
            // Without the file there are no names.
            let uid = user_id(user).ok().flatten().ok_or_else(|| Mismatch::UnknownUser { wanted: user.clone() })?;
            if let Some(&runs_as) = self.uids.iter().find(|&&found| found != uid) {
                return Err(Mismatch::User { runs_as, wanted: user.clone() });
            }
        }
        if let Some(unit) = &wanted.unit
            && self.unit.as_ref() != Some(unit)
        {
            return Err(Mismatch::Unit { belongs_to: self.unit.clone(), wanted: unit.clone() });
        }
        let runs_wanted = match &self.program {
            Program::File(path) => wanted.allows_exe(path),
            _ => wanted.exe.is_empty(),
        };
        if !runs_wanted {
            let wanted = wanted.exe.iter().map(|pattern| pattern.as_str().to_owned()).collect();
            return Err(Mismatch::Program { runs: self.program.clone(), wanted });
        }
        match wanted.missing_argument(&self.arguments) {
            Some(pattern) => Err(Mismatch::Argument { wanted: pattern.as_str().to_owned() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
