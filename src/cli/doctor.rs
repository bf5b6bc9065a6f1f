//! `portward doctor`.

use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, YELLOW, count, styled};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::doctor::{Finding, Place, Severity, examine};
use anstyle::Style;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Look for what keeps portward from doing its work, and say what to do about it
///
/// Looks at the kernel, the policy, the table, the daemon and its service, other firewalls, connection tracking and the
/// clock. Nothing is changed: what the kernel can do is tried out in a network namespace of its own. Without root it says
/// what it could not look at. The exit code is 0 when all is well, 1 when there is a warning or a problem.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward doctor
  portward doctor --json | jq '.findings[] | select(.severity == \"problem\")'")]
pub(super) struct Doctor {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let mut findings = examine(&Place {
            policy: options.policy.clone(),
            catalogue: options.catalogue.clone(),
            host: options.choice(),
            control_socket: self.control_socket.clone(),
        });
        // The worst first, and otherwise from the kernel up.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let worst = findings.first().map_or(Severity::Ok, |finding| finding.severity);
        let code = if worst >= Severity::Warning { Code::No } else { Code::Fine };
        if self.json {
            return Answer::json(&json!({ "worst": worst, "findings": findings }), code);
        }
        Ok(Answer { text: render(&findings), code })
    }
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, severity, found, remedy } in findings {
        let (word, style) = word(*severity);
        text.push_str(&styled(style, &format!("{word:<7}")));
        let line = format!("  {check:<width$}  {found}");
        text.push_str(&if *severity == Severity::Ok { styled(FAINT, &line) } else { line });
        text.push('\n');
        if let Some(remedy) = remedy {
            text.push_str(&format!("{:indent$}-> {remedy}\n", "", indent = 11 + width));
        }
    }
    let number = |wanted| findings.iter().filter(|finding| finding.severity == wanted).count();
    let (problems, warnings) = (number(Severity::Problem), number(Severity::Warning));
    let summary = match (problems, warnings) {
        (0, 0) => "all is well".to_owned(),
        _ => format!("{}, {}", count(problems, "problem"), count(warnings, "warning")),
    };
    text.push_str(&format!("\n{}\n", styled(BOLD, &summary)));
    text
}

fn word(severity: Severity) -> (&'static str, Style) {
    match severity {
        Severity::Ok => ("ok", GREEN),
        Severity::Note => ("note", BOLD),
        Severity::Warning => ("warning", YELLOW),
        Severity::Problem => ("problem", RED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_aligned_and_remedies_stand_below() {
        let finding = |check, severity, remedy: Option<&str>| Finding {
            check,
            severity,
            found: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let findings = [finding("clock", Severity::Problem, Some("do")), finding("table-of-x", Severity::Ok, None)];
        let plain = anstream::adapter::strip_str(&render(&findings)).to_string();
        let expected = "problem  clock       found\n                     -> do\n\
                        ok       table-of-x  found\n\n1 problem, 0 warnings\n";
        assert_eq!(plain, expected);
    }
}
