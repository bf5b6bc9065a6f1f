//! TCP sockets of this host, one at a time, over sock_diag: does one listen here, and the end of a connection.
#![forbid(unsafe_code)]

use super::conversation::{Conversation, Outcome};
use super::native::Bus;
use super::uapi::{NLM_F_ACK, NLM_F_REQUEST, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY};
use super::wire::{MESSAGE_HEADER, Malformed, Message};
use crate::kernel::Error;
use nix::errno::Errno;
use nix::libc;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The length of `struct inet_diag_req_v2`, linux/inet_diag.h: family, protocol, extensions, a byte of padding, a mask
/// of states, and a socket's identity.
const REQUEST: usize = 56;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const IDENTITY: usize = 48;
/// Where the identity is in a request and in an answer (`struct inet_diag_msg`).
const IDENTITY_IN_REQUEST: usize = 8;
const IDENTITY_IN_ANSWER: usize = 4;
/// Where the peer's port and the cookie are in an identity.
const PEER_PORT: usize = 2;
const COOKIE: usize = 40;
/// `INET_DIAG_NOCOOKIE`: any socket.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// `TCP_LISTEN`, include/net/tcp_states.h.
const STATE_LISTEN: u8 = 10;

/// The sockets of the network namespace in which it was opened.
pub struct Sockets {
    conversation: Conversation,
}

/// What became of a socket that was to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone, and the peer was sent a reset.
    Yes,
    /// There was none.
    Missing,
    /// The kernel cannot do that (CONFIG_INET_DIAG_DESTROY).
    Unsupported,
}

impl Sockets {
    /// Opens a socket to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink, or no memory for the queues.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { conversation: Conversation::open(Bus::SockDiag)? })
    }

    /// Whether a socket listens to connections to this address of the host, on all addresses or on this one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_listening(&mut self, local: SocketAddr) -> Result<bool, Error> {
        // Nobody has this address, so no connection is found in place of the socket that listens.
        let nobody = match local {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let found = self.find("looking for a listening socket", local, SocketAddr::new(nobody, 1))?;
        Ok(found.is_some_and(|found| found.state == STATE_LISTEN))
    }

    /// The socket of the connection between these addresses; without one, the socket that listens to such connections.
    fn find(&mut self, doing: &str, local: SocketAddr, peer: SocketAddr) -> Result<Option<Found>, Error> {
        let mut found = None;
        let sequence = self.conversation.next_sequence();
        let question = request(SOCK_DIAG_BY_FAMILY, 0, sequence, (local, peer), ANY_COOKIE);
        let outcome = self.conversation.exchange(doing, &question, (0, sequence), |message| {
            found = Some(read_socket(message)?);
            Ok(())
        })?;
        match outcome {
            Outcome::Complete | Outcome::Interrupted => Ok(found),
            Outcome::Failed(Errno::ENOENT) => Ok(None),
            Outcome::Failed(errno) => Err(Error::from_errno(doing, errno)),
        }
    }

    /// Ends the connection of this host between these addresses: its process gets `ECONNABORTED`, its peer a reset. A
    /// listening socket is never touched. A connection that is bound to an interface is not found.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn destroy(&mut self, local: SocketAddr, peer: SocketAddr) -> Result<Destroyed, Error> {
        const DOING: &str = "ending a TCP connection";
        // Without a connection between these addresses the kernel finds the socket that listens on the port. To destroy
        // that would end the service, so the order names the one socket that was found.
        let found = self.find(DOING, local, peer)?;
        let Some(found) = found.filter(|found| found.state != STATE_LISTEN && found.peer_port == peer.port()) else {
            return Ok(Destroyed::Missing);
        };
        let sequence = self.conversation.next_sequence();
        let order = request(SOCK_DESTROY, NLM_F_ACK, sequence, (local, peer), found.cookie);
        match self.conversation.exchange(DOING, &order, (NLM_F_ACK, sequence), |_| Ok(()))? {
            Outcome::Complete | Outcome::Interrupted => Ok(Destroyed::Yes),
            Outcome::Failed(Errno::ENOENT | Errno::ESTALE) => Ok(Destroyed::Missing),
            // The first is an older kernel's, without the option (`sock_diag_rcv_msg`, `inet_diag_handler_cmd`).
            Outcome::Failed(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Destroyed::Unsupported),
            Outcome::Failed(errno) => Err(Error::from_errno(DOING, errno)),
        }
    }
}

