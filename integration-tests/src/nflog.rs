//! A reader of packets that a `log group N` statement hands to user space.

use crate::lab::Host;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

// linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_log.h and linux/netlink.h.
const SUBSYSTEM_ULOG: u16 = 4;
const MESSAGE_PACKET: u16 = 0;
const MESSAGE_CONFIG: u16 = 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const ATTRIBUTE_PAYLOAD: u16 = 9;
const ATTRIBUTE_PREFIX: u16 = 10;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const NETLINK_ERROR: u16 = 2;
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// A logged packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logged {
    /// The text of the log statement.
    pub prefix: String,
    /// The packet from its IP header on.
    pub packet: Vec<u8>,
}

/// A subscription to one NFLOG group of a host.
#[derive(Debug)]
pub struct Reader {
    socket: OwnedFd,
}

impl Reader {
    /// Subscribes to a group.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because someone else reads the group.
    pub fn open(host: &Host, group: u16) -> Result<Self> {
        host.run(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            let reader = Self { socket };
            reader.configure(group, CONFIG_COMMAND, &[COMMAND_BIND])?;
            // struct nfulnl_msg_config_mode: copy_range in network order, copy_mode, padding.
            reader.configure(group, CONFIG_MODE, &[0, 0, 0xff, 0xff, COPY_PACKET, 0])?;
            Ok(reader)
        })
    }

    fn configure(&self, group: u16, attribute: u16, value: &[u8]) -> Result<()> {
        let attribute_length = 4 + value.len();
        let padded = attribute_length.next_multiple_of(4);
        let length = NETLINK_HEADER + NETFILTER_HEADER + padded;
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length)?.to_ne_bytes());
        message.extend((SUBSYSTEM_ULOG << 8 | MESSAGE_CONFIG).to_ne_bytes());
        message.extend(REQUEST_WITH_ACK.to_ne_bytes());
        message.extend([0; 8]); // sequence number and port: this socket sends one request at a time
        message.extend([0, 0]); // family unspecified, version 0
        message.extend(group.to_be_bytes());
        message.extend(u16::try_from(attribute_length)?.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value);
        message.resize(length, 0);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

        let answer = self.receive(Duration::from_secs(5))?.context("the kernel did not answer")?;
        for (kind, body) in messages(&answer) {
            if kind == NETLINK_ERROR {
                match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
                    Some(0) => return Ok(()),
                    code => bail!("NFLOG group {group}: {:?}", code.map(|code| Errno::from_raw(-code))),
                }
            }
        }
        bail!("NFLOG group {group}: no acknowledgement")
    }

    /// The packets logged within the time, until `wanted` of them were read.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn packets(&self, wanted: usize, patience: Duration) -> Result<Vec<Logged>> {
        let deadline = Instant::now() + patience;
        let mut packets = Vec::new();
        while packets.len() < wanted {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            let Some(datagram) = self.receive(left)? else { break };
            for (kind, body) in messages(&datagram) {
                if kind == SUBSYSTEM_ULOG << 8 | MESSAGE_PACKET {
                    packets.push(logged(body.get(NETFILTER_HEADER..).unwrap_or_default()));
                }
            }
        }
        Ok(packets)
    }

    fn receive(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::try_from(patience)?)? == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; 1 << 17];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(length);
        Ok(Some(buffer))
    }
}

/// The messages of a datagram: type and what follows the netlink header.
fn messages(mut datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while let Some((header, _)) = datagram.split_first_chunk::<NETLINK_HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let Ok(length) = usize::try_from(length) else { break };
        let Some(body) = datagram.get(NETLINK_HEADER..length) else { break };
        messages.push((u16::from_ne_bytes([header[4], header[5]]), body));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn logged(mut attributes: &[u8]) -> Logged {
    let mut logged = Logged::default();
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length).unwrap_or_default();
        match u16::from_ne_bytes([header[2], header[3]]) {
            ATTRIBUTE_PREFIX => String::from_utf8_lossy(value).trim_end_matches('\0').clone_into(&mut logged.prefix),
            ATTRIBUTE_PAYLOAD => value.clone_into(&mut logged.packet),
            _ => {}
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    logged
}
