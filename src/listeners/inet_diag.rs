//! How sock_diag describes a socket of IPv4 or IPv6: `struct inet_diag_msg` and the request for it, linux/inet_diag.h.
#![forbid(unsafe_code)]

use super::Listener;
use crate::kernel::wire::{Malformed, attributes};
use crate::plan::LocalScope;
use crate::ruleset::Protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The one message type of sock_diag, linux/sock_diag.h.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `AF_INET`, linux/socket.h.
pub(super) const AF_INET: u8 = 2;
/// `AF_INET6`, linux/socket.h.
pub(super) const AF_INET6: u8 = 10;
/// `TCP_CLOSE`, net/tcp_states.h: a UDP socket that is not connected.
const STATE_CLOSE: u8 = 7;
/// `TCP_LISTEN`, net/tcp_states.h.
const STATE_LISTEN: u8 = 10;
/// `INET_DIAG_SKV6ONLY`: whether `IPV6_V6ONLY` is set, one byte. Every socket of IPv6 that listens or is unconnected has
/// it since Linux 4.3.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `INET_DIAG_PROTOCOL`: the protocol number, one byte. Only messages about closed sockets have it.
const INET_DIAG_PROTOCOL: u16 = 10;
/// `INET_DIAG_NOCOOKIE`: any socket.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Where the fields of `struct inet_diag_msg` are.
mod field {
    pub(super) const FAMILY: usize = 0;
    pub(super) const STATE: usize = 1;
    pub(super) const SOURCE_PORT: usize = 4;
    pub(super) const DESTINATION_PORT: usize = 6;
    pub(super) const SOURCE: usize = 8;
    pub(super) const INTERFACE: usize = 40;
    pub(super) const COOKIE: usize = 44;
    pub(super) const UID: usize = 64;
    pub(super) const INODE: usize = 68;
    pub(super) const LENGTH: usize = 72;
}

/// The offsets of both ports in `struct inet_diag_msg`.
pub(super) const PORT_OFFSETS: (usize, usize) = (field::SOURCE_PORT, field::DESTINATION_PORT);

/// The state in which a socket of the protocol takes packets from anybody.
fn open_state(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => STATE_LISTEN,
        Protocol::Udp => STATE_CLOSE,
    }
}

/// The end of a socket that a request for one socket names.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct End {
    pub(super) port: u16,
    pub(super) address: [u8; 16],
}

/// `struct inet_diag_req_v2` for sockets of the protocol that take packets from anybody. Ends and interface matter
/// only for a request for one socket.
pub(super) fn request(family: u8, protocol: Protocol, source: End, destination: End, interface: u32) -> [u8; 56] {
    let mut bytes = [0; 56];
    bytes[0] = family;
    bytes[1] = protocol.number();
    bytes[4..8].copy_from_slice(&(1_u32 << open_state(protocol)).to_ne_bytes());
    bytes[8..10].copy_from_slice(&source.port.to_be_bytes());
    bytes[10..12].copy_from_slice(&destination.port.to_be_bytes());
    bytes[12..28].copy_from_slice(&source.address);
    bytes[28..44].copy_from_slice(&destination.address);
    bytes[44..48].copy_from_slice(&interface.to_ne_bytes());
    bytes[48..56].copy_from_slice(&ANY_COOKIE);
    bytes
}

/// Reads a socket; `None` when it does not take packets from anybody.
pub(super) fn listener(protocol: Protocol, payload: &[u8]) -> Result<Option<Listener>, Malformed> {
    let (message, rest) = split(payload)?;
    let port = be16(message, field::SOURCE_PORT);
    if message[field::STATE] != open_state(protocol) || port == 0 || be16(message, field::DESTINATION_PORT) != 0 {
        return Ok(None);
    }
    let source: [u8; 16] = chunk(message, field::SOURCE);
    let scope = match message[field::FAMILY] {
        AF_INET => ipv4_scope(Ipv4Addr::from(*source.first_chunk().unwrap_or(&[0; 4]))),
        AF_INET6 => ipv6_scope(Ipv6Addr::from(source), rest)?,
        _ => return Err(Malformed("a family of IPv4 or IPv6")),
    };
    let interface = ne32(message, field::INTERFACE);
    Ok(Some(Listener {
        protocol,
        port,
        scope,
        interface: (interface != 0).then_some(interface),
        uid: ne32(message, field::UID),
        inode: ne32(message, field::INODE),
        cookie: cookie(message),
    }))
}

/// What a message about a closed socket says: protocol, source port and cookie; `None` when the protocol is another one.
pub(super) fn closed(payload: &[u8]) -> Result<Option<(Protocol, u16, u64)>, Malformed> {
    let (message, rest) = split(payload)?;
    let protocol = match byte_attribute(rest, INET_DIAG_PROTOCOL)?.ok_or(Malformed("the protocol of a socket"))? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return Ok(None),
    };
    Ok(Some((protocol, be16(message, field::SOURCE_PORT), cookie(message))))
}

fn ipv4_scope(address: Ipv4Addr) -> LocalScope {
    if address.is_unspecified() { LocalScope::Ipv4 } else { LocalScope::Address(address.into()) }
}

fn ipv6_scope(address: Ipv6Addr, attributes: &[u8]) -> Result<LocalScope, Malformed> {
    if let Some(address) = address.to_ipv4_mapped() {
        return Ok(ipv4_scope(address));
    }
    if !address.is_unspecified() {
        return Ok(LocalScope::Address(IpAddr::V6(address)));
    }
    // Where the kernel does not say, the narrower answer is the one that opens nothing that is not there.
    let only_ipv6 = byte_attribute(attributes, INET_DIAG_SKV6ONLY)?.is_none_or(|value| value != 0);
    Ok(if only_ipv6 { LocalScope::Ipv6 } else { LocalScope::Any })
}

