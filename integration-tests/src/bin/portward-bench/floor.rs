//! The floor: the fewest bytes that make the kernel hold the peers, written by hand and sent in one batch.
//!
//! One table, one hash set, its elements; no chains, no maps, no checks. Nothing that goes through the netlink interface
//! can be faster, so it shows what the kernel itself takes.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// linux/netlink.h
mod netlink {
    pub(super) const ERROR: u16 = 2;
    pub(super) const REQUEST: u16 = 1;
    pub(super) const ACK: u16 = 4;
    pub(super) const CREATE: u16 = 0x400;
    pub(super) const NESTED: u16 = 0x8000;
}

/// linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h
mod nf_tables {
    pub(super) const SUBSYSTEM: u16 = 10;
    pub(super) const BATCH_BEGIN: u16 = 0x10;
    pub(super) const BATCH_END: u16 = 0x11;
    pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub(super) const NEW_SET: u16 = (SUBSYSTEM << 8) | 9;
    pub(super) const NEW_ELEMENTS: u16 = (SUBSYSTEM << 8) | 12;
    pub(super) const GET_ELEMENTS: u16 = (SUBSYSTEM << 8) | 13;
    pub(super) const DELETE_ELEMENTS: u16 = (SUBSYSTEM << 8) | 14;

    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const SET_TABLE: u16 = 1;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const SET_KEY_TYPE: u16 = 4;
    pub(super) const SET_KEY_LENGTH: u16 = 5;
    pub(super) const SET_DESCRIPTION: u16 = 9;
    pub(super) const SET_DESCRIPTION_SIZE: u16 = 1;
    pub(super) const SET_ID: u16 = 10;
    pub(super) const LIST_ELEMENTS: u16 = 3;
    pub(super) const ELEMENT: u16 = 1;
    pub(super) const ELEMENT_KEY: u16 = 1;
    pub(super) const DATA_VALUE: u16 = 1;

    /// What nft calls `ipv4_addr`; the kernel only hands it back.
    pub(super) const TYPE_IPV4_ADDRESS: u32 = 7;
}

/// `NFPROTO_INET`, linux/netfilter.h.
const INET: u8 = 1;

/// An element takes 16 bytes, and the length of a list of them is a 16-bit number.
const ELEMENTS_PER_MESSAGE: usize = 4000;

/// Enough for a batch of a million elements.
const BUFFER: usize = 64 << 20;

/// A socket, and the names of the table and set that it fills.
pub(crate) struct Floor {
    socket: OwnedFd,
    table: &'static str,
    set: &'static str,
}

/// Sets of more elements are made for a number of them, as portward makes them.
const GROWING_SET_LIMIT: usize = 16_384;

