//! The ruleset for a machine that boots without any policy that it could use: whoever could log in before can log in
//! and repair it, and nothing else is opened.

use super::lower::{FILTER_PRIORITY, accept, dhcp, dhcp_rules, goto, neighbour_rules, path_mtu_rules};
use crate::policy::{Fail, Mode};
use crate::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, Log, LogTarget, PortKey, PortRange,
    Protocol, Rule, Ruleset, Set, Statement, Verdict, VerdictMap, ct_state,
};
use ipnet::IpNet;

/// Secure Shell (IANA service names and port numbers).
const SSH: u16 = 22;
/// How many denied packets are logged a second, and how many at once.
const LOGGED: (u32, u32) = (10, 20);

/// The ruleset of the fail-safe. Secure Shell (22/tcp) is open to the administrators only, whatever else holds; all other
/// incoming and published traffic is refused ([`Fail::Closed`]) or passes ([`Fail::Open`]). What a host needs to be one
/// passes as under any policy: known connections, loopback, neighbour discovery, path-MTU errors, DHCP. Nothing that the
/// host sends is judged. Where the policy only observed, so does this: it counts and logs, and nothing is refused.
pub fn fail_safe(admins: &[IpNet], fail: Fail, mode: Mode) -> Ruleset {
    let enforce = mode == Mode::Enforce;
    let closed = fail == Fail::Closed;
    let mut ruleset = Ruleset::default();

    let mut ssh: Vec<Rule> = admin_sets(admins)
        .into_iter()
        .map(|(name, family, set)| {
            ruleset.sets.insert(name.into(), set);
            accept([Statement::InSet(AddressSide::Source, family, name.into()), Statement::Counter])
        })
        .collect();
    ssh.push(goto(&"denied_input".into()));
    let to_ssh =
        VerdictMap { interval: false, elements: vec![(PortRange::single(SSH), Verdict::Goto("in_ssh".into()))] };
    ruleset.maps.insert("services_tcp".into(), to_ssh);

    let ask = |key| Rule::new([Statement::PortVerdict(Protocol::Tcp, key, "services_tcp".into())]);
    let redirected = Rule::new([Statement::CtStatusDnat, Statement::Verdict(Verdict::Jump("redirected".into()))]);
    let mut invalid = path_mtu_rules();
    invalid.push(goto(&"denied_input".into()));

    let mut input = vec![
        accept([Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED)]),
        accept([Statement::InputLoopback]),
    ];
    if closed {
        input.push(Rule::new([
            Statement::CtState(ct_state::INVALID),
            Statement::Verdict(Verdict::Goto("invalid_input".into())),
        ]));
    }
    input.push(ask(PortKey::Destination));
    input.extend(neighbour_rules());
    input.extend(path_mtu_rules());
    input.extend(dhcp_rules([(dhcp::SERVER, dhcp::CLIENT), (dhcp::V6_SERVER, dhcp::V6_CLIENT)]));
    input.push(redirected.clone());
    let mut forward = vec![accept([Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED)]), redirected];
    if closed {
        input.push(goto(&"denied_input".into()));
        forward.push(Rule::new([Statement::CtStatusDnat, Statement::Verdict(Verdict::Goto("denied_forward".into()))]));
    }

    let mut chain = |name: &str, base: Option<BaseChain>, rules: Vec<Rule>| {
        ruleset.chains.insert(name.into(), Chain { base, rules });
    };
    let base = |hook, policy| Some(BaseChain { hook, priority: FILTER_PRIORITY, policy });
    let last = if closed && enforce { ChainPolicy::Drop } else { ChainPolicy::Accept };
    chain("input", base(Hook::Input, last), input);
    chain("forward", base(Hook::Forward, ChainPolicy::Accept), forward);
    chain("redirected", None, vec![ask(PortKey::OriginalDestination)]);
    chain("in_ssh", None, ssh);
    chain("denied_input", None, denied("input", enforce));
    if closed {
        chain("invalid_input", None, invalid);
        chain("denied_forward", None, denied("forward", enforce));
    }
    ruleset
}

