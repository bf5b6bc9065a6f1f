//! What an observing policy has noted. With what is proposed, nothing of it would be denied, but for scanners.
#![no_main]

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use portward::plan::{OpenPorts, Plan, ProposedAllow, Review, Sighting};
use portward::policy::{Catalogue, Policy, Ports};
use portward::ruleset::{Hook, PortRange, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

type Groups = BTreeMap<String, BTreeSet<IpNet>>;

fn policy(groups: &Groups, allows: &[ProposedAllow]) -> Policy {
    let mut text = "format = 1\nmode = \"observe\"\negress = \"observe\"\n[groups]\n".to_owned();
    for (group, members) in groups {
        let members: Vec<_> = members.iter().map(|network| format!("\"{network}\"")).collect();
        text.push_str(&format!("{group} = [{}]\n", members.join(", ")));
    }
    text.push_str("[[host]]\nname = \"console\"\naddresses = [\"10.0.0.10\"]\nroles = [\"console\"]\n");
    text.extend(allows.iter().map(ProposedAllow::to_toml));
    let loaded = Policy::parse(&text, "policy.toml", Catalogue::embedded());
    loaded.unwrap_or_else(|diagnostics| panic!("{diagnostics}\n{text}")).policy
}

fn review(policy: &Policy, seen: &[Sighting]) -> Review {
    let host = &policy.hosts["console"];
    Plan::new(policy, Catalogue::embedded(), host).review(seen.iter().copied(), &OpenPorts::new())
}

fuzz_target!(|notes: Vec<(u8, u8, u8, u16)>| {
    let sighting = |(how, network, last, port): (u8, u8, u8, u16)| Sighting {
        hook: [Hook::Input, Hook::Output, Hook::Forward][usize::from(how & 3).min(2)],
        peer: match how & 4 {
            0 => IpAddr::from([203, 0, network, last]),
            _ => IpAddr::from([0x2001, 0xdb8, 0, network.into(), 0, 0, 0, last.into()]),
        },
        port: Some(Ports::Range(
            if how & 8 == 0 { Protocol::Tcp } else { Protocol::Udp },
            PortRange::single(port.max(1)),
        )),
    };
    let seen: Vec<_> = notes.into_iter().take(200).map(sighting).collect();
    let admin = [([192, 0, 2, 0], 24)]
        .map(|(address, length)| IpNet::new(IpAddr::from(address), length).unwrap_or_else(|error| panic!("{error}")));
    let mut groups: Groups = [("admin".to_owned(), admin.into())].into();
    let before = review(&policy(&groups, &[]), &seen);
    for (group, members) in before.joins {
        groups.entry(group).or_default().extend(members);
    }
    let after = review(&policy(&groups, &before.allows), &seen);
    let of_scanners = |peers: &BTreeSet<IpNet>| {
        peers.iter().all(|network| before.scanners.iter().any(|scanner| network.contains(scanner)))
    };
    assert!(after.findings.iter().all(|finding| of_scanners(&finding.peers)), "{after:?}");
});
