//! Sets of addresses and networks, and maps from ports to verdicts, as sorted sequences.
//!
//! Sequences rather than trees: a set of 100,000 addresses is one allocation, and two of them are compared in one walk.

use super::{Family, Verdict};
use std::fmt::Debug;
use std::net::{Ipv4Addr, Ipv6Addr};

/// An address of one family that a set can hold.
pub trait Address: Copy + Ord + Debug {
    /// The address after this one; `None` after the last of the family.
    fn next(self) -> Option<Self>;
}

impl Address for Ipv4Addr {
    fn next(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

impl Address for Ipv6Addr {
    fn next(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

/// A range of addresses, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange<A> {
    /// The first address.
    pub first: A,
    /// The last address, not before the first.
    pub last: A,
}

/// A named set. The sequences are sorted and free of duplicates; ranges are disjoint and never adjacent.
///
/// Make one by the constructors, which sort and merge; whoever builds a variant by hand keeps the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Set {
    /// Single IPv4 addresses, in a hash table.
    Ipv4Addresses(Vec<Ipv4Addr>),
    /// Single IPv6 addresses, in a hash table.
    Ipv6Addresses(Vec<Ipv6Addr>),
    /// IPv4 networks, in an interval tree.
    Ipv4Ranges(Vec<AddressRange<Ipv4Addr>>),
    /// IPv6 networks, in an interval tree.
    Ipv6Ranges(Vec<AddressRange<Ipv6Addr>>),
    /// What rules note of packets ([`super::Statement::Record`]), in a hash table. The elements are the kernel's own, and no
    /// part of the ruleset.
    Record(Record),
}

/// What is noted of packets: the other end's address, or that with protocol and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The family of the address.
    pub family: Family,
    /// Whether protocol and port are noted as well: `ipv4_addr . inet_proto . inet_service`.
    pub with_port: bool,
}

impl Set {
    /// A set of single IPv4 addresses.
    pub fn ipv4_addresses(addresses: Vec<Ipv4Addr>) -> Self {
        Self::Ipv4Addresses(sorted(addresses))
    }

    /// A set of single IPv6 addresses.
    pub fn ipv6_addresses(addresses: Vec<Ipv6Addr>) -> Self {
        Self::Ipv6Addresses(sorted(addresses))
    }

    /// A set of IPv4 ranges; those that overlap or touch are merged.
    pub fn ipv4_ranges(ranges: Vec<AddressRange<Ipv4Addr>>) -> Self {
        Self::Ipv4Ranges(merged(ranges))
    }

    /// A set of IPv6 ranges; those that overlap or touch are merged.
    pub fn ipv6_ranges(ranges: Vec<AddressRange<Ipv6Addr>>) -> Self {
        Self::Ipv6Ranges(merged(ranges))
    }

    /// The family of the addresses.
    pub fn family(&self) -> Family {
        match self {
            Self::Ipv4Addresses(_) | Self::Ipv4Ranges(_) => Family::Ipv4,
            Self::Ipv6Addresses(_) | Self::Ipv6Ranges(_) => Family::Ipv6,
            Self::Record(record) => record.family,
        }
    }

    /// Whether the set holds ranges, which the kernel must be told when the set is made.
    pub fn is_interval(&self) -> bool {
        matches!(self, Self::Ipv4Ranges(_) | Self::Ipv6Ranges(_))
    }

    /// The number of elements: addresses or ranges.
    pub fn len(&self) -> usize {
        match self {
            Self::Ipv4Addresses(addresses) => addresses.len(),
            Self::Ipv6Addresses(addresses) => addresses.len(),
            Self::Ipv4Ranges(ranges) => ranges.len(),
            Self::Ipv6Ranges(ranges) => ranges.len(),
            Self::Record(_) => 0,
        }
    }

    /// Whether the set holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A set of the same kind without elements.
    pub fn empty_like(&self) -> Self {
        match self {
            Self::Ipv4Addresses(_) => Self::Ipv4Addresses(Vec::new()),
            Self::Ipv6Addresses(_) => Self::Ipv6Addresses(Vec::new()),
            Self::Ipv4Ranges(_) => Self::Ipv4Ranges(Vec::new()),
            Self::Ipv6Ranges(_) => Self::Ipv6Ranges(Vec::new()),
            Self::Record(record) => Self::Record(*record),
        }
    }

    /// What the kernel notes in the set by itself, if that is what it is for.
    pub fn record(&self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(*record),
            _ => None,
        }
    }

    /// Whether the kernel would make both in the same way: the same family, both hashed or both interval sets, and both for
    /// the same elements.
    pub fn same_kind(&self, other: &Self) -> bool {
        self.family() == other.family() && self.is_interval() == other.is_interval() && self.record() == other.record()
    }
}

/// A map from a destination port to a verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerdictMap {
    /// Whether keys are ranges, in an interval tree, rather than single ports, in a hash table.
    pub interval: bool,
    /// The elements, sorted by port and disjoint. Without `interval` every range is a single port.
    pub elements: Vec<(PortRange, Verdict)>,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not before the first.
    pub last: u16,
}

impl PortRange {
    /// The range of a single port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether the port is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The number of ports, 1 to 65,536.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }
}

fn sorted<A: Address>(mut addresses: Vec<A>) -> Vec<A> {
    if !addresses.is_sorted() {
        addresses.sort_unstable();
    }
    addresses.dedup();
    addresses
}

fn merged<A: Address>(mut ranges: Vec<AddressRange<A>>) -> Vec<AddressRange<A>> {
    ranges.sort_unstable();
    let mut merged: Vec<AddressRange<A>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(before) if before.last.next().is_none_or(|next| range.first <= next) => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: [u8; 4], last: [u8; 4]) -> AddressRange<Ipv4Addr> {
        AddressRange { first: first.into(), last: last.into() }
    }

    #[test]
    fn addresses_are_sorted_and_single() {
        let addresses = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let expected = vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        assert_eq!(Set::ipv4_addresses(addresses), Set::Ipv4Addresses(expected));
    }

    #[test]
    fn ranges_that_overlap_or_touch_are_one() {
        let ranges = vec![
            range([10, 128, 0, 0], [10, 255, 255, 255]),
            range([10, 0, 0, 0], [10, 127, 255, 255]),
            range([10, 1, 0, 0], [10, 1, 0, 255]),
            range([192, 0, 2, 0], [192, 0, 2, 255]),
        ];
        let expected = vec![range([10, 0, 0, 0], [10, 255, 255, 255]), range([192, 0, 2, 0], [192, 0, 2, 255])];
        assert_eq!(Set::ipv4_ranges(ranges), Set::Ipv4Ranges(expected));
    }

    #[test]
    fn a_range_up_to_the_last_address_swallows_what_follows() {
        let ranges = vec![range([240, 0, 0, 0], [255, 255, 255, 255]), range([250, 0, 0, 0], [250, 0, 0, 1])];
        assert_eq!(Set::ipv4_ranges(ranges), Set::Ipv4Ranges(vec![range([240, 0, 0, 0], [255, 255, 255, 255])]));
    }
}
