//! The real kernel, over netlink.
#![deny(unsafe_code)]

mod batch;
mod conntrack;
mod conversation;
mod dump;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod monitor;
mod native;
mod neighbours;
mod notes;
mod sockets;
pub(crate) mod uapi;
pub(crate) mod wire;

pub use conntrack::Conntrack;
pub use monitor::{Monitor, Notification};
pub(crate) use native::clock_is_synchronized;
#[cfg(feature = "bpf")]
pub(crate) use native::namespace_cookie;
pub use neighbours::ForeignChain;
pub use notes::Note;
pub use sockets::{Destroyed, Sockets};

use super::{Error, Kernel, Snapshot, next_generation};
use crate::ruleset::diff::{Change, diff};
use crate::ruleset::{Ruleset, TABLE};
use batch::Handles;
use conversation::{Conversation, Outcome, malformed_error};
use dump::TableReader;
use native::{Bus, Unbuildable};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};
use std::os::fd::AsFd;
use std::time::Duration;
use uapi::{NFPROTO_INET, NFPROTO_UNSPEC, NLM_F_DUMP, NLMSG_ERROR, message};
use wire::{Malformed, Message, nf_tables, put_text};

/// Consistent dumps are tried so often while others change the ruleset.
const DUMP_ATTEMPTS: u64 = 20;
/// The kernel's own number for "the generation is another one" (linux/errno.h); user space has no name for it.
const ERESTART: i32 = 85;

/// Table `inet portward` of the network namespace in which it was opened.
pub struct Netlink {
    conversation: Conversation,
    send_queue: usize,
}

impl Netlink {
    /// Opens a socket to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink, or no memory for the queues.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { conversation: Conversation::open(Bus::Netfilter)?, send_queue: 0 })
    }

    /// The sequence number that a batch begins with, far enough from the end of the numbers.
    fn first_sequence_of_batch(&mut self) -> u32 {
        let sequence = &mut self.conversation.sequence;
        if *sequence > u32::MAX / 2 {
            *sequence = 0;
        }
        *sequence + 1
    }

    /// Asks for one object or for a dump; hands every message of the answer to `visit`. `Ok(false)`: the object is not
    /// there. `Err(Interrupted)`: the dump is not consistent.
    fn ask(
        &mut self,
        doing: &str,
        (kind, flags, family): (u16, u16, u8),
        names: &[(u16, &str)],
        visit: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Answer, Error> {
        let fill = |request: &mut Vec<u8>| {
            for (number, name) in names {
                put_text(request, *number, name);
            }
        };
        match self.conversation.ask(doing, (nf_tables(kind), flags, family), fill, visit)? {
            Outcome::Complete => Ok(Answer::Complete),
            Outcome::Failed(Errno::ENOENT) => Ok(Answer::Missing),
            Outcome::Interrupted | Outcome::Failed(Errno::EINTR) => Ok(Answer::Interrupted),
            // What nfnetlink answers when nobody takes its messages (`nfnetlink_rcv_msg`, net/netfilter/nfnetlink.c).
            Outcome::Failed(source @ (Errno::EINVAL | Errno::EOPNOTSUPP)) if kind == message::GETGEN => {
                Err(Error::Unsupported { source })
            }
            Outcome::Failed(errno) => Err(Error::from_errno(doing, errno)),
        }
    }

    /// One attempt at reading the whole table; `None` when it changed meanwhile.
    fn try_read(&mut self) -> Result<Option<Snapshot>, Error> {
        let before = self.generation()?;
        let mut reader = TableReader::new(before);
        let table = self.ask(
            "reading the table",
            (message::GETTABLE, 0, NFPROTO_INET),
            &[(uapi::table::NAME, TABLE)],
            |message| reader.table(message),
        )?;
        match table {
            Answer::Missing => return Ok(reader.into_snapshot()),
            Answer::Interrupted => return Ok(None),
            Answer::Complete => {}
        }
        let of_table = [(uapi::OF_TABLE, TABLE)];
        let dumps = [
            ("reading chains", message::GETCHAIN),
            ("reading sets", message::GETSET),
            ("reading rules", message::GETRULE),
            ("reading stateful objects", message::GETOBJ),
            ("reading flowtables", message::GETFLOWTABLE),
        ];
        for (doing, kind) in dumps {
            let answer = self.ask(doing, (kind, NLM_F_DUMP, NFPROTO_INET), &of_table, |message| reader.object(message));
            if answer? != Answer::Complete {
                return Ok(None);
            }
        }
        for set in reader.element_holders() {
            let names = [(uapi::OF_TABLE, TABLE), (uapi::element::OF_SET, &*set)];
            let request = (message::GETSETELEM, NLM_F_DUMP, NFPROTO_INET);
            let answer = self.ask("reading elements", request, &names, |message| reader.elements(&set, message));
            if answer? != Answer::Complete {
                return Ok(None);
            }
        }
        Ok(if self.generation()? == before { reader.into_snapshot() } else { None })
    }

    /// The handles of all rules of the table, chain by chain.
    fn rule_handles(&mut self) -> Result<Handles, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut reader = TableReader::new(0);
            let request = (message::GETRULE, NLM_F_DUMP, NFPROTO_INET);
            let names = [(uapi::OF_TABLE, TABLE)];
            if self.ask("reading rules", request, &names, |message| reader.object(message))? == Answer::Complete {
                return Ok(reader.into_handles());
            }
        }
        Err(Error::Changed)
    }

    /// Makes the send queue large enough for one message of this length. A batch that is cut is not atomic.
    fn reserve_send_queue(&mut self, length: usize) -> Result<(), Error> {
        // The kernel counts its own overhead as well, and doubles what it is given.
        let wanted = length.saturating_add(4096);
        if wanted <= self.send_queue {
            return Ok(());
        }
        let socket = &self.conversation.socket;
        setsockopt(&socket.as_fd(), SndBufForce, &wanted)
            .or_else(|_| setsockopt(&socket.as_fd(), SndBuf, &wanted))
            .map_err(|errno| Error::from_errno("making room for a transaction", errno))?;
        self.send_queue = wanted;
        Ok(())
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Complete,
    Missing,
    Interrupted,
}

