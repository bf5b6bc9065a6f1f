//! What the kernel can do, tried out in a network namespace that nobody else is in.

use super::Finding;
use crate::daemon::reconcile::Reconciler;
use crate::describe;
use crate::kernel::{self, Monitor, Netlink, Notification};
use crate::ruleset::{
    AddressRange, AddressSide, BaseChain, Chain, ChainPolicy, Family, Hook, Log, LogTarget, Name, PortKey, PortRange,
    Protocol, Rule, Ruleset, Set, Statement, Verdict, VerdictMap, ct_state, reject_all,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;

/// What was tried, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kernel {
    /// A namespace could not be made.
    NotTried(Errno),
    /// The kernel has no nf_tables, or nothing at all could be tried.
    Unusable(String),
    /// Each feature that could not be had, with the kernel's answer.
    Tried { missing: Vec<(Feature, String)>, names_processes: bool },
}

/// Something that rulesets are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    Tables,
    Intervals,
    Connections,
    Reject,
    KernelLog,
    NetlinkLog,
}

const FEATURES: [Feature; 6] = [
    Feature::Tables,
    Feature::Intervals,
    Feature::Connections,
    Feature::Reject,
    Feature::KernelLog,
    Feature::NetlinkLog,
];

const CHECK: &str = "kernel";

impl Kernel {
    pub(super) fn look() -> Self {
        // The namespace is the thread's, and ends with it.
        let thread = thread::Builder::new().spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => try_out().unwrap_or_else(|error| Self::Unusable(describe(&error))),
            Err(errno) => Self::NotTried(errno),
        });
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Self::Unusable("the attempt failed".to_owned())),
            Err(error) => Self::Unusable(error.to_string()),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let (missing, names_processes) = match self {
            Self::NotTried(errno) => {
                let why = format!("no network namespace to try it out in ({}); ask as root", errno.desc());
                return vec![Finding::unseen(CHECK, why)];
            }
            Self::Unusable(why) => {
                let remedy = "`modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET";
                return vec![Finding::problem(CHECK, format!("nftables cannot be used: {why}"), remedy)];
            }
            Self::Tried { missing, names_processes } => (missing, *names_processes),
        };
        let mut findings: Vec<Finding> = missing.iter().map(|(feature, why)| feature.is_missing(why)).collect();
        if findings.is_empty() {
            findings.push(Finding::ok(CHECK, "nf_tables has every expression that a policy can need"));
        }
        if !names_processes {
            findings.push(Finding::note(
                "kernel-notifications",
                "the kernel does not tell which process changes the ruleset: a foreign change is still repaired, but \
                 nobody is named",
                "",
            ));
        }
        findings
    }
}

fn try_out() -> Result<Kernel, kernel::Error> {
    let mut monitor = Monitor::open()?;
    let mut reconciler = Reconciler::new(Netlink::open()?);
    let mut missing = Vec::new();
    for feature in FEATURES {
        // A refusal changes nothing, so that the next one begins with what the last success has left.
        match reconciler.apply(&feature.ruleset()) {
            Ok(_) => {}
            Err(error) => missing.push((feature, describe(&error))),
        }
    }
    let names = |notification: &Notification| {
        matches!(notification, Notification::Generation { pid: Some(_), process: Some(_), .. })
    };
    let names_processes = monitor.read()?.iter().any(names);
    Ok(Kernel::Tried { missing, names_processes })
}

impl Feature {
    fn is_missing(self, why: &str) -> Finding {
        let (check, what, remedy) = match self {
            Self::Tables => (
                "kernel-tables",
                "tables for both families with sets and verdict maps",
                "nothing can be enforced: a kernel of RHEL 8, of Linux 4.18, or newer has them (CONFIG_NF_TABLES_INET)",
            ),
            Self::Intervals => (
                "kernel-intervals",
                "sets of networks and maps of port ranges",
                "a policy that names single addresses only can be enforced; `modprobe nft_set_rbtree`",
            ),
            Self::Connections => (
                "kernel-conntrack",
                "expressions of connection tracking",
                "nothing can be enforced without them: `modprobe nft_ct` (CONFIG_NFT_CT)",
            ),
            Self::Reject => (
                "kernel-reject",
                "the refusal of packets with an answer",
                "write deny = \"drop\", the default, or `modprobe nft_reject_inet` (CONFIG_NFT_REJECT)",
            ),
            Self::KernelLog => (
                "kernel-log",
                "rate-limited messages in the kernel log",
                "write to = \"nflog\" or \"off\" in [log], or `modprobe nft_log nft_limit` (CONFIG_NFT_LOG)",
            ),
            Self::NetlinkLog => (
                "kernel-nflog",
                "messages to a netlink group",
                "only a policy with to = \"nflog\" needs them: `modprobe nfnetlink_log`",
            ),
        };
        let found = format!("the kernel lacks {what}: {why}");
        match self {
            Self::Tables | Self::Intervals | Self::Connections => Finding::problem(check, found, remedy),
            Self::KernelLog => Finding::warning(check, found, remedy),
            Self::Reject | Self::NetlinkLog => Finding::note(check, found, remedy),
        }
    }

