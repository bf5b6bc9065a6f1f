//! The calls into libmnl, libnftnl and the socket options that have no safe binding: the only `unsafe` code of the
//! crate.
//!
//! Everything else of the netlink conversation, above all the reading of what the kernel sends, is safe code. What is
//! unsafe here is small: an object that libnftnl gave is used and freed by one owner, and it is serialized into a
//! buffer that is larger than anything that is put into it.
#![allow(unsafe_code)]

use super::uapi::{NFPROTO_INET, expression as attribute};
use super::wire::nf_tables;
use crate::kernel::expression::{ConnectionKey, Expression, FurtherKey, MetaKey, PayloadBase};
use crate::ruleset::{LogTarget, TABLE};
pub(super) use mnl::Bus;
use mnl::Socket as MnlSocket;
use nftnl::nftnl_sys as sys;
use nix::errno::Errno;
use nix::libc;
#[cfg(feature = "bpf")]
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Socket options of netlink, linux/netlink.h.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(super) enum NetlinkOption {
    /// `NETLINK_ADD_MEMBERSHIP`: joins a multicast group.
    AddMembership = 1,
    /// `NETLINK_DROP_MEMBERSHIP`: leaves a multicast group.
    DropMembership = 2,
    /// `NETLINK_CAP_ACK`: errors repeat only the header of the message that they are about.
    CapAck = 10,
}

/// A socket of libmnl.
pub(super) struct Socket(MnlSocket);

// SAFETY: `struct mnl_socket` is a file descriptor and an address in memory of its own (libmnl, src/socket.c); libmnl
// keeps nothing per thread, so the owner may be moved to another one.
unsafe impl Send for Socket {}

impl Socket {
    /// Opens and binds a socket with a port number of the kernel's choice.
    pub(super) fn open(bus: Bus) -> Result<Self, Errno> {
        MnlSocket::new(bus).map(Self).map_err(|error| errno(&error))
    }