impl Floor {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open(table: &'static str, set: &'static str) -> Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)?;
        Ok(Self { socket, table, set })
    }

    /// Makes table and set and fills the set.
    pub(crate) fn load(&self, peers: &[Ipv4Addr]) -> Result<()> {
        let mut batch = Batch::new(peers.len());
        batch.message(nf_tables::NEW_TABLE, netlink::CREATE, |batch| batch.text(nf_tables::TABLE_NAME, self.table));
        batch.message(nf_tables::NEW_SET, netlink::CREATE, |batch| {
            batch.text(nf_tables::SET_TABLE, self.table);
            batch.text(nf_tables::SET_NAME, self.set);
            batch.number(nf_tables::SET_KEY_TYPE, nf_tables::TYPE_IPV4_ADDRESS);
            batch.number(nf_tables::SET_KEY_LENGTH, 4);
            batch.number(nf_tables::SET_ID, 1);
            // As portward does, for sets of which it knows that they will be large.
            if peers.len() > GROWING_SET_LIMIT {
                let size = (2 * peers.len()).next_power_of_two() as u32;
                batch.nest(nf_tables::SET_DESCRIPTION, |batch| batch.number(nf_tables::SET_DESCRIPTION_SIZE, size));
            }
        });
        self.elements(&mut batch, nf_tables::NEW_ELEMENTS, peers);
        self.send(batch)
    }

    /// Deletes elements of the set and adds others, in one batch.
    pub(crate) fn change(&self, deleted: &[Ipv4Addr], added: &[Ipv4Addr]) -> Result<()> {
        let mut batch = Batch::new(deleted.len() + added.len());
        self.elements(&mut batch, nf_tables::DELETE_ELEMENTS, deleted);
        self.elements(&mut batch, nf_tables::NEW_ELEMENTS, added);
        self.send(batch)
    }

    /// Whether the set holds an address.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> Result<bool> {
        let mut request = Batch { bytes: Vec::new() };
        self.elements(&mut request, nf_tables::GET_ELEMENTS, &[address]);
        sendto(self.socket.as_raw_fd(), &request.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        match self.receive()? {
            Reply::Message => Ok(true),
            Reply::Error(Errno::ENOENT) => Ok(false),
            Reply::Error(error) => bail!("the kernel cannot be asked for an element: {error}"),
        }
    }

    fn elements(&self, batch: &mut Batch, kind: u16, addresses: &[Ipv4Addr]) {
        let flags = if kind == nf_tables::NEW_ELEMENTS { netlink::CREATE } else { 0 };
        for addresses in addresses.chunks(ELEMENTS_PER_MESSAGE) {
            batch.message(kind, flags, |batch| {
                batch.text(nf_tables::SET_TABLE, self.table);
                batch.text(nf_tables::SET_NAME, self.set);
                batch.nest(nf_tables::LIST_ELEMENTS, |batch| {
                    for address in addresses {
                        batch.nest(nf_tables::ELEMENT, |batch| {
                            batch.nest(nf_tables::ELEMENT_KEY, |batch| {
                                batch.attribute(nf_tables::DATA_VALUE, &address.octets());
                            });
                        });
                    }
                });
            });
        }
    }

    fn send(&self, batch: Batch) -> Result<()> {
        let bytes = batch.end();
        sendto(self.socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        match self.receive()? {
            Reply::Error(Errno::UnknownErrno) => Ok(()),
            Reply::Error(error) => bail!("the kernel refuses the batch: {error}"),
            Reply::Message => bail!("the kernel sent something unexpected"),
        }
    }

    fn receive(&self) -> Result<Reply> {
        let mut buffer = [0; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let reply = buffer.get(..length).context("a reply over its buffer")?;
        let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        match kind.context("a reply without a header")? {
            netlink::ERROR => {
                let code = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
                Ok(Reply::Error(Errno::from_raw(-code.context("an error without a number")?)))
            }
            _ => Ok(Reply::Message),
        }
    }
}

enum Reply {
    /// An error; number 0, which nix calls unknown, acknowledges.
    Error(Errno),
    Message,
}

struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    fn new(elements: usize) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(512 + 17 * elements) };
        batch.header(nf_tables::BATCH_BEGIN, 0, 0, nf_tables::SUBSYSTEM);
        batch
    }

    /// Asks for one acknowledgement, of the last message, and closes the batch.
    fn end(mut self) -> Vec<u8> {
        let mut last = 0;
        let mut next = 0;
        while let Some(length) = self.bytes.get(next..next + 4).and_then(|bytes| bytes.try_into().ok()) {
            last = next;
            next += u32::from_ne_bytes(length) as usize;
        }
        if let Some(flags) = self.bytes.get_mut(last + 6) {
            *flags |= netlink::ACK as u8;
        }
        self.header(nf_tables::BATCH_END, 0, 0, nf_tables::SUBSYSTEM);
        self.bytes
    }

    /// `struct nlmsghdr` and `struct nfgenmsg` of a message without attributes.
    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.bytes.extend_from_slice(&20_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(netlink::REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    fn message(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.header(kind, flags, INET, 0);
        attributes(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn nest(&mut self, kind: u16, attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(netlink::NESTED | kind).to_ne_bytes());
        attributes(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }
}
