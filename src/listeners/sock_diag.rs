//! The listening sockets of this network namespace, from the kernel's socket diagnostics (sock_diag(7)).
#![forbid(unsafe_code)]

use super::inet_diag::{self, AF_INET, AF_INET6, End, SOCK_DIAG_BY_FAMILY};
use super::{Error, Listener};
use crate::kernel::uapi::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use crate::kernel::wire::{MESSAGE_HEADER, Malformed, messages};
use crate::plan::LocalScope;
use crate::ruleset::Protocol;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// What one receive call can take: dumps come in datagrams of at most 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
pub(super) const RECEIVE_BUFFER: usize = 64 * 1024;
/// How long the kernel may take for one datagram. It needs microseconds.
const ANSWER_TIMEOUT_SECONDS: i64 = 5;
/// A dump that the kernel calls inconsistent is tried so often.
const DUMP_ATTEMPTS: usize = 5;
/// The four dumps that together hold every listener.
const DUMPS: [(Protocol, u8); 4] =
    [(Protocol::Tcp, AF_INET), (Protocol::Tcp, AF_INET6), (Protocol::Udp, AF_INET), (Protocol::Udp, AF_INET6)];

/// Asks the kernel for listening sockets, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// How many there were last time.
    expected: usize,
}

impl SockDiag {
    /// Opens a socket to the kernel, in the network namespace of the calling thread. Needs no privilege.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> Result<Self, Error> {
        const DOING: &str = "opening a socket of sock_diag";
        let socket = open_socket(0).map_err(|errno| Error::from_errno(DOING, errno))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0))
            .map_err(|errno| Error::from_errno(DOING, errno))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER], expected: 0 })
    }

    /// All listening sockets, in no particular order. Costs the same whatever the number of connections.
    ///
    /// The kernel walks its tables while they change: a socket that appears or goes meanwhile may be in the answer or
    /// not, one that stays is.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or gives no whole answer.
    pub fn dump(&mut self) -> Result<Vec<Listener>, Error> {
        let mut listeners = Vec::with_capacity(self.expected);
        for (protocol, family) in DUMPS {
            self.dump_one(protocol, family, &mut listeners)?;
        }
        self.expected = listeners.len();
        Ok(listeners)
    }

    /// The one listener that would get a packet from elsewhere to this port and scope; `None` when there is none.
    ///
    /// The kernel looks it up as for a packet, without a walk. So it finds a listener on a wildcard address when none is
    /// on the address, one with the same interface or none, and any one of several that share a port by `SO_REUSEPORT`:
    /// compare the cookie, and dump when it is another one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn find(
        &mut self,
        protocol: Protocol,
        scope: LocalScope,
        port: u16,
        interface: Option<u32>,
    ) -> Result<Option<Listener>, Error> {
        const DOING: &str = "looking up a listening socket";
        let (family, address) = match scope {
            LocalScope::Ipv4 => (AF_INET, [0; 16]),
            LocalScope::Any | LocalScope::Ipv6 => (AF_INET6, [0; 16]),
            LocalScope::Address(IpAddr::V6(address)) => (AF_INET6, address.octets()),
            LocalScope::Address(IpAddr::V4(address)) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                (AF_INET, bytes)
            }
        };
        let local = End { port, address };
        // For UDP the kernel has them the other way round, "for historical reasons" (`udp_dump_one`, net/ipv4/udp_diag.c).
        let (source, destination) = match protocol {
            Protocol::Tcp => (local, End::default()),
            Protocol::Udp => (End::default(), local),
        };
        let request = inet_diag::request(family, protocol, source, destination, interface.unwrap_or_default());
        let mut found = None;
        match self.ask(0, &request, |payload| {
            found = inet_diag::listener(protocol, payload)?;
            Ok(())
        }) {
            Ok(_) => Ok(found),
            Err(Failure::Errno(Errno::ENOENT)) => Ok(None),
            Err(failure) => Err(failure.into_error(DOING)),
        }
    }

    fn dump_one(&mut self, protocol: Protocol, family: u8, listeners: &mut Vec<Listener>) -> Result<(), Error> {
        let doing = match protocol {
            Protocol::Tcp => "listing the listening sockets of TCP",
            Protocol::Udp => "listing the bound sockets of UDP",
        };
        let request = inet_diag::request(family, protocol, End::default(), End::default(), 0);
        let before = listeners.len();
        for _ in 0..DUMP_ATTEMPTS {
            listeners.truncate(before);
            let answer = self.ask(NLM_F_DUMP, &request, |payload| {
                listeners.extend(inet_diag::listener(protocol, payload)?);
                Ok(())
            });
            match answer {
                Ok(Answer::Complete) => return Ok(()),
                // Losing a message of a dump is like losing its consistency.
                Ok(Answer::Interrupted) | Err(Failure::Errno(Errno::ENOBUFS | Errno::EINTR)) => {}
                // A kernel without IPv6 has no such sockets, but it may have the others.
                Err(Failure::Errno(Errno::ENOENT)) if family == AF_INET6 => return Ok(()),
                Err(failure) => return Err(failure.into_error(doing)),
            }
        }
        Err(Error::Incomplete { doing, reason: "the sockets change too fast for a consistent list" })
    }

    /// Sends a request and hands the payload of every socket in the answer to `visit`.
    fn ask(
        &mut self,
        flags: u16,
        request: &[u8],
        mut visit: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<Answer, Failure> {
        // What is left of an answer that was given up.
        while recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut message = Vec::with_capacity(MESSAGE_HEADER + request.len());
        message.extend_from_slice(&((MESSAGE_HEADER + request.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(request);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).map_err(Failure::Errno)?;

        let mut answer = Answer::Complete;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::Errno(errno)),
            };
            let received = self.buffer.get(..length).ok_or(Failure::Malformed(Malformed("its end: it is too long")))?;
            for message in messages(received) {
                let message = message.map_err(Failure::Malformed)?;
                if message.sequence != self.sequence {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    answer = Answer::Interrupted;
                }
                match message.kind {
                    NLMSG_DONE if message.payload.len() < size_of::<i32>() => return Ok(answer),
                    NLMSG_DONE | NLMSG_ERROR => match message.error().map_err(Failure::Malformed)? {
                        // The end of a whole dump carries a number that is no error.
                        ..=0 => return Ok(answer),
                        errno => return Err(Failure::Errno(Errno::from_raw(errno))),
                    },
                    SOCK_DIAG_BY_FAMILY => {
                        visit(message.payload).map_err(Failure::Malformed)?;
                        if flags & NLM_F_DUMP != NLM_F_DUMP {
                            return Ok(answer);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Complete,
    Interrupted,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Errno(Errno),
    Malformed(Malformed),
}

impl Failure {
    fn into_error(self, doing: &'static str) -> Error {
        match self {
            Self::Errno(errno) => Error::from_errno(doing, errno),
            Self::Malformed(malformed) => Error::malformed(doing, malformed),
        }
    }
}

/// Opens a socket of sock_diag that hears these multicast groups, one bit a group, and of single messages only those of
/// the kernel.
pub(super) fn open_socket(groups: u32) -> Result<OwnedFd, Errno> {
    /// Queue for answers and news: some thousand messages, at what the kernel counts for each.
    const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // Without the privilege the ordinary limit has to do.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_QUEUE).or_else(|_| setsockopt(&socket, RcvBuf, &RECEIVE_QUEUE));
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

    fn of_port(listeners: &[Listener], protocol: Protocol, address: SocketAddr) -> Vec<Listener> {
        let on_it = |listener: &&Listener| {
            listener.protocol == protocol
                && listener.port == address.port()
                && listener.scope == LocalScope::Address(address.ip())
        };
        listeners.iter().filter(on_it).copied().collect()
    }

    #[test]
    fn own_sockets_are_listed_and_found() {
        let mut diag = SockDiag::open().unwrap();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let tcp = TcpListener::bind((address, 0)).unwrap();
            let udp = UdpSocket::bind((address, 0)).unwrap();
            let listeners = diag.dump().unwrap();
            for (protocol, local) in
                [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
            {
                let listed = of_port(&listeners, protocol, local);
                assert_eq!(listed.len(), 1, "{protocol:?} {local}: {listed:?}");
                assert_ne!((listed[0].inode, listed[0].cookie), (0, 0));
                let found = diag.find(protocol, listed[0].scope, local.port(), None).unwrap();
                assert_eq!(found, Some(listed[0]));
            }
            drop((tcp, udp));
        }
    }

    #[test]
    fn what_is_connected_or_closed_is_not_listed() {
        let mut diag = SockDiag::open().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let accepted = listener.accept().unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.connect(local).unwrap();

        let listeners = diag.dump().unwrap();
        assert_eq!(of_port(&listeners, Protocol::Tcp, local).len(), 1, "the accepted connection has the same address");
        assert_eq!(of_port(&listeners, Protocol::Tcp, client.local_addr().unwrap()), []);
        assert_eq!(of_port(&listeners, Protocol::Udp, udp.local_addr().unwrap()), []);

        drop(listener);
        assert_eq!(of_port(&diag.dump().unwrap(), Protocol::Tcp, local), []);
        let scope = LocalScope::Address(local.ip());
        assert_eq!(diag.find(Protocol::Tcp, scope, local.port(), None), Ok(None), "{accepted:?} is no listener");
    }
}
