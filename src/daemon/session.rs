//! Over which connection did somebody log in, and would a policy let it in again?
//!
//! What the environment says (`SSH_CONNECTION`) may be old, or missing after sudo. So the session is found from its
//! socket: a process that asks is the child of a shell, that of an sshd, and one of these ancestors holds an established
//! TCP socket of the port that it serves. Which socket an inode is, the kernel tells (sock_diag(7)).
//!
//! What has left its parents, as a tmux server and all in it has, still has the number of the login that it comes from,
//! which pam_loginuid(8) has the audit system give. The sshd of that login has the same.

use crate::plan::{Direction, OpenPorts, Plan, Query, Verdict};
use crate::policy::{Mode, Ports};
use crate::ruleset::{PortRange, Protocol};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Secure Shell (IANA service names and port numbers).
const SSH: u16 = 22;
/// How many ancestors of a process are looked at. Nobody nests shells so deep.
const MOST_ANCESTORS: usize = 64;
/// How many open files of a process are looked at. An sshd has some dozens.
const MOST_FILES: usize = 4096;
/// What /proc/PID/sessionid holds for a process that comes from no login (`AUDIT_SID_UNSET`, linux/audit.h).
const NO_LOGIN: u32 = u32::MAX;

/// A login over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Session {
    /// Where the user sits.
    pub peer: IpAddr,
    /// The port at the other end.
    pub peer_port: u16,
    /// The port that was connected to: 22, unless sshd serves another.
    pub port: u16,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} to {}/tcp", self.peer, self.port)
    }
}

impl Session {
    /// The session that a process belongs to; `None` when neither its ancestors nor the processes of its login serve one
    /// in this network namespace, such as on the machine's own screen.
    ///
    /// # Errors
    ///
    /// /proc or the kernel's sockets cannot be read.
    pub fn of_process(pid: u32) -> io::Result<Option<Self>> {
        let served = Self::served_by(&ancestors(pid)?)?;
        match login_of(pid).filter(|_| served.is_none()) {
            Some(login) => Self::served_by(&processes_of(login)?),
            None => Ok(served),
        }
    }

    /// The session that the first of these processes that serves one serves.
    fn served_by(processes: &[Process]) -> io::Result<Option<Self>> {
        let wanted: BTreeSet<u32> = processes.iter().flat_map(|process| &process.sockets).copied().collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let sockets = established(0, |socket| wanted.contains(&socket.inode))?;
        let session = processes.iter().find_map(|process| {
            let serves = |socket: &&Socket| process.is_sshd() || socket.session.port == SSH;
            sockets.iter().filter(|socket| process.sockets.contains(&socket.inode)).find(serves)
        });
        Ok(session.map(|socket| socket.session))
    }

    /// The session that a value of `SSH_CONNECTION` names (sshd(8): the client's address and port, the server's address
    /// and port), if the kernel has such a connection now.
    ///
    /// # Errors
    ///
    /// The kernel's sockets cannot be read.
    pub fn of_hint(hint: &str) -> io::Result<Option<Self>> {
        let Some(hinted) = parse_hint(hint) else { return Ok(None) };
        Ok(established(hinted.port, |socket| socket.session == hinted)?.first().map(|socket| socket.session))
    }

    /// The session as [`Session::of_hint`] reads it. The server's address is not needed to know it again.
    pub fn as_hint(&self) -> String {
        format!("{} {} * {}", self.peer, self.peer_port, self.port)
    }

    /// All sessions on the port of Secure Shell in this network namespace, sorted.
    ///
    /// # Errors
    ///
    /// The kernel's sockets cannot be read.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut sessions: Vec<_> = established(SSH, |_| true)?.into_iter().map(|socket| socket.session).collect();
        sessions.sort_unstable();
        Ok(sessions)
    }

    /// Whether this session could not be opened again under a plan. The connection itself goes on, as long as nothing
    /// interrupts it.
    pub fn is_cut_by(&self, plan: &Plan<'_>) -> bool {
        let port = Ports::Range(Protocol::Tcp, PortRange::single(self.port));
        let query = Query { direction: Direction::Ingress, peer: self.peer, port, local: None };
        plan.policy.mode == Mode::Enforce && plan.explain(&query, &OpenPorts::new()).verdict == Verdict::Denied
    }
}