fn split(payload: &[u8]) -> Result<(&[u8; field::LENGTH], &[u8]), Malformed> {
    payload.split_first_chunk().ok_or(Malformed("the description of a socket"))
}

fn byte_attribute(bytes: &[u8], number: u16) -> Result<Option<u8>, Malformed> {
    for attribute in attributes(bytes) {
        match attribute? {
            (found, &[value]) if found == number => return Ok(Some(value)),
            (found, _) if found == number => return Err(Malformed("an attribute of one byte")),
            _ => {}
        }
    }
    Ok(None)
}

fn cookie(message: &[u8; field::LENGTH]) -> u64 {
    // Two words, the lower one first (`sock_diag_save_cookie`, net/core/sock_diag.c).
    u64::from(ne32(message, field::COOKIE)) | u64::from(ne32(message, field::COOKIE + 4)) << 32
}

/// The bytes at an offset of this module, all of which lie within the message.
fn chunk<const N: usize>(message: &[u8; field::LENGTH], offset: usize) -> [u8; N] {
    message.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

fn be16(message: &[u8; field::LENGTH], offset: usize) -> u16 {
    u16::from_be_bytes(chunk(message, offset))
}

fn ne32(message: &[u8; field::LENGTH], offset: usize) -> u32 {
    u32::from_ne_bytes(chunk(message, offset))
}

#[cfg(test)]
pub(super) mod captures;

#[cfg(test)]
mod tests {
    use super::captures::*;
    use super::*;
    use proptest::prelude::*;

    fn read(protocol: Protocol, capture: &str) -> Listener {
        listener(protocol, &payload(capture)).unwrap().unwrap()
    }

    #[test]
    fn listeners_of_tcp() {
        let any_ipv4 = read(Protocol::Tcp, TCP_ANY_IPV4);
        let expected = Listener {
            protocol: Protocol::Tcp,
            port: 7676,
            scope: LocalScope::Ipv4,
            interface: None,
            uid: 0,
            inode: 42_005,
            cookie: 0x1019,
        };
        assert_eq!(any_ipv4, expected);

        let on_loopback = read(Protocol::Tcp, TCP_LOOPBACK_DEVICE);
        assert_eq!(on_loopback.scope, LocalScope::Address(Ipv4Addr::LOCALHOST.into()));
        assert_eq!((on_loopback.port, on_loopback.interface), (7677, Some(1)));
        assert!(on_loopback.is_loopback());
    }

    #[test]
    fn ipv6_listeners_say_whether_they_take_ipv4() {
        let scope = |capture| read(Protocol::Tcp, capture).scope;
        assert_eq!(scope(TCP_DUAL_STACK), LocalScope::Any);
        assert_eq!(scope(TCP_ONLY_IPV6), LocalScope::Ipv6);
        assert_eq!(scope(TCP_MAPPED_LOOPBACK), LocalScope::Address(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(scope(TCP_MAPPED_ANY), LocalScope::Ipv4);
        assert_eq!(scope(TCP_LOOPBACK_IPV6), LocalScope::Address(Ipv6Addr::LOCALHOST.into()));

        let without_attributes = payload(TCP_DUAL_STACK)[..field::LENGTH].to_vec();
        let listener = listener(Protocol::Tcp, &without_attributes).unwrap().unwrap();
        assert_eq!(listener.scope, LocalScope::Ipv6, "what is not said is not opened");
    }

    #[test]
    fn bound_sockets_of_udp() {
        let syslog = read(Protocol::Udp, UDP_ANY_IPV4);
        assert_eq!((syslog.port, syslog.scope, syslog.cookie), (514, LocalScope::Ipv4, 0x1020));
        assert_eq!(read(Protocol::Udp, UDP_DUAL_STACK).scope, LocalScope::Any);
    }

    #[test]
    fn a_socket_in_another_state_is_no_listener() {
        assert_eq!(listener(Protocol::Tcp, &payload(UDP_ANY_IPV4)), Ok(None));
        let mut connected = payload(UDP_ANY_IPV4);
        connected[field::DESTINATION_PORT] = 1;
        assert_eq!(listener(Protocol::Udp, &connected), Ok(None));
    }

    #[test]
    fn closed_sockets() {
        assert_eq!(closed(&payload(CLOSED_TCP)), Ok(Some((Protocol::Tcp, 7676, 0x1019))));
        assert_eq!(closed(&payload(CLOSED_UDP_IPV6)), Ok(Some((Protocol::Udp, 2055, 0x1021))));
        assert_eq!(closed(&payload(TCP_ANY_IPV4)), Err(Malformed("the protocol of a socket")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let _ = listener(protocol, &bytes);
            }
            let _ = closed(&bytes);
        }

        #[test]
        fn a_torn_or_changed_capture_is_read_or_refused(
            capture in proptest::sample::select(vec![TCP_ANY_IPV4, TCP_DUAL_STACK, UDP_DUAL_STACK, CLOSED_TCP]),
            cut in 0_usize..400,
            changes in proptest::collection::vec((0_usize..400, any::<u8>()), 0..4),
        ) {
            let mut bytes = payload(capture);
            for (place, value) in changes {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            let read = listener(Protocol::Tcp, &bytes);
            if cut < field::LENGTH {
                prop_assert!(read.is_err() && closed(&bytes).is_err());
            } else if let Ok(Some(listener)) = read {
                prop_assert!(listener.port != 0);
            }
        }
    }
}