impl Netlink {
    /// Sends changes as one transaction, and reads the kernel's answer.
    fn transact(&mut self, changes: &[Change], generation: u32) -> Result<(), Error> {
        const DOING: &str = "changing the ruleset";
        let handles =
            if changes.iter().any(Change::needs_rule_handles) { self.rule_handles()? } else { Handles::default() };
        self.conversation.drain();
        let first = self.first_sequence_of_batch();
        let batch = match batch::build(changes, generation, &handles, first) {
            Ok(batch) => batch,
            // The changes may speak of rules that somebody else has deleted since.
            Err(_) if self.generation()? != generation => return Err(Error::Changed),
            Err(Unbuildable(why)) => return Err(Error::Inexpressible(why.to_owned())),
        };
        self.conversation.sequence = batch.last.saturating_add(1);
        self.reserve_send_queue(batch.bytes.len())?;
        self.conversation.socket.send(&batch.bytes).map_err(|errno| match errno {
            // What was too large for the queue was not read by the kernel.
            Errno::EMSGSIZE => Error::Socket { doing: DOING.to_owned(), source: errno },
            errno => Error::from_errno(DOING, errno),
        })?;
        let mut failure = None;
        let answer = self.conversation.receive(DOING, |message| {
            if message.kind != NLMSG_ERROR || message.sequence < first || message.sequence > batch.last + 1 {
                return Ok(false);
            }
            match message.error()? {
                0 => Ok(message.sequence == batch.last),
                errno => {
                    failure = Some((errno, batch.change_of(message.sequence)));
                    Ok(true)
                }
            }
        });
        let Some((errno, change)) = failure else {
            return answer.map(drop);
        };
        self.conversation.drain();
        if errno == ERESTART {
            return Err(Error::Changed);
        }
        let doing = change.and_then(|index| changes.get(index)).map_or_else(|| DOING.to_owned(), describe);
        Err(match Errno::from_raw(errno) {
            Errno::EPERM => Error::Permission { doing },
            errno @ Errno::EAFNOSUPPORT => Error::Unsupported { source: errno },
            source => Error::Refused { doing, source },
        })
    }
}

impl Kernel for Netlink {
    fn dump(&mut self) -> Result<Snapshot, Error> {
        for attempt in 0..DUMP_ATTEMPTS {
            if let Some(snapshot) = self.try_read()? {
                return Ok(snapshot);
            }
            // Hash tables grow in the background, for some milliseconds after a load.
            std::thread::sleep(Duration::from_millis(attempt));
        }
        Err(Error::Unclear {
            doing: "reading the table".to_owned(),
            reason: "others change the ruleset all the time".to_owned(),
        })
    }

    fn commit(&mut self, changes: &[Change], generation: u32) -> Result<u32, Error> {
        if changes.is_empty() {
            return if self.generation()? == generation { Ok(generation) } else { Err(Error::Changed) };
        }
        self.transact(changes, generation)?;
        // A transaction that turns out to change nothing leaves the generation as it was. Any other number than
        // these two is somebody else's, whose change the next commit must not take for its own.
        Ok(if self.generation()? == generation { generation } else { next_generation(generation) })
    }

    fn replace(&mut self, desired: Option<&Ruleset>) -> Result<(), Error> {
        let mut changes = vec![Change::DeleteTable];
        changes.extend(diff(None, desired));
        self.transact(&changes, batch::ANY_GENERATION)
    }

    fn generation(&mut self) -> Result<u32, Error> {
        const DOING: &str = "reading the generation";
        let mut generation = None;
        self.ask(DOING, (message::GETGEN, 0, NFPROTO_UNSPEC), &[], |message| {
            generation = message.attributes()?.be32(uapi::generation::ID)?;
            Ok(())
        })?;
        generation.ok_or_else(|| malformed_error(DOING, Malformed("the number of a generation")))
    }
}

/// A change in words, for an error.
fn describe(change: &Change) -> String {
    match change {
        Change::AddTable => "adding the table".to_owned(),
        Change::DeleteTable => "deleting the table".to_owned(),
        Change::AddSet(name, ..) => format!("adding set {name}"),
        Change::AddMap(name, _) => format!("adding map {name}"),
        Change::AddChain(name, _) => format!("adding chain {name}"),
        Change::SetChainPolicy(name, _) => format!("changing the policy of chain {name}"),
        Change::AddElements(name, set) => format!("adding {} elements to set {name}", set.len()),
        Change::DeleteElements(name, set) => format!("deleting {} elements of set {name}", set.len()),
        Change::AddVerdicts(name, map) => format!("adding {} elements to map {name}", map.elements.len()),
        Change::DeleteVerdicts(name, map) => format!("deleting {} elements of map {name}", map.elements.len()),
        Change::AddRule { chain, rule, .. } => format!("adding to chain {chain} the rule `{rule}`"),
        Change::DeleteRule { chain, index } => format!("deleting rule {} of chain {chain}", index + 1),
        Change::FlushChain(name) => format!("deleting the rules of chain {name}"),
        Change::DeleteChain(name) => format!("deleting chain {name}"),
        Change::DeleteSet(name, _) => format!("deleting set {name}"),
        Change::DeleteMap(name) => format!("deleting map {name}"),
    }
}
