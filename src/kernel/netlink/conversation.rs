//! One socket to the kernel: a request, and the messages that answer it.
#![forbid(unsafe_code)]

use super::Error;
use super::native::{Bus, NetlinkOption, Socket};
use super::uapi::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use super::wire::{Header, Malformed, Message, begin_message, end_message, messages};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use nix::sys::time::TimeVal;
use std::os::fd::{AsFd, AsRawFd};

/// What one receive call can take: netlink dumps come in datagrams of at most 32 KiB (`netlink_dump`,
/// net/netlink/af_netlink.c), single messages may be longer.
pub(super) const RECEIVE_BUFFER: usize = 256 * 1024;
/// Queue for answers. The default overflows at 256 acknowledgements.
pub(super) const RECEIVE_QUEUE: usize = 8 * 1024 * 1024;
/// How long an answer may take. A commit waits for the kernel's own lock, which others may hold for seconds.
const ANSWER_TIMEOUT_SECONDS: i64 = 30;

/// A socket on which one request is asked at a time.
pub(super) struct Conversation {
    pub(super) socket: Socket,
    pub(super) sequence: u32,
    buffer: Vec<u8>,
}

/// How the kernel answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// In full.
    Complete,
    /// With a dump that is not consistent, because things changed meanwhile.
    Interrupted,
    /// With this error.
    Failed(Errno),
}

impl Conversation {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open(bus: Bus) -> Result<Self, Error> {
        const DOING: &str = "opening a netlink socket";
        let socket = Socket::open(bus).map_err(|errno| Error::from_errno(DOING, errno))?;
        // Without the privilege the ordinary limit has to do; what needs more will say that it is not permitted.
        let _ = setsockopt(&socket.as_fd(), RcvBufForce, &RECEIVE_QUEUE)
            .or_else(|_| setsockopt(&socket.as_fd(), RcvBuf, &RECEIVE_QUEUE));
        setsockopt(&socket.as_fd(), ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0))
            .and_then(|()| socket.set_option(NetlinkOption::CapAck, 1))
            .map_err(|errno| Error::from_errno(DOING, errno))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        // Never 0, which is the sequence number of notifications.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    /// Receives messages until the visitor is satisfied.
    pub(super) fn receive(
        &mut self,
        doing: &str,
        mut visit: impl FnMut(&Message<'_>) -> Result<bool, Malformed>,
    ) -> Result<(), Error> {
        loop {
            let length = match recv(self.socket.as_fd().as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::from_errno(doing, errno)),
            };
            let Some(received) = self.buffer.get(..length) else {
                return Err(Error::from_errno(doing, Errno::ENOSPC));
            };
            for message in messages(received) {
                let done = message.and_then(|message| visit(&message));
                if done.map_err(|malformed| malformed_error(doing, malformed))? {
                    return Ok(());
                }
            }
        }
    }

    /// Throws away what is still queued, such as further errors of a batch that failed.
    pub(super) fn drain(&mut self) {
        while recv(self.socket.as_fd().as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// Asks for one object or for a dump, or for an acknowledgement; hands every message of the answer to `visit`.
    /// `fill` writes the request's attributes.
    pub(super) fn ask(
        &mut self,
        doing: &str,
        (kind, flags, family): (u16, u16, u8),
        fill: impl FnOnce(&mut Vec<u8>),
        visit: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Outcome, Error> {
        let sequence = self.next_sequence();
        let mut request = Vec::new();
        let start = begin_message(&mut request, Header { kind, flags, sequence, family, resource: 0 });
        fill(&mut request);
        end_message(&mut request, start);
        self.exchange(doing, &request, (flags, sequence), visit)
    }

    /// Sends a whole request of these flags and this sequence number, and reads the answer.
    pub(super) fn exchange(
        &mut self,
        doing: &str,
        request: &[u8],
        (flags, sequence): (u16, u32),
        mut visit: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Outcome, Error> {
        self.drain();
        self.socket.send(request).map_err(|errno| Error::from_errno(doing, errno))?;
        let mut outcome = Outcome::Complete;
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut failure = 0;
        self.receive(doing, |message| {
            if message.sequence != sequence {
                return Ok(false);
            }
            if message.flags & NLM_F_DUMP_INTR != 0 {
                outcome = Outcome::Interrupted;
            }
            match message.kind {
                // The end of a dump may carry the error that ended it.
                NLMSG_DONE if message.payload.len() < size_of::<i32>() => Ok(true),
                NLMSG_DONE | NLMSG_ERROR => {
                    failure = message.error()?;
                    Ok(true)
                }
                _ => visit(message).map(|()| !is_dump),
            }
        })?;
        // The end of a whole dump carries a number that is no error.
        Ok(if failure <= 0 { outcome } else { Outcome::Failed(Errno::from_raw(failure)) })
    }
}

pub(super) fn malformed_error(doing: &str, Malformed(what): Malformed) -> Error {
    Error::Malformed { doing: doing.to_owned(), what }
}
