//! Whether the processes behind listening sockets can be seen, and how soon new listeners are: what dynamic ports need.

use super::Finding;
use crate::listeners::{Events, Unavailable};
use nix::unistd::geteuid;
use std::fs;

/// Bits of a set of capabilities, linux/capability.h.
mod capability {
    pub(super) const NET_ADMIN: u64 = 1 << 12;
    pub(super) const SYS_PTRACE: u64 = 1 << 19;
}

/// What was seen of the daemon, or of this process where no daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processes {
    /// The daemon.
    daemon: Option<u32>,
    /// Its effective capabilities; `None`: they could not be read.
    capabilities: Option<u64>,
    /// How /proc hides the processes of others, such as `invisible`, if it does.
    hidden: Option<String>,
    events: EventSource,
}

/// How new listeners would be heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum EventSource {
    /// By BPF, which was tried.
    Bpf,
    /// By looking again and again.
    Polling(String),
    /// Root alone can try it.
    NotRoot,
    /// The daemon has its programs in place, and nobody should meddle.
    DaemonRuns,
}

impl Processes {
    pub(super) fn look(daemon: Option<u32>) -> Self {
        let of_process = |file: &str| {
            let process = daemon.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
            fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
        };
        let events = if daemon.is_some() {
            EventSource::DaemonRuns
        } else if !geteuid().is_root() {
            EventSource::NotRoot
        } else {
            match Events::open() {
                Ok(_) => EventSource::Bpf,
                Err(unavailable @ Unavailable::NotBuilt) => EventSource::Polling(unavailable.to_string()),
                Err(unavailable) => EventSource::Polling(crate::daemon::describe(&unavailable)),
            }
        };
        Self {
            daemon,
            capabilities: effective_capabilities(&of_process("status")),
            hidden: hidepid(&of_process("mountinfo")),
            events,
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.daemon.is_some() {
            findings.push(self.rights());
        }
        if let Some(how) = &self.hidden {
            const CHECK: &str = "proc";
            let found = format!("/proc hides the processes of others (hidepid={how})");
            findings.push(if self.has(capability::SYS_PTRACE) {
                Finding::ok(CHECK, format!("{found}, but not from portward, which has CAP_SYS_PTRACE"))
            } else {
                Finding::warning(
                    CHECK,
                    format!("{found}: whose a listener is cannot be seen, so no dynamic port is opened"),
                    "give the daemon CAP_SYS_PTRACE, or mount /proc without hidepid",
                )
            });
        }
        const EVENTS: &str = "listener-events";
        findings.extend(match &self.events {
            EventSource::Bpf => Some(Finding::ok(EVENTS, "BPF tells of new listeners at once")),
            EventSource::Polling(why) => Some(Finding::note(
                EVENTS,
                format!("no BPF events, so a new dynamic port opens a fraction of a second late: {why}"),
                "they need a package or a build with the feature bpf, Linux 5.9 or RHEL 8, and cgroup2",
            )),
            EventSource::NotRoot => Some(Finding::unseen(EVENTS, "root alone may try out BPF")),
            EventSource::DaemonRuns => None,
        });
        findings
    }

    fn rights(&self) -> Finding {
        const CHECK: &str = "capabilities";
        if self.capabilities.is_none() {
            return Finding::unseen(CHECK, "the daemon's process cannot be seen in /proc");
        }
        if !self.has(capability::NET_ADMIN) {
            let remedy = "add it to CapabilityBoundingSet= of the unit, and restart the service";
            return Finding::problem(CHECK, "the daemon lacks CAP_NET_ADMIN: it cannot change the ruleset", remedy);
        }
        if !self.has(capability::SYS_PTRACE) {
            return Finding::warning(
                CHECK,
                "the daemon lacks CAP_SYS_PTRACE: whose a listener is cannot be seen, so no dynamic port is opened",
                "add it to CapabilityBoundingSet= of the unit, and restart the service",
            );
        }
        Finding::ok(CHECK, "the daemon has those that it needs")
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities.is_some_and(|capabilities| capabilities & capability != 0)
    }
}

/// `CapEff` of /proc/PID/status, proc_pid_status(5).
fn effective_capabilities(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// The option `hidepid` of the /proc that is seen, from /proc/PID/mountinfo; `None` when nothing is hidden.
fn hidepid(mountinfo: &str) -> Option<String> {
    // The last one mounted is on top.
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    let (_, options) = line.split_once(" - ")?;
    let value = options.split([' ', ',']).find_map(|option| option.strip_prefix("hidepid="))?;
    // proc(5): 0 and off, and since Linux 5.8 noaccess, invisible and ptraceable besides 1, 2 and 4.
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;
    use proptest::prelude::*;

    const MOUNTINFO: &str = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
        25 22 0:23 / /proc rw,nosuid shared:14 - proc proc rw,hidepid=invisible\n";

    #[test]
    fn capabilities_and_hidden_processes_are_read() {
        assert_eq!(effective_capabilities("Name:\tportward\nCapEff:\t0000000000081000\n"), Some(0x81000));
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
        assert_eq!(hidepid(MOUNTINFO).as_deref(), Some("invisible"));
        assert_eq!(hidepid(&MOUNTINFO.replace("invisible", "2")).as_deref(), Some("2"));
        assert_eq!(hidepid(&MOUNTINFO.replace(",hidepid=invisible", "")), None);
        assert_eq!(hidepid(&MOUNTINFO.replace("invisible", "0")), None);
        let above = MOUNTINFO.to_owned() + "30 25 0:40 / /proc rw - proc proc rw\n";
        assert_eq!(hidepid(&above), None, "what is mounted over it counts");
    }

    #[test]
    fn a_daemon_that_cannot_see_processes_opens_no_dynamic_port() {
        let all = capability::NET_ADMIN | capability::SYS_PTRACE;
        let daemon = |capabilities, hidden: Option<&str>| {
            let hidden = hidden.map(str::to_owned);
            severities(&Processes { daemon: Some(1), capabilities, hidden, events: EventSource::DaemonRuns }.findings())
        };
        assert_eq!(daemon(Some(all), None), [Severity::Ok]);
        assert_eq!(daemon(Some(all), Some("2")), [Severity::Ok, Severity::Ok]);
        assert_eq!(daemon(Some(capability::NET_ADMIN), Some("2")), [Severity::Warning, Severity::Warning]);
        assert_eq!(daemon(Some(0), None), [Severity::Problem]);
        assert_eq!(daemon(None, None), [Severity::Note]);
    }

    #[test]
    fn without_a_daemon_its_rights_are_nobody_s() {
        let processes =
            Processes { daemon: None, capabilities: Some(0), hidden: None, events: EventSource::Polling("x".into()) };
        assert_eq!(severities(&processes.findings()), [Severity::Note]);
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "[ -~\n\t]{0,200}") {
            let _ = (effective_capabilities(&text), hidepid(&text));
        }
    }
}
