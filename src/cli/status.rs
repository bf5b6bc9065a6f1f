//! `portward status`.

use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, YELLOW, count, styled, table};
use super::{Error, other_answer};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::status::{Condition, Source, Status as DaemonStatus};
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use crate::trackers::{Report, Source as ListenerSource};
use anstyle::Style;
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// So many ports of a service are named; of more, only the number is.
const PORTS_NAMED: usize = 8;

/// So many warnings are shown in full.
const WARNINGS_NAMED: usize = 5;

/// Ask the daemon whether the policy file is what the kernel enforces
///
/// The exit code is 0 when it is; 1 when the daemon keeps an older policy because the file does not load or is refused, or when
/// the kernel does not take what it should, or when a policy is on trial; 2 when no daemon answers.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let status = of_daemon(&self.control_socket)?;
        let code = if status.condition == Condition::InStep { Code::Fine } else { Code::No };
        if self.json {
            return Answer::json(&status, code);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Answer { text: render(&status, now), code })
    }
}

/// The status of the daemon at this socket.
pub(super) fn of_daemon(control_socket: &Path) -> Result<Box<DaemonStatus>, Error> {
    match ask(control_socket, &Request::Status)? {
        Reply::Status(status) => Ok(status),
        Reply::Error(message) => Err(Error::Refused(message)),
        _ => Err(other_answer()),
    }
}

pub(super) fn render(status: &DaemonStatus, now: u64) -> String {
    let (style, condition) = match status.condition {
        Condition::InStep => (GREEN, "in step: the kernel enforces what the policy file says"),
        Condition::Keeping => (RED, "keeping: the policy file is not applied, what was enforced before stays"),
        Condition::Disputed => (RED, "disputed: somebody keeps changing the table, and portward keeps repairing it"),
        Condition::Trying => (YELLOW, "trying: the kernel enforces a policy for the time being"),
        Condition::Failing => (RED, "failing: the kernel does not hold what the policy says"),
    };
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(([name.to_owned(), value], Style::new()));
    line(
        "daemon",
        format!("portward {}, process {}, started {}", status.version, status.pid, ago(status.started, now)),
    );
    line("policy", status.policy.display().to_string());
    let source = match status.source {
        Source::File => "the policy file",
        Source::Trial => "the policy on trial",
        Source::LastGood => "the last good policy on disk, which the file did not replace yet",
        Source::FailSafe => {
            "the fail-safe: SSH for the last known administrators; neither file nor last good policy load"
        }
        Source::EarlierDaemon => "the table that an earlier daemon left",
    };
    line("enforced", source.to_owned());
    if let Some(trial) = &status.trial {
        let left = trial.until.saturating_sub(now);
        line("on trial", format!("{}, asked for by {}, {}", trial.policy, trial.user, ago(trial.since, now)));
        line("", format!("taken back in {left} s, unless `portward confirm` comes"));
        if trial.file_waits {
            line("", "the policy file was changed meanwhile, and waits".to_owned());
        }
    }
    if let Some(last) = &status.last_trial {
        let end = if last.confirmed { "stays" } else { "was taken back" };
        line("last trial", format!("{} {end}, {}: {}", last.policy, ago(last.at, now), last.reason));
    }
    match &status.enforced {
        Some(enforced) => {
            line("host", format!("{} ({})", enforced.host, enforced.found));
            line("mode", format!("{}, egress {}", enforced.mode, enforced.egress));
            line("loaded", ago(enforced.loaded, now));
        }
        None => line("host", "unknown: the table is the one that an earlier daemon left".to_owned()),
    }
    if let Some(table) = status.table {
        let sizes = [
            count(table.sets, "set"),
            count(table.elements, "element"),
            count(table.chains, "chain"),
            count(table.rules, "rule"),
        ];
        line("table", sizes.join(", "));
    }
    if let Some(change) = &status.last_change {
        line("changed", format!("{}, {}: {}", ago(change.at, now), change.cause, change.changes));
    }
    if let Some(repair) = &status.last_repair {
        let times = count(status.repairs, "time");
        line("repaired", format!("{times}, last {} after {}: {}", ago(repair.at, now), repair.by, repair.changes));
    }
    if let Some(meddling) = &status.meddling {
        let by = meddling.by.iter().map(|meddler| match meddler.pid {
            Some(pid) => format!("{} ({}, last process {pid})", meddler.process, count(meddler.changes, "change")),
            None => format!("{} ({})", meddler.process, count(meddler.changes, "change")),
        });
        line("disputed", format!("since {}, by {}", ago(meddling.since, now), by.collect::<Vec<_>>().join(", ")));
        line("", format!("repairs are {} ms apart at present, 4000 ms at most", meddling.pause_ms));
    }
    dynamic(&status.dynamic, &mut line);
    let mut text = format!("{}\n{}", styled(style, condition), table(&lines));
    text.push_str(&refusals(&status.dynamic));
    if let Some(enforced) = &status.enforced {
        text.push_str(&warnings(&enforced.warnings));
    }
    for (title, failure) in [
        ("the policy file is not applied", &status.policy_error),
        ("the kernel", &status.kernel_error),
        ("the state on disk", &status.state_error),
    ] {
        if let Some(failure) = failure {
            text.push_str(&format!("\n{} (since {}):\n", styled(BOLD, title), ago(failure.since, now)));
            for line in failure.message.lines() {
                text.push_str(format!("  {line}").trim_end());
                text.push('\n');
            }
        }
    }
    text
}

