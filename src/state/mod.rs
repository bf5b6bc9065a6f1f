//! What the daemon keeps on disk, so that a boot, a crash or a mistake finds its way back: the policies that were
//! applied, the one that is on trial, and what the fail-safe must know. Files only; knows neither the kernel nor the
//! daemon.
//!
//! Everything lies in one folder, by default `/var/lib/portward`, mode 0700:
//!
//! | file | what |
//! |---|---|
//! | `last-good` | the policy that was applied last and found good; the same file as the newest `applied-N` |
//! | `applied-N` | the last [`KEPT`] policies that were applied, the newest with the highest number |
//! | `trial` | a policy that is applied for the time being, while `portward try` waits |
//! | `fail-safe` | who may log in when not even `last-good` can be used |
//!
//! Each is a record (see `record`): text that a person can read, with a checksum over all of it. Files are
//! written to a temporary name, synced and renamed, so that a power cut leaves the old content or the new. What is read
//! must belong to this user, be closed to others, be no link, and carry the right checksum; what is not so is an error
//! that says which, and is never used.
#![forbid(unsafe_code)]

mod date;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod record;
mod replace;
#[cfg(test)]
mod tests;

pub use date::utc;
pub use record::Damage;
pub use replace::{Replaced, replace_policy};

use crate::policy::{Fail, Mode};
use ipnet::IpNet;
use record::{Fields, Record};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// Where the state is when the command line does not say.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/portward";
/// How many applied policies are kept.
pub const KEPT: usize = 10;

const LAST_GOOD: &str = "last-good";
const TRIAL: &str = "trial";
const FAIL_SAFE: &str = "fail-safe";
const APPLIED_PREFIX: &str = "applied-";

/// Why the state cannot be read or written.
#[derive(Debug, Error)]
pub enum Error {
    /// The system refuses.
    #[error("cannot {action} {}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file is not as it was written, and is not used.
    #[error("{}: {damage}; the file is not used", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Another process writes to the folder, and does not come to an end.
    #[error("another process holds {}; a second daemon needs a state folder of its own (--state-dir)", .0.display())]
    Busy(PathBuf),
}

impl Error {
    pub(crate) fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { action, path, source }
    }
}

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// When, in seconds since the Unix epoch.
    pub time: u64,
    /// Who asked for it, such as `root (logged in as alice)`, `file changed`, or `the daemon`.
    pub user: String,
    /// What led to it, such as `the policy changed`.
    pub cause: String,
    /// The host of the policy that it was applied as.
    pub host: String,
    /// The text of the policy.
    pub policy: String,
    /// The text of the catalogue, unless it was the built-in one.
    pub catalogue: Option<String>,
}

impl Applied {
    /// The SHA-256 hash of the policy's text in hexadecimal, as sha256sum(1) prints it for the file.
    pub fn hash(&self) -> String {
        hash(&self.policy)
    }

    /// Whether applying this one would do what the other did.
    fn is_same_policy(&self, other: &Self) -> bool {
        (&self.host, &self.policy, &self.catalogue) == (&other.host, &other.policy, &other.catalogue)
    }
}

/// A policy that is applied for the time being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// When it was applied, in seconds since the Unix epoch.
    pub time: u64,
    /// Who asked for it.
    pub user: String,
    /// What the user called it: the file it came from.
    pub label: String,
    /// The text of the policy.
    pub policy: String,
}

/// What the fail-safe needs, which serves when no policy can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailSafe {
    /// The host of the policy that this machine was last found to be.
    pub host: String,
    /// The mode of the last good policy: where it only observed, the fail-safe only observes.
    pub mode: Mode,
    /// What happens to everything but Secure Shell.
    pub fail: Fail,
    /// The group `admin` of the last good policy, sorted.
    pub admins: Vec<IpNet>,
}

/// One of the applied policies, or what became of it.
#[derive(Debug)]
pub struct Entry {
    /// Its number, which grows by one with each.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// What was applied.
    pub applied: Result<Applied, Error>,
}

