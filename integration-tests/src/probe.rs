//! Probes: one packet or connection each, hundreds at once.
//!
//! A packet that the firewall denies is dropped silently, so a denied probe shows as silence. Probes that the caller
//! expects to pass get seconds, enough for the kernel to send a lost packet again; silence of the others is believed
//! after [`QUIET`], and confirmed where a listener says what it saw.

use crate::lab::Host;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a probe that should not pass is watched. Packets between namespaces take microseconds.
pub const QUIET: Duration = Duration::from_millis(350);

/// How long a probe that should pass is waited for: the kernel sends an unanswered SYN again after 1 and 3 seconds.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// So many connections are opened at once by one call, to keep within a process's limit of descriptors.
const AT_ONCE: usize = 500;

/// What a probe sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A TCP connection to this port.
    Tcp(u16),
    /// A UDP datagram to this port.
    Udp(u16),
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

/// One probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// The address to send from, one of the sending host.
    pub from: IpAddr,
    /// The address to send to, of the same family.
    pub to: IpAddr,
    /// What is sent.
    pub kind: Kind,
}

/// How a connection or an echo request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered: the packet passed, and so did the answer.
    Passed,
    /// An error came back: a TCP reset or an ICMP message.
    Refused(Errno),
    /// Nothing came back.
    Silent,
}

/// Opens connections and sends echo requests from a host, all at once. `expected` says which are waited for long.
/// The outcomes are in the order of the probes.
///
/// # Panics
/// On a UDP probe, whose arrival only the receiver can tell (see [`send_datagrams`]), and when a socket cannot be made.
pub fn exchange(host: &Host, probes: &[Probe], expected: impl Fn(&Probe) -> bool + Sync) -> Vec<Outcome> {
    let is_echo = |probe: &Probe| probe.kind == Kind::Echo;
    let (echoes, connections): (Vec<usize>, Vec<usize>) = (0..probes.len()).partition(|&index| is_echo(&probes[index]));
    let mut outcomes = vec![Outcome::Silent; probes.len()];
    host.run(|| {
        for chunk in connections.chunks(AT_ONCE) {
            connect_all(probes, chunk, &expected, &mut outcomes);
        }
        for chunk in echoes.chunks(AT_ONCE) {
            echo_all(probes, chunk, &expected, &mut outcomes);
        }
    });
    outcomes
}

/// The outcome of a single connection or echo request that should pass.
pub fn one(host: &Host, probe: Probe) -> Outcome {
    exchange(host, &[probe], |_| true)[0]
}

/// The outcome of a single connection or echo request that should not pass.
pub fn one_denied(host: &Host, probe: Probe) -> Outcome {
    exchange(host, &[probe], |_| false)[0]
}

/// Sends one datagram a probe from a host, each with a number that no other datagram of this process has. Returns the
/// numbers in the order of the probes; [`crate::listen::Seen::numbers`] says which arrived.
///
/// # Panics
/// On a probe that is not UDP, and when a socket cannot be bound to its source address.
pub fn send_datagrams(host: &Host, probes: &[Probe]) -> Vec<u64> {
    host.run(|| {
        let mut sockets: BTreeMap<IpAddr, UdpSocket> = BTreeMap::new();
        probes
            .iter()
            .map(|probe| {
                let Kind::Udp(port) = probe.kind else { panic!("{probe:?} is not a datagram") };
                let bind = || UdpSocket::bind((probe.from, 0)).unwrap_or_else(|error| panic!("{probe:?}: {error}"));
                let socket = sockets.entry(probe.from).or_insert_with(bind);
                let number = next_number();
                // A local firewall that drops the datagram makes the call fail, and then the datagram does not arrive.
                let _ = socket.send_to(&number.to_be_bytes(), SocketAddr::new(probe.to, port));
                number
            })
            .collect()
    })
}

/// Sends a datagram and waits for the answer: `Passed` when one comes back, `Refused` when an ICMP error does.
/// `expected` says whether to wait long, and then the datagram is sent more than once.
pub fn converse(host: &Host, from: IpAddr, to: IpAddr, port: u16, expected: bool) -> Outcome {
    host.run(|| {
        let socket = UdpSocket::bind((from, 0)).unwrap_or_else(|error| panic!("{from}: {error}"));
        socket.connect((to, port)).unwrap_or_else(|error| panic!("{to}: {error}"));
        socket.set_read_timeout(Some(QUIET)).expect("the socket takes its options");
        let errno = |error: &std::io::Error| error.raw_os_error().map(Errno::from_raw);
        let started = Instant::now();
        loop {
            if let Err(error) = socket.send(&next_number().to_be_bytes()) {
                return Outcome::Refused(errno(&error).unwrap_or(Errno::UnknownErrno));
            }
            match socket.recv(&mut [0; 16]) {
                Ok(_) => return Outcome::Passed,
                Err(error) => match errno(&error) {
                    Some(Errno::EAGAIN) | None => {}
                    Some(error) => return Outcome::Refused(error),
                },
            }
            if !expected || started.elapsed() >= PATIENCE {
                return Outcome::Silent;
            }
        }
    })
}

/// A number that this process has not sent before.
pub fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn socket_address(address: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(address, port))
}

