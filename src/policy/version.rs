//! Versions of JSA and how they compare.

use serde::{Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A version of JSA, such as `7.5.0-up6`. Ordered as the releases are: 2014.5 < 2014.6 < 7.3.0 < 7.5.0 < 7.5.0-up6.
///
/// The text and the order agree: two versions are equal exactly when their texts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    text: String,
    /// The release, most significant first.
    release: Vec<u16>,
    /// The update pack; 0: none.
    update: u16,
}

/// The releases were named after years up to 2014.x; those that followed begin with 7.
const FIRST_YEAR: u16 = 2000;

impl Version {
    /// The version as people write it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the other version is the same release, with or without update packs.
    pub fn same_release(&self, other: &Self) -> bool {
        self.release == other.release
    }

    fn named_after_year(&self) -> bool {
        self.release.first().is_some_and(|first| *first >= FIRST_YEAR)
    }
}

/// The text is not a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version: expected numbers and dots, then perhaps an update pack, such as 7.5.0 or 7.5.0-up6")]
pub struct VersionError;

impl FromStr for Version {
    type Err = VersionError;

    /// Reads two to four numbers joined by dots, then perhaps `-upN`. Numbers have no leading zeros and are at most
    /// 65,535; an update pack is at least 1.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let (release, update) = match text.split_once("-up") {
            Some((release, update)) => (release, number(update).filter(|update| *update > 0).ok_or(VersionError)?),
            None => (text, 0),
        };
        let release = release.split('.').map(number).collect::<Option<Vec<u16>>>().ok_or(VersionError)?;
        if !(2..=4).contains(&release.len()) {
            return Err(VersionError);
        }
        Ok(Self { text: text.to_owned(), release, update })
    }
}

fn number(text: &str) -> Option<u16> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let newer_scheme = |version: &Self| !version.named_after_year();
        newer_scheme(self)
            .cmp(&newer_scheme(other))
            .then_with(|| self.release.cmp(&other.release))
            .then_with(|| self.update.cmp(&other.update))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_compare_as_the_releases_came_out() {
        let ordered = ["2014.5", "2014.6", "7.3.0", "7.5.0", "7.5.0-up6", "7.5.0-up7", "7.5.0-up10", "7.5.1", "7.10.0"];
        let mut shuffled: Vec<Version> = ordered.iter().rev().map(|text| version(text)).collect();
        shuffled.sort();
        assert_eq!(shuffled.iter().map(Version::as_str).collect::<Vec<_>>(), ordered);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let wrong =
            ["", "7", "7.", ".5", "7.5.0-up", "7.5.0-up0", "7.5.0-up06", "07.5.0", "7.5.0 ", "7.5.0-UP6", "7.5.+0"];
        for text in wrong.into_iter().chain(["7.5.0.0.0", "7.70000", "v7.5.0", "7.5.0-up6-up7", "-up6"]) {
            assert_eq!(text.parse::<Version>(), Err(VersionError), "{text:?}");
        }
    }

    #[test]
    fn an_update_pack_belongs_to_its_release() {
        assert!(version("7.5.0-up6").same_release(&version("7.5.0")));
        assert!(!version("7.5.0").same_release(&version("7.5")));
    }
}