    /// A ruleset that the kernel takes when it has the feature.
    fn ruleset(self) -> Ruleset {
        let (hash, range, map) = (Name::from("hash"), Name::from("range"), Name::from("map"));
        let log = |target| Statement::Log(Log { prefix: "portward".into(), target });
        match self {
            Self::Tables => Ruleset {
                sets: [
                    (hash.clone(), Set::ipv4_addresses(vec![Ipv4Addr::new(192, 0, 2, 1)])),
                    ("hash6".into(), Set::ipv6_addresses(vec![Ipv6Addr::LOCALHOST])),
                ]
                .into(),
                maps: [(map.clone(), verdicts(false, PortRange { first: 22, last: 22 }))].into(),
                ..with_rules([
                    Rule::new([Statement::PortVerdict(Protocol::Tcp, PortKey::Destination, map)]),
                    Rule::new([
                        Statement::InSet(AddressSide::Source, Family::Ipv4, hash),
                        Statement::Counter,
                        Statement::Verdict(Verdict::Accept),
                    ]),
                    Rule::new([Statement::InputLoopback, Statement::Verdict(Verdict::Accept)]),
                ])
            },
            Self::Intervals => {
                let (first, last) = (Ipv4Addr::new(192, 0, 2, 0), Ipv4Addr::new(192, 0, 2, 255));
                Ruleset {
                    sets: [(range.clone(), Set::ipv4_ranges(vec![AddressRange { first, last }]))].into(),
                    maps: [(map.clone(), verdicts(true, PortRange { first: 20_000, last: 30_000 }))].into(),
                    ..with_rules([
                        Rule::new([Statement::PortVerdict(Protocol::Tcp, PortKey::Destination, map)]),
                        Rule::new([
                            Statement::InSet(AddressSide::Source, Family::Ipv4, range),
                            Statement::Verdict(Verdict::Accept),
                        ]),
                    ])
                }
            }
            Self::Connections => Ruleset {
                maps: [(map.clone(), verdicts(false, PortRange { first: 22, last: 22 }))].into(),
                ..with_rules([
                    Rule::new([
                        Statement::CtState(ct_state::ESTABLISHED | ct_state::RELATED),
                        Statement::Verdict(Verdict::Accept),
                    ]),
                    Rule::new([Statement::CtStatusDnat, Statement::Verdict(Verdict::Accept)]),
                    Rule::new([Statement::PortVerdict(Protocol::Tcp, PortKey::OriginalDestination, map)]),
                ])
            },
            Self::Reject => with_rules(reject_all()),
            Self::KernelLog => {
                with_rules([Rule::new([Statement::Limit { per_second: 10, burst: 20 }, log(LogTarget::Kernel)])])
            }
            Self::NetlinkLog => with_rules([Rule::new([log(LogTarget::Group(5))])]),
        }
    }
}

/// Chains on all hooks, and these rules for incoming packets.
fn with_rules(rules: impl IntoIterator<Item = Rule>) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for (name, hook) in [("input", Hook::Input), ("forward", Hook::Forward), ("output", Hook::Output)] {
        let base = BaseChain { hook, priority: 0, policy: ChainPolicy::Accept };
        ruleset.chains.insert(name.into(), Chain { base: Some(base), rules: Vec::new() });
    }
    ruleset.chains.insert("leaf".into(), Chain { base: None, rules: Vec::new() });
    if let Some(input) = ruleset.chains.get_mut("input") {
        input.rules = rules.into_iter().collect();
    }
    ruleset
}

fn verdicts(interval: bool, ports: PortRange) -> VerdictMap {
    VerdictMap { interval, elements: vec![(ports, Verdict::Jump("leaf".into()))] }
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;
    use crate::kernel::FakeKernel;

    #[test]
    fn every_ruleset_is_one_that_a_kernel_takes() {
        let mut reconciler = Reconciler::new(FakeKernel::new(None));
        for feature in FEATURES {
            reconciler.apply(&feature.ruleset()).unwrap_or_else(|error| panic!("{feature:?}: {error}"));
        }
    }

    #[test]
    fn what_falls_back_is_less_bad_than_what_does_not() {
        let missing = |features: &[Feature]| {
            let missing = features.iter().map(|feature| (*feature, "no such thing".to_owned())).collect();
            Kernel::Tried { missing, names_processes: true }.findings()
        };
        assert_eq!(severities(&missing(&[])), [Severity::Ok]);
        assert_eq!(severities(&missing(&[Feature::Connections])), [Severity::Problem]);
        assert_eq!(severities(&missing(&[Feature::Reject, Feature::KernelLog])), [Severity::Note, Severity::Warning]);
        assert!(missing(&[Feature::Reject])[0].found.contains("no such thing"));
        let silent = Kernel::Tried { missing: Vec::new(), names_processes: false };
        assert_eq!(severities(&silent.findings()), [Severity::Ok, Severity::Note]);
        assert_eq!(severities(&Kernel::Unusable(String::new()).findings()), [Severity::Problem]);
        assert_eq!(severities(&Kernel::NotTried(Errno::EPERM).findings()), [Severity::Note]);
    }
}
