//! From sockets to the processes that hold them.
//!
//! The kernel does not say who holds a socket; only each process's folder of descriptors tells. To look through all of
//! them costs some hundred milliseconds on a large host, so those are looked at first where the answer is likely.
#![forbid(unsafe_code)]

use super::process::{Process, ProcessError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::read_dir;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Processes that are remembered. Each costs a descriptor.
const MOST_KNOWN: usize = 256;

/// Finds the processes that hold sockets, and remembers them.
#[derive(Debug, Default)]
pub struct Owners {
    known: BTreeMap<u32, Arc<Process>>,
}

/// Processes by the inodes of the sockets that they hold, in the order of their numbers. A socket that no process is
/// known to hold is missing.
pub type Holders = BTreeMap<u32, Vec<Arc<Process>>>;

/// What a look at all processes found.
#[derive(Debug)]
pub struct Scan {
    /// All holders of the sockets that were asked for.
    pub holders: Holders,
    /// How much was seen. When it was not everything, a socket without a holder may have one, and one with a holder others.
    pub visibility: Visibility,
    /// How many processes were looked at.
    pub processes: usize,
    /// How long it took: the price that a caller weighs before the next one.
    pub took: Duration,
}

/// How much of the processes can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// All of them.
    Full,
    /// The descriptors of some may not be looked at.
    Refused {
        /// How many.
        processes: usize,
    },
    /// Not even process 1 is in /proc: other users' processes are hidden.
    Hidden,
    /// /proc cannot be read.
    Unreadable {
        /// The system's answer, in words.
        reason: String,
    },
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("all processes"),
            Self::Refused { processes } => {
                let plural = if *processes == 1 { "" } else { "es" };
                write!(
                    f,
                    "all processes, but not the descriptors of {processes} process{plural} (needs CAP_SYS_PTRACE)"
                )
            }
            Self::Hidden => f.write_str(
                "not all processes: /proc hides those of others (hidepid), so it must be mounted without that or portward \
                 needs CAP_SYS_PTRACE",
            ),
            Self::Unreadable { reason } => write!(f, "no processes: /proc cannot be read: {reason}"),
        }
    }
}

impl Owners {
    /// Nobody is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for holders of these sockets in the process with the hinted number first, then in those already known, and
    /// stops when each socket has one. A socket that is not in the answer may still have a holder, and one that is may
    /// have others: [`scan`](Self::scan) finds them all.
    pub fn look(&mut self, inodes: &BTreeSet<u32>, hint: Option<u32>) -> Holders {
        let mut missing = inodes.clone();
        let mut holders = Holders::new();
        let hinted = hint.and_then(|pid| self.open(pid).ok());
        let known: Vec<_> = self.known.values().filter(|known| Some(known.pid()) != hint).cloned().collect();
        for process in hinted.into_iter().chain(known) {
            if missing.is_empty() {
                break;
            }
            match process.sockets(&missing) {
                Ok(held) => {
                    missing.retain(|inode| !held.contains(inode));
                    self.remember(&process, held, &mut holders);
                }
                Err(_) => self.forget(&process),
            }
        }
        sort(&mut holders);
        holders
    }

    /// Looks for all holders of these sockets in all processes.
    pub fn scan(&mut self, inodes: &BTreeSet<u32>) -> Scan {
        let start = Instant::now();
        let mut scan =
            Scan { holders: Holders::new(), visibility: Visibility::Full, processes: 0, took: Duration::ZERO };
        let pids = match pids() {
            Ok(pids) => pids,
            Err(error) => {
                scan.visibility = Visibility::Unreadable { reason: error.to_string() };
                return scan;
            }
        };
        let mut refused = 0;
        for &pid in &pids {
            let held = self.open(pid).and_then(|process| match process.sockets(inodes) {
                Ok(held) => Ok((process, held)),
                Err(error) => {
                    self.forget(&process);
                    Err(error)
                }
            });
            match held {
                Ok((process, held)) => self.remember(&process, held, &mut scan.holders),
                Err(ProcessError::Ended { .. }) => {}
                Err(_) => refused += 1,
            }
        }
        scan.processes = pids.len();
        if !pids.contains(&1) {
            scan.visibility = Visibility::Hidden;
        } else if refused > 0 {
            scan.visibility = Visibility::Refused { processes: refused };
        }
        // Who has ended needs no descriptor.
        self.known.retain(|pid, _| pids.contains(pid));
        scan.took = start.elapsed();
        scan
    }

