//! Questions about single packets: an address and a port, and the other words of the command line. The answer is what the
//! ruleset does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::plan::{Direction, LocalScope, OpenPorts, Plan, Query};
use portward::policy::{Catalogue, DEFAULT_POLICY, Policy, Ports, Version};
use portward::ruleset::Ruleset;
use portward_fuzz::{Packet, compare};
use std::net::IpAddr;
use std::sync::LazyLock;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let loaded = Policy::parse(DEFAULT_POLICY, "policy.toml", Catalogue::embedded());
    loaded.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).policy
});
static PLANS: LazyLock<Vec<(Plan<'static>, Ruleset)>> = LazyLock::new(|| {
    let plans = POLICY.hosts.values().map(|host| Plan::new(&POLICY, Catalogue::embedded(), host));
    plans.map(|plan| (plan.clone(), plan.ruleset())).collect()
});

fuzz_target!(|text: &str| {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (peer, port, version, scope) = (word(), word(), word(), word());
    if let Ok(version) = version.parse::<Version>() {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
    if let Ok(scope) = scope.parse::<LocalScope>() {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
    let port: Ports = match port.parse() {
        Ok(port) => port,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(port.to_string().parse(), Ok(port));
    let Ok(peer) = peer.parse::<IpAddr>() else { return };
    let Ports::Range(protocol, range) = port else { return };
    for (plan, ruleset) in PLANS.iter() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let _ = plan.explain(&Query { direction, peer, port, local: None }, &OpenPorts::new());
            compare(plan, ruleset, &[Packet { direction, peer, protocol, port: range.first }]);
        }
    }
});
