//! The service: its unit, the program that runs, and other firewalls that systemd starts.

use super::Finding;
use crate::daemon::status::Status;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

/// portward's own unit, and those that load rules of others.
const UNIT: &str = "portward.service";
const OTHERS: [&str; 5] =
    ["firewalld.service", "ufw.service", "iptables.service", "ip6tables.service", "nftables.service"];
/// So many restarts by systemd are more than bad luck.
const MANY_RESTARTS: u64 = 5;

/// The properties of a unit, systemctl(1), by name.
type Properties = BTreeMap<String, String>;

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// The units by name; `Err`: why systemd was not asked.
    units: Option<Result<BTreeMap<String, Properties>, String>>,
    /// The daemon that answers.
    daemon: Option<Daemon>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Daemon {
    pid: u32,
    version: String,
    /// Where the program is that runs, as /proc shows it; `None`: it may not be looked at.
    program: Option<String>,
}

impl Service {
    pub(super) fn look(status: Option<&Status>) -> Self {
        let daemon = status.map(|status| {
            let program = fs::read_link(format!("/proc/{}/exe", status.pid)).ok();
            let program = program.map(|path| path.to_string_lossy().into_owned());
            Daemon { pid: status.pid, version: status.version.clone(), program }
        });
        Self { units: Some(units()), daemon }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match &self.units {
            Some(Ok(units)) => {
                self.unit(units.get(UNIT), &mut findings);
                findings.extend(others(units));
            }
            Some(Err(why)) => findings.push(Finding::unseen("service", why)),
            None => {}
        }
        findings.extend(self.daemon.as_ref().and_then(Daemon::finding));
        findings
    }

    fn unit(&self, unit: Option<&Properties>, findings: &mut Vec<Finding>) {
        const CHECK: &str = "service";
        let property = |name: &str| unit.and_then(|unit| unit.get(name)).map_or("", String::as_str);
        let number = |name: &str| property(name).parse::<u64>().unwrap_or_default();
        if matches!(property("LoadState"), "" | "not-found") {
            let found = format!("there is no {UNIT}");
            findings.push(Finding::warning(CHECK, found, "install portward's package, or its unit"));
            return;
        }
        let before = findings.len();
        let main = number("MainPID");
        match property("ActiveState") {
            "failed" => findings.push(Finding::problem(
                CHECK,
                format!("{UNIT} has failed ({})", property("Result")),
                "`journalctl -u portward` says why",
            )),
            "active" | "activating" | "reloading" => {}
            // A condition that does not hold, and a unit that was never started, look alike.
            state if property("ConditionResult") == "no" => findings.push(Finding::note(
                CHECK,
                format!("{UNIT} is {state}; without a policy it is skipped"),
                "with one: systemctl start portward",
            )),
            state => findings.push(Finding::warning(
                CHECK,
                format!("{UNIT} is {state}: nobody follows the policy"),
                "systemctl start portward",
            )),
        }
        if let Some(daemon) = self.daemon.as_ref().filter(|daemon| main != 0 && u64::from(daemon.pid) != main) {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "process {} answers, and the service's is {main}: two daemons undo each other's work",
                    daemon.pid
                ),
                "end the one that is not the service",
            ));
        }
        if !matches!(property("UnitFileState"), "enabled" | "enabled-runtime" | "static" | "indirect" | "generated") {
            findings.push(Finding::warning(
                CHECK,
                format!("{UNIT} is {}: after the next boot nothing is enforced", property("UnitFileState")),
                "systemctl enable portward",
            ));
        }
        if property("NeedDaemonReload") == "yes" {
            let found = format!("{UNIT} has changed since systemd read it");
            findings.push(Finding::note(CHECK, found, "systemctl daemon-reload && systemctl restart portward"));
        }
        match number("NRestarts") {
            0 => {}
            restarts @ ..MANY_RESTARTS => {
                let found = format!("systemd has restarted it {}", super::count(restarts, "time"));
                findings.push(Finding::note(CHECK, found, "`journalctl -u portward` says why"));
            }
            restarts => {
                let found = format!("systemd has restarted it {restarts} times");
                findings.push(Finding::warning(CHECK, found, "`journalctl -u portward` says why"));
            }
        }
        if findings.len() == before {
            findings.push(Finding::ok(CHECK, format!("{UNIT} is active and enabled")));
        }
    }
}

impl Daemon {
    fn finding(&self) -> Option<Finding> {
        const CHECK: &str = "program";
        const REMEDY: &str = "systemctl restart portward; the table stays in between";
        let own = env!("CARGO_PKG_VERSION");
        let program = self.program.as_deref()?;
        // What /proc shows of a file that has no name any more.
        Some(if program.ends_with(" (deleted)") {
            Finding::warning(CHECK, "the program that runs was replaced on disk, such as by an upgrade", REMEDY)
        } else if self.version != own {
            Finding::warning(CHECK, format!("version {} runs, and this is {own}", self.version), REMEDY)
        } else {
            Finding::ok(CHECK, format!("version {own} runs, the one on disk"))
        })
    }
}

