//! Which host of the policy is this one?

use crate::policy::{Host, Policy};
use std::fmt::Write;
use std::net::IpAddr;
use thiserror::Error;

/// The host of the policy that this machine is: the one named by `wanted`; else the one of which an address is local;
/// else the one with this host name, in full or up to the first dot.
///
/// # Errors
/// When none or several fit, with the candidates.
pub fn find_host<'p>(
    policy: &'p Policy,
    wanted: Option<&str>,
    local: &[IpAddr],
    hostname: &str,
) -> Result<&'p Host, HostError> {
    if let Some(name) = wanted {
        return policy.hosts.get(name).ok_or_else(|| HostError::Unknown {
            name: name.to_owned(),
            candidates: candidates(policy.hosts.values()),
        });
    }
    let by_address: Vec<&Host> =
        policy.hosts.values().filter(|host| host.addresses.iter().any(|address| local.contains(address))).collect();
    if let [host] = by_address.as_slice() {
        return Ok(host);
    }
    if !by_address.is_empty() {
        return Err(HostError::Several { candidates: candidates(by_address) });
    }
    let short = |name: &str| name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    let is_full = |host: &&Host| host.name.eq_ignore_ascii_case(hostname);
    if let Some(host) = policy.hosts.values().find(is_full) {
        return Ok(host);
    }
    let by_name: Vec<&Host> = policy.hosts.values().filter(|host| short(&host.name) == short(hostname)).collect();
    match by_name.as_slice() {
        [host] => Ok(host),
        [] => Err(HostError::None { hostname: hostname.to_owned(), candidates: candidates(policy.hosts.values()) }),
        _ => Err(HostError::Several { candidates: candidates(by_name) }),
    }
}

/// A host that might be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why no host of the policy is this one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// `--host` names a host that the policy does not have.
    #[error("the policy has no host `{name}`; it has:{}", list(candidates))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// All hosts of the policy.
        candidates: Vec<Candidate>,
    },
    /// Nothing fits.
    #[error(
        "no host of the policy is this one: none has an address that is local, none is called `{hostname}`; \
         say which with --host, one of:{}",
        list(candidates)
    )]
    None {
        /// The machine's host name.
        hostname: String,
        /// All hosts of the policy.
        candidates: Vec<Candidate>,
    },
    /// More than one fits.
    #[error("several hosts of the policy could be this one; say which with --host, one of:{}", list(candidates))]
    Several {
        /// Those that fit.
        candidates: Vec<Candidate>,
    },
}

fn candidates<'h>(hosts: impl IntoIterator<Item = &'h Host>) -> Vec<Candidate> {
    hosts.into_iter().map(|host| Candidate { name: host.name.clone(), addresses: host.addresses.clone() }).collect()
}

/// A line for each candidate; a deployment may have hundreds, of which an error shows the first.
fn list(candidates: &[Candidate]) -> String {
    const SHOWN: usize = 12;
    let mut text = String::new();
    for candidate in candidates.iter().take(SHOWN) {
        let addresses: Vec<_> = candidate.addresses.iter().map(IpAddr::to_string).collect();
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {} ({})", candidate.name, addresses.join(", "));
    }
    if candidates.len() > SHOWN {
        let _ = write!(text, "\n  and {} more", candidates.len() - SHOWN);
    }
    text
}
