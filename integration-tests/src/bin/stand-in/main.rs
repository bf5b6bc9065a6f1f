//! A service for tests: a process of its own that listens where it is told to. See `integration_tests::service`.
//!
//! It reads one command a line and answers each by `ok`, with the port where there is one, or by `error` and the reason:
//!
//! - `tcp [::]:40001`, `udp 0.0.0.0:0`: listen; with the word `v6only` behind it not for IPv4; with `dev lo` only on
//!   that interface; with `reuse` together with others who say so
//! - `close 40001`: close what listens on the port
//! - `many 1000`: listen on so many ports of the kernel's choice
//! - `churn 1000 5`: open and close so many listeners a second, for so many seconds
//! - `name sshd`: call itself so
//!
//! Connections are accepted and kept; what they send is sent back. It ends with its standard input.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut service = Service::default();
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match service.obey(&words) {
            Ok(Some(port)) => format!("ok {port}"),
            Ok(None) => "ok".to_owned(),
            Err(error) => format!("error {error:#}"),
        };
        let mut stdout = stdout().lock();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Service {
    sockets: BTreeMap<u16, Vec<OwnedFd>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Service {
    fn obey(&mut self, words: &[&str]) -> Result<Option<u16>> {
        match words {
            ["tcp" | "udp", address, options @ ..] => {
                let kind = if words[0] == "tcp" { SockType::Stream } else { SockType::Datagram };
                let (port, socket) = open(kind, address.parse().context("an address and a port")?, options)?;
                if kind == SockType::Stream {
                    self.serve(socket.try_clone()?)?;
                }
                self.sockets.entry(port).or_default().push(socket);
                Ok(Some(port))
            }
            ["close", port] => {
                let port = port.parse()?;
                let sockets = self.sockets.remove(&port).ok_or_else(|| anyhow!("nothing listens on {port}"))?;
                for socket in &sockets {
                    // The thread that accepts holds the same socket: shut down, it lets go of it.
                    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
                }
                Ok(Some(port))
            }
            ["many", count] => {
                for _ in 0..count.parse::<u32>()? {
                    let (port, socket) = open(SockType::Stream, "[::]:0".parse()?, &[])?;
                    self.sockets.entry(port).or_default().push(socket);
                }
                Ok(None)
            }
            ["churn", rate, seconds] => churn(rate.parse()?, Duration::from_secs(seconds.parse()?)).map(|()| None),
            ["name", name] => {
                nix::sys::prctl::set_name(&std::ffi::CString::new(*name)?)?;
                Ok(None)
            }
            _ => bail!("unknown command"),
        }
    }

    /// Accepts until the socket is shut down.
    fn serve(&self, socket: OwnedFd) -> Result<()> {
        let (listener, connections) = (TcpListener::from(socket), Arc::clone(&self.connections));
        thread::Builder::new().spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if let Ok(mut echo) = stream.try_clone() {
                    thread::spawn(move || {
                        let mut buffer = [0; 512];
                        while let Ok(length @ 1..) = echo.read(&mut buffer) {
                            if echo.write_all(&buffer[..length]).is_err() {
                                return;
                            }
                        }
                    });
                }
                connections.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        })?;
        Ok(())
    }
}

fn churn(rate: u32, length: Duration) -> Result<()> {
    let (step, end) = (Duration::from_secs(1) / rate.max(1), Instant::now() + length);
    let mut next = Instant::now();
    while next < end {
        open(SockType::Stream, "[::]:0".parse()?, &[])?;
        next += step;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn open(kind: SockType, address: SocketAddr, options: &[&str]) -> Result<(u16, OwnedFd)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    if !address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &options.contains(&"v6only"))?;
    }
    if options.contains(&"reuse") {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    if let Some(device) = options.iter().skip_while(|word| **word != "dev").nth(1) {
        setsockopt(&socket, sockopt::BindToDevice, &(*device).into())?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(64)?)?;
    }
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let port = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(name), _) => name.port(),
        (None, Some(name)) => name.port(),
        (None, None) => bail!("a socket without a port"),
    };
    Ok((port, socket))
}
