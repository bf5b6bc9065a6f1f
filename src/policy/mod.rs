//! The words people write: the catalogue of the vendor's ports, and the site's policy file.
//!
//! Both are TOML. [`Catalogue`] is compiled into the binary (`policy/jsa.toml`) and can be replaced by a file; [`Policy`]
//! is the site's. Reading either gives a value that is complete and consistent, or [`Diagnostics`] that name the place,
//! the expectation and the remedy. Nothing here knows which host it runs on, nor does any input or output except the
//! two `load` functions.
#![forbid(unsafe_code)]

mod catalogue;
mod diagnostic;
mod document;
mod dynamic;
mod edit;
pub mod first;
mod load;
mod site;
mod version;
mod words;

pub use catalogue::{
    Catalogue, Condition, Dynamic, Flow, Group, Ports, Row, RowKind, Scope, Server, Tracker, Tunnelled,
};
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use dynamic::{DynamicService, Exposure, OnClose, ProcessMatch};
pub use edit::with_mode;
pub use load::{LARGEST_SOURCE, LoadError, read_source};
pub use site::{
    Allow, Deny, EgressMode, Fail, Host, Loaded, Logging, Member, Members, Mode, OnTighten, Party, PartyKind, Policy,
    RowAdjustment,
};
pub use version::{Version, VersionError};
pub use words::PortsError;

/// The policy that `portward run --sandbox` enforces when it is given no other, and an example that teaches.
pub const DEFAULT_POLICY: &str = include_str!("../../policy/default.toml");
