//! The services of the broker: their listeners, and the table that names them.

use crate::portmapper::Answer;
use crate::stub;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv6Addr, TcpListener};
use std::sync::Arc;

/// The service that answers with the table.
pub(crate) const PORTMAPPER: &str = "portmapper";
/// The service whose port is in its stub.
const JMX: &str = "jmxrmi";

/// The services in the order of the table, with their protocols and types.
const KINDS: [(&str, &str, &str); 6] = [
    (PORTMAPPER, "tcp", "PORTMAPPER"),
    ("cluster_discovery", "tcp", "CLUSTER_DISCOVERY"),
    (JMX, "rmi", "JMX"),
    ("admin", "tcp", "ADMIN"),
    ("jms", "tcp", "NORMAL"),
    ("cluster", "tcp", "CLUSTER"),
];

/// What the broker is and has.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) instance: String,
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) portmapper_port: u16,
    pub(crate) answer: Answer,
    /// Lines more, with ports on which the broker does not listen.
    pub(crate) claims: Vec<(String, u16)>,
    open: BTreeMap<&'static str, Service>,
}

/// A service that the table names.
#[derive(Debug)]
struct Service {
    /// 0 when it was closed.
    port: u16,
    /// Connections wait in the kernel; nobody speaks with them.
    listener: Option<Arc<TcpListener>>,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            instance: "imqbroker".to_owned(),
            version: "301".to_owned(),
            host: "127.0.0.1".to_owned(),
            portmapper_port: 7676,
            answer: Answer::Table,
            claims: Vec::new(),
            open: BTreeMap::new(),
        }
    }
}

fn known(name: &str) -> Result<&'static str> {
    let kind = KINDS.iter().find(|(known, ..)| *known == name);
    kind.map(|(name, ..)| *name).with_context(|| format!("there is no service `{name}`"))
}

impl Services {
    /// Lets a service listen on all addresses of both families; port 0 is a random one.
    pub(crate) fn open(&mut self, name: &str, port: u16) -> Result<Arc<TcpListener>> {
        let name = known(name)?;
        ensure!(self.open.get(name).is_none_or(|service| service.listener.is_none()), "{name} listens already");
        let port = if name == PORTMAPPER { self.portmapper_port } else { port };
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("port {port}"))?;
        let port = listener.local_addr()?.port();
        let listener = Arc::new(listener);
        self.open.insert(name, Service { port, listener: Some(Arc::clone(&listener)) });
        Ok(listener)
    }

    /// Gives up the listener and says so in the table. It is closed when nobody has it any more.
    pub(crate) fn close(&mut self, name: &str) -> Result<Arc<TcpListener>> {
        let listener = self.abandon(name)?;
        self.open.insert(known(name)?, Service { port: 0, listener: None });
        Ok(listener)
    }

    /// Gives up the listener and nothing else.
    pub(crate) fn abandon(&mut self, name: &str) -> Result<Arc<TcpListener>> {
        let service = self.open.get_mut(known(name)?).with_context(|| format!("{name} is not open"))?;
        service.listener.take().with_context(|| format!("{name} does not listen"))
    }

    /// Whether this is still the listener of the portmapper.
    pub(crate) fn is_portmapper(&self, listener: &Arc<TcpListener>) -> bool {
        let current = self.open.get(PORTMAPPER).and_then(|service| service.listener.as_ref());
        current.is_some_and(|current| Arc::ptr_eq(current, listener))
    }

    /// `NAME=PORT` for each service that listens.
    pub(crate) fn listening(&self) -> String {
        let listening = self.open.iter().filter(|(_, service)| service.listener.is_some());
        listening.map(|(name, service)| format!("{name}={}", service.port)).collect::<Vec<_>>().join(" ")
    }

    /// The table, with a port for `admin` even when it is open, if given one.
    pub(crate) fn table(&self, admin: Option<u16>) -> String {
        let mut table = format!("101 {} {}\n", self.instance, self.version);
        for (name, protocol, kind) in KINDS {
            let Some(service) = self.open.get(name) else { continue };
            let port = match name {
                JMX => 0,
                "admin" => admin.unwrap_or(service.port),
                _ => service.port,
            };
            if name == JMX && service.port == 0 {
                continue;
            }
            let properties = self.properties(name, service.port);
            let _ = writeln!(table, "{name} {protocol} {kind} {port}{properties}");
        }
        for (name, port) in &self.claims {
            let _ = writeln!(table, "{name} tcp NORMAL {port}");
        }
        table.push_str(".\n");
        table
    }

    fn properties(&self, name: &str, port: u16) -> String {
        let host = &self.host;
        match name {
            PORTMAPPER => {
                " [sessionid=5391831323872154368,imqhome=/opt/openmq/mq,imqvarhome=/opt/openmq/mq/var]".to_owned()
            }
            JMX => format!(" [url=service:jmx:rmi://{host}/stub/{}]", stub::encoded(host, port)),
            "cluster" => format!(" [hostname={host},hostaddr={host}]"),
            "admin" | "jms" => format!(" [hostname={host}]"),
            _ => String::new(),
        }
    }
}
