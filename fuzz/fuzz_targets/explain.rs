//! Questions about single packets: an address, a port, and perhaps a local address. The answer is that of the judge of
//! flows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::plan::{Direction, DynamicPorts, FlowKind, FlowStart, LocalScope, OpenPorts, Plan, Query, Verdict};
use portward::policy::{Catalogue, DEFAULT_POLICY, Policy, Ports, Version};
use std::net::IpAddr;
use std::sync::LazyLock;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let loaded = Policy::parse(DEFAULT_POLICY, "policy.toml", Catalogue::embedded());
    loaded.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).policy
});
static PLANS: LazyLock<Vec<Plan<'static>>> =
    LazyLock::new(|| POLICY.hosts.values().map(|host| Plan::new(&POLICY, Catalogue::embedded(), host)).collect());

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
    for plan in PLANS.iter() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let query = Query { direction, peer, port, local: None };
            let explanation = plan.explain(&query, &OpenPorts::new());
            assert_eq!(explanation.verdict == Verdict::Denied, explanation.grants.is_empty());
            let Ports::Range(protocol, range) = port else { continue };
            let own = plan.host.addresses.iter().find(|own| own.is_ipv4() == peer.is_ipv4());
            let Some(own) = own.filter(|_| range.first == range.last) else { continue };
            let (source, destination) = match direction {
                Direction::Ingress => (peer, *own),
                Direction::Egress => (*own, peer),
            };
            let kind = FlowKind::Ports(protocol, 50_000, range.first);
            let flow = FlowStart { kind, source, destination, rewritten_from: None, expected: false };
            let judge = plan.flow_judge(DynamicPorts::Open(&OpenPorts::new()), &plan.host.addresses);
            let judgement = judge.judge(&flow);
            assert_eq!(judgement.pass.is_some(), explanation.verdict == Verdict::Allowed, "{flow:?} {explanation:?}");
        }
    }
});
