//! Connection tracking over ctnetlink: which flows there are, and the end of one of them.
#![forbid(unsafe_code)]

use super::conversation::{Conversation, Outcome, malformed_error};
use super::native::Bus;
use super::uapi::{NFNL_SUBSYS_CTNETLINK, NLM_F_ACK, NLM_F_DUMP, conntrack as attribute};
use super::wire::{Attributes, Malformed, Message, begin_nest, end_nest, put, put_be32};
use crate::kernel::Error;
use crate::kernel::conntrack::{Flow, FlowKey, FlowStatus, TcpState, Tuple};
use nix::errno::Errno;
use nix::libc;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Families of packets, as the kernel numbers them (`AF_UNSPEC`, `AF_INET`, `AF_INET6`).
const FAMILY_ALL: u8 = libc::AF_UNSPEC as u8;
const FAMILY_IPV4: u8 = libc::AF_INET as u8;
const FAMILY_IPV6: u8 = libc::AF_INET6 as u8;

/// The type of a message of ctnetlink.
const fn ctnetlink(kind: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | kind
}

/// The flows of the network namespace in which it was opened.
pub struct Conntrack {
    conversation: Conversation,
}

impl Conntrack {
    /// Opens a socket to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink, or no memory for the queues.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { conversation: Conversation::open(Bus::Netfilter)? })
    }

    /// Hands every IPv4 and IPv6 flow to the visitor, one after another; nothing is kept. A flow that begins or ends
    /// meanwhile may be left out, and one may be told twice when others end. When the visitor fails, it is not called
    /// again, and its error is returned.
    ///
    /// To delete flows while visiting them, the visitor needs a `Conntrack` of its own.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or has no connection tracking.
    pub fn flows(&mut self, mut visit: impl FnMut(&Flow) -> Result<(), Error>) -> Result<(), Error> {
        const DOING: &str = "reading the tracked flows";
        let mut failed = None;
        let request = (ctnetlink(attribute::GET), NLM_F_DUMP, FAMILY_ALL);
        // The kernel's answer is read to its end in any case: a dump that is left open blocks the next one.
        let outcome = self.conversation.ask(
            DOING,
            request,
            |_| {},
            |message| {
                if failed.is_none()
                    && let Some(flow) = read_flow(message)?
                {
                    failed = visit(&flow).err();
                }
                Ok(())
            },
        )?;
        match (failed, outcome) {
            (Some(error), _) => Err(error),
            // Entries come and go all the time, so this says nothing new.
            (None, Outcome::Complete | Outcome::Interrupted) => Ok(()),
            (None, Outcome::Failed(errno)) => Err(error_of(DOING, errno)),
        }
    }

    /// Makes the kernel forget the flow, so that its next packet is judged as the first of a new one. Whether it was
    /// there: another flow with the same addresses and ports that began since is not touched.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, Error> {
        const DOING: &str = "deleting a tracked flow";
        let (source, destination) = (flow.original.source, flow.original.destination);
        // The kernel takes a request in which it finds no addresses for one to delete all flows.
        let family = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => FAMILY_IPV4,
            (IpAddr::V6(_), IpAddr::V6(_)) => FAMILY_IPV6,
            _ => return Err(malformed_error(DOING, Malformed("two addresses of one family"))),
        };
        let request = (ctnetlink(attribute::DELETE), NLM_F_ACK, family);
        match self.conversation.ask(DOING, request, |bytes| put_identity(bytes, flow), |_| Ok(()))? {
            Outcome::Complete | Outcome::Interrupted => Ok(true),
            Outcome::Failed(Errno::ENOENT) => Ok(false),
            Outcome::Failed(errno) => Err(error_of(DOING, errno)),
        }
    }
}

fn error_of(doing: &str, errno: Errno) -> Error {
    match errno {
        // What nfnetlink answers when nobody takes its messages (`nfnetlink_rcv_msg`, net/netfilter/nfnetlink.c).
        Errno::EINVAL | Errno::EOPNOTSUPP => Error::NoConntrack { source: errno },
        errno => Error::from_errno(doing, errno),
    }
}

