//! The records that the BPF programs write: `struct event` of bpf/listen.bpf.c.
#![forbid(unsafe_code)]

use super::{Event, EventSocket};
use crate::plan::LocalScope;
use crate::ruleset::Protocol;
use std::net::{Ipv4Addr, Ipv6Addr};

/// `enum` of the kinds, bpf/listen.bpf.c.
const OPENED: u8 = 1;
const CLOSED: u8 = 2;
/// `AF_INET` and `AF_INET6`, linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Reads a record; `None` when it is none.
pub(in crate::listeners) fn read(record: &[u8]) -> Option<Event> {
    let (cookie, rest) = record.split_first_chunk::<8>()?;
    let (_namespace, rest) = rest.split_first_chunk::<8>()?;
    let (address, rest) = rest.split_first_chunk::<16>()?;
    let (pid, rest) = rest.split_first_chunk::<4>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let &[kind, protocol, family, ..] = rest else { return None };
    let port = u16::from_ne_bytes(*port);
    let pid = u32::from_ne_bytes(*pid);
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let scope = match family {
        AF_INET => Some(ipv4_scope(Ipv4Addr::from(*address.first_chunk()?))),
        AF_INET6 => Some(ipv6_scope(Ipv6Addr::from(*address))),
        _ => None,
    };
    let cookie = u64::from_ne_bytes(*cookie);
    let socket = EventSocket { protocol, port, scope, cookie, pid: (pid != 0).then_some(pid) };
    match kind {
        _ if port == 0 => None,
        OPENED if scope.is_some() => Some(Event::Opened(socket)),
        CLOSED => Some(Event::Closed(socket)),
        _ => None,
    }
}

fn ipv4_scope(address: Ipv4Addr) -> LocalScope {
    if address.is_unspecified() { LocalScope::Ipv4 } else { LocalScope::Address(address.into()) }
}

fn ipv6_scope(address: Ipv6Addr) -> LocalScope {
    match address.to_ipv4_mapped() {
        Some(address) => ipv4_scope(address),
        None if address.is_unspecified() => LocalScope::Any,
        None => LocalScope::Address(address.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, family: u8, address: [u8; 16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&77_u64.to_ne_bytes());
        bytes.extend_from_slice(&5_u64.to_ne_bytes());
        bytes.extend_from_slice(&address);
        bytes.extend_from_slice(&4242_u32.to_ne_bytes());
        bytes.extend_from_slice(&7676_u16.to_ne_bytes());
        bytes.extend_from_slice(&[kind, 6, family, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn records_are_read() {
        let socket = |scope| EventSocket { protocol: Protocol::Tcp, port: 7676, scope, cookie: 77, pid: Some(4242) };
        let opened = |family, address| read(&record(OPENED, family, address));
        assert_eq!(opened(AF_INET6, [0; 16]), Some(Event::Opened(socket(Some(LocalScope::Any)))));
        assert_eq!(opened(AF_INET, [0; 16]), Some(Event::Opened(socket(Some(LocalScope::Ipv4)))));
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let localhost = Some(LocalScope::Address(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(opened(AF_INET6, mapped), Some(Event::Opened(socket(localhost))));
        assert_eq!(opened(0, [0; 16]), None);
        assert_eq!(read(&record(CLOSED, 0, [0; 16])), Some(Event::Closed(socket(None))));
        assert_eq!(read(&record(9, AF_INET, [0; 16])), None);
    }

    proptest! {
        #[test]
        fn no_record_makes_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
