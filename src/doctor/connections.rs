//! Connection tracking, on which every rule that knows replies from requests rests.

use super::Finding;
use std::fs;
use std::path::Path;

/// From this part of the table on it is nearly full, in percent;
const NEARLY_FULL: u64 = 80;
/// and from this one on a burst of connections fills it.
const FULL: u64 = 95;
/// Seconds after which an idle connection asks whether its peer is still there (`tcp_keepalive_time`, ip-sysctl.rst).
const KEEPALIVE: u64 = 7200;

/// Settings of net.netfilter in this network namespace; `None`: the kernel does not have it, or not yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Connections {
    count: Option<u64>,
    max: Option<u64>,
    tcp_loose: Option<u64>,
    tcp_timeout_established: Option<u64>,
    /// Automatic helpers; gone since Linux 6.0.
    helper: Option<u64>,
}

impl Connections {
    pub(super) fn look() -> Self {
        let value = |name: &str| {
            let text = fs::read_to_string(Path::new("/proc/sys/net/netfilter").join(name)).ok()?;
            text.trim().parse().ok()
        };
        Self {
            count: value("nf_conntrack_count"),
            max: value("nf_conntrack_max"),
            tcp_loose: value("nf_conntrack_tcp_loose"),
            tcp_timeout_established: value("nf_conntrack_tcp_timeout_established"),
            helper: value("nf_conntrack_helper"),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.table()];
        const SETTINGS: &str = "conntrack-settings";
        if self.tcp_loose == Some(0) {
            findings.push(Finding::note(
                SETTINGS,
                "nf_conntrack_tcp_loose is 0: a connection that is older than the tracking, such as after `conntrack -F` \
                 or the first start of a firewall, is invalid and is cut",
                "sysctl net.netfilter.nf_conntrack_tcp_loose=1, before the policy is enforced for the first time",
            ));
        }
        if let Some(seconds) = self.tcp_timeout_established.filter(|seconds| *seconds < KEEPALIVE) {
            findings.push(Finding::note(
                SETTINGS,
                format!(
                    "nf_conntrack_tcp_timeout_established is {seconds} s: a connection that is idle for longer is judged \
                     anew, and what this host began may not come back"
                ),
                format!("set it above the {KEEPALIVE} s after which TCP asks its idle peers"),
            ));
        }
        if self.helper == Some(1) {
            findings.push(Finding::warning(
                SETTINGS,
                "nf_conntrack_helper is 1: what a client writes in protocols such as FTP opens ports, as related \
                 connections",
                "sysctl net.netfilter.nf_conntrack_helper=0",
            ));
        }
        findings
    }

    fn table(&self) -> Finding {
        const CHECK: &str = "conntrack";
        let (Some(count), Some(max)) = (self.count, self.max) else {
            return Finding::note(
                CHECK,
                "the kernel does not track connections here yet; the first rule begins it",
                "",
            );
        };
        // 0: no limit (nf_conntrack-sysctl.rst).
        let percent = if max == 0 { 0 } else { u128::from(count) * 100 / u128::from(max) };
        let found = format!("{count} of {max} connections, {percent} %");
        let remedy = format!(
            "sysctl net.netfilter.nf_conntrack_max={}, and the same in /etc/sysctl.d; `conntrack -S` counts drops",
            max.saturating_mul(2)
        );
        match u64::try_from(percent).unwrap_or(u64::MAX) {
            FULL.. => Finding::problem(CHECK, format!("{found}: when it is full, new ones are dropped"), remedy),
            NEARLY_FULL.. => Finding::warning(CHECK, format!("nearly full: {found}"), remedy),
            _ => Finding::ok(CHECK, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;
    use proptest::prelude::*;

    fn of(count: u64, max: u64) -> Connections {
        Connections { count: Some(count), max: Some(max), ..Connections::default() }
    }

    #[test]
    fn a_table_is_judged_by_how_full_it_is() {
        let severity = |count, max| severities(&of(count, max).findings());
        assert_eq!(severity(799, 1000), [Severity::Ok]);
        assert_eq!(severity(800, 1000), [Severity::Warning]);
        assert_eq!(severity(950, 1000), [Severity::Problem]);
        assert_eq!(severity(1001, 1000), [Severity::Problem]);
        assert_eq!(severity(5, 0), [Severity::Ok]);
        assert_eq!(severities(&Connections::default().findings()), [Severity::Note]);
        assert!(of(800, 1000).findings()[0].remedy.as_ref().unwrap().contains("nf_conntrack_max=2000"));
    }

    #[test]
    fn settings_that_matter_are_told() {
        let usual =
            Connections { tcp_loose: Some(1), tcp_timeout_established: Some(432_000), helper: Some(0), ..of(1, 1000) };
        assert_eq!(usual.findings().len(), 1);
        let other = Connections { tcp_loose: Some(0), tcp_timeout_established: Some(600), helper: Some(1), ..usual };
        assert_eq!(severities(&other.findings())[1..], [Severity::Note, Severity::Note, Severity::Warning]);
    }

    proptest! {
        #[test]
        fn no_numbers_make_it_panic(count in any::<u64>(), max in any::<u64>()) {
            prop_assert_eq!(of(count, max).findings().len(), 1);
        }
    }
}
