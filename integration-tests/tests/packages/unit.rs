//! The unit file: systemd 239 must do with it, and it gives the daemon no more than that needs.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/portward.service");
const TEXT: &str = include_str!("../../../systemd/portward.service");
const KNOWN: &str = include_str!("../../fixtures/systemd-239.directives");

/// What systemd 239 does not know, and ignores with a warning. Each only takes something away from the daemon that its
/// capabilities or its system-call filter take away already.
const NEWER: [&str; 4] =
    ["Service.ProtectClock", "Service.ProtectHostname", "Service.ProtectKernelLogs", "Service.ProtectProc"];

/// The most that `systemd-analyze security` may say, in tenths.
const EXPOSURE: &str = "25";

/// The directives of a unit file, as in `Service.Type`, but for what only `systemctl enable` reads.
fn directives(text: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => section = name,
            None if section == "Install" => {}
            None => {
                found.insert(format!("{section}.{}", line.split('=').next().unwrap_or_default()));
            }
        }
    }
    found
}

#[test]
fn systemd_239_knows_what_it_needs() {
    let known: BTreeSet<&str> = KNOWN.lines().filter(|line| !line.starts_with('#')).chain(NEWER).collect();
    let unknown: Vec<String> = directives(TEXT).into_iter().filter(|name| !known.contains(name.as_str())).collect();
    assert_eq!(unknown, Vec::<String>::new(), "systemd 239 does not know these");
    let unknown = directives("[Service]\nType=notify\nRestartSteps=5\n[Install]\nWantedBy=x.target\n");
    assert_eq!(unknown.iter().filter(|name| !known.contains(name.as_str())).count(), 1, "{unknown:?}");
    // A type or a kind of restart that is newer would be as bad.
    assert!(TEXT.contains("\nType=notify\n") && TEXT.contains("\nRestart=always\n"));
}

#[test]
fn it_is_as_closed_as_it_can_be() -> Result<()> {
    let security = |threshold: &str| {
        Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager", "--threshold", threshold, UNIT])
            .output()
            .context("systemd-analyze (systemd 250 or newer) is needed")
    };
    let output = security(EXPOSURE)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("Overall exposure level"), "systemd-analyze says nothing of the kind:\n{text}");
    ensure!(output.status.success(), "more exposed than {EXPOSURE} tenths:\n{text}");
    ensure!(!security("1")?.status.success(), "systemd-analyze does not heed the threshold");
    Ok(())
}