/// The folder with the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The state in this folder. Nothing is read or made yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The policy that was applied last and found good; `None` when there never was one.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not as it was written.
    pub fn last_good(&self) -> Result<Option<Applied>, Error> {
        self.read(LAST_GOOD, applied_of)
    }

    /// The applied policies that are kept, the newest first. A damaged one is in its place, with its error.
    ///
    /// # Errors
    ///
    /// The folder cannot be read. A folder that does not exist holds none.
    pub fn history(&self) -> Result<Vec<Entry>, Error> {
        let entry = |number| {
            let path = self.folder.join(file_name(number));
            let applied = self
                .read(&file_name(number), applied_of)
                .and_then(|applied| applied.ok_or_else(|| Error::system("read", &path)(ErrorKind::NotFound.into())));
            Entry { number, path, applied }
        };
        Ok(self.numbers()?.into_iter().rev().map(entry).collect())
    }

    /// Keeps a policy as the last good one, unless it already is that; says whether it is news.
    ///
    /// # Errors
    ///
    /// The state cannot be written; what was there is as before.
    pub fn record(&self, applied: &Applied) -> Result<bool, Error> {
        // A damaged one is replaced.
        if self.last_good().is_ok_and(|known| known.is_some_and(|known| known.is_same_policy(applied))) {
            return Ok(false);
        }
        let _lock = file::lock(&self.folder)?;
        let numbers = self.numbers()?;
        let number = numbers.last().map_or(Some(1), |last| last.checked_add(1));
        let Some(number) = number else {
            let path = self.folder.join(file_name(u64::MAX));
            return Err(Error::Damaged { path, damage: Damage::Field("its number") });
        };
        let name = file_name(number);
        file::write(&self.folder, &name, &record_of(applied).encode())?;
        file::link(&self.folder, &name, LAST_GOOD)?;
        let superfluous = (numbers.len() + 1).saturating_sub(KEPT);
        for number in numbers.into_iter().take(superfluous) {
            file::remove(&self.folder, &file_name(number))?;
        }
        file::sync_folder(&self.folder)?;
        Ok(true)
    }

    /// The policy that is, or was when the daemon ended, on trial.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not as it was written.
    pub fn trial(&self) -> Result<Option<Pending>, Error> {
        self.read(TRIAL, pending_of)
    }

    /// Keeps in mind that a policy is on trial.
    ///
    /// # Errors
    ///
    /// The state cannot be written.
    pub fn set_trial(&self, pending: &Pending) -> Result<(), Error> {
        let _lock = file::lock(&self.folder)?;
        file::write(&self.folder, TRIAL, &record_of_pending(pending).encode())?;
        file::sync_folder(&self.folder)
    }

    /// Forgets the policy on trial, whatever its file holds.
    ///
    /// # Errors
    ///
    /// The state cannot be written.
    pub fn clear_trial(&self) -> Result<(), Error> {
        if fs::symlink_metadata(self.folder.join(TRIAL)).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(());
        }
        let _lock = file::lock(&self.folder)?;
        file::remove(&self.folder, TRIAL)?;
        file::sync_folder(&self.folder)
    }

    /// What the fail-safe needs; `None` when no policy was ever applied.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not as it was written.
    pub fn fail_safe(&self) -> Result<Option<FailSafe>, Error> {
        self.read(FAIL_SAFE, fail_safe_of)
    }

    /// Keeps what the fail-safe needs, unless it is already there.
    ///
    /// # Errors
    ///
    /// The state cannot be written; what was there is as before.
    pub fn set_fail_safe(&self, fail_safe: &FailSafe) -> Result<(), Error> {
        if self.fail_safe().is_ok_and(|known| known.as_ref() == Some(fail_safe)) {
            return Ok(());
        }
        let _lock = file::lock(&self.folder)?;
        file::write(&self.folder, FAIL_SAFE, &record_of_fail_safe(fail_safe).encode())?;
        file::sync_folder(&self.folder)
    }

    fn read<T>(&self, name: &str, parse: impl FnOnce(Record) -> Result<T, Damage>) -> Result<Option<T>, Error> {
        let path = self.folder.join(name);
        let Some(bytes) = file::read(&self.folder, &path)? else { return Ok(None) };
        let kind = match name {
            TRIAL => TRIAL,
            FAIL_SAFE => FAIL_SAFE,
            _ => APPLIED,
        };
        let parsed = Record::decode(kind, bytes).and_then(parse);
        parsed.map(Some).map_err(|damage| Error::Damaged { path, damage })
    }

    /// The numbers of the applied policies, ascending.
    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let failed = || Error::system("read the folder", &self.folder);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed()(error)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix(APPLIED_PREFIX));
            // Only names that this portward would write; `+7` is a number, too.
            let number = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            numbers.extend(number.and_then(|digits| digits.parse().ok()).filter(|n| *file_name(*n) == *name));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// The kind of the records `last-good` and `applied-N`.
