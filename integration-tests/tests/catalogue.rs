//! The catalogue against the fixture that states what the vendor's page says, row by row and in both directions: an
//! extra row, a missing one and any difference within one fails, on either side.
#![forbid(unsafe_code)]

use portward::policy::{Catalogue, Condition, Flow, Row, RowKind, Scope, Tracker, Tunnelled};
use std::collections::BTreeMap;
use toml::{Table, Value};

const FIXTURE: &str = include_str!("../fixtures/port-matrix.toml");

/// How the fixture words the one condition that is neither a feature nor a version.
const ENCRYPTED_APP_HOST: &str = "an app-host with an encrypted link is in the deployment";

/// What both sides say of a row, each word as the fixture spells it.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    ports: Vec<String>,
    flows: Vec<String>,
    when: Vec<String>,
    scope: String,
    tunnelled: String,
    roles: Vec<String>,
    dynamic: Option<String>,
    servers: Vec<String>,
}

fn fixture() -> Table {
    FIXTURE.parse().expect("the fixture is TOML")
}

fn words(row: &Table, key: &str) -> Vec<String> {
    let Some(value) = row.get(key) else { return Vec::new() };
    let words = value.as_array().unwrap_or_else(|| panic!("`{key}` is an array: {row}"));
    words.iter().map(|word| word.as_str().expect("a string").to_owned()).collect()
}

fn word<'r>(row: &'r Table, key: &str) -> Option<&'r str> {
    row.get(key).map(|value| value.as_str().unwrap_or_else(|| panic!("`{key}` is a string: {row}")))
}

/// The rows of one list of the fixture.
fn stated(list: &str) -> BTreeMap<String, Said> {
    let fixture = fixture();
    let rows = fixture[list].as_array().expect("a list of rows");
    let said: BTreeMap<String, Said> = rows
        .iter()
        .map(|row| {
            let row = row.as_table().expect("a row is a table");
            let known = ["id", "hosts", "ports", "flows", "scope", "roles", "when", "tunnelled", "dynamic", "reading"];
            for key in row.keys() {
                assert!(known.contains(&key.as_str()), "`{key}` of the fixture is not compared");
            }
            let said = Said {
                ports: match word(row, "ports").expect("every row has ports") {
                    "icmp echo" => vec!["echo/icmp".to_owned()],
                    ports => ports.split(' ').map(str::to_owned).collect(),
                },
                flows: words(row, "flows"),
                when: words(row, "when"),
                scope: word(row, "scope").unwrap_or("network").to_owned(),
                tunnelled: word(row, "tunnelled").unwrap_or("closed").to_owned(),
                roles: words(row, "roles"),
                dynamic: word(row, "dynamic").map(tracker),
                servers: words(row, "hosts"),
            };
            (word(row, "id").expect("every row has an id").to_owned(), said)
        })
        .collect();
    assert_eq!(said.len(), rows.len(), "an id of the fixture stands twice");
    said
}

/// The tracker that the words of the fixture begin with; without one, they are about the owner of the row's port.
fn tracker(words: &str) -> String {
    let named = words.split_once(':').map(|(name, _)| name).filter(|name| ["imq", "rpc", "rmi"].contains(name));
    named.unwrap_or("process").to_owned()
}

/// The rows of one kind of the catalogue.
fn catalogued(kind: RowKind) -> BTreeMap<String, Said> {
    let rows = Catalogue::embedded().rows.iter().filter(|row| row.kind == kind);
    rows.map(|row| (row.id.clone(), said(row))).collect()
}

fn said(row: &Row) -> Said {
    let condition = |condition: &Condition| match condition {
        Condition::EncryptedAppHost => ENCRYPTED_APP_HOST.to_owned(),
        other => other.to_string(),
    };
    Said {
        ports: row.ports.iter().map(ToString::to_string).collect(),
        flows: row.flows.iter().map(Flow::to_string).collect(),
        when: row.when.iter().map(condition).collect(),
        scope: match row.scope {
            Scope::Network => "network".to_owned(),
            Scope::Internal => "internal".to_owned(),
        },
        tunnelled: match row.tunnelled {
            Tunnelled::Closed => "closed".to_owned(),
            Tunnelled::Kept => "kept".to_owned(),
            Tunnelled::Only => "only".to_owned(),
        },
        roles: row.roles.clone(),
        dynamic: row.dynamic.as_ref().map(|dynamic| dynamic.tracker.name().to_owned()),
        servers: row.servers.iter().map(ToString::to_string).collect(),
    }
}

