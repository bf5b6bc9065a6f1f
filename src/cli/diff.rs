//! `portward diff`.

use super::input::{identity, keep_open};
use super::output::{Answer, Code, FAINT, GREEN, RED, styled, table, warn};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::daemon::reconcile::Reconciler;
use crate::kernel::{Netlink, Snapshot};
use crate::ruleset::diff::{Change, summary};
use crate::ruleset::{Ruleset, Set};
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

/// Show what an apply would change in the kernel
///
/// Compares table `inet portward` in the kernel with what the policy says, and with the dynamic ports that the running
/// daemon has open. What stays is not shown. The exit code is 0 when nothing would change, 1 when something would.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward diff --policy new.toml")]
pub(super) struct Diff {
    /// The daemon's control socket, for the dynamic ports that are open
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// So many elements of a set are named in one line; `--json` has them all.
const ELEMENTS_NAMED: usize = 8;

impl Diff {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        let mut ruleset = site.ruleset(host)?;
        keep_open(&mut ruleset, &self.control_socket);
        site.warnings.iter().for_each(warn);
        let mut reconciler = Reconciler::new(Netlink::open()?);
        let changes = reconciler.changes(Some(&ruleset))?;
        let snapshot = reconciler.snapshot()?;
        let lines: Vec<Line> = changes.iter().filter_map(|change| line(change, snapshot.table.as_ref())).collect();
        let nothing = changes.is_empty();
        if self.json {
            let value = json!({
                "host": host.name,
                "found": found,
                "changes": lines,
                "foreign": snapshot.foreign,
                "summary": summary(&changes),
                "generation": snapshot.generation,
            });
            return Answer::json(&value, if nothing { Code::Fine } else { Code::No });
        }
        let text = render(&format!("host {} ({found})", host.name), &changes, &lines, snapshot);
        Ok(Answer::new(text, nothing))
    }
}

/// What would change, for people.
fn render(host: &str, changes: &[Change], lines: &[Line], snapshot: &Snapshot) -> String {
    if changes.is_empty() {
        return format!("{host}: the kernel holds what the policy says\n");
    }
    let mut text = String::new();
    for object in &snapshot.foreign {
        text.push_str(&styled(FAINT, &format!("not portward's, so the table is made anew: {object}")));
        text.push('\n');
    }
    text.push_str(&table(&lines.iter().map(Line::cells).collect::<Vec<_>>()));
    text.push_str(&format!("{host}: {}\n", summary(changes)));
    text
}

/// What a ruleset would change in the kernel, for people.
pub(super) fn of_ruleset(host: &str, ruleset: &Ruleset) -> Result<String, Error> {
    let mut reconciler = Reconciler::new(Netlink::open()?);
    let changes = reconciler.changes(Some(ruleset))?;
    let snapshot = reconciler.snapshot()?;
    let lines: Vec<Line> = changes.iter().filter_map(|change| line(change, snapshot.table.as_ref())).collect();
    Ok(render(host, &changes, &lines, snapshot))
}

/// One change, for people and programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    /// `add`, `delete` or `change`.
    action: &'static str,
    /// `table`, `set`, `map`, `chain`, `rule`, `element` or `policy`.
    object: &'static str,
    /// The set, map or chain.
    name: String,
    /// The elements, or the rule as nft text.
    content: Vec<String>,
}

impl Line {
    fn cells(&self) -> ([String; 4], Style) {
        let (sign, style) = match self.action {
            "add" => ("+", GREEN),
            "delete" => ("-", RED),
            _ => ("~", Style::new()),
        };
        let mut content = self.content.iter().take(ELEMENTS_NAMED).cloned().collect::<Vec<_>>().join(", ");
        if self.content.len() > ELEMENTS_NAMED {
            content.push_str(&format!(" and {} more", self.content.len() - ELEMENTS_NAMED));
        }
        ([sign.to_owned(), self.object.to_owned(), self.name.clone(), content], style)
    }
}

/// `None` for steps that only prepare another change.
fn line(change: &Change, current: Option<&Ruleset>) -> Option<Line> {
    let line = |action, object, name: &str, content| Some(Line { action, object, name: name.to_owned(), content });
    match change {
        Change::AddTable => line("add", "table", crate::ruleset::TABLE, Vec::new()),
        Change::DeleteTable => line("delete", "table", crate::ruleset::TABLE, Vec::new()),
        Change::AddSet(name, ..) => line("add", "set", name, Vec::new()),
        Change::DeleteSet(name, _) => line("delete", "set", name, Vec::new()),
        Change::AddMap(name, _) => line("add", "map", name, Vec::new()),
        Change::DeleteMap(name) => line("delete", "map", name, Vec::new()),
        Change::AddChain(name, _) => line("add", "chain", name, Vec::new()),
        Change::DeleteChain(name) => line("delete", "chain", name, Vec::new()),
        Change::SetChainPolicy(name, base) => {
            let policy = match base.policy {
                crate::ruleset::ChainPolicy::Accept => "accept",
                crate::ruleset::ChainPolicy::Drop => "drop",
            };
            line("change", "policy", name, vec![policy.to_owned()])
        }
        Change::AddElements(name, set) => line("add", "element", name, elements(set)),
        Change::DeleteElements(name, set) => line("delete", "element", name, elements(set)),
        Change::AddVerdicts(name, map) | Change::DeleteVerdicts(name, map) => {
            let action = if matches!(change, Change::AddVerdicts(..)) { "add" } else { "delete" };
            let content = map.elements.iter().map(|(ports, verdict)| format!("{ports} : {verdict}")).collect();
            line(action, "element", name, content)
        }
        Change::AddRule { chain, rule, .. } => line("add", "rule", chain, vec![rule.to_string()]),
        Change::DeleteRule { chain, index } => {
            let rule = current.and_then(|table| table.chains.get(chain)).and_then(|chain| chain.rules.get(*index));
            line("delete", "rule", chain, rule.map(ToString::to_string).into_iter().collect())
        }
        Change::FlushChain(_) => None,
    }
}

fn elements(set: &Set) -> Vec<String> {
    match set {
        Set::Ipv4Addresses(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Set::Ipv6Addresses(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Set::Ipv4Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
        Set::Ipv6Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
        Set::Record(_) => Vec::new(),
    }
}
