//! Reading a catalogue.

use super::{
    APP_HOST, CONSOLE, Catalogue, Condition, Dynamic, Flow, Group, Ports, Row, RowKind, Scope, Server, Tunnelled,
};
use crate::policy::diagnostic::{Mistake, Report, listed, quoted};
use crate::policy::document::{self, Table, texts};
use crate::policy::dynamic::{self, read::Keys};
use crate::policy::load::without_mark;
use crate::policy::{Diagnostics, Version, words};
use crate::ruleset::{PortRange, Protocol};
use std::collections::BTreeMap;

/// What a condition or flow may be called besides the names that the catalogue itself lists.
const RESERVED_GROUPS: [&str; 4] = ["appliance", "managed-host", "ha-peer", "public-server"];
const ENCRYPTED_APP_HOST: &str = "encrypted-app-host";

const DYNAMIC_KEYS: [&str; 8] = ["tracker", "anchor", "programs", "process", "ports", "limit", "when", "egress"];

pub(super) fn catalogue(text: &str, label: &str) -> Result<Catalogue, Diagnostics> {
    let mut report = Report::new(without_mark(text), label);
    let document = document::parse(&mut report);
    let catalogue = document.as_ref().map(|document| {
        let root = Table::document(document, &report);
        Reader::new(&mut report, &root).rows(&root)
    });
    report.finish(catalogue).map(|(catalogue, _)| catalogue)
}

struct Reader<'r, 's> {
    report: &'r mut Report<'s>,
    catalogue: Catalogue,
    /// The line on which each row begins, by id.
    lines: BTreeMap<String, u32>,
}

impl<'r, 's> Reader<'r, 's> {
    /// Reads the vocabulary, which the rows use.
    fn new(report: &'r mut Report<'s>, root: &Table<'_>) -> Self {
        root.check_keys(report, "a catalogue", &["groups", "features", "versions", "row", "public-server", "base"]);
        let groups = root.table(report, "groups");
        if groups.is_none() && root.get("groups").is_none() {
            root.report_missing(report, "groups", "{ roles = [...], external = [...] }");
        }
        let mut roles = Vec::new();
        let mut external = Vec::new();
        if let Some(groups) = groups {
            groups.check_keys(report, "[groups]", &["roles", "external"]);
            roles = names(report, &groups, "roles", &RESERVED_GROUPS);
            let taken: Vec<&str> = RESERVED_GROUPS.into_iter().chain(roles.iter().map(String::as_str)).collect();
            external = names(report, &groups, "external", &taken);
            for role in [CONSOLE, APP_HOST] {
                if !roles.iter().any(|known| known == role) {
                    let mistake = Mistake::new(format!("the role `{role}` is missing")).expected("it among the roles");
                    report.error(groups.span.clone(), mistake);
                }
            }
        }
        let features = names(report, root, "features", &[ENCRYPTED_APP_HOST]);
        let mut versions = Vec::new();
        if let Some(list) = root.list(report, "versions") {
            for word in texts(report, &list) {
                match word.value.parse::<Version>() {
                    Ok(version) => versions.push(version),
                    Err(error) => report.error(word.span, Mistake::new(error.to_string())),
                }
            }
        }
        if versions.is_empty() && !report.has_errors() {
            root.report_missing(report, "versions", "[\"7.5.0\"]");
        }
        versions.sort();
        versions.dedup();
        let catalogue = Catalogue { roles, external, features, versions, rows: Vec::new() };
        Self { report, catalogue, lines: BTreeMap::new() }
    }

    fn rows(mut self, root: &Table<'_>) -> Catalogue {
        let kinds = [("row", RowKind::Port), ("public-server", RowKind::PublicServer), ("base", RowKind::Base)];
        for (key, kind) in kinds {
            for table in root.tables(self.report, key) {
                if let Some(row) = self.row(&table, key, kind) {
                    self.catalogue.rows.push(row);
                }
            }
        }
        self.catalogue
    }

