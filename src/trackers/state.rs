//! What the trackers have found out, for the daemon to enforce and for people to read.

use crate::plan::{OpenPort, OpenPorts};
use crate::policy::Ports;
use serde::{Deserialize, Serialize};

/// What the trackers know at one moment. The fields are documented in docs/json.md.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// The revision of what was watched, see [`Wanted::revision`](super::Wanted::revision).
    pub revision: u64,
    /// The ports to open.
    pub open: OpenPorts,
    /// How that came about.
    pub report: Report,
}

/// What the trackers do, for `portward status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How listeners are noticed.
    pub source: Source,
    /// What keeps processes from being seen, if anything does.
    pub trouble: Option<String>,
    /// The services with dynamic ports that this host exposes, by name.
    pub services: Vec<ServiceReport>,
}

impl Report {
    /// The ports that are open. What this version does not understand is left out.
    pub fn open_ports(&self) -> OpenPorts {
        let port = |opened: &Opened| {
            let Ports::Range(protocol, range) = opened.port.parse().ok()? else { return None };
            Some(OpenPort { protocol, port: range.first, scope: opened.scope.parse().ok()? })
        };
        let of_service =
            |service: &ServiceReport| (service.name.clone(), service.open.iter().filter_map(port).collect());
        self.services.iter().map(of_service).collect()
    }
}

/// How new listeners are noticed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Nobody looks: no service with dynamic ports is exposed here.
    #[default]
    None,
    /// The kernel tells, by BPF programs.
    Bpf,
    /// The sockets are listed at intervals.
    Polling {
        /// Milliseconds between two looks.
        every: u64,
        /// Why not by BPF.
        reason: String,
    },
}

/// One service with dynamic ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// Who finds its ports out: `imq`, `rpc`, `rmi` or `process`.
    pub tracker: String,
    /// How things are, in one word.
    pub condition: ServiceCondition,
    /// The condition in a few words, such as `nobody listens on 7676/tcp`.
    pub detail: String,
    /// The ports that are open.
    pub open: Vec<Opened>,
    /// What was claimed and is not opened.
    pub refused: Vec<RefusedPort>,
}

/// How a service fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceCondition {
    /// The service does not run.
    Absent,
    /// Whoever runs in its place is not the process that the policy names; nothing is opened.
    Unverified,
    /// The process is verified, and its ports are known.
    Tracked,
    /// The process is verified, and does not say which of its listeners are meant: all of them are opened, within range
    /// and limit.
    Fallback,
    /// The process is verified, and does not tell its ports; what was known of them stays open while it listens.
    Silent,
}

/// A port that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The port, such as `42615/tcp`.
    pub port: String,
    /// The local address that the listener takes packets to: `any`, `ipv4`, `ipv6` or an address.
    pub scope: String,
    /// What it is, in the service's words, such as `admin`.
    pub what: String,
    /// The process that listens, such as `java (process 4711)`.
    pub process: String,
}

/// A port that a service claims, or that its process listens on, and that stays closed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RefusedPort {
    /// The port, such as `22/tcp`; as far as it was understood.
    pub port: String,
    /// What it is, in the service's words.
    pub what: String,
    /// Why it stays closed.
    pub why: String,
}
