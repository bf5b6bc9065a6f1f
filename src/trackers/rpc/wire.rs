//! The call and the reply of rpcbind as bytes, and the ports that registrations claim.
//!
//! Sources: RFC 5531 (RPC, record marking), RFC 4506 (XDR), RFC 1833 (rpcbind), RFC 5665 (universal addresses).

use super::super::claim::{Claim, Claims, Refusal};
use super::super::reader::Reader;
use super::super::text::{harmless, shown};
use crate::ruleset::Protocol;
use std::net::{Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// So many registrations are read.
pub(super) const MOST_REGISTRATIONS: usize = 10_000;
/// The longest text of a registration, in bytes. rpcbind's own are below 100.
const LONGEST_TEXT: u32 = 1024;

/// The bit of a record mark that says that the fragment is the last (RFC 5531, 11).
const LAST_FRAGMENT: u32 = 1 << 31;
/// Any number does: a connection carries one call.
const TRANSACTION: u32 = 0x7077_7264;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const AUTH_NONE: u32 = 0;
const MSG_ACCEPTED: u32 = 0;
const SUCCESS: u32 = 0;
const PROG_MISMATCH: u32 = 2;
/// The longest verifier, in bytes (RFC 5531, 8.2).
const LONGEST_VERIFIER: u32 = 400;

const RPCBIND_PROGRAM: u32 = 100_000;
const RPCBIND_VERSION: u32 = 4;
/// `RPCBPROC_DUMP`.
const DUMP: u32 = 4;
/// How rpcbind calls root (`rpcb_prot.x`).
const ROOT: &str = "superuser";
/// The network id of local sockets, which no firewall concerns.
const LOCAL: &str = "local";

/// What rpcbind knows of one program on one transport. The texts hold no characters that a terminal obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The program's number (IANA, "RPC Program Numbers").
    pub program: u32,
    /// The version of the program.
    pub version: u32,
    /// The transport: `tcp`, `udp`, `tcp6`, `udp6`, `local`, or what somebody made up.
    pub netid: String,
    /// The address as it is registered, such as `0.0.0.0.203.87`.
    pub address: String,
    /// The port in the address; `None` when it has none, or one that does not go with the transport.
    pub port: Option<u16>,
    /// Who registered it: `superuser`, a user's number, or `unknown` when it was done over the network.
    pub owner: String,
}

