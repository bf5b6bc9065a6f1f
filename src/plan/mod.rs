//! From a policy to what one host may exchange with whom, and from that to the ruleset. Pure: no input or output, no
//! clock, no randomness; the same inputs give the same result byte for byte.
//!
//! [`Plan::new`] applies the catalogue's semantics once and keeps the answer as [`Allowance`]s, with the reason for
//! everything that stays closed. The ruleset ([`Plan::ruleset`]), the table that people read, and the explanation of a
//! single packet ([`Plan::explain`]) are three views of that.
#![forbid(unsafe_code)]

mod allowance;
mod explain;
mod lower;
mod peers;

pub use allowance::{Allowance, Closed, Direction, Reason, RowRef};
pub use explain::{Explanation, Grant, NearMiss, Query};
pub use peers::{Peers, Tunnel};