/// What an answer says of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    state: u8,
    /// 0 for one that is not connected.
    peer_port: u16,
    cookie: [u8; 8],
}

pub(super) fn read_socket(message: &Message<'_>) -> Result<Found, Malformed> {
    let malformed = Malformed("a socket");
    let state = *message.payload.get(1).ok_or(malformed)?;
    let identity = message.payload.get(IDENTITY_IN_ANSWER..).and_then(|rest| rest.get(..IDENTITY)).ok_or(malformed)?;
    let port = identity.get(PEER_PORT..).and_then(|rest| rest.first_chunk()).ok_or(malformed)?;
    let cookie = identity.get(COOKIE..).and_then(|rest| rest.first_chunk()).ok_or(malformed)?;
    Ok(Found { state, peer_port: u16::from_be_bytes(*port), cookie: *cookie })
}

/// A request about one TCP socket.
fn request(kind: u16, flags: u16, sequence: u32, (local, peer): (SocketAddr, SocketAddr), cookie: [u8; 8]) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let mut bytes = Vec::with_capacity(MESSAGE_HEADER + REQUEST);
    bytes.extend_from_slice(&((MESSAGE_HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    debug_assert_eq!(bytes.len(), MESSAGE_HEADER + IDENTITY_IN_REQUEST);
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        let mut field = [0; 16];
        match address {
            IpAddr::V4(address) => field[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => field = address.octets(),
        }
        bytes.extend_from_slice(&field);
    }
    // Any interface.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&cookie);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::wire::messages;
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_request_has_the_length_that_the_kernel_expects() {
        let addresses = ("192.0.2.1:22".parse().unwrap(), "192.0.2.2:40000".parse().unwrap());
        let bytes = request(SOCK_DESTROY, NLM_F_ACK, 7, addresses, ANY_COOKIE);
        assert_eq!(bytes.len(), MESSAGE_HEADER + REQUEST);
        let message = messages(&bytes).next().unwrap().unwrap();
        assert_eq!((message.kind, message.sequence, message.payload.len()), (21, 7, REQUEST));
    }

    /// To destroy a socket needs root: see the integration tests.
    #[test]
    fn a_connection_is_told_from_the_socket_that_listens() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let port = listener.local_addr().unwrap().port();
            let families: &[&str] = match bind {
                "[::]:0" => &["127.0.0.1", "::1"],
                "[::1]:0" => &["::1"],
                _ => &["127.0.0.1"],
            };
            for address in families {
                let server = SocketAddr::new(address.parse().unwrap(), port);
                let client = TcpStream::connect(server).unwrap();
                let client_address = client.local_addr().unwrap();
                let accepted = listener.accept().unwrap();
                let mut sockets = Sockets::open().unwrap();
                let connected = sockets.find("asking", server, client_address).unwrap().unwrap();
                assert_eq!((connected.state == STATE_LISTEN, connected.peer_port), (false, client_address.port()));
                let elsewhere = SocketAddr::new(client_address.ip(), 1);
                let listening = sockets.find("asking", server, elsewhere).unwrap().unwrap();
                assert_eq!((listening.state, listening.peer_port), (STATE_LISTEN, 0), "the kernel answers so");
                assert_ne!(connected.cookie, listening.cookie);
                assert_eq!(sockets.destroy(server, elsewhere), Ok(Destroyed::Missing));
                assert_eq!(sockets.is_listening(server), Ok(true));
                assert_eq!(sockets.is_listening(client_address), Ok(false));
                drop((client, accepted));
            }
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_reading_panic(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let message = Message { kind: SOCK_DIAG_BY_FAMILY, flags: 0, sequence: 1, payload: &payload };
            let _ = read_socket(&message);
        }
    }
}