/// What names one entry: the original direction, the zone, and the entry's number.
pub(super) fn put_identity(bytes: &mut Vec<u8>, flow: &Flow) {
    let Tuple { source, destination, key } = flow.original;
    let tuple = begin_nest(bytes, attribute::TUPLE_ORIGINAL);
    let addresses = begin_nest(bytes, attribute::TUPLE_ADDRESSES);
    for (address, ipv4, ipv6) in [
        (source, attribute::IPV4_SOURCE, attribute::IPV6_SOURCE),
        (destination, attribute::IPV4_DESTINATION, attribute::IPV6_DESTINATION),
    ] {
        match address {
            IpAddr::V4(address) => put(bytes, ipv4, &address.octets()),
            IpAddr::V6(address) => put(bytes, ipv6, &address.octets()),
        }
    }
    end_nest(bytes, addresses);
    let protocol = begin_nest(bytes, attribute::TUPLE_PROTOCOL);
    put(bytes, attribute::PROTOCOL_NUMBER, &[flow.protocol]);
    match key {
        FlowKey::Ports { source, destination } => {
            put(bytes, attribute::SOURCE_PORT, &source.to_be_bytes());
            put(bytes, attribute::DESTINATION_PORT, &destination.to_be_bytes());
        }
        FlowKey::Icmp { kind, code, id } => {
            let [id_number, kind_number, code_number] =
                if source.is_ipv4() { attribute::ICMP_ID_TYPE_CODE } else { attribute::ICMPV6_ID_TYPE_CODE };
            put(bytes, id_number, &id.to_be_bytes());
            put(bytes, kind_number, &[kind]);
            put(bytes, code_number, &[code]);
        }
        FlowKey::None => {}
    }
    end_nest(bytes, protocol);
    end_nest(bytes, tuple);
    if flow.zone != 0 {
        put(bytes, attribute::ZONE, &flow.zone.to_be_bytes());
    }
    put_be32(bytes, attribute::ID, flow.id);
}

/// The flow of a message; `None` for messages that tell of something else.
pub(super) fn read_flow(message: &Message<'_>) -> Result<Option<Flow>, Malformed> {
    if message.kind != ctnetlink(attribute::NEW) || !matches!(message.family()?, FAMILY_IPV4 | FAMILY_IPV6) {
        return Ok(None);
    }
    let attributes = message.attributes()?;
    let (protocol, original, original_zone) = read_tuple(&attributes, attribute::TUPLE_ORIGINAL)?;
    let (_, reply, _) = read_tuple(&attributes, attribute::TUPLE_REPLY)?;
    let tcp = attributes.nested(attribute::PROTOCOL_INFORMATION)?.nested(attribute::INFORMATION_TCP)?;
    Ok(Some(Flow {
        protocol,
        original,
        reply,
        status: FlowStatus(attributes.be32(attribute::STATUS)?.unwrap_or_default()),
        tcp: tcp.u8(attribute::TCP_STATE)?.map(TcpState),
        id: attributes.be32(attribute::ID)?.ok_or(Malformed("the number of a flow"))?,
        timeout: attributes.be32(attribute::TIMEOUT)?,
        zone: attributes.be16(attribute::ZONE)?.or(original_zone).unwrap_or_default(),
    }))
}

