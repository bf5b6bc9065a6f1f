//! Overlapping port ranges, cut into disjoint segments.

use crate::policy::Ports;
use crate::ruleset::PortRange;
use std::collections::{BTreeMap, BTreeSet};

/// Whether the first holds all of the second.
pub(super) fn contains(outer: Ports, inner: Ports) -> bool {
    match (outer, inner) {
        (Ports::Echo, Ports::Echo) => true,
        (Ports::Range(protocol, outer), Ports::Range(of, inner)) => {
            protocol == of && outer.first <= inner.first && inner.last <= outer.last
        }
        _ => false,
    }
}

/// Cuts ranges with owners into disjoint segments, each with all the owners of the ranges that cover it, in the order of
/// the ports. Neighbouring segments with the same owners are one.
pub(super) fn segments(ranges: &[(PortRange, usize)]) -> Vec<(PortRange, BTreeSet<usize>)> {
    // What begins and what ends at a port. One past the last port needs more than 16 bits.
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for &(range, owner) in ranges {
        edges.entry(u32::from(range.first)).or_default().0.push(owner);
        edges.entry(u32::from(range.last) + 1).or_default().1.push(owner);
    }
    // An owner may have several ranges that overlap: count them.
    let mut active: BTreeMap<usize, usize> = BTreeMap::new();
    let mut segments: Vec<(PortRange, BTreeSet<usize>)> = Vec::new();
    let mut begin = 0_u32;
    for (edge, (beginning, ending)) in edges {
        if !active.is_empty()
            && let (Ok(first), Ok(last)) = (u16::try_from(begin), u16::try_from(edge - 1))
        {
            let owners: BTreeSet<usize> = active.keys().copied().collect();
            match segments.last_mut() {
                Some((before, of)) if u32::from(before.last) + 1 == begin && *of == owners => before.last = last,
                _ => segments.push((PortRange { first, last }, owners)),
            }
        }
        for owner in beginning {
            *active.entry(owner).or_default() += 1;
        }
        for owner in ending {
            if let Some(count) = active.get_mut(&owner) {
                *count -= 1;
                if *count == 0 {
                    active.remove(&owner);
                }
            }
        }
        begin = edge;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_port_inside_a_range_cuts_it_in_three() {
        let ranges = [(PortRange { first: 32000, last: 33999 }, 0), (PortRange::single(32006), 1)];
        let expected = [
            (PortRange { first: 32000, last: 32005 }, BTreeSet::from([0])),
            (PortRange::single(32006), BTreeSet::from([0, 1])),
            (PortRange { first: 32007, last: 33999 }, BTreeSet::from([0])),
        ];
        assert_eq!(segments(&ranges), expected);
    }

    #[test]
    fn the_highest_port_is_a_port_like_any_other() {
        let ranges = [(PortRange { first: 0, last: u16::MAX }, 0), (PortRange::single(u16::MAX), 1)];
        let segments = segments(&ranges);
        assert_eq!(segments.last(), Some(&(PortRange::single(u16::MAX), BTreeSet::from([0, 1]))));
    }

    proptest! {
        #[test]
        fn each_port_keeps_exactly_its_owners(
            ranges in prop::collection::vec((any::<u16>(), any::<u16>(), 0_usize..6), 0..12),
            probes in prop::collection::vec(any::<u16>(), 20),
        ) {
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(a, b, owner)| (PortRange { first: a.min(b), last: a.max(b) }, owner))
                .collect();
            let segments = segments(&ranges);
            let edges = ranges.iter().flat_map(|(range, _)| [range.first, range.last]);
            for port in edges.chain(probes) {
                let expected: BTreeSet<usize> =
                    ranges.iter().filter(|(range, _)| range.contains(port)).map(|(_, owner)| *owner).collect();
                let found: Vec<_> = segments.iter().filter(|(range, _)| range.contains(port)).collect();
                prop_assert!(found.len() <= 1);
                prop_assert_eq!(found.first().map(|(_, owners)| owners.clone()).unwrap_or_default(), expected);
            }
            prop_assert!(segments.windows(2).all(|pair| pair[0].0.last < pair[1].0.first));
        }
    }
}