pub(super) fn parse_hint(hint: &str) -> Option<Session> {
    let mut words = hint.split_ascii_whitespace();
    let (peer, peer_port, _, port) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let peer: IpAddr = peer.parse().ok()?;
    Some(Session { peer: peer.to_canonical(), peer_port: peer_port.parse().ok()?, port: port.parse().ok()? })
}

/// A process that may serve a session.
#[derive(Debug)]
struct Process {
    name: String,
    /// The process that it is a child of.
    parent: u32,
    /// The inodes of its sockets; of another network namespace none.
    sockets: BTreeSet<u32>,
}

impl Process {
    fn read(pid: u32, here: u64) -> io::Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read(folder.join("stat"))?;
        let (name, parent) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let mut sockets = BTreeSet::new();
        if network_namespace(&folder)? == here {
            for file in fs::read_dir(folder.join("fd"))?.take(MOST_FILES) {
                // A file may be closed meanwhile.
                let target = file.and_then(|file| fs::read_link(file.path()));
                sockets.extend(target.ok().and_then(|target| inode_of(target.to_str()?)));
            }
        }
        Ok(Self { name, parent, sockets })
    }

    /// `sshd`, or `sshd-session` from OpenSSH 9.8 on.
    fn is_sshd(&self) -> bool {
        self.name.starts_with("sshd")
    }
}

/// The number of the network namespace of a process, which is given by its folder in /proc.
pub(crate) fn network_namespace(folder: &Path) -> io::Result<u64> {
    Ok(fs::metadata(folder.join("ns/net"))?.ino())
}

/// This network namespace.
fn here() -> io::Result<u64> {
    network_namespace(Path::new("/proc/self"))
}

/// The process and those above it, the nearest first. The first process of the system serves nobody's session.
fn ancestors(pid: u32) -> io::Result<Vec<Process>> {
    let here = here()?;
    let mut ancestors = Vec::new();
    let mut next = pid;
    for _ in 0..MOST_ANCESTORS {
        if next <= 1 {
            break;
        }
        let process = Process::read(next, here)?;
        next = process.parent;
        ancestors.push(process);
    }
    Ok(ancestors)
}

/// The number of the login that a process comes from, which all its descendants keep; `None` without one, and on a kernel
/// without audit.
fn login_of(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/sessionid")).ok()?;
    text.trim().parse().ok().filter(|login| *login != NO_LOGIN)
}

/// Whether a process was started by the service manager, as what `systemctl reload` runs is: a child of the first process
/// that comes from no login. Who had it started, nobody knows.
pub(super) fn is_of_service_manager(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&stat).is_some_and(|(_, parent)| parent == 1) && login_of(pid).is_none()
}

/// The processes that come from a login.
fn processes_of(login: u32) -> io::Result<Vec<Process>> {
    let here = here()?;
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| login_of(*pid) == Some(login)) else { continue };
        // A process may end meanwhile.
        processes.extend(Process::read(pid, here).ok());
    }
    Ok(processes)
}

/// The name and the parent's number of proc_pid_stat(5): `1234 (name) S 1 ...`. The name may hold anything, blanks and
/// parentheses included.
pub(super) fn parse_stat(stat: &[u8]) -> Option<(String, u32)> {
    let text = String::from_utf8_lossy(stat);
    let (_, rest) = text.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((name.to_owned(), parent))
}

/// `socket:[1234]`, proc_pid_fd(5).
fn inode_of(target: &str) -> Option<u32> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// An established TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    session: Session,
    inode: u32,
}

