//! The words of both files: ports, addresses and names.

use super::Ports;
use super::diagnostic::{Mistake, quoted};
use crate::ruleset::{PortRange, Protocol};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The longest name of a row, group, host or allowance, in characters.
const LONGEST_NAME: usize = 63;

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(protocol, PortRange { first, last }) if first == last => {
                f.pad(&format!("{first}/{}", protocol.name()))
            }
            Self::Range(protocol, PortRange { first, last }) => f.pad(&format!("{first}-{last}/{}", protocol.name())),
            Self::Echo => f.pad("echo/icmp"),
        }
    }
}

/// A word that does not name ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PortsError(String);

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        ports(word).map_err(|mistake| PortsError(mistake.to_string()))
    }
}

/// Reads `514/udp`, `20000-23000/tcp` or `echo/icmp`.
pub(super) fn ports(word: &str) -> Result<Ports, Mistake> {
    let wrong = |message: &str| {
        Mistake::new(format!("{}: {message}", quoted(word)))
            .expected("a port such as `514/udp`, `20000-23000/tcp` or `echo/icmp`")
    };
    let Some((range, protocol)) = word.split_once('/') else {
        let mistake = wrong("the protocol is missing");
        return Err(match range(word) {
            Ok(_) => mistake.help(format!("write `{word}/tcp` or `{word}/udp`")),
            Err(_) => mistake,
        });
    };
    match protocol {
        "tcp" => Ok(Ports::Range(Protocol::Tcp, self::range(range).map_err(|problem| wrong(&problem))?)),
        "udp" => Ok(Ports::Range(Protocol::Udp, self::range(range).map_err(|problem| wrong(&problem))?)),
        "icmp" if range == "echo" => Ok(Ports::Echo),
        "icmp" => Err(wrong("of ICMP only echo requests are known").help("did you mean `echo/icmp`?")),
        _ if matches!(range, "tcp" | "udp") && self::range(protocol).is_ok() => {
            Err(wrong("the port comes before the protocol").help(format!("did you mean `{protocol}/{range}`?")))
        }
        _ => Err(wrong(&format!("unknown protocol {}", quoted(protocol))).suggest(protocol, ["tcp", "udp", "icmp"])),
    }
}

fn range(word: &str) -> Result<PortRange, String> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range is reversed; write {last}-{first}"));
    }
    Ok(PortRange { first, last })
}

fn port(word: &str) -> Result<u16, String> {
    if word.is_empty() {
        return Err("a port number is missing".to_owned());
    }
    if !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{} is not a port number", quoted(word)));
    }
    match word.parse::<u16>() {
        Ok(0) => Err("port 0 does not exist; ports are 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("{} is not a port number; ports are 1 to 65535", quoted(word))),
    }
}

/// An address or network, and what is odd about it.
pub(super) struct Network {
    /// The network without host bits; an address has the full prefix length.
    pub(super) network: IpNet,
    /// What a person should know, although the word can be used.
    pub(super) warning: Option<Mistake>,
}

/// Reads an address or a network.
pub(super) fn network(word: &str) -> Result<Network, Mistake> {
    let Some((_, length)) = word.split_once('/') else {
        let address = address(word)?;
        let warning = address.is_unspecified().then(|| {
            Mistake::new(format!("{} is one address that no host has", quoted(word)))
                .help(format!("everybody is `{word}/0`"))
        });
        return Ok(Network { network: IpNet::from(address), warning });
    };
    let network: IpNet = word.parse().map_err(|_| not_a_network(word, length))?;
    if let Some(ipv4) = unmapped(network) {
        return Err(mapped(word, &ipv4.trunc().to_string()));
    }
    let masked = network.trunc();
    let warning = (masked != network).then(|| {
        Mistake::new(format!("{} has bits set beyond its prefix; it is read as {masked}", quoted(word)))
            .help(format!("write `{masked}` for the network, or `{}` for the one address", network.addr()))
    });
    Ok(Network { network: masked, warning })
}

fn not_a_network(word: &str, length: &str) -> Mistake {
    let mistake = Mistake::new(format!("{} is not a network", quoted(word)))
        .expected("an address or a network such as `192.0.2.0/24` or `2001:db8::/32`");
    let mask = length.parse::<std::net::Ipv4Addr>().ok().and_then(|mask| ipnet::ip_mask_to_prefix(mask.into()).ok());
    match (word.split_once('/'), mask) {
        (Some((address, _)), Some(length)) => mistake.help(format!("write the prefix length: `{address}/{length}`")),
        _ => mistake,
    }
}

/// Reads a single address.
pub(super) fn address(word: &str) -> Result<IpAddr, Mistake> {
    match word.parse() {
        Ok(IpAddr::V6(address)) => match Ipv6Addr::to_ipv4_mapped(&address) {
            Some(ipv4) => Err(mapped(word, &ipv4.to_string())),
            None => Ok(IpAddr::V6(address)),
        },
        Ok(address) => Ok(address),
        Err(_) => Err(Mistake::new(format!("{} is not an address", quoted(word)))
            .expected("an IPv4 or IPv6 address, such as `192.0.2.5` or `2001:db8::5`")),
    }
}

fn mapped(word: &str, ipv4: &str) -> Mistake {
    Mistake::new(format!("{} is IPv4 written as IPv6, which no packet on the wire carries", quoted(word)))
        .expected("IPv4 in its own form")
        .help(format!("write `{ipv4}`"))
}

fn unmapped(network: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(network) = network else { return None };
    let length = network.prefix_len().checked_sub(96)?;
    Ipv4Net::new(Ipv6Net::addr(&network).to_ipv4_mapped()?, length).ok()
}

/// Checks the name of a row, role, group or allowance: `[a-z][a-z0-9-]*`.
pub(super) fn check_name(word: &str) -> Result<(), Mistake> {
    let fits = word.starts_with(|first: char| first.is_ascii_lowercase())
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && word.len() <= LONGEST_NAME;
    if fits {
        return Ok(());
    }
    Err(Mistake::new(format!("{} cannot be a name", quoted(word)))
        .expected("a lower-case letter, then lower-case letters, digits and `-`, at most 63 in all"))
}

/// Checks the name of a host: letters, digits, `-`, `.` and `_`, and nothing that reads as an address.
pub(super) fn check_host_name(word: &str) -> Result<(), Mistake> {
    let fits = !word.is_empty()
        && word.len() <= LONGEST_NAME
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !fits {
        return Err(Mistake::new(format!("{} cannot be the name of a host", quoted(word)))
            .expected("1 to 63 letters, digits, `-`, `.` and `_`"));
    }
    if word.parse::<IpAddr>().is_ok() {
        return Err(Mistake::new(format!("{} is an address, not the name of a host", quoted(word)))
            .expected("a name; addresses go to `addresses`"));
    }
    Ok(())
}