fn compare(list: &str, kind: RowKind, count: usize) {
    let (stated, catalogued) = (stated(list), catalogued(kind));
    assert_eq!(stated.len(), count);
    for (id, said) in &stated {
        assert_eq!(catalogued.get(id), Some(said), "{id}: the catalogue on the left, the fixture on the right");
    }
    let ids = |rows: &BTreeMap<String, Said>| rows.keys().cloned().collect::<Vec<_>>();
    assert_eq!(ids(&catalogued), ids(&stated));
}

#[test]
fn every_row_of_the_vendors_table_of_ports() {
    compare("row", RowKind::Port, 67);
}

#[test]
fn every_row_of_the_vendors_table_of_public_servers() {
    compare("public-server", RowKind::PublicServer, 3);
}

#[test]
fn the_vocabulary() {
    let fixture = fixture();
    let groups = fixture["groups"].as_table().expect("a table");
    let catalogue = Catalogue::embedded();
    assert_eq!(catalogue.roles, words(groups, "appliance"));
    assert_eq!(catalogue.external, words(groups, "external"));
    let conditions = fixture["conditions"].as_table().expect("a table");
    let mut features: Vec<&str> = catalogue.features.iter().map(String::as_str).collect();
    // `encrypted` is said of a host, and versions are no features.
    features.extend(["encrypted", "version < X"]);
    features.sort_unstable();
    assert_eq!(features, conditions.keys().map(String::as_str).collect::<Vec<_>>());
    let order = conditions["version < X"].as_str().map(|order| order.split(" < ").collect::<Vec<_>>());
    assert_eq!(Some(catalogue.versions.iter().map(|version| version.as_str()).collect()), order);
    assert!(catalogue.versions.is_sorted());
}

/// What the vendor's page takes for granted is no row of the fixture; the names it uses are.
#[test]
fn the_base_rows_open_name_resolution_and_nothing_else() {
    let base = catalogued(RowKind::Base);
    assert_eq!(base.keys().collect::<Vec<_>>(), ["dns"]);
    let dns = &base["dns"];
    assert_eq!((dns.ports.join(" "), dns.flows.join(" ")), ("53/tcp 53/udp".into(), "appliance -> dns-server".into()));
}

/// The bounds of dynamic ports are the catalogue's own; the page gives some of them.
#[test]
fn dynamic_ports_are_bounded_as_the_page_says() {
    let dynamic: BTreeMap<&str, _> =
        Catalogue::embedded().rows.iter().filter_map(|row| Some((row.id.as_str(), row.dynamic.as_ref()?))).collect();
    let imq = dynamic["imq"];
    assert_eq!((imq.tracker, imq.limit, imq.ports[0].to_string()), (Tracker::Imq, 8, "32000-65535/tcp".to_owned()));
    let rpc = dynamic["rpc-portmapper"];
    assert_eq!((&rpc.programs[..], &rpc.when[..]), (&[100_005, 100_011][..], &[Condition::Feature("nfs".into())][..]));
    let dcom = dynamic["dcom"];
    assert_eq!(dcom.egress.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1024-65535/tcp"]);
    let anchors: Vec<_> = dynamic.values().map(|dynamic| dynamic.anchor.map(|anchor| anchor.to_string())).collect();
    let tcp = |port: u16| Some(format!("{port}/tcp"));
    assert_eq!(anchors, [tcp(135), tcp(7676), tcp(9913), None]);
}

/// A fixture that says nothing would agree with a catalogue that says nothing.
#[test]
fn the_fixture_says_something() {
    let rows = stated("row");
    assert_eq!(rows["ssh"].flows.len(), 6);
    assert_eq!(rows["ha-ping"].ports, ["echo/icmp"]);
    assert!(fixture()["row"].as_array().is_some_and(|rows| rows.iter().all(Value::is_table)));
}