/// The established TCP sockets of this network namespace on a local port (0: on any) that are wanted.
fn established(port: u16, wanted: impl Fn(&Socket) -> bool) -> io::Result<Vec<Socket>> {
    /// A dump's messages come in buffers of at most 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
    const BUFFER: usize = 64 << 10;
    let netlink = mnl::Socket::new(mnl::Bus::SockDiag)?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; BUFFER];
    for family in [address_family::INET, address_family::INET6] {
        netlink.send(&wire::request(family, port))?;
        loop {
            let length = netlink.recv_raw(&mut buffer)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if wire::read(bytes, |socket| sockets.extend(Some(socket).filter(&wanted)))? {
                break;
            }
        }
    }
    Ok(sockets)
}

/// Address families (linux/socket.h).
mod address_family {
    pub(super) const INET: u8 = 2;
    pub(super) const INET6: u8 = 10;
}

/// sock_diag(7), linux/inet_diag.h, in the machine's byte order but for ports and addresses.
pub(super) mod wire {
    use super::*;

    const HEADER: usize = 16;
    const REQUEST: usize = HEADER + 56;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const IPPROTO_TCP: u8 = 6;
    /// The bit of `TCP_ESTABLISHED` (linux/tcp_states.h).
    const ESTABLISHED: u32 = 1 << 1;

