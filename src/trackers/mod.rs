//! Dynamic ports: from a verified process to the ports that may be opened for it.
//!
//! What a local service says of its ports is a claim. Only a claim that is confirmed by a listener of the verified process
//! opens anything.
//!
//! Each protocol has its own module: [`imq`] asks the portmapper of a message broker, [`rmi`] a registry of Java objects,
//! [`rpc`] the rpcbind of this host. Reading an answer is pure and takes any bytes; how long an answer may take and how
//! large it may be is bounded in one place for all of them.
#![forbid(unsafe_code)]

mod claim;
mod exchange;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod holder;
pub mod imq;
mod observer;
mod once;
mod question;
mod reader;
pub mod rmi;
pub mod rpc;
mod schedule;
mod sockets;
mod state;
mod stub;
mod text;
mod tracked;
mod verify;

pub use claim::{Claim, Claims, Refusal, Refused};
pub use exchange::NoAnswer;
pub use observer::{Observer, Options, Wanted, Watched};
pub use once::{Look, Owner, VerifiedOwner};
pub use state::{Observation, Opened, RefusedPort, Report, ServiceCondition, ServiceReport, Source};
pub use stub::Endpoint;
pub use text::shown;
