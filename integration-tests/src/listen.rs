//! Listeners on many ports of a host at once, which remember who reached them.

use crate::lab::Host;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What reached a [`Responder`] since it started or was last emptied.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The addresses from which connections were accepted, by port, as often as they came.
    pub connections: BTreeMap<u16, Vec<IpAddr>>,
    /// Datagrams: the port, the sender, what it sent.
    pub datagrams: Vec<(u16, SocketAddr, Vec<u8>)>,
}

impl Seen {
    /// The numbers that arrived as datagrams of eight bytes, as [`crate::probe`] sends them.
    pub fn numbers(&self) -> BTreeSet<u64> {
        let number = |datagram: &[u8]| datagram.try_into().ok().map(u64::from_be_bytes);
        self.datagrams.iter().filter_map(|(_, _, datagram)| number(datagram)).collect()
    }

    /// How many connections from this address the port has accepted.
    pub fn connections_from(&self, port: u16, address: IpAddr) -> usize {
        self.connections.get(&port).map_or(0, |from| from.iter().filter(|&&peer| peer == address).count())
    }
}

/// Dual-stack listeners of one host. Connections are accepted and closed; datagrams are kept and, where asked for,
/// sent back.
#[derive(Debug)]
pub struct Responder {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens on these ports of the host, and only remembers what arrives.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub fn start(host: &Host, tcp: impl IntoIterator<Item = u16>, udp: impl IntoIterator<Item = u16>) -> Result<Self> {
        Self::with_echo(host, tcp, udp, false)
    }

    /// Listens on these ports of the host; with `echo`, datagrams are sent back to where they came from.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub fn with_echo(
        host: &Host,
        tcp: impl IntoIterator<Item = u16>,
        udp: impl IntoIterator<Item = u16>,
        echo: bool,
    ) -> Result<Self> {
        let tcp: BTreeSet<u16> = tcp.into_iter().collect();
        let udp: BTreeSet<u16> = udp.into_iter().collect();
        let sockets = host.run(|| bind(&tcp, &udp)).with_context(|| format!("listeners on {}", host.name()))?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = host.spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || serve(&sockets, &seen, &stop, echo)
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What has arrived so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// What has arrived once it satisfies the condition, or after ten seconds. A connection passes for its sender before
    /// the responder has counted it.
    pub fn seen_when(&self, condition: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = self.seen();
            if condition(&seen) || Instant::now() > deadline {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What has arrived so far; counting begins anew.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.lock())
    }

    /// Whether the datagram with this number has arrived, as [`crate::probe`] sends them.
    pub fn has(&self, number: u64) -> bool {
        let wanted = number.to_be_bytes();
        self.lock().datagrams.iter().any(|(_, _, datagram)| *datagram == wanted)
    }

    /// Waits until what has arrived satisfies the condition, or the time is over; returns what has arrived.
    pub fn wait(&self, patience: Duration, enough: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.lock();
            if enough(&seen) || Instant::now() >= deadline {
                return seen.clone();
            }
            drop(seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = result
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

/// `addr` with an IPv4-mapped IPv6 address written as the IPv4 address that it stands for.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

struct Sockets {
    tcp: Vec<(u16, TcpListener)>,
    udp: Vec<(u16, UdpSocket)>,
}

fn bind(tcp: &BTreeSet<u16>, udp: &BTreeSet<u16>) -> Result<Sockets> {
    let mut sockets = Sockets { tcp: Vec::new(), udp: Vec::new() };
    for &port in tcp {
        let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("port {port}/tcp"))?;
        socket.set_nonblocking(true)?;
        sockets.tcp.push((port, socket));
    }
    for &port in udp {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("port {port}/udp"))?;
        socket.set_nonblocking(true)?;
        // A burst of probes from all hosts must fit while this thread waits for a processor.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20))?;
        sockets.udp.push((port, socket));
    }
    Ok(sockets)
}

fn serve(sockets: &Sockets, seen: &Mutex<Seen>, stop: &AtomicBool, echo: bool) {
    let tcp = sockets.tcp.iter().map(|(_, socket)| socket.as_fd());
    let mut polled: Vec<PollFd> = tcp
        .chain(sockets.udp.iter().map(|(_, socket)| socket.as_fd()))
        .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
        .collect();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        match poll(&mut polled, PollTimeout::from(20_u8)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => panic!("poll of listeners: {error}"),
        }
        let ready: Vec<bool> = polled.iter().map(|socket| socket.any().unwrap_or(true)).collect();
        let (tcp_ready, udp_ready) = ready.split_at(sockets.tcp.len());
        for ((port, socket), _) in sockets.tcp.iter().zip(tcp_ready).filter(|&(_, &ready)| ready) {
            while let Some(peer) = accept(socket) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.connections.entry(*port).or_default().push(peer.ip());
            }
        }
        for ((port, socket), _) in sockets.udp.iter().zip(udp_ready).filter(|&(_, &ready)| ready) {
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                if echo {
                    let _ = socket.send_to(&buffer[..length], peer);
                }
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.datagrams.push((*port, unmapped(peer), buffer[..length].to_vec()));
            }
        }
    }
}

/// The peer of the next connection; `None` when none waits.
fn accept(listener: &TcpListener) -> Option<SocketAddr> {
    loop {
        match listener.accept() {
            Ok((_, peer)) => return Some(unmapped(peer)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            // The peer was faster to give up than this thread to accept.
            Err(_) => {}
        }
    }
}
