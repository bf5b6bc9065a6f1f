//! What a host knows of itself without any policy: its addresses and its name.

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::unistd::gethostname;
use std::net::IpAddr;

/// The addresses and the name of the host that this process runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The addresses of all interfaces that are up or down, without loopback, sorted.
    pub addresses: Vec<IpAddr>,
    /// The host name as the kernel has it, which may hold a domain; empty when it is not UTF-8.
    pub hostname: String,
}

impl Identity {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// What `getifaddrs` or `gethostname` answers; both fail only when resources are short.
    pub fn of_this_host() -> Result<Self, Errno> {
        let mut addresses: Vec<IpAddr> = getifaddrs()?
            .filter_map(|interface| interface.address)
            .filter_map(|address| {
                let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                ipv4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            // Every host has the loopback addresses, so they tell nothing.
            .filter(|address| !address.is_loopback())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Self { addresses, hostname: gethostname()?.into_string().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_no_identity() {
        let identity = Identity::of_this_host().unwrap();
        assert!(identity.addresses.iter().all(|address| !address.is_loopback()));
        assert!(identity.addresses.is_sorted());
        assert!(!identity.hostname.is_empty());
    }
}
