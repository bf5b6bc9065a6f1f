//! News of listening sockets that are gone, from the multicast groups of sock_diag.
#![forbid(unsafe_code)]

use super::Error;
use super::inet_diag::{self, PORT_OFFSETS, SOCK_DIAG_BY_FAMILY};
use super::sock_diag::{RECEIVE_BUFFER, open_socket};
use crate::kernel::wire::{MESSAGE_HEADER, Malformed, Message, messages};
use crate::ruleset::Protocol;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{SockFilter, SockRef};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `SKNLGRP_INET_TCP_DESTROY`, `_INET_UDP_`, `_INET6_TCP_` and `_INET6_UDP_DESTROY`, linux/sock_diag.h: groups 1 to 4, as
/// bits.
const DESTROY_GROUPS: u32 = 0b1111;
/// Messages that one call reads at most.
const MOST_MESSAGES: usize = 16 * 1024;

/// Hears of every socket of the network namespace in which it was opened that is gone and was not connected.
///
/// It tells of the end of a socket, not of what ends its listening otherwise: `shutdown` of a listener, `connect` of a UDP
/// socket.
#[derive(Debug)]
pub struct Closings {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// A socket that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Closing {
    /// It had a port and was not connected: a listener, or a socket that could have become one.
    Socket {
        /// Its protocol.
        protocol: Protocol,
        /// Its port, 1 to 65,535.
        port: u16,
        /// The kernel's number of the socket, see [`Listener`](super::Listener).
        cookie: u64,
    },
    /// News were lost, because there were more than the queue holds: any listener may be gone.
    Lost,
}

impl Closings {
    /// Begins to listen. Reading never blocks.
    ///
    /// # Errors
    /// When the socket cannot be made, or the kernel does not let the caller listen.
    pub fn open() -> Result<Self, Error> {
        const DOING: &str = "listening to the closing of sockets";
        let socket = open_socket(DESTROY_GROUPS).map_err(|errno| Error::from_errno(DOING, errno))?;
        SockRef::from(&socket)
            .attach_filter(&only_unconnected())
            .map_err(|error| Error::from_errno(DOING, Errno::from_raw(error.raw_os_error().unwrap_or_default())))?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// What has happened since the last call, each socket once; empty when nothing has.
    ///
    /// # Errors
    /// When the socket is broken, or the kernel's messages are malformed.
    pub fn read(&mut self) -> Result<Vec<Closing>, Error> {
        const DOING: &str = "reading of the closing of sockets";
        let mut closings = Vec::new();
        // When they come faster than they are read, the rest waits for the next call.
        for _ in 0..MOST_MESSAGES {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    closings.push(Closing::Lost);
                    continue;
                }
                Err(errno) => return Err(Error::from_errno(DOING, errno)),
            };
            let Some(received) = self.buffer.get(..length) else {
                closings.push(Closing::Lost);
                continue;
            };
            for message in messages(received) {
                let closing = message.and_then(|message| read_closing(&message));
                closings.extend(closing.map_err(|malformed| Error::malformed(DOING, malformed))?);
            }
        }
        Ok(closings)
    }
}

impl AsFd for Closings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Closings {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

pub(super) fn read_closing(message: &Message<'_>) -> Result<Option<Closing>, Malformed> {
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return Ok(None);
    }
    Ok(inet_diag::closed(message.payload)?.map(|(protocol, port, cookie)| Closing::Socket { protocol, port, cookie }))
}

/// A classic BPF program for the socket that keeps the messages about sockets with a source port and without a
/// destination port, so that the end of a connection wakes nobody.
fn only_unconnected() -> [SockFilter; 6] {
    // linux/bpf_common.h: load a half word of the message, jump by comparison with a constant, return a constant.
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let (source, destination) = PORT_OFFSETS;
    let load = |offset: usize| SockFilter::new(LOAD_HALF, 0, 0, (MESSAGE_HEADER + offset) as u32);
    [
        load(destination),
        SockFilter::new(JUMP_EQUAL, 0, 3, 0),
        load(source),
        SockFilter::new(JUMP_EQUAL, 1, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::inet_diag::captures::{CLOSED_TCP, CLOSED_UDP_IPV6, message};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernel_s_messages_are_read() {
        let bytes = [message(CLOSED_TCP), message(CLOSED_UDP_IPV6)].concat();
        let closings: Vec<_> =
            messages(&bytes).filter_map(|message| read_closing(&message.unwrap()).unwrap()).collect();
        let expected = [
            Closing::Socket { protocol: Protocol::Tcp, port: 7676, cookie: 0x1019 },
            Closing::Socket { protocol: Protocol::Udp, port: 2055, cookie: 0x1021 },
        ];
        assert_eq!(closings, expected);
    }

    proptest! {
        #[test]
        fn no_message_makes_reading_panic(payload in proptest::collection::vec(any::<u8>(), 0..128)) {
            let message = Message { kind: SOCK_DIAG_BY_FAMILY, flags: 0, sequence: 0, payload: &payload };
            let _ = read_closing(&message);
        }
    }
}