    /// Sends all bytes by one system call.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        match self.0.send(bytes) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(Errno::EMSGSIZE),
            Err(error) => Err(errno(&error)),
        }
    }

    pub(super) fn set_option(&self, option: NetlinkOption, value: i32) -> Result<(), Errno> {
        // SAFETY: the descriptor is open as long as `self`; the pointer and length describe a live i32, which is what
        // these options take.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_NETLINK,
                option as i32,
                (&raw const value).cast::<c_void>(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by the libmnl socket, which lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Whether the system's clock follows another one, such as that of an NTP server (`adjtimex`, without changing anything).
///
/// # Errors
/// The system's answer. Reading needs no privilege.
pub(crate) fn clock_is_synchronized() -> Result<bool, Errno> {
    // SAFETY: `struct timex` is integers and padding, for which zeros are a value; `modes` 0 asks to change nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `struct timex`, which the kernel fills.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    Errno::result(state).map(|_| timex.status & libc::STA_UNSYNC == 0)
}

/// The kernel's number of the network namespace of the calling thread (`SO_NETNS_COOKIE`, since Linux 5.14).
///
/// # Errors
/// `ENOPROTOOPT` on older kernels.
#[cfg(feature = "bpf")]
pub(crate) fn namespace_cookie() -> Result<u64, Errno> {
    // asm-generic/socket.h; the libc crate does not name it for every target.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket`; the pointers describe a live u64 and its length, into which the
    // kernel writes at most that many bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast::<c_void>(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| cookie)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Room for one serialized rule, in words so that the header in it is aligned.
const SCRATCH_BYTES: usize = 64 * 1024;
/// No expression takes more: the longest values are a chain's name (at most 255 bytes) and a log prefix (at most 127).
const LONGEST_EXPRESSION: usize = 512;
/// Expressions that one rule may have, so that it fits into the scratch buffer.
pub(super) const MOST_EXPRESSIONS: usize = SCRATCH_BYTES / LONGEST_EXPRESSION / 2;
/// The longest name of a table, chain or set (`NFT_NAME_MAXLEN` without the final zero).
pub(super) const LONGEST_NAME: usize = 255;

/// Why a rule could not be serialized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unbuildable(pub(super) &'static str);

/// Serializes rules through libnftnl.
pub(super) struct RuleWriter {
    /// Empty until there is a rule: most changes have none, and touching fresh memory costs more than their transaction.
    scratch: Vec<u64>,
}

impl RuleWriter {
    pub(super) fn new() -> Self {
        Self { scratch: Vec::new() }
    }

    /// Appends a message of this type (of nf_tables) with the rule of these expressions, and, when given, the handle
    /// of the rule that it goes before.
    pub(super) fn write(
        &mut self,
        bytes: &mut Vec<u8>,
        (kind, flags, sequence): (u16, u16, u32),
        chain: &str,
        position: Option<u64>,
        expressions: &[Expression],
    ) -> Result<(), Unbuildable> {
        if expressions.len() > MOST_EXPRESSIONS {
            return Err(Unbuildable("a rule has too many expressions"));
        }
        if chain.len() > LONGEST_NAME {
            return Err(Unbuildable("the name of a chain is longer than 255 bytes"));
        }
        let rule = Rule::new()?;
        rule.set_text(sys::NFTNL_RULE_TABLE as u16, TABLE)?;
        rule.set_text(sys::NFTNL_RULE_CHAIN as u16, chain)?;
        rule.set_u32(sys::NFTNL_RULE_FAMILY as u16, u32::from(NFPROTO_INET));
        if let Some(position) = position {
            rule.set_u64(sys::NFTNL_RULE_POSITION as u16, position);
        }
        for expression in expressions {
            rule.add(native_expression(expression)?);
        }
        self.scratch.resize(SCRATCH_BYTES / size_of::<u64>(), 0);
        let buffer = self.scratch.as_mut_ptr().cast::<c_char>();
        // SAFETY: the buffer is aligned for the header and larger than MOST_EXPRESSIONS expressions of at most
        // LONGEST_EXPRESSION bytes with the names of the rule; the rule is alive. libmnl keeps the length of the
        // message in its first field, so that many bytes were written.
        let message = unsafe {
            let header =
                sys::nftnl_nlmsg_build_hdr(buffer, nf_tables(kind) & 0xff, u16::from(NFPROTO_INET), flags, sequence);
            sys::nftnl_rule_nlmsg_build_payload(header, rule.0.as_ptr());
            std::slice::from_raw_parts(buffer.cast::<u8>(), ((*header).nlmsg_len as usize).min(SCRATCH_BYTES))
        };
        bytes.extend_from_slice(message);
        Ok(())
    }
}

/// A rule of libnftnl, freed with its expressions.
struct Rule(NonNull<sys::nftnl_rule>);

impl Rule {
    fn new() -> Result<Self, Unbuildable> {
        // SAFETY: takes nothing and touches nothing but the heap; null when there is no memory.
        NonNull::new(unsafe { sys::nftnl_rule_alloc() }).map(Self).ok_or(NO_MEMORY)
    }

    fn set_text(&self, number: u16, text: &str) -> Result<(), Unbuildable> {
        let text = CString::new(text).map_err(|_| Unbuildable("a name holds a zero byte"))?;
        // SAFETY: the rule is alive, and libnftnl copies the text up to its final zero.
        match unsafe { sys::nftnl_rule_set_str(self.0.as_ptr(), number, text.as_ptr()) } {
            0 => Ok(()),
            _ => Err(NO_MEMORY),
        }
    }

    fn set_u32(&self, number: u16, value: u32) {
        // SAFETY: the rule is alive.
        unsafe { sys::nftnl_rule_set_u32(self.0.as_ptr(), number, value) }
    }

    fn set_u64(&self, number: u16, value: u64) {
        // SAFETY: the rule is alive.
        unsafe { sys::nftnl_rule_set_u64(self.0.as_ptr(), number, value) }
    }

    fn add(&self, expression: NativeExpression) {
        // SAFETY: both are alive; the rule owns the expression from now on, so it is not freed here.
        unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), expression.into_raw().as_ptr()) }
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `nftnl_rule_alloc` and is freed once.
        unsafe { sys::nftnl_rule_free(self.0.as_ptr()) }
    }
}