/// Asks systemd, once for all.
fn units() -> Result<BTreeMap<String, Properties>, String> {
    const PROPERTIES: &str =
        "--property=Id,LoadState,ActiveState,UnitFileState,Result,MainPID,NRestarts,NeedDaemonReload,ConditionResult";
    let output = Command::new("systemctl")
        .args(["show", PROPERTIES, "--no-pager", UNIT])
        .args(OTHERS)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => "there is no systemctl".to_owned(),
            _ => format!("systemctl: {error}"),
        })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("systemctl: {}", message.lines().next().unwrap_or("it failed").trim()));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// What `systemctl show` prints: a line for each property, and an empty line between units.
pub(super) fn parse(text: &str) -> BTreeMap<String, Properties> {
    let units = text.split("\n\n").map(|block| {
        block.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned()))
    });
    let units = units.map(Iterator::collect::<Properties>);
    units.filter_map(|properties| Some((properties.get("Id")?.clone(), properties))).collect()
}

fn others(units: &BTreeMap<String, Properties>) -> Option<Finding> {
    let is_active = |name: &&str| {
        let property = |key: &str| units.get(*name).and_then(|unit| unit.get(key)).map(String::as_str);
        property("LoadState") == Some("loaded") && property("ActiveState") == Some("active")
    };
    let active: Vec<&str> = OTHERS.iter().copied().filter(is_active).collect();
    (!active.is_empty()).then(|| {
        Finding::note(
            "other-firewalls",
            format!("also active: {}; a packet must pass their rules, too", active.join(", ")),
            "keep one, or allow there what the policy allows",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Severity, severities};
    use super::*;
    use proptest::prelude::*;

    /// As systemd 252 prints it.
    const SHOWN: &str = "Result=success\nNRestarts=0\nMainPID=411\nId=portward.service\nLoadState=loaded\n\
        ActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n\n\
        Result=success\nNRestarts=0\nMainPID=300\nId=firewalld.service\nLoadState=loaded\nActiveState=active\n\
        UnitFileState=enabled\nNeedDaemonReload=no\n\n\
        MainPID=0\nId=ufw.service\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\n";

    fn shown(text: &str) -> Vec<Finding> {
        Service { units: Some(Ok(parse(text))), daemon: None }.findings()
    }

    fn severity(from: &str, to: &str) -> Severity {
        shown(&SHOWN.replacen(from, to, 1))[0].severity
    }

    #[test]
    fn a_unit_that_is_active_and_enabled_is_fine() {
        let findings = shown(SHOWN);
        assert_eq!(severities(&findings), [Severity::Ok, Severity::Note]);
        assert!(findings[1].found.contains("firewalld.service;"), "{findings:?}");
    }

    #[test]
    fn what_is_wrong_with_a_unit_is_told() {
        assert_eq!(severity("UnitFileState=enabled", "UnitFileState=disabled"), Severity::Warning);
        assert_eq!(severity("ActiveState=active", "ActiveState=inactive"), Severity::Warning);
        assert_eq!(severity("ActiveState=active", "ActiveState=failed"), Severity::Problem);
        assert_eq!(severity("ActiveState=active", "ConditionResult=no\nActiveState=inactive"), Severity::Note);
        assert_eq!(severity("NRestarts=0", "NRestarts=2"), Severity::Note);
        assert_eq!(severity("NRestarts=0", "NRestarts=200"), Severity::Warning);
        assert_eq!(severity("NeedDaemonReload=no", "NeedDaemonReload=yes"), Severity::Note);
        assert_eq!(severity("LoadState=loaded", "LoadState=not-found"), Severity::Warning);
        assert_eq!(severities(&shown("")), [Severity::Warning]);
    }

    #[test]
    fn a_daemon_is_compared_with_what_is_installed() {
        let daemon = |pid, version: &str, program: &str| {
            let daemon = Daemon { pid, version: version.to_owned(), program: Some(program.to_owned()) };
            severities(&Service { units: Some(Ok(parse(SHOWN))), daemon: Some(daemon) }.findings())
        };
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(daemon(411, own, "/usr/bin/portward"), [Severity::Ok, Severity::Note, Severity::Ok]);
        assert_eq!(daemon(412, own, "/usr/bin/portward")[0], Severity::Warning);
        assert_eq!(daemon(411, own, "/usr/bin/portward (deleted)")[2], Severity::Warning);
        assert_eq!(daemon(411, "0.0.1", "/usr/bin/portward")[2], Severity::Warning);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(text in "(Id|LoadState|ActiveState|NRestarts|=|portward.service|loaded|[a-z0-9\n]){0,60}") {
            let _ = shown(&text);
        }
    }
}