    fn row(&mut self, table: &Table<'_>, key: &str, kind: RowKind) -> Option<Row> {
        let place = format!("[[{key}]]");
        let mut known = vec!["id", "description", "ports", "flows", "when"];
        match kind {
            RowKind::Port => known.extend(["scope", "roles", "tunnelled", "dynamic"]),
            RowKind::PublicServer => known.push("hosts"),
            RowKind::Base => {}
        }
        table.check_keys(self.report, &place, &known);
        let id = self.id(table);
        let description = table.text(self.report, "description").map_or("", |text| text.value).to_owned();
        if description.is_empty() {
            table.report_missing(self.report, "description", "\"what the ports are for\"");
        }
        let ports = self.ports(table, "ports");
        if ports.is_empty() {
            table.report_missing(self.report, "ports", "[\"514/udp\"]");
        }
        let scope = table.choice(self.report, "scope", &[("network", Scope::Network), ("internal", Scope::Internal)]);
        let scope = scope.unwrap_or(Scope::Network);
        let flows = self.flows(table, kind);
        match (scope, flows.is_empty()) {
            (Scope::Network, true) => table.report_missing(self.report, "flows", "[\"managed-host -> console\"]"),
            (Scope::Internal, false) => {
                let mistake = Mistake::new("a row of scope `internal` has flows").expected("no `flows`");
                self.report.error(table.span.clone(), mistake);
            }
            _ => {}
        }
        let roles = self.roles(table, scope);
        let tunnelled = table.choice(
            self.report,
            "tunnelled",
            &[("closed", Tunnelled::Closed), ("kept", Tunnelled::Kept), ("only", Tunnelled::Only)],
        );
        let when = self.conditions(table);
        let dynamic = table.table(self.report, "dynamic").and_then(|table| self.dynamic(&table));
        let servers = self.servers(table, kind);
        Some(Row {
            id: id?,
            kind,
            description,
            ports,
            flows,
            when,
            scope,
            roles,
            tunnelled: tunnelled.unwrap_or(Tunnelled::Closed),
            dynamic,
            servers,
        })
    }

    fn id(&mut self, table: &Table<'_>) -> Option<String> {
        let Some(id) = table.text(self.report, "id") else {
            if table.get("id").is_none() {
                table.report_missing(self.report, "id", "\"syslog\"");
            }
            return None;
        };
        if let Err(mistake) = words::check_name(id.value) {
            self.report.error(id.span, mistake);
            return None;
        }
        let line = self.report.line(table.span.start);
        if let Some(before) = self.lines.insert(id.value.to_owned(), line) {
            let mistake = Mistake::new(format!("the id {} is taken by the row of line {before}", quoted(id.value)))
                .expected("every id once");
            self.report.error(id.span, mistake);
            return None;
        }
        Some(id.value.to_owned())
    }

    fn ports(&mut self, table: &Table<'_>, key: &str) -> Vec<Ports> {
        let Some(list) = table.list(self.report, key) else { return Vec::new() };
        let mut ports = Vec::new();
        for word in texts(self.report, &list) {
            match words::ports(word.value) {
                Ok(port) if ports.contains(&port) => {
                    let mistake = Mistake::new(format!("{} is listed twice", quoted(word.value)));
                    self.report.error(word.span, mistake);
                }
                Ok(port) => ports.push(port),
                Err(mistake) => self.report.error(word.span, mistake),
            }
        }
        ports
    }

    fn flows(&mut self, table: &Table<'_>, kind: RowKind) -> Vec<Flow> {
        let Some(list) = table.list(self.report, "flows") else { return Vec::new() };
        let mut flows = Vec::new();
        for word in texts(self.report, &list) {
            match self.flow(word.value, kind) {
                Ok(flow) => flows.push(flow),
                Err(mistake) => self.report.error(word.span, mistake),
            }
        }
        flows
    }

    fn flow(&self, word: &str, kind: RowKind) -> Result<Flow, Mistake> {
        let (from, to, both) = match (word.split_once(" <-> "), word.split_once(" -> ")) {
            (Some((from, to)), _) => (from, to, true),
            (None, Some((from, to))) => (from, to, false),
            (None, None) => {
                return Err(Mistake::new(format!("{} is not a flow", quoted(word)))
                    .expected("two groups with an arrow: `console -> app-host` or `console <-> managed-host`"));
            }
        };
        Ok(Flow { from: self.group(from, kind)?, to: self.group(to, kind)?, both })
    }

    fn group(&self, word: &str, kind: RowKind) -> Result<Group, Mistake> {
        if word == "public-server" && kind == RowKind::PublicServer {
            return Ok(Group::PublicServer);
        }
        self.catalogue.group(word).ok_or_else(|| {
            Mistake::new(format!("unknown group {}", quoted(word)))
                .expected(format!("one of: {}", listed(self.catalogue.group_names())))
                .suggest(word, self.catalogue.group_names())
        })
    }

    fn roles(&mut self, table: &Table<'_>, scope: Scope) -> Vec<String> {
        let Some(list) = table.list(self.report, "roles") else { return Vec::new() };
        if scope == Scope::Network {
            let mistake = Mistake::new("`roles` only says where an internal port is used")
                .expected("it beside `scope = \"internal\"`")
                .help("who may talk to whom is said by `flows`");
            self.report.error(list.span.clone(), mistake);
        }
        let mut roles = Vec::new();
        for word in texts(self.report, &list) {
            if self.catalogue.roles.iter().any(|role| role == word.value) {
                roles.push(word.value.to_owned());
            } else {
                let known = || self.catalogue.roles.iter().map(String::as_str);
                let mistake = Mistake::new(format!("unknown role {}", quoted(word.value)))
                    .expected(format!("a role: {}", listed(known())))
                    .suggest(word.value, known());
                self.report.error(word.span, mistake);
            }
        }
        roles
    }

