//! The vendor's file about a high-availability pair.

use std::net::IpAddr;
use std::path::Path;

/// Where the vendor keeps it.
pub const HA_CONF: &str = "/opt/qradar/ha/ha.conf";

/// The two hosts of a high-availability pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HaPair {
    /// `PRIMARY_IP`: the primary host's own address.
    pub primary: IpAddr,
    /// `SECONDARY_IP`: the secondary host's own address.
    pub secondary: IpAddr,
}

/// Why a file names no pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HaError {
    /// A key is missing.
    #[error("it has no {key}; expected a line such as {key}=192.0.2.10")]
    Missing {
        /// `PRIMARY_IP` or `SECONDARY_IP`.
        key: &'static str,
    },
    /// A value is no address.
    #[error("line {line}: the value of {key} is no IP address")]
    NotAnAddress {
        /// `PRIMARY_IP` or `SECONDARY_IP`.
        key: &'static str,
        /// The line, from 1.
        line: usize,
    },
    /// Both hosts have the same address.
    #[error("PRIMARY_IP and SECONDARY_IP are the same address")]
    Same,
}

impl HaPair {
    /// Reads the file: lines of the form `KEY=VALUE`, of which a shell takes the last of each key. Everything else is left
    /// out.
    ///
    /// # Errors
    /// See [`HaError`].
    pub fn parse(text: &str) -> Result<Self, HaError> {
        let primary = address(text, "PRIMARY_IP")?;
        let secondary = address(text, "SECONDARY_IP")?;
        if primary == secondary { Err(HaError::Same) } else { Ok(Self { primary, secondary }) }
    }

    /// The file that [`parse`](Self::parse) reads.
    pub fn path() -> &'static Path {
        Path::new(HA_CONF)
    }
}

fn address(text: &str, key: &'static str) -> Result<IpAddr, HaError> {
    let values = text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim();
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (name, value) = line.split_once('=')?;
        (name == key).then_some((index + 1, value))
    });
    let (line, value) = values.last().ok_or(HaError::Missing { key })?;
    // A shell's word: quoted, or up to a blank.
    let word = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].split(quote).next(),
        _ => value.split_whitespace().next(),
    };
    let address = word.unwrap_or_default().trim().parse::<IpAddr>();
    address.map(|address| address.to_canonical()).map_err(|_| HaError::NotAnAddress { key, line })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_addresses_are_found_among_other_settings() {
        let text =
            "# HA\nCLUSTER_ENABLED=true\nPRIMARY_IP=192.0.2.10\nOLD_PRIMARY_IP=1.1.1.1\nSECONDARY_IP=2001:db8::1\n";
        let pair = HaPair { primary: "192.0.2.10".parse().unwrap(), secondary: "2001:db8::1".parse().unwrap() };
        assert_eq!(HaPair::parse(text), Ok(pair));
        let quoted = "export PRIMARY_IP=\"192.0.2.10\" # first\r\n  SECONDARY_IP='2001:db8::1'\r\n";
        assert_eq!(HaPair::parse(quoted), Ok(pair));
        let again = format!("PRIMARY_IP=192.0.2.99\n{text}");
        assert_eq!(HaPair::parse(&again), Ok(pair), "the last one counts");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = |key| Err(HaError::Missing { key });
        assert_eq!(HaPair::parse(""), missing("PRIMARY_IP"));
        assert_eq!(HaPair::parse("PRIMARY_IP=192.0.2.10\n#SECONDARY_IP=192.0.2.11\n"), missing("SECONDARY_IP"));
        let wrong = "PRIMARY_IP=192.0.2.10\nSECONDARY_IP=\n";
        assert_eq!(HaPair::parse(wrong), Err(HaError::NotAnAddress { key: "SECONDARY_IP", line: 2 }));
        assert_eq!(HaPair::parse("PRIMARY_IP=192.0.2.1\nSECONDARY_IP=::ffff:192.0.2.1\n"), Err(HaError::Same));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "(PRIMARY_IP|SECONDARY_IP|export |=|[\"' #\n0-9.:a-f]|é|.){0,40}") {
            let _ = HaPair::parse(&text);
        }
    }
}
