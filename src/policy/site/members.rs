//! Lists of addresses and networks, which may be long.

use super::{Member, Members};
use crate::policy::diagnostic::{Mistake, Report};
use crate::policy::document::{self, List};
use crate::policy::words;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt::Display;
use std::net::Ipv4Addr;

/// A member together with its index in the list, by which its place is found again.
struct Entry<N> {
    network: N,
    line: u32,
    index: usize,
}

/// Reads a list of addresses and networks. What stands twice or is covered by another is told.
pub(super) fn read(report: &mut Report<'_>, list: &List<'_>) -> Members {
    let mut ipv4: Vec<Entry<Ipv4Net>> = Vec::new();
    let mut ipv6: Vec<Entry<Ipv6Net>> = Vec::new();
    for (index, value) in list.value.iter().enumerate() {
        let Some(word) = document::text(report, value) else { continue };
        // Nearly all entries of a long list.
        if let Ok(address) = word.value.parse::<Ipv4Addr>()
            && !address.is_unspecified()
        {
            let line = report.line(word.span.start);
            ipv4.push(Entry { network: Ipv4Net::from(address), line, index });
            continue;
        }
        match words::network(word.value) {
            Ok(read) => {
                let line = report.line(word.span.start);
                if let Some(mistake) = read.warning {
                    report.warning(word.span, mistake);
                }
                match read.network {
                    IpNet::V4(network) => ipv4.push(Entry { network, line, index }),
                    IpNet::V6(network) => ipv6.push(Entry { network, line, index }),
                }
            }
            Err(mistake) => report.error(word.span, mistake),
        }
    }
    Members { ipv4: sorted(report, list, ipv4), ipv6: sorted(report, list, ipv6) }
}

/// A network of one family.
trait Network: Copy + Eq + Display {
    /// A number that sorts a network before everything that it contains.
    type Key: Ord;

    fn key(&self) -> Self::Key;

    fn contains(&self, other: &Self) -> bool;
}

impl Network for Ipv4Net {
    type Key = u64;

    fn key(&self) -> u64 {
        u64::from(self.addr().to_bits()) << 8 | u64::from(self.prefix_len())
    }

    fn contains(&self, other: &Self) -> bool {
        Self::contains(self, other)
    }
}

impl Network for Ipv6Net {
    type Key = (u128, u8);

    fn key(&self) -> (u128, u8) {
        (self.addr().to_bits(), self.prefix_len())
    }

    fn contains(&self, other: &Self) -> bool {
        Self::contains(self, other)
    }
}

fn sorted<N: Network>(report: &mut Report<'_>, list: &List<'_>, mut entries: Vec<Entry<N>>) -> Vec<Member<N>> {
    // The first of two equal ones is kept.
    entries.sort_unstable_by_key(|entry| (entry.network.key(), entry.index));
    let mut members: Vec<Member<N>> = Vec::with_capacity(entries.len());
    let mut widest: Option<Member<N>> = None;
    for Entry { network, line, index } in entries {
        let Some(span) = list.value.get(index).map(|value| value.span()) else { continue };
        if let Some(same) = members.last().filter(|last| last.network == network) {
            let mistake = Mistake::new(format!("{} is already in this list, on line {}", word(network), same.line));
            report.warning(span, mistake.help("one of the two can go"));
            continue;
        }
        match widest.filter(|wider| wider.network.contains(&network)) {
            Some(wider) => {
                let (network, wider, line) = (word(network), word(wider.network), wider.line);
                let mistake = Mistake::new(format!("{network} is within {wider} of line {line}"));
                report.warning(span, mistake.help("one of the two can go"));
            }
            None => widest = Some(Member { network, line }),
        }
        members.push(Member { network, line });
    }
    members
}

/// A network as people write it: without the prefix length of a single address.
fn word(network: impl Display) -> String {
    let text = network.to_string();
    let single = if text.contains(':') { "/128" } else { "/32" };
    format!("`{}`", text.strip_suffix(single).unwrap_or(&text))
}
