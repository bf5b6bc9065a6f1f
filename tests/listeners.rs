//! The listening sockets of the real kernel, in network namespaces of their own. Needs root.
#![allow(clippy::unwrap_used)] // The lint spares test functions only, not what they call.

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, RcvBuf, ReusePort};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6};
use nix::sys::socket::{bind, listen, setsockopt, socket};
use portward::listeners::{Closing, Closings, Listener, Owners, SockDiag, Visibility};
use portward::plan::LocalScope;
use portward::ruleset::Protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long something may take that happens at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a thread with a network namespace of its own, in which loopback is up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace, so it must be run as root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn localhost(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A socket that is bound, and listens if it is one of TCP.
fn open(protocol: Protocol, address: SocketAddr, prepare: impl FnOnce(&OwnedFd)) -> OwnedFd {
    let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    prepare(&socket);
    match address {
        SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address)).unwrap(),
        SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address)).unwrap(),
    }
    if protocol == Protocol::Tcp {
        listen(&socket, Backlog::new(16).unwrap()).unwrap();
    }
    socket
}

/// The listeners as soon as there are so many. A socket that was closed lives on in a child of another test until the
/// child has called exec.
fn settled(diag: &mut SockDiag, count: usize) -> Vec<Listener> {
    let start = Instant::now();
    loop {
        let listeners = diag.dump().unwrap();
        if listeners.len() == count {
            return listeners;
        }
        assert!(start.elapsed() < PATIENCE, "{} and not {count}", listeners.len());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn only(diag: &mut SockDiag) -> Listener {
    settled(diag, 1)[0]
}

#[test]
fn every_kind_of_address_is_told_and_found() {
    in_namespace(|| {
        let mut diag = SockDiag::open().unwrap();
        assert_eq!(diag.dump().unwrap(), []);
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let cases: [(IpAddr, bool, LocalScope); 7] = [
            (Ipv4Addr::UNSPECIFIED.into(), false, LocalScope::Ipv4),
            (Ipv4Addr::LOCALHOST.into(), false, LocalScope::Address(Ipv4Addr::LOCALHOST.into())),
            (Ipv6Addr::UNSPECIFIED.into(), false, LocalScope::Any),
            (Ipv6Addr::UNSPECIFIED.into(), true, LocalScope::Ipv6),
            (Ipv6Addr::LOCALHOST.into(), false, LocalScope::Address(Ipv6Addr::LOCALHOST.into())),
            (mapped.into(), false, LocalScope::Address(Ipv4Addr::LOCALHOST.into())),
            (Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), false, LocalScope::Ipv4),
        ];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (address, only_ipv6, scope) in cases {
                let socket = open(protocol, (address, 7676).into(), |socket| {
                    if address.is_ipv6() {
                        setsockopt(socket, Ipv6V6Only, &only_ipv6).unwrap();
                    }
                });
                let listener = only(&mut diag);
                assert_eq!((listener.protocol, listener.port, listener.scope), (protocol, 7676, scope), "{address}");
                assert_eq!((listener.interface, listener.uid), (None, 0));
                assert_eq!(diag.find(protocol, scope, 7676, None).unwrap(), Some(listener), "{protocol:?} {address}");
                assert_eq!(diag.find(protocol, scope, 7677, None).unwrap(), None);
                drop(socket);
                settled(&mut diag, 0);
                assert_eq!(diag.find(protocol, scope, 7676, None).unwrap(), None);
            }
        }
    });
}

#[test]
fn a_listener_of_one_interface_is_found_with_it() {
    in_namespace(|| {
        let mut diag = SockDiag::open().unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let socket = open(protocol, (Ipv4Addr::UNSPECIFIED, 7676).into(), |socket| {
                setsockopt(socket, BindToDevice, &"lo".into()).unwrap();
            });
            let listener = only(&mut diag);
            assert_eq!(listener.interface, Some(1));
            assert!(listener.is_loopback());
            assert_eq!(diag.find(protocol, LocalScope::Ipv4, 7676, Some(1)).unwrap(), Some(listener));
            assert_eq!(diag.find(protocol, LocalScope::Ipv4, 7676, None).unwrap(), None);
            drop(socket);
            settled(&mut diag, 0);
        }
    });
}

#[test]
fn the_more_exact_listener_is_found_first_and_a_shared_port_gives_one_of_them() {
    in_namespace(|| {
        let mut diag = SockDiag::open().unwrap();
        let _wide = open(Protocol::Tcp, (Ipv4Addr::UNSPECIFIED, 7676).into(), |socket| {
            setsockopt(socket, ReusePort, &true).unwrap();
        });
        let wide = only(&mut diag);
        let local = LocalScope::Address(Ipv4Addr::LOCALHOST.into());
        assert_eq!(diag.find(Protocol::Tcp, local, 7676, None).unwrap(), Some(wide), "a packet would reach it too");

        let _exact: Vec<_> = (0..2)
            .map(|_| open(Protocol::Tcp, localhost(7676), |socket| setsockopt(socket, ReusePort, &true).unwrap()))
            .collect();
        assert_eq!(diag.dump().unwrap().len(), 3);
        let found = diag.find(Protocol::Tcp, local, 7676, None).unwrap().unwrap();
        assert_eq!(found.scope, local);
        assert_eq!(diag.find(Protocol::Tcp, LocalScope::Ipv4, 7676, None).unwrap(), Some(wide));
    });
}

