//! References to remote objects within Java's serialized objects: where their ports stand.
//!
//! A stub ends with the kind of its reference, written by `RemoteObject.writeObject` as a counted text, and the reference
//! itself (JDK 17, `sun.rmi.transport.LiveRef` and `TCPEndpoint`):
//!
//! - `UnicastRef`: u16 length, host, u32 port.
//! - `UnicastRef2`: a byte, which is 1 when a socket factory follows and else 0; then the same.
//!
//! What stands before and after is of no concern here, so the reference is searched for and the rest not read.

use super::reader::Reader;
use super::text::{harmless, shown};
use std::fmt;

/// So many references of one answer are read. A stub has one; an object that holds others has one for each.
const MOST_ENDPOINTS: usize = 64;
/// The longest name of a host, in bytes (RFC 1035, 2.3.4).
const LONGEST_HOST: usize = 255;

const UNICAST_REF: &[u8] = b"\x00\x0aUnicastRef";
const UNICAST_REF_2: &[u8] = b"\x00\x0bUnicastRef2";
/// `TCPEndpoint.FORMAT_HOST_PORT_FACTORY`, the larger of the two formats.
const FORMAT_HOST_PORT_FACTORY: u8 = 1;

/// Where a remote object is to be reached, by its own account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The host as the stub names it, which need not be a name of this host.
    pub host: String,
    /// The port, 1 to 65,535.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", shown(&self.host), self.port)
    }
}

/// The endpoints of all references in serialized objects, in their order, at most 64. What only looks like a reference
/// is passed over.
pub(super) fn endpoints(objects: &[u8]) -> Vec<Endpoint> {
    let mut found = Vec::new();
    let mut rest = objects;
    while found.len() < MOST_ENDPOINTS && !rest.is_empty() {
        if rest.starts_with(UNICAST_REF) || rest.starts_with(UNICAST_REF_2) {
            found.extend(read(rest));
        }
        rest = &rest[1..];
    }
    found
}

fn read(bytes: &[u8]) -> Option<Endpoint> {
    let mut reader = Reader::new(bytes);
    let kind = reader.counted()?;
    if kind == &UNICAST_REF_2[2..] && reader.u8()? > FORMAT_HOST_PORT_FACTORY {
        return None;
    }
    let host = reader.counted()?;
    let port = u16::try_from(reader.u32()?).ok().filter(|&port| port != 0)?;
    let usable = !host.is_empty() && host.len() <= LONGEST_HOST;
    usable.then(|| Endpoint { host: harmless(&String::from_utf8_lossy(host)), port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(kind: &str, format: Option<u8>, host: &[u8], port: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind.len() as u8];
        bytes.extend(kind.as_bytes());
        bytes.extend(format);
        bytes.extend((host.len() as u16).to_be_bytes());
        bytes.extend(host);
        bytes.extend(port.to_be_bytes());
        bytes
    }

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.to_owned(), port }
    }

    #[test]
    fn both_kinds_of_reference_and_several_in_a_row() {
        let mut objects = b"\xac\xed\0\x05".to_vec();
        objects.extend(reference("UnicastRef", None, b"10.0.0.1", 45769));
        objects.extend(reference("UnicastRef2", Some(0), b"host.example", 1));
        objects.extend(reference("UnicastRef2", Some(1), b"::1", 65535));
        let expected = [endpoint("10.0.0.1", 45769), endpoint("host.example", 1), endpoint("::1", 65535)];
        assert_eq!(endpoints(&objects), expected);
    }

    #[test]
    fn what_only_looks_like_a_reference_is_passed_over() {
        for unusable in [
            reference("UnicastRef", None, b"host", 0),
            reference("UnicastRef", None, b"host", 65536),
            reference("UnicastRef", None, b"", 80),
            reference("UnicastRef", None, &[b'x'; 256], 80),
            reference("UnicastRef2", Some(2), b"host", 80),
            reference("sun.rmi.server.UnicastRef", None, b"host", 80),
            reference("UnicastServerRef", None, b"host", 80),
            reference("UnicastRef", None, b"host", 80)[..20].to_vec(),
        ] {
            assert_eq!(endpoints(&unusable), [], "{unusable:?}");
            let followed = [unusable, reference("UnicastRef", None, b"host", 81)].concat();
            assert!(endpoints(&followed).contains(&endpoint("host", 81)), "{followed:?}");
        }
    }

    #[test]
    fn not_more_than_64_are_read_and_their_names_are_harmless() {
        let many = reference("UnicastRef", None, b"\x1b[31m", 80).repeat(100);
        let found = endpoints(&many);
        assert_eq!(found.len(), 64);
        assert_eq!(found[0].host, "\\u{1b}[31m");
    }

    proptest! {
        #[test]
        fn any_bytes_after_any_reference_are_read_without_a_panic(
            before in prop::collection::vec(any::<u8>(), 0..64),
            kind in prop::sample::select(vec![UNICAST_REF, UNICAST_REF_2]),
            after in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            for found in endpoints(&[&before, kind, &after].concat()) {
                prop_assert!(found.port != 0);
            }
        }
    }
}
