//! The BPF programs in the kernel, and the buffer that they write into.
#![forbid(unsafe_code)]

use super::{Event, Unavailable, cgroup, record};
use crate::kernel::namespace_cookie;
use crate::ruleset::{PortRange, Protocol};
use aya::maps::{Array, MapData, MapError, RingBuf};
use aya::programs::{CgroupAttachMode, CgroupSock, ProgramError, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};
use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use tracing::debug;

/// What clang made of bpf/listen.bpf.c.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listen.bpf.o"));
/// The program for `listen`, which asks for as much as the kernel lets this type of program ask for: its network
/// namespace since Linux 5.15, the process since 6.10.
const LISTEN: [&str; 3] = ["listen_with_namespace_and_pid", "listen_with_namespace", "listen_alone"];
/// The programs for a bound and a closed socket.
const SOCKET: [(&str, &str); 3] = [
    ("bind_ipv4", "the BPF program for bound IPv4 sockets"),
    ("bind_ipv6", "the BPF program for bound IPv6 sockets"),
    ("release", "the BPF program for closed sockets"),
];
/// Words of the map of ports: a bit for each port of TCP, then of UDP.
const PORT_WORDS: usize = 2 * 65_536 / 64;
/// Events that one call reads at most: some times what the buffer holds.
const MOST_EVENTS: usize = 16 * 1024;

/// News of sockets on the ports of interest in the network namespace in which it was opened.
///
/// The programs are detached when it is dropped. Since Linux 5.7 the kernel does so too when the process ends in any
/// other way; before, they stay until the next process attaches its own in their place.
pub struct Events {
    events: RingBuf<MapData>,
    lost: Array<MapData, u64>,
    ports: Array<MapData, u64>,
    ports_set: Vec<u64>,
    lost_before: u64,
    /// Keeps programs and links.
    _programs: Ebpf,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("lost_before", &self.lost_before).finish_non_exhaustive()
    }
}

impl Events {
    /// The capabilities that [`open`](Self::open) and reading need on this system, besides CAP_NET_ADMIN.
    pub fn capabilities() -> Vec<Capability> {
        // The kernel knows no such capability before Linux 5.8 (prctl(2), PR_CAPBSET_READ). It asks for these instead;
        // the second is for the locked memory.
        let has_bpf = caps::has_cap(None, CapSet::Bounding, Capability::CAP_BPF).is_ok();
        let mut needed = match has_bpf {
            true => vec![Capability::CAP_BPF],
            false => vec![Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_RESOURCE],
        };
        if !cgroup::is_mounted() {
            needed.push(Capability::CAP_SYS_ADMIN);
        }
        needed
    }

    /// Loads the programs and attaches them to the root of cgroup2. No port is of interest yet. Reading never blocks.
    ///
    /// # Errors
    /// When this kernel, or the rights of this process, do not allow it.
    pub fn open() -> Result<Self, Unavailable> {
        let cgroup = cgroup::open_root()?;
        // A kernel that does not tell the cookie gets 0, which lets the sockets of all namespaces pass; whoever looks
        // them up in his own finds none of the others.
        let namespace = namespace_cookie().unwrap_or_default();
        let mut programs = with_locked_memory(|| {
            EbpfLoader::new().override_global("own_namespace", &namespace, true).load(OBJECT).map_err(refused_object)
        })?;
        attach_listen(&mut programs, &cgroup)?;
        for (name, what) in SOCKET {
            attach_socket(&mut programs, name, &cgroup).map_err(|error| refused_program(what, &error))?;
        }
        let mut map =
            |name| programs.take_map(name).ok_or_else(|| refused_map(&MapError::InvalidName { name: name.to_owned() }));
        Ok(Self {
            events: map("events")?.try_into().map_err(|error| refused_map(&error))?,
            lost: map("lost")?.try_into().map_err(|error| refused_map(&error))?,
            ports: map("ports")?.try_into().map_err(|error| refused_map(&error))?,
            ports_set: vec![0; PORT_WORDS],
            lost_before: 0,
            _programs: programs,
        })
    }