/// The protocol, the addresses, and the zone if it is one of this direction only.
pub(super) fn read_tuple(attributes: &Attributes<'_>, number: u16) -> Result<(u8, Tuple, Option<u16>), Malformed> {
    let tuple = attributes.nested(number)?;
    let addresses = tuple.nested(attribute::TUPLE_ADDRESSES)?;
    let address = |ipv4, ipv6| match (addresses.get(ipv4), addresses.get(ipv6)) {
        (Some(bytes), None) => <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))).ok(),
        (None, Some(bytes)) => <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))).ok(),
        _ => None,
    };
    let expected = Malformed("the addresses of a flow");
    let source = address(attribute::IPV4_SOURCE, attribute::IPV6_SOURCE).ok_or(expected)?;
    let destination = address(attribute::IPV4_DESTINATION, attribute::IPV6_DESTINATION).ok_or(expected)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(expected);
    }

    let protocol = tuple.nested(attribute::TUPLE_PROTOCOL)?;
    let [icmp_id, icmp_kind, icmp_code] =
        if source.is_ipv4() { attribute::ICMP_ID_TYPE_CODE } else { attribute::ICMPV6_ID_TYPE_CODE };
    let ports = (protocol.be16(attribute::SOURCE_PORT)?, protocol.be16(attribute::DESTINATION_PORT)?);
    let key = match (ports, protocol.u8(icmp_kind)?) {
        ((Some(source), Some(destination)), _) => FlowKey::Ports { source, destination },
        (_, Some(kind)) => FlowKey::Icmp {
            kind,
            code: protocol.u8(icmp_code)?.unwrap_or_default(),
            id: protocol.be16(icmp_id)?.unwrap_or_default(),
        },
        _ => FlowKey::None,
    };
    let number = protocol.u8(attribute::PROTOCOL_NUMBER)?.ok_or(Malformed("the protocol of a flow"))?;
    Ok((number, Tuple { source, destination, key }, tuple.be16(attribute::TUPLE_ZONE)?))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{MESSAGE_HEADER, begin_message, end_message, messages};
    use super::*;
    use crate::kernel::netlink::wire::Header;
    use proptest::prelude::*;

    // Messages of a dump by Linux 6.18, of flows that were made in a network namespace.
    const REDIRECTED: &str = "d4000000000102000100000000000000020000003400018014000180080001000a00000a080002000a00000a1c000280050001000600\
         0000060002009c41000006000300020200003400028014000180080001007f000001080002000a00000a1c0002800500010006000000\
         0600020002050000060003009c41000008000300000001ae080008000000000008000c0096e02c4b08000b0000000001080007000006\
         977f300004802c0001800500010003000000050002000a000000050003000a00000006000400230000000600050023000000";
    const TCP_IPV6: &str = "040100000001020001000000000000000a0000004c0001802c00018014000300fd00000000000000000000000000001014000400fd00\
         00000000000000000000000000101c0002800500010006000000060002009c4200000600030001bb00004c0002802c00018014000300\
         fd00000000000000000000000000001014000400fd0000000000000000000000000000101c00028005000100060000000600020001bb\
         0000060003009c420000080003000000018e080008000000000008000c00e955667508000b0000000001080007000006977f30000480\
         2c0001800500010003000000050002000a000000050003000a00000006000400230000000600050023000000";
    const UDP_ZONE: &str = "ac000000000102000100000000000000020000003400018014000180080001000a090001080002000a0900051c000280050001001100\
         0000060002009c4400000600030003e700003400028014000180080001000a090005080002000a0900011c0002800500010011000000\
         0600020003e70000060003009c44000006001200000700000800030000000188080008000000000008000c00c56f06c208000b000000\
         0001080007000000001d";
    const UDP_ORIGINAL_ZONE: &str = "ac000000000102000100000000000000020000003c00018014000180080001000a090001080002000a0900051c000280050001001100\
         0000060002009c4500000600030003e6000006000300000900003400028014000180080001000a090005080002000a0900011c000280\
         05000100110000000600020003e60000060003009c4500000800030000000188080008000000000008000c00510cec6b08000b000000\
         0001080007000000001d";
    const ICMP: &str = "b4000000000102000100000000000000020000003c00018014000180080001000a090001080002000a09000524000280050001000100\
         00000600040012670000050005000800000005000600000000003c00028014000180080001000a090005080002000a09000124000280\
         05000100010000000600040012670000050005000000000005000600000000000800030000000188080008000000000008000c00d135\
         f10808000b0000000001080007000000001d";
    const ICMPV6: &str = "e40000000001020001000000000000000a000000540001802c00018014000300fd00000000000000000000000000001014000400fd00\
         000000000000000000000000001024000280050001003a00000006000700126800000500080080000000050009000000000054000280\
         2c00018014000300fd00000000000000000000000000001014000400fd00000000000000000000000000001024000280050001003a00\
         0000060007001268000005000800810000000500090000000000080003000000018a080008000000000008000c002b8c79f308000b00\
         00000001080007000000001d";
    const ESP: &str = "84000000000102000100000000000000020000002400018014000180080001000a090001080002000a0900050c000280050001003200\
         00002400028014000180080001000a090005080002000a0900010c000280050001003200000008000300000001880800080000000000\
         08000c003a434d8e08000b00000000010800070000000257";

    fn bytes_of(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn read(capture: &str) -> Flow {
        let bytes = bytes_of(capture);
        let all: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(all.len(), 1);
        read_flow(&all[0]).unwrap().unwrap()
    }

    fn tuple(source: &str, destination: &str, key: FlowKey) -> Tuple {
        Tuple { source: source.parse().unwrap(), destination: destination.parse().unwrap(), key }
    }

    fn ports(source: u16, destination: u16) -> FlowKey {
        FlowKey::Ports { source, destination }
    }

    #[test]
    fn a_redirected_connection_has_another_reply() {
        let flow = read(REDIRECTED);
        let expected = Flow {
            protocol: 6,
            original: tuple("10.0.0.10", "10.0.0.10", ports(40001, 514)),
            reply: tuple("127.0.0.1", "10.0.0.10", ports(517, 40001)),
            status: FlowStatus(0x1ae),
            tcp: Some(TcpState(3)),
            id: flow.id,
            timeout: Some(431_999),
            zone: 0,
        };
        assert_eq!(flow, expected);
        assert!(flow.status.is_destination_rewritten() && flow.status.is_assured() && flow.status.has_seen_reply());
        assert!(!flow.status.is_source_rewritten() && !flow.status.is_expected());
        assert_eq!(flow.state(), "established");
    }

    #[test]
    fn both_families_and_every_kind_of_key_are_read() {
        let flow = read(TCP_IPV6);
        assert_eq!((flow.protocol, flow.original), (6, tuple("fd00::10", "fd00::10", ports(40002, 443))));
        let flow = read(ICMP);
        let echo = |kind| FlowKey::Icmp { kind, code: 0, id: 4711 };
        assert_eq!((flow.protocol, flow.original), (1, tuple("10.9.0.1", "10.9.0.5", echo(8))));
        assert_eq!((flow.reply, flow.state().as_str()), (tuple("10.9.0.5", "10.9.0.1", echo(0)), "unreplied"));
        let flow = read(ICMPV6);
        let echo = |kind| FlowKey::Icmp { kind, code: 0, id: 4712 };
        assert_eq!((flow.protocol, flow.original), (58, tuple("fd00::10", "fd00::10", echo(128))));
        assert_eq!((flow.reply, flow.state().as_str()), (tuple("fd00::10", "fd00::10", echo(129)), "replied"));
        let flow = read(ESP);
        assert_eq!((flow.protocol, flow.original), (50, tuple("10.9.0.1", "10.9.0.5", FlowKey::None)));
    }

    #[test]
    fn a_zone_may_be_of_one_direction_only() {
        assert_eq!(read(UDP_ZONE).zone, 7);
        assert_eq!(read(UDP_ORIGINAL_ZONE).zone, 9);
    }

    /// A flow as a message of a dump, with the attributes that name it and nothing else.
    fn message_with_identity(flow: &Flow) -> Vec<u8> {
        let mut bytes = Vec::new();
        let family = if flow.original.source.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
        let header = Header { kind: ctnetlink(attribute::NEW), flags: 0, sequence: 1, family, resource: 0 };
        let start = begin_message(&mut bytes, header);
        put_identity(&mut bytes, flow);
        let reversed = Flow { original: flow.reply, ..*flow };
        let mut reply = Vec::new();
        put_identity(&mut reply, &reversed);
        // The same nest under the number of the other direction.
        reply[2..4].copy_from_slice(&(attribute::TUPLE_REPLY | 1 << 15).to_ne_bytes());
        bytes.extend_from_slice(&reply);
        end_message(&mut bytes, start);
        bytes
    }

    #[test]
    fn a_request_names_the_flow_as_the_kernel_does() {
        for capture in [REDIRECTED, TCP_IPV6, UDP_ZONE, UDP_ORIGINAL_ZONE, ICMP, ICMPV6, ESP] {
            let flow = read(capture);
            let bytes = message_with_identity(&flow);
            let message = messages(&bytes).next().unwrap().unwrap();
            let expected = Flow { status: FlowStatus(0), tcp: None, timeout: None, ..flow };
            assert_eq!(read_flow(&message), Ok(Some(expected)));
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_reading_panic(payload in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u16..4) {
            let mut bytes = ((MESSAGE_HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&ctnetlink(kind).to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&payload);
            for message in messages(&bytes) {
                let _ = read_flow(&message.unwrap());
            }
        }

        /// Nearly right messages come further than random ones.
        #[test]
        fn no_damage_to_a_message_makes_reading_panic(
            capture in proptest::sample::select(&[REDIRECTED, TCP_IPV6, UDP_ZONE, ICMP, ESP]),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = bytes_of(capture);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for message in messages(&bytes).flatten() {
                let _ = read_flow(&message);
            }
        }
    }
}