#[test]
fn many_listeners_are_listed_once_each() {
    in_namespace(|| {
        let sockets: Vec<_> = (0..3000_u16).map(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, 10_000 + n))).collect();
        let mut sockets: Vec<_> = sockets.into_iter().collect::<Result<_, _>>().unwrap_or_else(|error| {
            panic!("3,000 sockets at once need `ulimit -n` above that: {error}");
        });
        let mut diag = SockDiag::open().unwrap();
        let mut ports: Vec<_> = diag.dump().unwrap().iter().map(|listener| listener.port).collect();
        ports.sort_unstable();
        assert_eq!(ports, (10_000..13_000).collect::<Vec<_>>());
        sockets.truncate(1);
        assert_eq!(only(&mut diag).port, 10_000);
    });
}

/// What is told of until the predicate holds.
fn told(closings: &mut Closings, mut done: impl FnMut(&[Closing]) -> bool) -> Vec<Closing> {
    let start = Instant::now();
    let mut all = Vec::new();
    while !done(&all) {
        assert!(start.elapsed() < PATIENCE, "only {} after {PATIENCE:?}", all.len());
        std::thread::sleep(Duration::from_millis(1));
        all.extend(closings.read().unwrap());
    }
    all
}

#[test]
fn closed_listeners_are_told_and_closed_connections_are_not() {
    in_namespace(|| {
        let mut diag = SockDiag::open().unwrap();
        let mut closings = Closings::open().unwrap();
        let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7676)).unwrap();
        let udp = UdpSocket::bind(localhost(514)).unwrap();
        let expected: Vec<_> = diag
            .dump()
            .unwrap()
            .iter()
            .map(|listener| Closing::Socket {
                protocol: listener.protocol,
                port: listener.port,
                cookie: listener.cookie,
            })
            .collect();
        assert_eq!(expected.len(), 2);
        for _ in 0..100 {
            let client = TcpStream::connect(localhost(7676)).unwrap();
            let accepted = tcp.accept().unwrap();
            drop((client, accepted));
            let connected = UdpSocket::bind(localhost(0)).unwrap();
            connected.connect(localhost(514)).unwrap();
            // Neither bound nor connected.
            drop(socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap());
        }
        drop(tcp);
        drop(udp);
        let mut all = told(&mut closings, |all| all.len() >= 2);
        all.sort_unstable();
        assert_eq!(all, expected);
    });
}

#[test]
fn lost_news_are_told() {
    in_namespace(|| {
        let mut closings = Closings::open().unwrap();
        // Room for two or three messages.
        setsockopt(&closings, RcvBuf, &1).unwrap();
        told(&mut closings, |all| {
            for _ in 0..100 {
                drop(UdpSocket::bind(localhost(0)).unwrap());
            }
            all.contains(&Closing::Lost)
        });
        // And it goes on afterwards, although what is still on its way may fill the queue again.
        setsockopt(&closings, RcvBuf, &100_000).unwrap();
        told(&mut closings, |all| {
            drop(open(Protocol::Tcp, localhost(7676), |socket| setsockopt(socket, ReusePort, &true).unwrap()));
            all.iter().any(|closing| matches!(closing, Closing::Socket { port: 7676, .. }))
        });
    });
}

/// Runs the test of this name once more, in a process of its own under these commands and without the capability to
/// look at others. Nor is it in the group 0, which hidepid spares by default.
fn again_without_ptrace(test: &str, before: &str) {
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "{before} setpriv --bounding-set=-sys_ptrace --regid=65534 --clear-groups \"$0\" --exact {test}; exit $?"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "sh", "-c", &script])
        .arg(own)
        .env("PORTWARD_TEST_WITHOUT_PTRACE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

fn is_without_ptrace() -> bool {
    std::env::var_os("PORTWARD_TEST_WITHOUT_PTRACE").is_some()
}

#[test]
fn descriptors_that_may_not_be_looked_at_are_told() {
    if !is_without_ptrace() {
        let test = "descriptors_that_may_not_be_looked_at_are_told";
        return again_without_ptrace(test, "mount -t proc proc /proc &&");
    }
    let scan = Owners::new().scan(&[7].into());
    // The shell that started this process has more capabilities than it.
    assert!(matches!(scan.visibility, Visibility::Refused { processes: 1.. }), "{scan:?}");
}

#[test]
fn hidden_processes_are_told() {
    if !is_without_ptrace() {
        return again_without_ptrace("hidden_processes_are_told", "mount -t proc -o hidepid=2 proc /proc &&");
    }
    let scan = Owners::new().scan(&[7].into());
    assert_eq!((scan.visibility, scan.holders.len()), (Visibility::Hidden, 0));
}
