//! What stands for the events in a build without the feature `bpf`.
#![forbid(unsafe_code)]

use super::{Event, Unavailable};
use crate::ruleset::{PortRange, Protocol};
use caps::Capability;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// News of sockets; this build has none.
#[derive(Debug)]
pub struct Events(Infallible);

impl Events {
    /// The capabilities that it needs: none.
    pub fn capabilities() -> Vec<Capability> {
        Vec::new()
    }

    /// Says that there are none.
    ///
    /// # Errors
    /// Always.
    pub fn open() -> Result<Self, Unavailable> {
        Err(Unavailable::NotBuilt)
    }

    /// The ports of interest.
    ///
    /// # Errors
    /// Never: there is nothing to call it on.
    pub fn set_ports(&mut self, _: &[(Protocol, PortRange)]) -> Result<(), Unavailable> {
        match self.0 {}
    }

    /// What has happened since the last call.
    ///
    /// # Errors
    /// Never: there is nothing to call it on.
    pub fn read(&mut self) -> Result<Vec<Event>, Unavailable> {
        match self.0 {}
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_bpf_says_so() {
        let unavailable = Events::open().unwrap_err();
        assert_eq!(unavailable.to_string(), "this build of portward has no BPF programs (feature `bpf`)");
    }
}