const APPLIED: &str = "applied";

fn file_name(number: u64) -> String {
    format!("{APPLIED_PREFIX}{number:010}")
}

fn record_of(applied: &Applied) -> Record {
    let mut fields = Fields::new()
        .with("time", applied.time)
        .with("date", utc(applied.time))
        .with("user", &applied.user)
        .with("cause", &applied.cause)
        .with("host", &applied.host)
        .with("policy-sha256", applied.hash())
        .with("policy-bytes", applied.policy.len());
    if let Some(catalogue) = &applied.catalogue {
        fields = fields.with("catalogue-sha256", hash(catalogue)).with("catalogue-bytes", catalogue.len());
    }
    let body = [applied.policy.as_str(), applied.catalogue.as_deref().unwrap_or_default()].concat();
    Record { kind: APPLIED, fields, body }
}

fn applied_of(mut record: Record) -> Result<Applied, Damage> {
    let length: usize = record.fields.number("policy-bytes")?;
    if !record.body.is_char_boundary(length) {
        return Err(Damage::Field("policy-bytes"));
    }
    let rest = record.body.split_off(length);
    let catalogue = record.fields.has("catalogue-bytes").then_some(rest);
    Ok(Applied {
        time: record.fields.number("time")?,
        user: record.fields.text("user")?,
        cause: record.fields.text("cause")?,
        host: record.fields.text("host")?,
        policy: record.body,
        catalogue,
    })
}

fn record_of_pending(pending: &Pending) -> Record {
    let fields = Fields::new()
        .with("time", pending.time)
        .with("date", utc(pending.time))
        .with("user", &pending.user)
        .with("label", &pending.label)
        .with("policy-sha256", hash(&pending.policy));
    Record { kind: TRIAL, fields, body: pending.policy.clone() }
}

fn pending_of(record: Record) -> Result<Pending, Damage> {
    Ok(Pending {
        time: record.fields.number("time")?,
        user: record.fields.text("user")?,
        label: record.fields.text("label")?,
        policy: record.body,
    })
}

fn record_of_fail_safe(fail_safe: &FailSafe) -> Record {
    let fields = Fields::new()
        .with("host", &fail_safe.host)
        .with("mode", fail_safe.mode.name())
        .with("fail", fail_safe.fail.name());
    let body = fail_safe.admins.iter().map(|network| format!("{network}\n")).collect();
    Record { kind: FAIL_SAFE, fields, body }
}

fn fail_safe_of(record: Record) -> Result<FailSafe, Damage> {
    let admins = record.body.lines().map(IpNet::from_str).collect::<Result<_, _>>();
    Ok(FailSafe {
        host: record.fields.text("host")?,
        mode: match record.fields.text("mode")?.as_str() {
            "enforce" => Mode::Enforce,
            "observe" => Mode::Observe,
            _ => return Err(Damage::Field("mode")),
        },
        fail: match record.fields.text("fail")?.as_str() {
            "closed" => Fail::Closed,
            "open" => Fail::Open,
            _ => return Err(Damage::Field("fail")),
        },
        admins: admins.map_err(|_| Damage::Field("its list of addresses"))?,
    })
}

/// The SHA-256 hash of a text in hexadecimal.
pub fn hash(text: &str) -> String {
    format!("{:x}", Sha256::digest(text.as_bytes()))
}
