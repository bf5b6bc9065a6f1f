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

#[cfg(feature = "bpf")]
mod events {
    use super::*;
    use nix::sys::socket::sockopt::ReuseAddr;
    use portward::listeners::{Event, EventSocket, Events};
    use portward::ruleset::PortRange;

    const ALL: [(Protocol, PortRange); 2] = [
        (Protocol::Tcp, PortRange { first: 1, last: u16::MAX }),
        (Protocol::Udp, PortRange { first: 1, last: u16::MAX }),
    ];

    fn watching(ports: &[(Protocol, PortRange)]) -> Events {
        let mut events = Events::open().unwrap_or_else(|unavailable| panic!("{unavailable}"));
        events.set_ports(ports).unwrap();
        events
    }

    /// The next events, as soon as there are so many.
    fn next<const N: usize>(events: &mut Events) -> [Event; N] {
        let start = Instant::now();
        let mut all = Vec::new();
        while all.len() < N {
            assert!(start.elapsed() < PATIENCE, "only {all:?}");
            all.extend(events.read().unwrap());
        }
        all.try_into().unwrap_or_else(|all| panic!("{N} events, not {all:?}"))
    }

    fn opened(events: &mut Events) -> EventSocket {
        match next(events) {
            [Event::Opened(socket)] => socket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn opened_sockets_are_told_with_process_and_found() {
        in_namespace(|| {
            let mut diag = SockDiag::open().unwrap();
            let mut events = watching(&ALL);
            let localhost: IpAddr = Ipv4Addr::LOCALHOST.into();
            let cases: [(IpAddr, LocalScope); 6] = [
                (Ipv4Addr::UNSPECIFIED.into(), LocalScope::Ipv4),
                (localhost, LocalScope::Address(localhost)),
                (Ipv6Addr::UNSPECIFIED.into(), LocalScope::Any),
                (Ipv6Addr::LOCALHOST.into(), LocalScope::Address(Ipv6Addr::LOCALHOST.into())),
                (Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), LocalScope::Address(localhost)),
                (Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), LocalScope::Ipv4),
            ];
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for (address, scope) in cases {
                    let socket = open(protocol, (address, 7676).into(), |_| ());
                    let told = opened(&mut events);
                    assert_eq!((told.protocol, told.port, told.scope), (protocol, 7676, Some(scope)), "{address}");
                    assert_eq!(told.pid, Some(std::process::id()));
                    let found = diag.find(protocol, scope, 7676, None).unwrap().unwrap();
                    assert_eq!(found.cookie, told.cookie);
                    drop(socket);
                    let [closed] = next(&mut events);
                    assert_eq!(closed, Event::Closed(EventSocket { scope: None, ..told }));
                    settled(&mut diag, 0);
                }
            }
        });
    }

    #[test]
    fn a_listener_without_a_bind_is_told() {
        in_namespace(|| {
            let mut diag = SockDiag::open().unwrap();
            let mut events = watching(&ALL);
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            listen(&socket, Backlog::new(1).unwrap()).unwrap();
            let told = opened(&mut events);
            let listener = only(&mut diag);
            assert_eq!((told.cookie, told.port), (listener.cookie, listener.port));
            drop(socket);
            assert!(matches!(next(&mut events), [Event::Closed(closed)] if closed.cookie == listener.cookie));
        });
    }

    #[test]
    fn connections_and_other_ports_and_namespaces_are_not_told() {
        in_namespace(|| {
            let port = |protocol, first, last| (protocol, PortRange { first, last });
            let mut events = watching(&[port(Protocol::Tcp, 7000, 7999), port(Protocol::Udp, 514, 514)]);
            let _others = [
                open(Protocol::Tcp, localhost(6999), |_| ()),
                open(Protocol::Tcp, localhost(8000), |_| ()),
                open(Protocol::Tcp, localhost(514), |_| ()),
                open(Protocol::Udp, localhost(7676), |_| ()),
            ];
            std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                drop(open(Protocol::Tcp, (Ipv4Addr::UNSPECIFIED, 7676).into(), |_| ()));
                drop(open(Protocol::Udp, (Ipv6Addr::UNSPECIFIED, 514).into(), |_| ()));
            })
            .join()
            .unwrap();
            let listener = TcpListener::bind(localhost(7676)).unwrap();
            let told = opened(&mut events);
            assert_eq!(told.port, 7676);
            for _ in 0..20 {
                let client = TcpStream::connect(localhost(7676)).unwrap();
                drop((client, listener.accept().unwrap()));
            }
            // Bound on a port of interest, but it does not listen.
            let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 7677)).unwrap();
            drop(bound);
            drop(listener);
            let [closed] = next(&mut events);
            assert_eq!(closed, Event::Closed(EventSocket { scope: None, ..told }));

            events.set_ports(&[port(Protocol::Tcp, 8000, 8000)]).unwrap();
            // A connection may live on for a moment: another test's child may have kept its client until it called exec.
            let again = open(Protocol::Tcp, localhost(7676), |socket| setsockopt(socket, ReuseAddr, &true).unwrap());
            drop(again);
            assert_eq!(events.read().unwrap(), []);
        });
    }

    #[test]
    fn a_full_buffer_tells_that_events_are_lost() {
        in_namespace(|| {
            let mut events = watching(&ALL);
            for _ in 0..10_000 {
                drop(TcpListener::bind(localhost(0)).unwrap());
            }
            let told = events.read().unwrap();
            let Some(Event::Lost { count }) = told.last() else { panic!("nothing is lost of {}", told.len()) };
            // Another test's child may have kept the last ones open for a moment.
            assert!((19_000..=20_000).contains(&(told.len() as u64 - 1 + count)), "{} and {count}", told.len());
            let _listener = TcpListener::bind(localhost(7676)).unwrap();
            let start = Instant::now();
            let is_it = |event: &Event| matches!(event, Event::Opened(socket) if socket.port == 7676);
            while !events.read().unwrap().iter().any(is_it) {
                assert!(start.elapsed() < PATIENCE);
            }
        });
    }

    /// Where no cgroup2 is mounted, as on RHEL 8.
    #[test]
    fn cgroup2_is_mounted_for_a_moment_where_it_is_not() {
        in_namespace(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let script = "mount --make-rprivate / && umount -a -t cgroup2 && mount -t tmpfs tmpfs /tmp";
            assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
            let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let before = mounts();
            assert!(!before.contains("cgroup2"));
            let mut events = watching(&ALL);
            assert_eq!(mounts(), before);
            let listener = TcpListener::bind(localhost(7676)).unwrap();
            assert_eq!(opened(&mut events).port, 7676);
            drop(listener);
        });
    }
}