/// Counts, logs, and refuses silently or lets pass.
fn denied(hook: &str, enforce: bool) -> Vec<Rule> {
    let what = if enforce { "denied" } else { "would deny" };
    let prefix = format!("portward fail-safe {what} {hook}: ").into();
    let (per_second, burst) = LOGGED;
    vec![
        Rule::new([Statement::Counter]),
        Rule::new([Statement::Limit { per_second, burst }, Statement::Log(Log { prefix, target: LogTarget::Kernel })]),
        Rule::new([Statement::Verdict(if enforce { Verdict::Drop } else { Verdict::Accept })]),
    ]
}

/// The sets that are not empty, single addresses before networks.
fn admin_sets(admins: &[IpNet]) -> Vec<(&'static str, Family, Set)> {
    let (mut peers_v4, mut nets_v4, mut peers_v6, mut nets_v6) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for network in admins {
        match network {
            IpNet::V4(network) if network.prefix_len() == network.max_prefix_len() => peers_v4.push(network.addr()),
            IpNet::V4(network) => {
                nets_v4.push(AddressRange { first: network.network(), last: network.broadcast() });
            }
            IpNet::V6(network) if network.prefix_len() == network.max_prefix_len() => peers_v6.push(network.addr()),
            IpNet::V6(network) => {
                nets_v6.push(AddressRange { first: network.network(), last: network.broadcast() });
            }
        }
    }
    let sets = [
        ("peers_admin_v4", Family::Ipv4, Set::ipv4_addresses(peers_v4)),
        ("nets_admin_v4", Family::Ipv4, Set::ipv4_ranges(nets_v4)),
        ("peers_admin_v6", Family::Ipv6, Set::ipv6_addresses(peers_v6)),
        ("nets_admin_v6", Family::Ipv6, Set::ipv6_ranges(nets_v6)),
    ];
    sets.into_iter().filter(|(_, _, set)| !set.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{FakeKernel, Kernel};
    use crate::ruleset::diff::diff;
    use crate::ruleset::nft;

    fn admins() -> Vec<IpNet> {
        ["192.0.2.0/26", "192.0.2.200/32", "2001:db8:0:1::/64"].iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn closed_opens_secure_shell_to_the_administrators_and_nothing_else() {
        let text = nft::render(&fail_safe(&admins(), Fail::Closed, Mode::Enforce));
        for expected in [
            "type filter hook input priority 0; policy drop;",
            "ct state established,related accept",
            "iif \"lo\" accept",
            "icmpv6 type 135 accept",
            "icmpv6 type 2 accept",
            "th sport 67 th dport 68 accept",
            "22 : goto in_ssh",
            "ip saddr @peers_admin_v4 counter accept",
            "192.0.2.0-192.0.2.63",
            "ct status dnat goto denied_forward",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("hook output"));
    }

    #[test]
    fn open_lets_everything_pass_but_secure_shell_from_others() {
        let ruleset = fail_safe(&admins(), Fail::Open, Mode::Enforce);
        let text = nft::render(&ruleset);
        assert!(text.contains("hook input priority 0; policy accept;") && !text.contains("policy drop"), "{text}");
        let ssh = &ruleset.chains["in_ssh"].rules;
        assert_eq!(ssh.last(), Some(&goto(&"denied_input".into())));
        let input = &ruleset.chains["input"].rules;
        assert_ne!(input.last(), Some(&goto(&"denied_input".into())));
    }

    #[test]
    fn where_the_policy_only_observed_nothing_is_refused() {
        for fail in [Fail::Closed, Fail::Open] {
            let text = nft::render(&fail_safe(&admins(), fail, Mode::Observe));
            assert!(!text.contains("drop") && text.contains("would deny"), "{text}");
        }
    }

    #[test]
    fn the_kernel_takes_it_with_and_without_administrators() {
        for fail in [Fail::Closed, Fail::Open] {
            for mode in [Mode::Enforce, Mode::Observe] {
                for admins in [admins(), Vec::new()] {
                    let ruleset = fail_safe(&admins, fail, mode);
                    let mut kernel = FakeKernel::new(None);
                    let generation = kernel.generation().unwrap();
                    kernel.commit(&diff(None, Some(&ruleset)), generation).unwrap();
                    assert_eq!(kernel.dump().unwrap().table, Some(ruleset));
                }
            }
        }
    }
}
