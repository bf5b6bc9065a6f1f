//! Others' changes of the table, as the kernel announces them.
#![forbid(unsafe_code)]

use super::Error;
use super::conversation::{RECEIVE_BUFFER, RECEIVE_QUEUE, malformed_error};
use super::native::{Bus, NetlinkOption, Socket};
use super::uapi::{self, NFPROTO_INET, chain, generation, message, rule, set};
use super::wire::{Malformed, Message, messages};
use crate::ruleset::TABLE;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: i32 = 7;

/// Hears of every change of the ruleset in the network namespace in which it was opened.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Something that happened to the ruleset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Something in table `inet portward` changed. The same thing several times over is told once.
    Table {
        /// What, in words: `rule in chain input added`.
        what: String,
    },
    /// A transaction ended; the changes before it, since the last such notification, were part of it.
    Generation {
        /// The generation that it led to.
        id: u32,
        /// The process that made it, when the kernel says so.
        pid: Option<u32>,
        /// The name of that process.
        process: Option<String>,
    },
    /// Notifications were lost, because there were more than the queue holds.
    Lost,
}

impl Monitor {
    /// Begins to listen. Reading never blocks.
    ///
    /// # Errors
    /// When the socket cannot be made, or the kernel does not let the caller listen.
    pub fn open() -> Result<Self, Error> {
        let socket =
            Socket::open(Bus::Netfilter).map_err(|errno| Error::from_errno("opening a netlink socket", errno))?;
        let _ = setsockopt(&socket.as_fd(), RcvBufForce, &RECEIVE_QUEUE)
            .or_else(|_| setsockopt(&socket.as_fd(), RcvBuf, &RECEIVE_QUEUE));
        let monitor = Self { socket, buffer: vec![0; RECEIVE_BUFFER] };
        monitor.resume()?;
        Ok(monitor)
    }

    /// Stops listening for a while: a transaction of many elements is faster when nobody hears of each.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn pause(&self) -> Result<(), Error> {
        self.membership(NetlinkOption::DropMembership)
    }

    /// Listens again. What happened meanwhile is not told; the generation shows whether anything did.
    ///
    /// # Errors
    /// When the kernel does not let the caller listen.
    pub fn resume(&self) -> Result<(), Error> {
        self.membership(NetlinkOption::AddMembership)
    }

    fn membership(&self, option: NetlinkOption) -> Result<(), Error> {
        self.socket
            .set_option(option, NFTABLES_GROUP)
            .map_err(|errno| Error::from_errno("listening to changes of the ruleset", errno))
    }

    /// What has happened since the last call; empty when nothing has.
    ///
    /// # Errors
    /// When the socket is broken, or the kernel's messages are malformed.
    pub fn read(&mut self) -> Result<Vec<Notification>, Error> {
        const DOING: &str = "reading notifications of the kernel";
        let mut notifications = Vec::new();
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            let length = match recv(self.socket.as_fd().as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(notifications),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    push(&mut notifications, Notification::Lost);
                    continue;
                }
                Err(errno) => return Err(Error::from_errno(DOING, errno)),
            };
            let Some(received) = self.buffer.get(..length) else {
                push(&mut notifications, Notification::Lost);
                continue;
            };
            for message in messages(received) {
                let notification = message.and_then(|message| read_notification(&message));
                if let Some(notification) = notification.map_err(|malformed| malformed_error(DOING, malformed))? {
                    push(&mut notifications, notification);
                }
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

/// Every element of a set is a notification of its own; a hundred thousand equal ones say no more than one.
fn push(notifications: &mut Vec<Notification>, next: Notification) {
    if notifications.last() != Some(&next) {
        notifications.push(next);
    }
}

pub(super) fn read_notification(message: &Message<'_>) -> Result<Option<Notification>, Malformed> {
    let Some(kind) = message.nf_tables_kind() else { return Ok(None) };
    let attributes = message.attributes()?;
    if kind == message::NEWGEN {
        return Ok(Some(Notification::Generation {
            id: attributes.be32(generation::ID)?.ok_or(Malformed("the number of a generation"))?,
            pid: attributes.be32(generation::PROCESS_ID)?,
            // A process may give itself any bytes for a name.
            process: attributes.get(generation::PROCESS_NAME).map(|name| {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                String::from_utf8_lossy(name).into_owned()
            }),
        }));
    }
    if message.family()? != NFPROTO_INET || !attributes.is_text(uapi::OF_TABLE, TABLE) {
        return Ok(None);
    }
    let named = |what: &str, number| Ok(format!("{what} {}", attributes.name(number).unwrap_or("without a name")));
    let (object, verb) = match kind {
        message::NEWTABLE => ("table".to_owned(), "added"),
        message::DELTABLE => ("table".to_owned(), "deleted"),
        message::NEWCHAIN => (named("chain", chain::NAME)?, "added or changed"),
        message::DELCHAIN => (named("chain", chain::NAME)?, "deleted"),
        message::NEWRULE => (named("rule in chain", rule::CHAIN)?, "added"),
        message::DELRULE => (named("rule in chain", rule::CHAIN)?, "deleted"),
        message::NEWSET => (named("set", set::NAME)?, "added"),
        message::DELSET => (named("set", set::NAME)?, "deleted"),
        message::NEWSETELEM => (named("elements of set", uapi::element::OF_SET)?, "added"),
        message::DELSETELEM => (named("elements of set", uapi::element::OF_SET)?, "deleted"),
        message::NEWOBJ | message::NEWFLOWTABLE => ("object".to_owned(), "added"),
        message::DELOBJ | message::DELFLOWTABLE => ("object".to_owned(), "deleted"),
        _ => return Ok(None),
    };
    Ok(Some(Notification::Table { what: format!("{object} {verb}") }))
}

#[cfg(test)]
mod tests {
    use super::super::wire::message_of;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_notification_makes_reading_panic(
            kind in 0_u16..30,
            payload in proptest::collection::vec(any::<u8>(), 0..128),
        ) {
            let bytes = message_of(kind, &payload);
            for message in messages(&bytes) {
                let _ = read_notification(&message.unwrap());
            }
        }
    }
}