    /// An `inet_diag_req_v2` for a dump. The kernel leaves out sockets of another local port unless that is 0.
    pub(super) fn request(family: u8, port: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(REQUEST);
        message.extend((REQUEST as u32).to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        message.extend([0; 8]); // sequence, port: to the kernel
        message.extend([family, IPPROTO_TCP, 0, 0]);
        message.extend(ESTABLISHED.to_ne_bytes());
        message.extend(port.to_be_bytes());
        message.resize(REQUEST, 0);
        message
    }

    /// Reads one buffer of an answer; whether it was the last one.
    pub(in crate::daemon) fn read(mut bytes: &[u8], mut take: impl FnMut(Socket)) -> io::Result<bool> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        while !bytes.is_empty() {
            let length = u32::from_ne_bytes(array(bytes, 0).ok_or_else(malformed)?) as usize;
            let kind = u16::from_ne_bytes(array(bytes, 4).ok_or_else(malformed)?);
            let message = bytes.get(HEADER..length).ok_or_else(malformed)?;
            match kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    let error = i32::from_ne_bytes(array(message, 0).ok_or_else(malformed)?);
                    return Err(io::Error::from_raw_os_error(error.saturating_neg()));
                }
                SOCK_DIAG_BY_FAMILY => take(socket(message).ok_or_else(malformed)?),
                _ => {}
            }
            // Messages begin at multiples of four.
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }

    /// An `inet_diag_msg`: family, state, timer, retransmissions, then the socket's ports and addresses, and at the end
    /// its inode.
    fn socket(message: &[u8]) -> Option<Socket> {
        let peer = match *message.first()? {
            address_family::INET => IpAddr::V4(Ipv4Addr::from(array::<4>(message, 24)?)),
            address_family::INET6 => IpAddr::V6(Ipv6Addr::from(array::<16>(message, 24)?)),
            _ => return None,
        };
        let port = u16::from_be_bytes(array(message, 4)?);
        let peer_port = u16::from_be_bytes(array(message, 6)?);
        let inode = u32::from_ne_bytes(array(message, 68)?);
        // A dual-stack socket has IPv4 peers as mapped addresses.
        Some(Socket { session: Session { peer: peer.to_canonical(), peer_port, port }, inode })
    }

    fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_of_this_process_is_found() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let peer_port = client.local_addr().unwrap().port();
        let expected = Session { peer: Ipv4Addr::LOCALHOST.into(), peer_port, port };

        let found = established(port, |_| true).unwrap();
        assert_eq!(
            found.iter().map(|socket| socket.session).collect::<Vec<_>>(),
            [expected],
            "mapped addresses are IPv4"
        );
        let inodes = &ancestors(std::process::id()).unwrap()[0].sockets;
        assert!(inodes.contains(&found[0].inode));

        let hint = format!("127.0.0.1 {peer_port} 127.0.0.1 {port}");
        assert_eq!(Session::of_hint(&hint).unwrap(), Some(expected));
        assert_eq!(Session::of_hint(&expected.as_hint()).unwrap(), Some(expected));
        let stale = format!("127.0.0.1 {peer_port} 127.0.0.1 {}", port.wrapping_add(1).max(1));
        assert_eq!(Session::of_hint(&stale).unwrap(), None, "a hint that no connection confirms counts for nothing");
    }

    #[test]
    fn a_process_that_serves_nothing_has_no_session() {
        // The test's own ancestors may well be in a session; the first process never is.
        assert_eq!(Session::of_process(1).unwrap(), None);
        assert_eq!(Session::of_process(0).unwrap(), None);
        assert!(Session::of_process(u32::MAX).is_err());
        assert_eq!(login_of(u32::MAX), None);
        assert!(!is_of_service_manager(u32::MAX));
    }

    #[test]
    fn names_of_processes_may_hold_anything() {
        assert_eq!(parse_stat(b"12 (sshd) S 7 12 12 0"), Some(("sshd".to_owned(), 7)));
        assert_eq!(parse_stat(b"12 (a) S 1 (b) R 9 12"), Some(("a) S 1 (b".to_owned(), 9)));
        for malformed in [&b""[..], b"12", b"12 (x", b"12 (x)", b"12 (x) S", b"12 (x) S y"] {
            assert_eq!(parse_stat(malformed), None);
        }
        assert_eq!(inode_of("socket:[4711]"), Some(4711));
        assert_eq!(inode_of("pipe:[4711]"), None);
    }

    /// An answer of Linux 6.1 to a dump of an sshd's socket: 198.51.100.10:22, peer 192.0.2.7:40000, inode 12345.
    fn answer() -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(88_u32.to_ne_bytes());
        message.extend(20_u16.to_ne_bytes());
        message.extend(2_u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([2, 1, 0, 0]);
        message.extend(22_u16.to_be_bytes());
        message.extend(40_000_u16.to_be_bytes());
        message.extend([198, 51, 100, 10].into_iter().chain([0; 12]));
        message.extend([192, 0, 2, 7].into_iter().chain([0; 12]));
        message.extend([0; 28]);
        message.extend(12_345_u32.to_ne_bytes());
        message
    }

    #[test]
    fn an_answer_is_read() {
        let mut bytes = answer();
        bytes.extend(answer());
        let mut sockets = Vec::new();
        assert!(!wire::read(&bytes, |socket| sockets.push(socket)).unwrap());
        let session = Session { peer: "192.0.2.7".parse().unwrap(), peer_port: 40_000, port: 22 };
        assert_eq!(sockets, [Socket { session, inode: 12_345 }; 2]);

        let mut refusal = bytes[..16].to_vec();
        refusal[..4].copy_from_slice(&20_u32.to_ne_bytes());
        refusal[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        refusal.extend((-1_i32).to_ne_bytes());
        assert_eq!(wire::read(&refusal, drop).unwrap_err().raw_os_error(), Some(1));
    }

    proptest! {
        #[test]
        fn torn_answers_are_an_error(cut in 1_usize..88) {
            let result = wire::read(&answer()[..cut], drop);
            prop_assert!(result.is_err());
        }

        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = wire::read(&bytes, drop);
            let _ = parse_stat(&bytes);
            let _ = parse_hint(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_length_of_nothing_does_not_go_on_for_ever(length in 0_u32..16) {
            let mut bytes = answer();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let result = wire::read(&bytes, drop);
            prop_assert!(result.is_err());
        }
    }
}
