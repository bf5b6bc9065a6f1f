//! Other firewalls on this machine. A packet must pass all of them, and some remove what others have made.

use super::Finding;
use crate::describe;
use crate::kernel::{self, ForeignChain, Netlink};
use std::fs;
use std::path::Path;

/// The vendor's own firewall.
const VENDOR: &str = "/opt/qradar/bin/iptables_update.pl";
/// What the unit nftables.service loads, on Debian and on RHEL.
const NFTABLES_FILES: [&str; 2] = ["/etc/nftables.conf", "/etc/sysconfig/nftables.conf"];
/// What is there when systemd starts that unit at boot, on either.
const STARTED_AT_BOOT: [&str; 2] = [
    "/etc/systemd/system/sysinit.target.wants/nftables.service",
    "/etc/systemd/system/multi-user.target.wants/nftables.service",
];
/// So many chains are named.
const NAMED: usize = 6;

/// What else is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbours {
    chains: Result<Vec<ForeignChain>, kernel::Error>,
    /// The tables of iptables-legacy, and of its sister for IPv6.
    legacy_tables: Vec<String>,
    has_vendor: bool,
    /// The file that removes all tables when it is loaded.
    flushing_file: Option<&'static str>,
    /// Whether systemd loads that file at boot.
    loads_at_boot: bool,
}

impl Neighbours {
    pub(super) fn look() -> Self {
        let names = |file: &str, program: &str| -> Vec<String> {
            let names = fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
            names.lines().map(|table| format!("{table} of {program}")).collect()
        };
        let legacy = [names("ip_tables_names", "iptables-legacy"), names("ip6_tables_names", "ip6tables-legacy")];
        let flushes = |path: &&&'static str| fs::read_to_string(path).is_ok_and(|text| flushes_everything(&text));
        Self {
            chains: Netlink::open().and_then(|mut netlink| netlink.foreign_chains()),
            legacy_tables: legacy.concat(),
            has_vendor: Path::new(VENDOR).exists(),
            flushing_file: NFTABLES_FILES.iter().find(flushes).copied(),
            loads_at_boot: STARTED_AT_BOOT.iter().any(|path| fs::symlink_metadata(path).is_ok()),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        const TABLES: &str = "other-tables";
        let mut findings = Vec::new();
        match &self.chains {
            Err(error) => findings.push(Finding::unseen(TABLES, describe(error))),
            Ok(chains) => {
                let passed = |chain: &&ForeignChain| {
                    matches!(chain.family, "inet" | "ip" | "ip6" | "netdev") && (chain.drops || chain.rules > 0)
                };
                let (dropping, others): (Vec<_>, Vec<_>) = chains.iter().filter(passed).partition(|chain| chain.drops);
                let has_none = dropping.is_empty() && others.is_empty();
                if has_none {
                    findings.push(Finding::ok(TABLES, "no other nftables chain on the way of packets"));
                }
                if !dropping.is_empty() {
                    findings.push(Finding::warning(
                        TABLES,
                        format!("drop what their rules do not accept, whatever portward allows: {}", list(&dropping)),
                        "allow there, too, what the policy allows, or remove them; `nft list ruleset` shows them",
                    ));
                }
                if !others.is_empty() {
                    findings.push(Finding::note(
                        TABLES,
                        format!("have rules that may refuse what portward allows: {}", list(&others)),
                        "",
                    ));
                }
            }
        }
        if !self.legacy_tables.is_empty() {
            findings.push(Finding::note(
                "iptables-legacy",
                format!("rules that may refuse what portward allows: {}", self.legacy_tables.join(", ")),
                "`iptables-legacy -S` shows them",
            ));
        }
        if self.has_vendor {
            findings.push(Finding::note(
                "vendor-firewall",
                format!("{VENDOR} is here: its rules stay in force beside portward's"),
                "what only portward should refuse must be open there, in iptables.pre",
            ));
        }
        if let Some(file) = self.flushing_file {
            const FLUSH: &str = "flush-ruleset";
            let found = format!("{file} removes all tables when it is loaded, portward's among them");
            let remedy = format!("in {file}, delete its own tables by name in place of `flush ruleset`");
            findings.push(if self.loads_at_boot {
                Finding::warning(FLUSH, format!("nftables.service is enabled: {found}"), remedy)
            } else {
                Finding::note(FLUSH, found, remedy)
            });
        }
        findings
    }
}

/// Whether this nft script removes all tables. Looks at commands only, not at rules.
pub(super) fn flushes_everything(script: &str) -> bool {
    script.lines().any(|line| {
        let command = line.split('#').next().unwrap_or_default();
        command.split(';').any(|command| command.split_whitespace().take(2).eq(["flush", "ruleset"]))
    })
}

fn list(chains: &[&ForeignChain]) -> String {
    let name = |chain: &&ForeignChain| {
        // Whoever made the table chose the names.
        let clean = |name: &str| name.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
        let ForeignChain { family, table, chain, hook, rules, .. } = chain;
        format!("{family} {} {} ({hook}, {})", clean(table), clean(chain), super::count(u64::from(*rules), "rule"))
    };
    let mut text = chains.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if chains.len() > NAMED {
        text.push_str(&format!(" and {} more", chains.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;

    fn chain(family: &'static str, drops: bool, rules: u32) -> ForeignChain {
        let (table, chain) = ("filter".to_owned(), "INPUT\u{1b}".to_owned());
        ForeignChain { family, table, chain, hook: "input", priority: 0, drops, rules }
    }

    fn among(chains: Vec<ForeignChain>) -> Neighbours {
        Neighbours {
            chains: Ok(chains),
            legacy_tables: Vec::new(),
            has_vendor: false,
            flushing_file: None,
            loads_at_boot: true,
        }
    }

    #[test]
    fn chains_are_judged_by_their_policy_and_whether_they_have_rules() {
        let severity = |chains| severities(&among(chains).findings());
        assert_eq!(severity(Vec::new()), [Severity::Ok]);
        assert_eq!(severity(vec![chain("ip", false, 0), chain("arp", true, 1)]), [Severity::Ok]);
        assert_eq!(severity(vec![chain("ip", true, 0), chain("inet", false, 2)]), [Severity::Warning, Severity::Note]);
        let found = &among(vec![chain("ip6", true, 1); 9]).findings()[0].found;
        assert!(found.contains("ip6 filter INPUT? (input, 1 rule)") && found.ends_with("and 3 more"), "{found}");
    }

    #[test]
    fn other_firewalls_are_named() {
        let others = Neighbours {
            chains: Err(kernel::Error::Permission { doing: "listing tables".to_owned() }),
            legacy_tables: vec!["filter of iptables-legacy".to_owned()],
            has_vendor: true,
            flushing_file: Some(NFTABLES_FILES[0]),
            loads_at_boot: true,
        };
        let mut expected = [Severity::Note, Severity::Note, Severity::Note, Severity::Warning];
        assert_eq!(severities(&others.findings()), expected);
        expected[3] = Severity::Note;
        assert_eq!(severities(&Neighbours { loads_at_boot: false, ..others }.findings()), expected);
    }

    #[test]
    fn a_script_that_flushes_everything_is_known() {
        assert!(flushes_everything("#!/usr/sbin/nft -f\n\nflush ruleset\n"));
        assert!(flushes_everything("add table x; flush  ruleset inet"));
        assert!(!flushes_everything("# flush ruleset\nflush table inet x\nlog prefix \"flush ruleset\""));
    }
}