/// Why a reply is no list of registrations.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The reply ended too early or holds what does not belong there.
    #[error("expected {0}")]
    Expected(&'static str),
    /// The call was refused.
    #[error("the call was not carried out ({0})")]
    Refused(&'static str),
    /// It speaks only other versions of the protocol.
    #[error("version 4 of its protocol is needed, and it speaks {low} to {high}")]
    Version {
        /// The lowest version that it speaks.
        low: u32,
        /// The highest.
        high: u32,
    },
    /// There are more registrations than are read.
    #[error("more than {MOST_REGISTRATIONS} registrations")]
    TooMany,
}

/// The call for all registrations, as one record.
pub(super) fn dump_call() -> Vec<u8> {
    let call = [
        [TRANSACTION, CALL, RPC_VERSION, RPCBIND_PROGRAM, RPCBIND_VERSION, DUMP].as_slice(),
        // Neither credentials nor a verifier.
        &[AUTH_NONE, 0, AUTH_NONE, 0],
    ]
    .concat();
    let mark = LAST_FRAGMENT | (call.len() * size_of::<u32>()) as u32;
    [mark].iter().chain(&call).flat_map(|word| word.to_be_bytes()).collect()
}

/// How far the fragments of a record have been followed while it arrives.
#[derive(Debug, Default)]
pub(in crate::trackers) struct Record {
    /// Where the next fragment begins.
    next: usize,
    last_seen: bool,
}

impl Record {
    /// Whether the bytes hold the whole record. Each call is given what was there before, and more.
    pub(in crate::trackers) fn is_whole(&mut self, bytes: &[u8]) -> bool {
        while !self.last_seen {
            let Some(mark) = bytes.get(self.next..).and_then(|rest| Reader::new(rest).u32()) else { return false };
            let (length, last) = read_mark(mark);
            self.next = self.next.saturating_add(size_of::<u32>()).saturating_add(length);
            self.last_seen = last;
        }
        bytes.len() >= self.next
    }
}

/// The length of a fragment, and whether it is the last.
fn read_mark(mark: u32) -> (usize, bool) {
    ((mark & !LAST_FRAGMENT) as usize, mark & LAST_FRAGMENT != 0)
}

/// The message in a record, its fragments joined.
fn join(record: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(record.len());
    let mut reader = Reader::new(record);
    loop {
        let (length, last) = read_mark(reader.u32()?);
        message.extend_from_slice(reader.take(length)?);
        if last {
            return Some(message);
        }
    }
}

/// Reads rpcbind's reply, record marks included.
///
/// # Errors
/// When it is no reply, refuses the call, or lists more than 10,000 registrations.
pub fn parse(record: &[u8]) -> Result<Vec<Registration>, Malformed> {
    let message = join(record).ok_or(Malformed::Expected("a whole record"))?;
    let mut reader = Reader::new(&message);
    read_header(&mut reader)?;
    let mut registrations = Vec::new();
    loop {
        match reader.u32() {
            Some(0) => return Ok(registrations),
            Some(1) if registrations.len() == MOST_REGISTRATIONS => return Err(Malformed::TooMany),
            Some(1) => {}
            _ => return Err(Malformed::Expected("a further registration or the end of the list")),
        }
        registrations.push(read_registration(&mut reader).ok_or(Malformed::Expected("a registration"))?);
    }
}

fn read_header(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let mut word = |expected| reader.u32().ok_or(Malformed::Expected(expected));
    if word("a transaction")? != TRANSACTION || word("a reply")? != REPLY {
        return Err(Malformed::Expected("a reply to the call"));
    }
    if word("whether the call was accepted")? != MSG_ACCEPTED {
        return Err(Malformed::Refused("denied"));
    }
    let _flavor = word("a verifier")?;
    let verifier = word("the length of a verifier")?;
    if verifier > LONGEST_VERIFIER || reader.take(padded(verifier)).is_none() {
        return Err(Malformed::Expected("a verifier"));
    }
    let mut word = |expected| reader.u32().ok_or(Malformed::Expected(expected));
    // `accept_stat`, RFC 5531, 9.
    match word("whether the call succeeded")? {
        SUCCESS => Ok(()),
        PROG_MISMATCH => {
            Err(Malformed::Version { low: word("the lowest version")?, high: word("the highest version")? })
        }
        1 => Err(Malformed::Refused("the program is not there")),
        3 => Err(Malformed::Refused("the procedure is not there")),
        4 => Err(Malformed::Refused("the arguments were not understood")),
        5 => Err(Malformed::Refused("it lacks memory or the like")),
        _ => Err(Malformed::Expected("whether the call succeeded")),
    }
}

fn read_registration(reader: &mut Reader<'_>) -> Option<Registration> {
    let (program, version) = (reader.u32()?, reader.u32()?);
    let (netid, address, owner) = (read_text(reader)?, read_text(reader)?, read_text(reader)?);
    let port = read_port(&netid, &address);
    Some(Registration { program, version, netid, address, port, owner })
}

/// A text: its length in four bytes, itself, and zeros up to a multiple of four.
fn read_text(reader: &mut Reader<'_>) -> Option<String> {
    let length = reader.u32().filter(|&length| length <= LONGEST_TEXT)?;
    let text = reader.take(padded(length))?.get(..length as usize)?;
    Some(harmless(&String::from_utf8_lossy(text)))
}

fn padded(length: u32) -> usize {
    (length as usize).next_multiple_of(4)
}

/// The port of a universal address: an address of the transport's family, and the two bytes of the port in decimal.
fn read_port(netid: &str, address: &str) -> Option<u16> {
    let (rest, low) = address.rsplit_once('.')?;
    let (host, high) = rest.rsplit_once('.')?;
    let right_family = match netid {
        "tcp" | "udp" => host.parse::<Ipv4Addr>().is_ok(),
        "tcp6" | "udp6" => host.parse::<Ipv6Addr>().is_ok(),
        _ => false,
    };
    let byte = |digits: &str| digits.parse::<u8>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let port = u16::from_be_bytes([byte(high)?, byte(low)?]);
    (right_family && port != 0).then_some(port)
}

fn transport(netid: &str) -> Option<Protocol> {
    match netid {
        "tcp" | "tcp6" => Some(Protocol::Tcp),
        "udp" | "udp6" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The ports that these programs claim. What others than root registered for them is refused.
pub fn claims(registrations: &[Registration], programs: &[u32]) -> Claims {
    let mut claims = Claims::default();
    let concerned = registrations.iter().filter(|entry| programs.contains(&entry.program) && entry.netid != LOCAL);
    for entry in concerned {
        let what = format!("{} v{} {}", name(entry.program), entry.version, shown(&entry.netid));
        let protocol = transport(&entry.netid);
        let port = protocol.zip(entry.port);
        match (protocol, entry.port) {
            _ if entry.owner != ROOT => claims.refuse(what, port, Refusal::Owner(entry.owner.clone())),
            (None, _) => claims.refuse(what, port, Refusal::Transport(entry.netid.clone())),
            (Some(_), None) => claims.refuse(what, port, Refusal::Address(entry.address.clone())),
            (Some(protocol), Some(port)) => claims.claims.push(Claim { protocol, port, what }),
        }
    }
    claims
}

/// How administrators call a program (Linux /etc/rpc).
fn name(program: u32) -> String {
    match program {
        RPCBIND_PROGRAM => "rpcbind".to_owned(),
        100_003 => "nfs".to_owned(),
        100_005 => "mountd".to_owned(),
        100_011 => "rquotad".to_owned(),
        100_021 => "nlockmgr".to_owned(),
        100_024 => "status".to_owned(),
        _ => format!("program {program}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// rpcbind 1.2.6 with mountd and rquotad, and three registrations that somebody made up: by user 1000 over the local
    /// socket, by somebody over the network, and by root with an address that is none.
    const REPLY: &[u8] = include_bytes!("captures/dump.bin");
    /// Its answer to version 9 of its protocol.
    const MISMATCH: &[u8] = include_bytes!("captures/version-mismatch.bin");
    const MOUNTD: u32 = 100_005;
    const RQUOTAD: u32 = 100_011;

    /// The same message in fragments of at most so many bytes.
    fn fragmented(record: &[u8], length: usize) -> Vec<u8> {
        let message = &record[4..];
        let mut fragments = Vec::new();
        for (index, chunk) in message.chunks(length).enumerate() {
            let last = if (index + 1) * length >= message.len() { LAST_FRAGMENT } else { 0 };
            fragments.extend((chunk.len() as u32 | last).to_be_bytes());
            fragments.extend(chunk);
        }
        fragments
    }

    fn registration(netid: &str, address: &str, owner: &str) -> Registration {
        Registration {
            program: MOUNTD,
            version: 3,
            netid: netid.to_owned(),
            address: address.to_owned(),
            port: read_port(netid, address),
            owner: owner.to_owned(),
        }
    }

    #[test]
    fn the_call_is_one_record() {
        let mut expected = vec![0x80, 0, 0, 40];
        for word in [TRANSACTION, 0, 2, 100_000, 4, 4, 0, 0, 0, 0] {
            expected.extend(word.to_be_bytes());
        }
        assert_eq!(dump_call(), expected);
    }

    #[test]
    fn real_registrations_and_who_made_them() {
        let registrations = parse(REPLY).unwrap();
        assert_eq!(registrations.len(), 35);
        let first = &registrations[0];
        assert_eq!((first.program, first.version, first.netid.as_str()), (100_000, 4, "tcp6"));
        assert_eq!((first.address.as_str(), first.port, first.owner.as_str()), ("::.0.111", Some(111), "superuser"));
        assert_eq!(registrations[10].port, None, "a local socket has no port");

        let found = claims(&registrations, &[MOUNTD]);
        assert_eq!(found.claims.len(), 12);
        let whats: Vec<_> = found.claims.iter().map(|claim| claim.what.as_str()).collect();
        assert!(whats.contains(&"mountd v3 tcp6") && whats.contains(&"mountd v1 udp"), "{whats:?}");
        let udp = found.claims.iter().find(|claim| claim.what == "mountd v1 udp").unwrap();
        assert_eq!((udp.protocol, udp.port), (Protocol::Udp, 207 * 256 + 41));
        let refused: Vec<_> = found.refused.iter().map(|refused| (refused.port, refused.why.clone())).collect();
        let expected = [
            (Some((Protocol::Tcp, 22)), Refusal::Owner("1000".to_owned())),
            (Some((Protocol::Udp, 1025)), Refusal::Owner("unknown".to_owned())),
            (None, Refusal::Address("rubbish".to_owned())),
        ];
        assert_eq!(refused, expected);
        assert_eq!(claims(&registrations, &[RQUOTAD]).claims.len(), 8);
        assert_eq!(claims(&registrations, &[]), Claims::default());
    }

    #[test]
    fn fragments_are_joined_wherever_they_are_cut() {
        let whole = parse(REPLY).unwrap();
        for length in [1, 2, 3, 4, 7, 100, REPLY.len()] {
            let fragments = fragmented(REPLY, length);
            assert_eq!(parse(&fragments).unwrap(), whole, "{length}");
            let mut record = Record::default();
            let ends: Vec<_> = (0..=fragments.len()).filter(|&end| record.is_whole(&fragments[..end])).collect();
            assert_eq!(ends, [fragments.len()], "{length}");
        }
        assert_eq!(parse(&[&[0, 0, 0, 0], REPLY].concat()).unwrap(), whole, "an empty fragment first");
    }

    #[test]
    fn refused_calls_say_why() {
        assert_eq!(parse(MISMATCH), Err(Malformed::Version { low: 2, high: 4 }));
        let reply = |words: &[u32]| {
            let mark = LAST_FRAGMENT | (words.len() * 4) as u32;
            [&[mark], words].concat().iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>()
        };
        assert_eq!(parse(&reply(&[TRANSACTION, 1, 1, 1, 1])), Err(Malformed::Refused("denied")));
        assert_eq!(parse(&reply(&[TRANSACTION, 1, 0, 0, 0, 3])), Err(Malformed::Refused("the procedure is not there")));
        assert_eq!(parse(&reply(&[TRANSACTION, 1, 0, 0, 4, 99, 0, 0])), Ok(Vec::new()), "with a verifier");
        assert_eq!(parse(&reply(&[1, 1, 0, 0, 0, 0, 0])), Err(Malformed::Expected("a reply to the call")));
        assert_eq!(parse(&reply(&[TRANSACTION, 1, 0, 0, u32::MAX])), Err(Malformed::Expected("a verifier")));
        let endless = [TRANSACTION, 1, 0, 0, 0, 0].into_iter().chain([1, 1, 1, 0, 0, 0].repeat(MOST_REGISTRATIONS + 1));
        assert_eq!(parse(&reply(&endless.collect::<Vec<_>>())), Err(Malformed::TooMany));
        let long = [TRANSACTION, 1, 0, 0, 0, 0, 1, 1, 1, u32::MAX];
        assert_eq!(parse(&reply(&long)), Err(Malformed::Expected("a registration")));
    }

    #[test]
    fn only_an_address_of_the_transport_has_a_port() {
        for (netid, address, port) in [
            ("tcp", "0.0.0.0.203.87", Some(203 * 256 + 87)),
            ("udp", "127.0.0.1.0.22", Some(22)),
            ("tcp6", "::.203.87", Some(203 * 256 + 87)),
            ("udp6", "fd00::1.255.255", Some(65535)),
            ("tcp6", "::ffff:10.0.0.1.1.0", Some(256)),
            ("tcp", "0.0.0.0.0.0", None),
            ("tcp", "0.0.0.0.256.1", None),
            ("tcp", "0.0.0.0.+1.1", None),
            ("tcp", "0.0.0.0..1", None),
            ("tcp", "::.203.87", None),
            ("tcp6", "0.0.0.0.203.87", None),
            ("tcp", "0.0.0.203.87", None),
            ("local", "/run/rpcbind.sock", None),
            ("sctp", "0.0.0.0.203.87", None),
            ("tcp", "", None),
        ] {
            assert_eq!(read_port(netid, address), port, "{netid} {address}");
        }
    }

    #[test]
    fn a_made_up_owner_or_transport_claims_nothing() {
        let entries = [
            registration("sctp", "0.0.0.0.1.1", "superuser"),
            registration("local", "/run/x.sock", "superuser"),
            registration("tcp", "0.0.0.0.1.1", "superuser "),
            registration("tcp", "0.0.0.0.1.1", ""),
        ];
        let found = claims(&entries, &[MOUNTD]);
        assert_eq!(found.claims, []);
        let why: Vec<_> = found.refused.into_iter().map(|refused| refused.why).collect();
        let expected = [
            Refusal::Transport("sctp".to_owned()),
            Refusal::Owner("superuser ".to_owned()),
            Refusal::Owner(String::new()),
        ];
        assert_eq!(why, expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 0..REPLY.len()) {
            let _ = parse(&bytes);
            let _ = Record::default().is_whole(&bytes);
            let mark = (LAST_FRAGMENT | (28 + bytes.len()) as u32).to_be_bytes();
            let _ = parse(&[&mark, &REPLY[4..32], &bytes].concat());
            prop_assert!(parse(&REPLY[..cut]).is_err());
        }

        #[test]
        fn a_changed_byte_is_no_panic_and_its_text_is_harmless(place in 0..REPLY.len(), byte in any::<u8>()) {
            let mut record = REPLY.to_vec();
            record[place] = byte;
            if let Ok(registrations) = parse(&record) {
                let found = claims(&registrations, &[MOUNTD, RQUOTAD]);
                prop_assert!(found.claims.iter().all(|claim| claim.port != 0));
                for entry in registrations {
                    let text = entry.netid + &entry.address + &entry.owner;
                    prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
                }
                for refused in found.refused {
                    let text = refused.what + &refused.why.to_string();
                    prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
                }
            }
        }

        #[test]
        fn any_address_is_read_without_a_panic(netid in "(tcp|udp)6?", address in "[0-9.:a-f+]{0,20}") {
            let _ = read_port(&netid, &address);
        }
    }
}
