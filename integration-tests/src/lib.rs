//! A laboratory of hosts as network namespaces, and the tests that drive the real `portward` in it.
//!
//! A [`Lab`] joins [`Host`]s by one bridge; everything happens inside namespaces that the laboratory makes and removes,
//! so the machine's own network is never touched. [`listen::Responder`] and [`probe`] exchange real packets between
//! hosts, [`portward`] runs the real binary in one of them, and [`counters`] and [`nflog`] read what the kernel did.
//! [`broker`], [`jvm`] and [`rpc`] run services with dynamic ports; [`packages`] are installed in a [`container`], where a
//! real systemd runs the service.
//! [`machine`] puts virtual machines on the same bridge.
#![forbid(unsafe_code)]

pub mod broker;
pub mod container;
pub mod counters;
pub mod firewalld;
pub mod jvm;
pub mod lab;
pub mod listen;
pub mod machine;
pub mod nflog;
pub mod packages;
pub mod portward;
pub mod probe;
pub mod program;
pub mod rpc;
pub mod service;
pub mod site;

pub use lab::{Host, HostSpec, Lab};
pub use probe::{Kind, Outcome, Probe};