/// Starts a connection without waiting for it.
fn begin_connection(probe: &Probe) -> Result<OwnedFd, Errno> {
    let Kind::Tcp(port) = probe.kind else { panic!("{probe:?} is not a connection") };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family(probe.from), SockType::Stream, flags, None).expect("a socket can be made");
    // The port is chosen at connect, so that one address can have a connection from each port to each destination.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).expect("the socket takes its options");
    bind(socket.as_raw_fd(), &socket_address(probe.from, 0)).unwrap_or_else(|error| panic!("{probe:?}: {error}"));
    match connect(socket.as_raw_fd(), &socket_address(probe.to, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn connect_all(probes: &[Probe], chunk: &[usize], expected: &impl Fn(&Probe) -> bool, outcomes: &mut [Outcome]) {
    let mut pending: Vec<(usize, OwnedFd)> = Vec::with_capacity(chunk.len());
    for &index in chunk {
        match begin_connection(&probes[index]) {
            Ok(socket) => pending.push((index, socket)),
            Err(error) => outcomes[index] = Outcome::Refused(error),
        }
    }
    let started = Instant::now();
    loop {
        let waited = started.elapsed();
        let awaited = pending.iter().any(|&(index, _)| expected(&probes[index]));
        let limit = if awaited { PATIENCE } else { QUIET };
        if pending.is_empty() || waited >= limit {
            return;
        }
        let step = (limit - waited).min(Duration::from_millis(20));
        let mut polled: Vec<PollFd> =
            pending.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)).collect();
        match poll(&mut polled, PollTimeout::try_from(step).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => panic!("poll of connections: {error}"),
        }
        let ready: Vec<bool> = polled.iter().map(|socket| socket.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        pending.retain(|(index, socket)| {
            let done = ready.next().unwrap_or(false);
            if done {
                let error = getsockopt(socket, sockopt::SocketError).unwrap_or(0);
                outcomes[*index] = if error == 0 { Outcome::Passed } else { Outcome::Refused(Errno::from_raw(error)) };
            }
            !done
        });
    }
}

/// Echo requests: type and code of the request, of the reply (RFC 792, RFC 4443).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

fn echo_all(probes: &[Probe], chunk: &[usize], expected: &impl Fn(&Probe) -> bool, outcomes: &mut [Outcome]) {
    static NEXT_IDENTIFIER: AtomicU16 = AtomicU16::new(1);
    let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Sequence numbers tell the replies apart.
    let mut sockets: BTreeMap<IpAddr, OwnedFd> = BTreeMap::new();
    for (sequence, &index) in chunk.iter().enumerate() {
        let probe = &probes[index];
        let socket = sockets.entry(probe.from).or_insert_with(|| raw_icmp_socket(probe.from));
        let number = u16::try_from(sequence).expect("a chunk has fewer probes than there are sequence numbers");
        let request = echo_request(probe.from.is_ipv4(), identifier, number.to_be_bytes());
        if let Err(error) = sendto(socket.as_raw_fd(), &request, &socket_address(probe.to, 0), MsgFlags::empty()) {
            outcomes[index] = Outcome::Refused(error);
        }
    }
    let started = Instant::now();
    let mut buffer = [0_u8; 2048];
    loop {
        let awaited = |&index: &usize| outcomes[index] == Outcome::Silent && expected(&probes[index]);
        let limit = if chunk.iter().any(awaited) { PATIENCE } else { QUIET };
        if started.elapsed() >= limit || chunk.iter().all(|&index| outcomes[index] != Outcome::Silent) {
            return;
        }
        for (source, socket) in &sockets {
            while let Ok((length, from)) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
                let Some(sequence) = echo_reply(source.is_ipv4(), identifier, &buffer[..length]) else { continue };
                let peer = from.and_then(|address| ip_of(&address));
                if let Some(&index) = chunk.get(usize::from(sequence))
                    && peer == Some(probes[index].to)
                    && probes[index].from == *source
                {
                    outcomes[index] = Outcome::Passed;
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
}

fn raw_icmp_socket(source: IpAddr) -> OwnedFd {
    let protocol = if source.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family(source), SockType::Raw, flags, protocol).expect("root can make a raw socket");
    bind(socket.as_raw_fd(), &socket_address(source, 0)).unwrap_or_else(|error| panic!("{source}: {error}"));
    socket
}

/// The kernel fills in the checksum of ICMPv6; that of ICMP is ours.
fn echo_request(ipv4: bool, identifier: [u8; 2], sequence: [u8; 2]) -> [u8; 8] {
    let (kind, _) = if ipv4 { ECHO_V4 } else { ECHO_V6 };
    let mut request = [kind, 0, 0, 0, identifier[0], identifier[1], sequence[0], sequence[1]];
    if ipv4 {
        let sum: u32 = request.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX);
        request[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    request
}

/// The sequence number of a reply to a request with this identifier. An IPv4 raw socket delivers the IP header too.
fn echo_reply(ipv4: bool, identifier: [u8; 2], packet: &[u8]) -> Option<u16> {
    let header = if ipv4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
    let message = packet.get(header..header + 8)?;
    let (_, reply) = if ipv4 { ECHO_V4 } else { ECHO_V6 };
    let ours = message[0] == reply && message[4..6] == identifier;
    ours.then(|| u16::from_be_bytes([message[6], message[7]]))
}