    /// The process with this number: the known one if it still is.
    fn open(&mut self, pid: u32) -> Result<Arc<Process>, ProcessError> {
        match self.known.get(&pid) {
            Some(known) if known.exists() => Ok(known.clone()),
            _ => {
                self.known.remove(&pid);
                Process::open(pid).map(Arc::new)
            }
        }
    }

    fn remember(&mut self, process: &Arc<Process>, held: BTreeSet<u32>, holders: &mut Holders) {
        if held.is_empty() {
            return;
        }
        if self.known.len() < MOST_KNOWN {
            self.known.insert(process.pid(), process.clone());
        }
        for inode in held {
            holders.entry(inode).or_default().push(process.clone());
        }
    }

    fn forget(&mut self, process: &Arc<Process>) {
        self.known.remove(&process.pid());
    }
}

fn sort(holders: &mut Holders) {
    for processes in holders.values_mut() {
        processes.sort_by_key(|process| process.pid());
    }
}

/// The numbers of all processes.
fn pids() -> io::Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    for entry in read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::fd::{AsFd, OwnedFd};
    use std::process::{Child, Command};

    fn listener() -> (TcpListener, u32) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let inode = u32::try_from(fstat(&listener).unwrap().st_ino).unwrap();
        (listener, inode)
    }

    /// A child that has the socket for its standard input.
    fn child_with(socket: impl AsFd) -> Child {
        let socket: OwnedFd = socket.as_fd().try_clone_to_owned().unwrap();
        Command::new("/bin/sleep").arg("600").stdin(socket).spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The holders without the children that other tests have just forked.
    fn pids(holders: &Holders, inode: u32, of: &[u32]) -> Vec<u32> {
        let pids = holders.get(&inode).into_iter().flatten().map(|process| process.pid());
        pids.filter(|pid| of.contains(pid)).collect()
    }

    #[test]
    fn a_scan_finds_all_holders_of_a_shared_socket() {
        let (listener, inode) = listener();
        let child = child_with(&listener);
        let both = [std::process::id(), child.id()];
        let mut owners = Owners::new();
        let scan = owners.scan(&BTreeSet::from([inode, u32::MAX]));
        assert!(scan.processes >= 2, "{scan:?}");
        assert_eq!(pids(&scan.holders, inode, &both).len(), 2, "{scan:?}");
        assert!(!scan.holders.contains_key(&u32::MAX));

        // The child goes on to hold it.
        drop(listener);
        let known = owners.look(&BTreeSet::from([inode]), None);
        assert_eq!(pids(&known, inode, &both), [child.id()]);
        end(child);
        assert!(pids(&owners.look(&BTreeSet::from([inode]), None), inode, &both).is_empty());
    }

    #[test]
    fn the_hinted_process_is_looked_at_first_and_then_known() {
        let (listener, inode) = listener();
        let child = child_with(&listener);
        let wanted = BTreeSet::from([inode]);
        let both = [std::process::id(), child.id()];
        let mut owners = Owners::new();
        assert!(owners.look(&wanted, None).is_empty(), "nobody is known yet");
        assert_eq!(pids(&owners.look(&wanted, Some(child.id())), inode, &both), [child.id()]);
        assert_eq!(pids(&owners.look(&wanted, None), inode, &both), [child.id()]);
        let pid = child.id();
        end(child);
        assert!(owners.look(&wanted, Some(pid)).is_empty());
        assert!(owners.known.is_empty());
    }
}