const NO_MEMORY: Unbuildable = Unbuildable("there is no memory for a rule");

/// An expression of libnftnl that no rule owns yet.
struct NativeExpression(NonNull<sys::nftnl_expr>);

impl NativeExpression {
    fn new(name: &CStr) -> Result<Self, Unbuildable> {
        // SAFETY: the name is a text with a final zero; null when libnftnl does not know it or there is no memory.
        NonNull::new(unsafe { sys::nftnl_expr_alloc(name.as_ptr()) }).map(Self).ok_or(NO_MEMORY)
    }

    fn bytes(self, number: u32, value: &[u8]) -> Result<Self, Unbuildable> {
        // SAFETY: the expression is alive, and libnftnl copies so many bytes of the value, or refuses.
        let result = unsafe {
            sys::nftnl_expr_set(self.0.as_ptr(), number as u16, value.as_ptr().cast::<c_void>(), value.len() as u32)
        };
        if result == 0 { Ok(self) } else { Err(Unbuildable("libnftnl does not take a value")) }
    }

    fn u8(self, number: u32, value: u8) -> Result<Self, Unbuildable> {
        self.bytes(number, &[value])
    }

    fn u16(self, number: u32, value: u16) -> Result<Self, Unbuildable> {
        self.bytes(number, &value.to_ne_bytes())
    }

    fn u32(self, number: u32, value: u32) -> Result<Self, Unbuildable> {
        self.bytes(number, &value.to_ne_bytes())
    }

    fn u64(self, number: u32, value: u64) -> Result<Self, Unbuildable> {
        self.bytes(number, &value.to_ne_bytes())
    }

    fn text(self, number: u32, value: &str) -> Result<Self, Unbuildable> {
        if value.len() > LONGEST_NAME {
            return Err(Unbuildable("a text is longer than 255 bytes"));
        }
        let text = CString::new(value).map_err(|_| Unbuildable("a text holds a zero byte"))?;
        self.bytes(number, text.as_bytes_with_nul())
    }

    fn into_raw(self) -> NonNull<sys::nftnl_expr> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }
}

impl Drop for NativeExpression {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `nftnl_expr_alloc`, no rule owns it, and it is freed once.
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) }
    }
}

fn load_meta(key: MetaKey, register: u32) -> Result<NativeExpression, Unbuildable> {
    NativeExpression::new(c"meta")?.u32(sys::NFTNL_EXPR_META_DREG, register)?.u32(
        sys::NFTNL_EXPR_META_KEY,
        match key {
            MetaKey::InputInterface => attribute::META_KEY_IIF,
            MetaKey::OutputInterface => attribute::META_KEY_OIF,
            MetaKey::Family => attribute::META_KEY_NFPROTO,
            MetaKey::Protocol => attribute::META_KEY_L4PROTO,
        },
    )
}

fn load_connection(key: ConnectionKey, register: u32) -> Result<NativeExpression, Unbuildable> {
    let (key, direction) = match key {
        ConnectionKey::State => (attribute::CT_KEY_STATE, None),
        ConnectionKey::Status => (attribute::CT_KEY_STATUS, None),
        ConnectionKey::OriginalDestinationPort => (attribute::CT_KEY_PROTO_DST, Some(attribute::CT_DIRECTION_ORIGINAL)),
    };
    let native =
        NativeExpression::new(c"ct")?.u32(sys::NFTNL_EXPR_CT_DREG, register)?.u32(sys::NFTNL_EXPR_CT_KEY, key)?;
    match direction {
        Some(direction) => native.u8(sys::NFTNL_EXPR_CT_DIR, direction),
        None => Ok(native),
    }
}

