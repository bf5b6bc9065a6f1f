//! What can go wrong when the kernel is asked for its sockets.
#![forbid(unsafe_code)]

use crate::kernel::wire::Malformed;
use nix::errno::Errno;

/// Why the kernel's sockets are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel has no sock_diag, or not for this protocol.
    #[error(
        "{doing}: the kernel has no sock_diag for it (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG); try `modprobe -a tcp_diag \
         udp_diag`"
    )]
    Unsupported {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The answer is not whole. Ask again later.
    #[error("{doing}: {reason}")]
    Incomplete {
        /// What was being done.
        doing: &'static str,
        /// What is missing.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("{doing}: {}", source.desc())]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: Errno,
    },
    /// A message of the kernel was not understood.
    #[error("{doing}: the kernel's message is malformed: it lacks {what}")]
    Malformed {
        /// What was being done.
        doing: &'static str,
        /// What was expected.
        what: &'static str,
    },
}

impl Error {
    /// The error of a system call or of a whole request, by its number.
    pub(super) fn from_errno(doing: &'static str, source: Errno) -> Self {
        match source {
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOENT => Self::Unsupported { doing, source },
            Errno::ENOBUFS => Self::Incomplete { doing, reason: "the receive buffer overflowed" },
            Errno::EAGAIN => Self::Incomplete { doing, reason: "the kernel did not answer in time" },
            _ => Self::System { doing, source },
        }
    }

    pub(super) fn malformed(doing: &'static str, Malformed(what): Malformed) -> Self {
        Self::Malformed { doing, what }
    }
}
