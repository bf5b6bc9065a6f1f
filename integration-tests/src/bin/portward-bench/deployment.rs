//! The policy that is measured: an ordinary deployment with many log sources.

use anyhow::{Context, Result};
use portward::plan::Plan;
use portward::policy::{
    Catalogue, DynamicService, Exposure, Group, OnClose, Party, PartyKind, Policy, ProcessMatch, Tracker,
};
use portward::ruleset::Ruleset;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The host whose ruleset is measured.
pub(crate) const HOST: &str = "console";

/// The set of the log sources, which holds all the peers.
pub(crate) const SET: &str = "peers_log_source_v4.262144";

/// The first of the peers: the sender of the packets.
pub(crate) const SENDER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// An address of no peer.
pub(crate) const NEWCOMER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// Everything but the log sources.
const REST: &str = r#"
[groups]
admin = ["192.0.2.0/26", "2001:db8:0:1::/64"]
user = ["192.0.2.64/26"]
flow-source = ["198.51.100.1", "198.51.100.2"]
ntp-server = ["192.0.2.130"]
LOG_SOURCES

[[host]]
name = "console"
addresses = ["203.0.113.10", "2001:db8:0:5::10"]
roles = ["console", "event-collector", "event-processor", "flow-processor"]

[[host]]
name = "ep1"
addresses = ["203.0.113.21", "2001:db8:0:5::21"]
roles = ["event-processor", "event-collector"]
encrypted = true

[[host]]
name = "ep2"
addresses = ["203.0.113.22"]
roles = ["event-processor", "event-collector"]

[[host]]
name = "data1"
addresses = ["203.0.113.31"]
roles = ["data-node"]
"#;

/// So many different peers.
pub(crate) fn peers(count: u32) -> Vec<Ipv4Addr> {
    let first = Ipv4Addr::new(10, 0, 0, 1).to_bits();
    std::iter::once(SENDER).chain((first..first + count - 1).map(Ipv4Addr::from_bits)).collect()
}

/// Of these peers, every hundredth, and as many addresses that are not among them.
pub(crate) fn one_percent(peers: &[Ipv4Addr]) -> (Vec<Ipv4Addr>, Vec<Ipv4Addr>) {
    let leaving: Vec<_> = peers.iter().copied().skip(50).step_by(100).collect();
    let first = Ipv4Addr::new(172, 17, 0, 1).to_bits();
    let coming = (first..).take(leaving.len()).map(Ipv4Addr::from_bits).collect();
    (leaving, coming)
}

/// The policy file with these log sources, one a line.
pub(crate) fn policy_text(peers: &[Ipv4Addr]) -> String {
    let mut list = String::with_capacity(24 * peers.len());
    for peer in peers {
        let _ = writeln!(list, "  \"{peer}\",");
    }
    let rest = REST.replace("LOG_SOURCES", &format!("log-source = [\n{list}]"));
    format!("format = 1\nmode = \"enforce\"\negress = \"off\"\nversion = \"7.5.0-up7\"\nfeatures = []\n{rest}")
}

/// Reads a policy.
pub(crate) fn parse(text: &str) -> Result<Policy> {
    match Policy::parse(text, "policy.toml", Catalogue::embedded()) {
        Ok(loaded) => Ok(loaded.policy),
        Err(diagnostics) => anyhow::bail!("the policy of the benchmark does not load:\n{diagnostics}"),
    }
}

/// A service with dynamic ports from 32000/tcp on, which all the peers may reach.
pub(crate) fn service(name: &str) -> Result<DynamicService> {
    let peers = Party { kind: PartyKind::Group(Group::External("log-source".to_owned())), line: 0 };
    Ok(DynamicService {
        name: name.to_owned(),
        enabled: true,
        tracker: Tracker::Process,
        anchor: Some(7676),
        programs: Vec::new(),
        process: ProcessMatch { user: Some("root".to_owned()), ..ProcessMatch::default() },
        ports: vec!["32000-65535/tcp".parse().context("a range of ports")?],
        limit: 8,
        on_close: OnClose::Keep,
        exposure: Exposure::From(vec![peers]),
        when: Vec::new(),
        line: None,
    })
}

/// The ruleset of the measured host.
pub(crate) fn ruleset(policy: &Policy) -> Result<Ruleset> {
    let host = policy.hosts.get(HOST).context("the policy lacks its host")?;
    Ok(Plan::new(policy, Catalogue::embedded(), host).ruleset())
}