fn native_expression(expression: &Expression) -> Result<NativeExpression, Unbuildable> {
    let register = attribute::REGISTER_1;
    match expression {
        Expression::Meta(key) => load_meta(*key, register),
        Expression::Connection(key) => load_connection(*key, register),
        Expression::Further(words, key) => {
            let register = attribute::WORD_0 + words;
            match key {
                FurtherKey::Meta(key) => load_meta(*key, register),
                FurtherKey::Connection(key) => load_connection(*key, register),
            }
        }
        Expression::Payload { base, offset, length } => NativeExpression::new(c"payload")?
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, register)?
            .u32(
                sys::NFTNL_EXPR_PAYLOAD_BASE,
                match base {
                    PayloadBase::Network => attribute::PAYLOAD_BASE_NETWORK,
                    PayloadBase::Transport => attribute::PAYLOAD_BASE_TRANSPORT,
                },
            )?
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)?
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, *length),
        Expression::Mask(mask) => NativeExpression::new(c"bitwise")?
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, register)?
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, register)?
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)?
            .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)?
            .bytes(sys::NFTNL_EXPR_BITWISE_XOR, &vec![0; mask.len()]),
        Expression::Compare { equal, value } => NativeExpression::new(c"cmp")?
            .u32(sys::NFTNL_EXPR_CMP_SREG, register)?
            .u32(sys::NFTNL_EXPR_CMP_OP, if *equal { attribute::CMP_EQ } else { attribute::CMP_NEQ })?
            .bytes(sys::NFTNL_EXPR_CMP_DATA, value),
        Expression::Lookup(set) => NativeExpression::new(c"lookup")?
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register)?
            .text(sys::NFTNL_EXPR_LOOKUP_SET, set),
        Expression::LookupVerdict(map) => NativeExpression::new(c"lookup")?
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register)?
            .u32(sys::NFTNL_EXPR_LOOKUP_DREG, attribute::REGISTER_VERDICT)?
            .text(sys::NFTNL_EXPR_LOOKUP_SET, map),
        Expression::Record(set) => NativeExpression::new(c"dynset")?
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, register)?
            .u32(sys::NFTNL_EXPR_DYNSET_OP, attribute::DYNSET_ADD)?
            .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, set),
        Expression::Limit { per_second, burst } => NativeExpression::new(c"limit")?
            .u64(sys::NFTNL_EXPR_LIMIT_RATE, *per_second)?
            .u64(sys::NFTNL_EXPR_LIMIT_UNIT, 1)?
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, *burst)?
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, attribute::LIMIT_PACKETS),
        Expression::Counter => {
            NativeExpression::new(c"counter")?.u64(sys::NFTNL_EXPR_CTR_PACKETS, 0)?.u64(sys::NFTNL_EXPR_CTR_BYTES, 0)
        }
        Expression::Log { prefix, target } => {
            let native = NativeExpression::new(c"log")?.text(sys::NFTNL_EXPR_LOG_PREFIX, prefix)?;
            match target {
                LogTarget::Kernel => Ok(native),
                LogTarget::Group(group) => native.u16(sys::NFTNL_EXPR_LOG_GROUP, *group),
            }
        }
        Expression::Verdict(verdict) => {
            let native = NativeExpression::new(c"immediate")?
                .u32(sys::NFTNL_EXPR_IMM_DREG, attribute::REGISTER_VERDICT)?
                .u32(sys::NFTNL_EXPR_IMM_VERDICT, super::batch::verdict_code(verdict).cast_unsigned())?;
            match verdict.target() {
                Some(chain) => native.text(sys::NFTNL_EXPR_IMM_CHAIN, chain),
                None => Ok(native),
            }
        }
        Expression::RejectTcpReset => NativeExpression::new(c"reject")?
            .u32(sys::NFTNL_EXPR_REJECT_TYPE, attribute::REJECT_TCP_RESET)?
            .u8(sys::NFTNL_EXPR_REJECT_CODE, 0),
        Expression::RejectIcmp(code) => NativeExpression::new(c"reject")?
            .u32(sys::NFTNL_EXPR_REJECT_TYPE, attribute::REJECT_ICMPX)?
            .u8(sys::NFTNL_EXPR_REJECT_CODE, *code),
        Expression::Unknown(_) => Err(Unbuildable("a rule holds an expression that portward does not write")),
    }
}