    /// Makes these the ports of interest. A socket that was opened before is not told of, so dump afterwards.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn set_ports(&mut self, ports: &[(Protocol, PortRange)]) -> Result<(), Unavailable> {
        let words = words(ports);
        for (index, (wanted, set)) in words.iter().zip(&mut self.ports_set).enumerate() {
            if wanted != set {
                self.ports.set(index as u32, wanted, 0).map_err(|error| refused_map(&error))?;
                *set = *wanted;
            }
        }
        Ok(())
    }

    /// What has happened since the last call; empty when nothing has.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn read(&mut self) -> Result<Vec<Event>, Unavailable> {
        let mut events = Vec::new();
        while events.len() < MOST_EVENTS
            && let Some(bytes) = self.events.next()
        {
            events.extend(record::read(&bytes));
        }
        let lost = self.lost.get(&0, 0).map_err(|error| refused_map(&error))?;
        if lost != self.lost_before {
            events.push(Event::Lost { count: lost.wrapping_sub(self.lost_before) });
            self.lost_before = lost;
        }
        Ok(events)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

fn words(ports: &[(Protocol, PortRange)]) -> Vec<u64> {
    let mut words = vec![0; PORT_WORDS];
    for (protocol, range) in ports {
        let offset = if *protocol == Protocol::Udp { PORT_WORDS / 2 } else { 0 };
        for port in range.first..=range.last {
            words[offset + usize::from(port) / 64] |= 1 << (port % 64);
        }
    }
    words
}

fn attach_listen(programs: &mut Ebpf, cgroup: &OwnedFd) -> Result<(), Unavailable> {
    const WHAT: &str = "the BPF program for listening sockets";
    let mut refusal = Unavailable::Refused { what: WHAT, reason: "there is none".to_owned() };
    for name in LISTEN {
        let Some(program) = programs.program_mut(name) else { continue };
        let attached = <&mut SockOps>::try_from(program).and_then(|program| {
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single).map(drop)
        });
        match attached {
            Ok(()) => return Ok(()),
            Err(error) => refusal = refused_program(WHAT, &error),
        }
    }
    Err(refusal)
}

fn attach_socket(programs: &mut Ebpf, name: &str, cgroup: &OwnedFd) -> Result<(), ProgramError> {
    let Some(program) = programs.program_mut(name) else { return Err(ProgramError::NotLoaded) };
    let program: &mut CgroupSock = program.try_into()?;
    program.load()?;
    program.attach(cgroup, CgroupAttachMode::Single).map(drop)
}

/// Before Linux 5.11 maps count as locked memory, of which the usual limit is smaller than they are.
fn with_locked_memory<T>(load: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::RLIMIT_MEMLOCK);
    // Where it is not allowed it may not be needed.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let loaded = load();
    if let Ok((soft, hard)) = before {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard);
    }
    loaded
}

fn refused_object(error: EbpfError) -> Unavailable {
    match error {
        EbpfError::MapError(error) => refused_map(&error),
        error => Unavailable::Refused { what: "the BPF programs", reason: chain(&error) },
    }
}

fn refused_map(error: &MapError) -> Unavailable {
    Unavailable::Refused { what: "a BPF map", reason: chain(error) }
}

fn refused_program(what: &'static str, error: &ProgramError) -> Unavailable {
    let reason = match error {
        // What the verifier thought of each instruction is more than anybody reads in a status.
        ProgramError::LoadError { io_error, verifier_log } => {
            debug!("the kernel refuses {what}: {io_error}\n{verifier_log}");
            io_error.to_string()
        }
        error => chain(error),
    };
    Unavailable::Refused { what, reason }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_of_interest_is_one_bit() {
        let words = words(&[
            (Protocol::Tcp, PortRange { first: 63, last: 65 }),
            (Protocol::Udp, PortRange::single(0)),
            (Protocol::Udp, PortRange { first: 65_535, last: 65_535 }),
        ]);
        assert_eq!((words[0], words[1]), (1 << 63, 0b11));
        assert_eq!((words[1024], words[2047]), (1, 1 << 63));
        assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 5);
        assert_eq!(super::words(&[(Protocol::Tcp, PortRange { first: 0, last: 65_535 })])[..1024], [u64::MAX; 1024]);
    }
}
