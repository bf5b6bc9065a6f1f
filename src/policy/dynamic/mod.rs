//! Services whose ports exist only while a process listens on them: what the catalogue declares, as the policy adjusts
//! it, and what a site declares besides.

pub(super) mod read;

use super::{Condition, Party, Ports, Row, Tracker};
use crate::ruleset::PortRange;
use glob::{MatchOptions, Pattern};
use std::path::Path;

/// A service with ports that only a running process knows.
///
/// Every service of the catalogue is in [`Policy::dynamic`](super::Policy::dynamic), with the policy's `[dynamic.NAME]`
/// applied, and so is each that the site declares itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicService {
    /// Its name: the id of the row that declares it, or the site's own name; `[a-z][a-z0-9-]*`, unique.
    pub name: String,
    /// Whether anything is opened at all.
    pub enabled: bool,
    /// Who finds the ports out.
    pub tracker: Tracker,
    /// The TCP port whose owner is asked or looked at; every tracker but `rpc` has one.
    pub anchor: Option<u16>,
    /// RPC programs by number, for the tracker `rpc`; empty for the others.
    pub programs: Vec<u32>,
    /// The process that must own the anchor (tracker `rpc`: each port) for anything to be opened.
    pub process: ProcessMatch,
    /// The ranges in which ports may be opened; never empty, never echo.
    pub ports: Vec<Ports>,
    /// How many ports may be open at once, 1 to 1024; a port of both protocols counts twice.
    pub limit: u16,
    /// What happens to the connections of a port that closes.
    pub on_close: OnClose,
    /// Who may reach the ports.
    pub exposure: Exposure,
    /// Conditions of the catalogue beyond those of the row; all must hold.
    pub when: Vec<Condition>,
    /// The line of the policy file at which `[dynamic.NAME]` begins; `None`: the catalogue's defaults alone.
    pub line: Option<u32>,
}

impl DynamicService {
    /// The service that a row of the catalogue declares, as it is when the policy says nothing about it.
    pub(super) fn of_row(row: &Row) -> Option<Self> {
        let dynamic = row.dynamic.as_ref()?;
        let anchor = dynamic.anchor.and_then(|anchor| match anchor {
            Ports::Range(_, PortRange { first, .. }) => Some(first),
            Ports::Echo => None,
        });
        Some(Self {
            name: row.id.clone(),
            enabled: true,
            tracker: dynamic.tracker,
            anchor,
            programs: dynamic.programs.clone(),
            process: dynamic.process.clone(),
            ports: dynamic.ports.clone(),
            limit: dynamic.limit,
            on_close: OnClose::default(),
            exposure: Exposure::Row(row.id.clone()),
            when: dynamic.when.clone(),
            line: None,
        })
    }
}

/// Which process a listener must belong to. Every property that is given must hold; at least `user` or `unit` is given,
/// since anybody can choose the name and the arguments of his own process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessMatch {
    /// The path of the program, one of these; empty: any. `*` and `?` do not match `/`, `**` is any folders.
    pub exe: Vec<Pattern>,
    /// The user, by name (in /etc/passwd) or number, that all user ids of the process must be.
    pub user: Option<String>,
    /// The systemd system unit that the process belongs to, such as `imq.service`.
    pub unit: Option<String>,
    /// Each must match one whole argument of the command line; `*` and `?` match any characters.
    pub args: Vec<Pattern>,
}

impl ProcessMatch {
    /// Whether the program may be the one at this path, as the kernel shows it: absolute and without symbolic links.
    pub fn allows_exe(&self, path: &Path) -> bool {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        self.exe.is_empty() || self.exe.iter().any(|pattern| pattern.matches_path_with(path, options))
    }

    /// The first pattern that matches no whole argument of a command line.
    pub fn missing_argument<A: AsRef<str>>(&self, args: &[A]) -> Option<&Pattern> {
        self.args.iter().find(|pattern| !args.iter().any(|arg| pattern.matches(arg.as_ref())))
    }
}

/// What happens to established connections when their dynamic port closes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnClose {
    /// They go on until they end by themselves.
    #[default]
    Keep,
    /// They are removed from connection tracking, so that their packets are judged anew and denied.
    Cut,
}

/// Who may reach dynamic ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    /// Whoever may reach this row of the catalogue, by its id.
    Row(String),
    /// These parties, sorted, on whichever host the process runs.
    From(Vec<Party>),
}

#[cfg(test)]
mod tests;
