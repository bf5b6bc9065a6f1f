//! portward keeps a host of a Juniper Secure Analytics (JSA) deployment behind exactly the firewall that it needs.
//!
//! Data flows one way. [`policy`] reads what people write: the catalogue of the vendor's ports and the site's policy
//! file. [`plan`] works out, without any input or output, what a given host may exchange with whom. The result is a
//! [`ruleset`]: plain, ordered data that says what the kernel should hold. The difference between two rulesets becomes
//! one transaction of [`kernel`], the only module with `unsafe` code. [`daemon`] keeps all of that in step with the
//! policy file, [`state`] is what it keeps on disk for the next boot, [`doctor`] looks for what could keep it from its
//! work, and [`cli`] is what an administrator types.

pub mod cli;
pub mod daemon;
mod describe;
pub mod doctor;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod kernel;
pub mod listeners;
mod news;
pub mod plan;
pub mod policy;
pub mod ruleset;
pub mod state;
pub mod trackers;

pub use describe::describe;
