//! How a state file is written: text with a header, so that a person can read it and a program can tell whether it is
//! whole. Pure: from a record to bytes and back.
//!
//! ```text
//! portward state 1 applied
//! sha256: 8f6e...            of the line above and of everything below
//! time: 1790000000
//! host: console
//!
//! format = 1                 the body, byte for byte
//! ...
//! ```

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The version of the format.
const MAGIC: &str = "portward state 1 ";
const CHECKSUM: &str = "sha256: ";
/// The longest value of a field, in bytes. What is longer is cut: a file's name may be anything.
const LONGEST_VALUE: usize = 1024;

/// What is wrong with a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin like a state file of this format.
    Format,
    /// The content is not what was written: torn, or changed by somebody.
    Checksum,
    /// A field is missing or malformed although the checksum is right: another version of portward wrote it.
    Field(&'static str),
    /// It belongs to another user.
    Owner(u32),
    /// Others may read or write it; its mode.
    Mode(u32),
    /// It is something else than a file, such as `a symbolic link`.
    NotAFile(&'static str),
    /// It is larger than any that portward writes.
    TooLarge,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format => f.write_str("not a state file of a format that this portward knows"),
            Self::Checksum => f.write_str("torn or tampered with: its checksum is not that of its content"),
            Self::Field(name) => write!(f, "{name} is missing or malformed"),
            Self::Owner(user) => write!(f, "belongs to user {user}"),
            Self::Mode(mode) => write!(f, "has mode {mode:04o}, which lets others at it"),
            Self::NotAFile(found) => write!(f, "{found}, not a file"),
            Self::TooLarge => f.write_str("larger than any file that portward writes"),
        }
    }
}

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// What it is, a word of the first line.
    pub(super) kind: &'static str,
    pub(super) fields: Fields,
    pub(super) body: String,
}

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        sealed(self.kind, &format!("{}\n{}", self.fields, self.body))
    }

    pub(super) fn decode(kind: &'static str, bytes: Vec<u8>) -> Result<Self, Damage> {
        // Everything that is written is UTF-8.
        let text = String::from_utf8(bytes).map_err(|_| Damage::Checksum)?;
        let first_line = first_line(kind);
        let rest = text.strip_prefix(&first_line).ok_or(Damage::Format)?;
        let (sum, rest) = rest.strip_prefix(CHECKSUM).and_then(|rest| rest.split_once('\n')).ok_or(Damage::Checksum)?;
        if sum != checksum(&first_line, rest) {
            return Err(Damage::Checksum);
        }
        // The body may begin with an empty line, but no field is empty.
        let (fields, body) = rest.split_once("\n\n").ok_or(Damage::Format)?;
        Ok(Self { kind, fields: Fields::parse(fields)?, body: body.to_owned() })
    }
}

/// A file of this kind with these fields and body, under the checksum that they have.
pub(super) fn sealed(kind: &str, rest: &str) -> Vec<u8> {
    let first_line = first_line(kind);
    format!("{first_line}{CHECKSUM}{}\n{rest}", checksum(&first_line, rest)).into_bytes()
}

fn first_line(kind: &str) -> String {
    format!("{MAGIC}{kind}\n")
}

fn checksum(first_line: &str, rest: &str) -> String {
    format!("{:x}", Sha256::new().chain_update(first_line).chain_update(rest).finalize())
}

/// Names and values, each a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(BTreeMap<String, String>);

impl Fields {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// With one more. What would not fit into a line becomes a space.
    pub(super) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        let mut value = value.to_string().replace(|symbol: char| symbol.is_control(), " ");
        while value.len() > LONGEST_VALUE {
            value.pop();
        }
        self.0.insert(name.to_owned(), value);
        self
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String, Damage> {
        self.0.get(name).cloned().ok_or(Damage::Field(name))
    }

    pub(super) fn number<T: FromStr>(&self, name: &'static str) -> Result<T, Damage> {
        self.text(name)?.parse().map_err(|_| Damage::Field(name))
    }

    fn parse(text: &str) -> Result<Self, Damage> {
        let fields = text.lines().map(|line| line.split_once(": ").map(|(name, value)| (name.into(), value.into())));
        Ok(Self(fields.collect::<Option<_>>().ok_or(Damage::Format)?))
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(body: &str) -> Record {
        Record { kind: "applied", fields: Fields::new().with("host", "console").with("time", 7), body: body.to_owned() }
    }

    #[test]
    fn a_person_can_read_it() {
        let text = String::from_utf8(record("format = 1\n").encode()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "portward state 1 applied");
        assert!(lines[1].starts_with("sha256: ") && lines[1].len() == 8 + 64, "{text}");
        assert_eq!(lines[2..], ["host: console", "time: 7", "", "format = 1"]);
    }

    #[test]
    fn another_kind_or_version_is_no_substitute() {
        let text = String::from_utf8(record("x").encode()).unwrap();
        assert_eq!(Record::decode("trial", text.clone().into_bytes()), Err(Damage::Format));
        let renamed = text.replacen("applied", "trial", 1).into_bytes();
        assert_eq!(Record::decode("trial", renamed), Err(Damage::Checksum));
        let newer = text.replacen("state 1", "state 2", 1).into_bytes();
        assert_eq!(Record::decode("applied", newer), Err(Damage::Format));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(body in "(?s).{0,200}", host in "(?s).{0,40}") {
            let written = Record { kind: "applied", fields: Fields::new().with("host", &host).with("x", 1), body };
            prop_assert_eq!(Record::decode("applied", written.encode()), Ok(written));
        }

        #[test]
        fn every_truncation_is_detected(body in "(?s).{0,100}", cut in any::<prop::sample::Index>()) {
            let mut bytes = record(&body).encode();
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Record::decode("applied", bytes).is_err());
        }

        #[test]
        fn every_flipped_bit_is_detected(body in "(?s).{0,100}", at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = record(&body).encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Record::decode("applied", bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Record::decode("applied", bytes).is_err());
        }
    }
}