    fn conditions(&mut self, table: &Table<'_>) -> Vec<Condition> {
        let Some(list) = table.list(self.report, "when") else { return Vec::new() };
        let mut conditions = Vec::new();
        for word in texts(self.report, &list) {
            match self.condition(word.value) {
                Ok(condition) => conditions.push(condition),
                Err(mistake) => self.report.error(word.span, mistake),
            }
        }
        conditions
    }

    fn condition(&self, word: &str) -> Result<Condition, Mistake> {
        if word == ENCRYPTED_APP_HOST {
            return Ok(Condition::EncryptedAppHost);
        }
        if let Some(version) = word.strip_prefix("version < ") {
            let version: Version =
                version.parse().map_err(|error| Mistake::new(format!("{}: {error}", quoted(word))))?;
            if !self.catalogue.knows_version(&version) {
                return Err(Mistake::new(format!("unknown version {}", quoted(version.as_str())))
                    .expected(format!("one of: {}", listed(self.catalogue.versions.iter().map(Version::as_str)))));
            }
            return Ok(Condition::VersionBefore(version));
        }
        let (feature, negated) = word.strip_prefix("not ").map_or((word, false), |feature| (feature, true));
        if !self.catalogue.features.iter().any(|known| known == feature) {
            let known = || self.catalogue.features.iter().map(String::as_str);
            return Err(Mistake::new(format!("unknown condition {}", quoted(word)))
                .expected(format!(
                    "a feature ({}), `not` and a feature, `version < X`, or `{ENCRYPTED_APP_HOST}`",
                    listed(known())
                ))
                .suggest(feature, known().chain([ENCRYPTED_APP_HOST])));
        }
        let feature = feature.to_owned();
        Ok(if negated { Condition::NotFeature(feature) } else { Condition::Feature(feature) })
    }

    fn dynamic(&mut self, table: &Table<'_>) -> Option<Dynamic> {
        table.check_keys(self.report, "[row.dynamic]", &DYNAMIC_KEYS);
        if table.get("tracker").is_none() {
            table.report_missing(self.report, "tracker", "\"process\"");
        }
        let tracker = dynamic::read::tracker(self.report, table)?;
        Keys::report_missing(self.report, table, tracker);
        if table.get("limit").is_none() {
            table.report_missing(self.report, "limit", "4");
        }
        let Keys { anchor, programs, process, ports, limit } = Keys::read(self.report, table, tracker);
        let when = self.conditions(table);
        let egress = self.ports(table, "egress");
        let single = |port| Ports::Range(Protocol::Tcp, PortRange { first: port, last: port });
        Some(Dynamic {
            tracker,
            anchor: anchor.map(single),
            programs: programs.unwrap_or_default(),
            process: process?,
            ports: ports?,
            limit: limit?,
            when,
            egress,
        })
    }

    fn servers(&mut self, table: &Table<'_>, kind: RowKind) -> Vec<Server> {
        if kind != RowKind::PublicServer {
            return Vec::new();
        }
        let list = table.list(self.report, "hosts");
        let mut servers = Vec::new();
        let words = list.as_ref().map(|list| texts(self.report, list)).unwrap_or_default();
        for word in words {
            match server(word.value) {
                Ok(server) => servers.push(server),
                Err(mistake) => self.report.error(word.span, mistake),
            }
        }
        if list.is_none_or(|list| list.value.is_empty()) {
            table.report_missing(self.report, "hosts", "[\"download.example.net\"]");
        }
        servers
    }
}

/// Reads a list of names of which none may stand twice or be taken otherwise.
fn names(report: &mut Report<'_>, table: &Table<'_>, key: &str, taken: &[&str]) -> Vec<String> {
    let Some(list) = table.list(report, key) else {
        if table.get(key).is_none() {
            table.report_missing(report, key, "[...]");
        }
        return Vec::new();
    };
    let mut names: Vec<String> = Vec::new();
    for word in texts(report, &list) {
        if let Err(mistake) = words::check_name(word.value) {
            report.error(word.span, mistake);
        } else if taken.contains(&word.value) || names.iter().any(|name| name == word.value) {
            let mistake = Mistake::new(format!("the name {} is taken", quoted(word.value))).expected("every name once");
            report.error(word.span, mistake);
        } else {
            names.push(word.value.to_owned());
        }
    }
    names
}

fn server(word: &str) -> Result<Server, Mistake> {
    if let Ok(network) = words::network(word) {
        return match network.warning {
            Some(mistake) => Err(mistake),
            None => Ok(Server::Address(network.network)),
        };
    }
    // RFC 1123, section 2.1: labels of letters, digits and hyphens; the last label of a name is never all digits.
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    if word.len() <= 253 && word.split('.').all(label) && !word.rsplit('.').next().is_none_or(numeric) {
        return Ok(Server::Name(word.to_ascii_lowercase()));
    }
    Err(Mistake::new(format!("{} is neither an address nor a DNS name", quoted(word)))
        .expected("a server such as `download.example.net` or `192.0.2.5`"))
}
