//! Whether the processes behind listening sockets can be seen, and how soon new listeners are: what dynamic ports need.

use super::Finding;
use crate::daemon::status::Status;
use crate::listeners::Events;
use crate::trackers::Source;
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
    /// What keeps the daemon from seeing processes.
    trouble: Option<String>,
}

/// How new listeners are heard of, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum EventSource {
    /// By BPF, says the daemon, or an attempt.
    Bpf,
    /// By looking again and again.
    Polling(String),
    /// Root alone can try it.
    NotRoot,
    /// The daemon has nobody to hear of.
    NotNeeded,
}

impl Processes {
    pub(super) fn look(status: Option<&Status>) -> Self {
        let daemon = status.map(|status| status.pid);
        let of_process = |file: &str| {
            let process = daemon.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
            fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
        };
        // Where the daemon has its programs in place, nobody should meddle.
        let events = match status.map(|status| &status.dynamic.source) {
            Some(Source::None) => EventSource::NotNeeded,
            Some(Source::Bpf) => EventSource::Bpf,
            Some(Source::Polling { reason, .. }) => EventSource::Polling(reason.clone()),
            None if !geteuid().is_root() => EventSource::NotRoot,
            None => match Events::open() {
                Ok(_) => EventSource::Bpf,
                Err(unavailable) => EventSource::Polling(crate::describe(&unavailable)),
            },
        };
        Self {
            daemon,
            capabilities: effective_capabilities(&of_process("status")),
            hidden: hidepid(&of_process("mountinfo")),
            events,
            trouble: status.and_then(|status| status.dynamic.trouble.clone()),
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
        // The right that it lacks was said already.
        if let Some(trouble) = self.trouble.as_ref().filter(|_| self.has(capability::SYS_PTRACE)) {
            let remedy = "`portward listeners` says what it means for the ports";
            findings.push(Finding::warning("listeners", format!("the daemon cannot see all: {trouble}"), remedy));
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
            EventSource::NotNeeded => None,
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
pub(super) fn effective_capabilities(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// The option `hidepid` of the /proc that is seen, from /proc/PID/mountinfo; `None` when nothing is hidden.
pub(super) fn hidepid(mountinfo: &str) -> Option<String> {
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

    /// A daemon in order.
    fn fine() -> Processes {
        Processes {
            daemon: Some(1),
            capabilities: Some(capability::NET_ADMIN | capability::SYS_PTRACE),
            hidden: None,
            events: EventSource::NotNeeded,
            trouble: None,
        }
    }

    fn severity(processes: Processes) -> Vec<Severity> {
        severities(&processes.findings())
    }

    #[test]
    fn a_daemon_that_cannot_see_processes_opens_no_dynamic_port() {
        let hidden = Some("2".to_owned());
        assert_eq!(severity(fine()), [Severity::Ok]);
        assert_eq!(severity(Processes { hidden: hidden.clone(), ..fine() }), [Severity::Ok, Severity::Ok]);
        let confined = Processes { capabilities: Some(capability::NET_ADMIN), hidden, ..fine() };
        assert_eq!(severity(confined), [Severity::Warning, Severity::Warning]);
        assert_eq!(severity(Processes { capabilities: Some(0), ..fine() }), [Severity::Problem]);
        assert_eq!(severity(Processes { capabilities: None, ..fine() }), [Severity::Note]);
        let trouble = Some("no /proc".to_owned());
        assert_eq!(severity(Processes { trouble, ..fine() }), [Severity::Ok, Severity::Warning]);
    }

    #[test]
    fn how_new_listeners_are_heard_of_is_told() {
        let events = |events| severity(Processes { events, ..fine() });
        assert_eq!(events(EventSource::Bpf), [Severity::Ok, Severity::Ok]);
        assert_eq!(events(EventSource::Polling("why".to_owned())), [Severity::Ok, Severity::Note]);
        // Without a daemon its rights are nobody's.
        let nobody = Processes { daemon: None, capabilities: Some(0), events: EventSource::NotRoot, ..fine() };
        assert_eq!(severity(nobody), [Severity::Note]);
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "[ -~\n\t]{0,200}") {
            let _ = (effective_capabilities(&text), hidepid(&text));
        }
    }
}
