//! What can go wrong between portward and the kernel.
#![forbid(unsafe_code)]

use nix::errno::Errno;

/// Why the kernel could not be asked, or did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The ruleset's generation is not the expected one, so nothing was applied. Dump and compare again.
    #[error("the kernel's ruleset was changed by another program in the meantime; nothing was applied")]
    Changed,
    /// Whether the last request was carried out is not known. Dump and compare.
    #[error("{doing}: the kernel's answer was lost, so whether it was done must be read back ({reason})")]
    Unclear {
        /// What was being done.
        doing: String,
        /// Why the answer is missing.
        reason: String,
    },
    /// The caller may not administer the network.
    #[error("{doing}: not permitted; run as root or with the capability CAP_NET_ADMIN")]
    Permission {
        /// What was being done.
        doing: String,
    },
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET); try `modprobe nf_tables`")]
    Unsupported {
        /// The answer that says so.
        #[source]
        source: Errno,
    },
    /// The kernel does not tell of its connection tracking.
    #[error(
        "the kernel has no connection tracking over netlink (CONFIG_NF_CT_NETLINK); try `modprobe nf_conntrack_netlink`"
    )]
    NoConntrack {
        /// The answer that says so.
        #[source]
        source: Errno,
    },
    /// The kernel refused one change, and with it the whole transaction: nothing was applied.
    #[error("the kernel refused {doing}: {}{}", source.desc(), remedy(*source))]
    Refused {
        /// The change, in words.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A change cannot be expressed to the kernel; nothing was sent.
    #[error("{0}")]
    Inexpressible(String),
    /// A system call on the netlink socket failed.
    #[error("{doing}: {}", source.desc())]
    Socket {
        /// What was being done.
        doing: String,
        /// The system's answer.
        #[source]
        source: Errno,
    },
    /// A message of the kernel was not understood.
    #[error("{doing}: the kernel's message is malformed: {what}")]
    Malformed {
        /// What was being done.
        doing: String,
        /// What was expected.
        what: &'static str,
    },
}

impl Error {
    /// The error of a system call or of a whole request, by its number.
    pub(super) fn from_errno(doing: &str, source: Errno) -> Self {
        let doing = doing.to_owned();
        match source {
            Errno::EPERM | Errno::EACCES => Self::Permission { doing },
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => Self::Unsupported { source },
            Errno::ENOBUFS => Self::Unclear { doing, reason: "the receive buffer overflowed".to_owned() },
            Errno::EAGAIN => Self::Unclear { doing, reason: "no answer in time".to_owned() },
            Errno::ENOSPC => Self::Unclear { doing, reason: "the answer was longer than the buffer".to_owned() },
            _ => Self::Socket { doing, source },
        }
    }
}

/// What the usual refusals mean here, for the end of a message.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => " (something it refers to is not there, or a kernel module is missing)",
        Errno::EEXIST => " (it is there already)",
        Errno::EBUSY => " (something still refers to it)",
        Errno::ELOOP => " (chains would jump in a circle)",
        Errno::EMLINK => " (chains would jump more than 16 deep)",
        Errno::EOPNOTSUPP => " (this kernel cannot do that, or a kernel module is missing)",
        Errno::ENFILE => " (the set is full)",
        _ => "",
    }
}
