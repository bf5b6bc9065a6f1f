//! What rules have noted of packets in the sets of an observing policy.
#![forbid(unsafe_code)]

use super::uapi::{self, NFPROTO_INET, NLM_F_DUMP, data, element, message};
use super::wire::{Attributes, Malformed, Message, attributes};
use super::{Answer, DUMP_ATTEMPTS, Error, Netlink};
use crate::ruleset::{Family, Protocol, Record, TABLE};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One element of such a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The address at the other end.
    pub peer: IpAddr,
    /// Protocol and port, where the set has them.
    pub port: Option<(Protocol, u16)>,
}

impl Netlink {
    /// What was noted in a set of our table, sorted; `None` when there is no such set. Notes that come meanwhile may be
    /// left out. Foreign elements, of another form, are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or gives no whole answer.
    pub fn notes(&mut self, set: &str, record: Record) -> Result<Option<BTreeSet<Note>>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut notes = BTreeSet::new();
            let names = [(uapi::OF_TABLE, TABLE), (element::OF_SET, set)];
            let request = (message::GETSETELEM, NLM_F_DUMP, NFPROTO_INET);
            let answer =
                self.ask("reading what was observed", request, &names, |message| read(message, record, &mut notes));
            match answer? {
                Answer::Complete => return Ok(Some(notes)),
                Answer::Missing => return Ok(None),
                Answer::Interrupted => {}
            }
        }
        Err(Error::Changed)
    }
}

pub(super) fn read(message: &Message<'_>, record: Record, notes: &mut BTreeSet<Note>) -> Result<(), Malformed> {
    if message.nf_tables_kind() != Some(message::NEWSETELEM) {
        return Ok(());
    }
    let list = message.attributes()?.get(element::LIST).unwrap_or_default();
    for entry in attributes(list) {
        let key = Attributes::read(entry?.1)?.nested(element::KEY)?;
        notes.extend(key.get(data::VALUE).and_then(|key| note(key, record)));
    }
    Ok(())
}

/// The parts of a key, each in whole words of 32 bits.
fn note(key: &[u8], Record { family, with_port }: Record) -> Option<Note> {
    let (peer, rest) = match family {
        Family::Ipv4 => {
            let (address, rest) = key.split_first_chunk::<4>()?;
            (IpAddr::V4(Ipv4Addr::from(*address)), rest)
        }
        Family::Ipv6 => {
            let (address, rest) = key.split_first_chunk::<16>()?;
            (IpAddr::V6(Ipv6Addr::from(*address)), rest)
        }
    };
    let port = match (with_port, rest) {
        (false, []) => None,
        (true, &[number, 0, 0, 0, high, low, 0, 0]) => {
            let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == number)?;
            Some((protocol, u16::from_be_bytes([high, low])))
        }
        _ => return None,
    };
    Some(Note { peer, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From a Linux 6.18 kernel: `192.0.2.9 . udp . 514` and `2001:db8::9 . tcp . 443`.
    const IPV4: [u8; 12] = [192, 0, 2, 9, 17, 0, 0, 0, 2, 2, 0, 0];
    const IPV6: [u8; 24] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 6, 0, 0, 0, 1, 0xbb, 0, 0];

    #[test]
    fn keys_are_read() {
        let read = |key, family, with_port| note(key, Record { family, with_port });
        let of = |peer: &str, port| Some(Note { peer: peer.parse().unwrap(), port });
        assert_eq!(read(&IPV4, Family::Ipv4, true), of("192.0.2.9", Some((Protocol::Udp, 514))));
        assert_eq!(read(&IPV6, Family::Ipv6, true), of("2001:db8::9", Some((Protocol::Tcp, 443))));
        assert_eq!(read(&IPV4[..4], Family::Ipv4, false), of("192.0.2.9", None));
        assert_eq!(read(&IPV6[..16], Family::Ipv6, false), of("2001:db8::9", None));
        for (key, family, with_port) in [
            (&IPV4[..], Family::Ipv4, false),
            (&IPV4[..11], Family::Ipv4, true),
            (&IPV4[..4], Family::Ipv4, true),
            (&IPV4[..], Family::Ipv6, true),
            (&IPV6[..], Family::Ipv4, true),
            (&[192, 0, 2, 9, 50, 0, 0, 0, 2, 2, 0, 0], Family::Ipv4, true),
            (&[], Family::Ipv4, false),
        ] {
            assert_eq!(read(key, family, with_port), None, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn no_key_is_too_strange(key in proptest::collection::vec(any::<u8>(), 0..40), v4: bool, with_port: bool) {
            let family = if v4 { Family::Ipv4 } else { Family::Ipv6 };
            if let Some(found) = note(&key, Record { family, with_port }) {
                prop_assert_eq!(found.peer.is_ipv4(), v4);
                prop_assert_eq!(found.port.is_some(), with_port);
            }
        }
    }
}