/// What may not be meant: a few warnings, the rest by their number.
fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}:\n", styled(BOLD, "warnings"));
    for line in warnings.iter().take(WARNINGS_NAMED).flat_map(|warning| warning.lines()) {
        text.push_str(format!("  {line}").trim_end());
        text.push('\n');
    }
    if let Some(missing @ 1..) = warnings.len().checked_sub(WARNINGS_NAMED) {
        text.push_str(&styled(FAINT, &format!("  and {missing} more (--json has them)\n")));
    }
    text
}

/// How listeners are noticed, and a line for each service with dynamic ports.
fn dynamic(report: &Report, line: &mut impl FnMut(&str, String)) {
    match &report.source {
        ListenerSource::None => {}
        ListenerSource::Bpf => line("listeners", "the kernel tells of new ones (BPF)".to_owned()),
        ListenerSource::Polling { every, reason } => line("listeners", format!("looked at every {every} ms: {reason}")),
    }
    if let Some(trouble) = &report.trouble {
        line("", trouble.clone());
    }
    for (index, service) in report.services.iter().enumerate() {
        let open: BTreeSet<&str> = service.open.iter().map(|opened| opened.port.as_str()).collect();
        let ports = match open.len() {
            0 => "nothing open".to_owned(),
            1..=PORTS_NAMED => format!("open {}", open.into_iter().collect::<Vec<_>>().join(" ")),
            number => format!("{number} ports open"),
        };
        let title = if index == 0 { "dynamic" } else { "" };
        line(title, format!("{}: {ports}; {}", service.name, service.detail));
    }
}

/// What the services claim and do not get.
fn refusals(report: &Report) -> String {
    let lines: Vec<_> = report
        .services
        .iter()
        .flat_map(|service| service.refused.iter().map(move |refused| (service, refused)))
        .map(|(service, refused)| {
            let what = format!("{} ({})", refused.port, refused.what);
            ([format!("  {}", service.name), what, refused.why.clone()], Style::new())
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("\n{}\n{}", styled(BOLD, "claimed, and not opened"), table(&lines))
}

pub(super) fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h {} min ago", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_shown_up_to_a_few() {
        assert_eq!(warnings(&[]), "");
        let many: Vec<_> = (0..WARNINGS_NAMED + 2).map(|number| format!("warning {number}\nin two lines")).collect();
        let text = warnings(&many[..WARNINGS_NAMED]);
        assert!(text.contains("\n  warning 0\n  in two lines\n") && !text.contains("more"), "{text}");
        let text = warnings(&many);
        assert!(text.contains("and 2 more") && !text.contains(&format!("warning {WARNINGS_NAMED}")), "{text}");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(ago(100, 100), "0 s ago");
        assert_eq!(ago(100, 99), "0 s ago");
        assert_eq!(ago(0, 3599), "59 min ago");
        assert_eq!(ago(0, 2 * 3600 + 120), "2 h 2 min ago");
        assert_eq!(ago(0, 10 * 86_400), "10 days ago");
    }
}
