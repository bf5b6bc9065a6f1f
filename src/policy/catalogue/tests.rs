use super::*;

/// The smallest catalogue there is; what a test adds begins on line 6.
const VOCABULARY: &str = "features = ['nfs']
versions = ['7.3.0', '7.5.0']
[groups]
roles = ['console', 'app-host']
external = ['user']
";

const ROW: &str = "[[row]]
id = 'web'
description = 'Web'
ports = ['443/tcp']
flows = ['user -> console']
";

fn told(text: &str) -> Vec<String> {
    let errors = match Catalogue::parse(text, "catalogue.toml") {
        Ok(_) => Diagnostics::default(),
        Err(errors) => errors,
    };
    errors.iter().map(|error| format!("{}:{}: {}", error.line, error.column, error.message)).collect()
}

#[track_caller]
fn check(row: &str, expected: &[&str]) {
    assert_eq!(told(&format!("{VOCABULARY}{row}")), expected, "{row}");
}

#[test]
fn the_embedded_catalogue_is_complete() {
    let catalogue = Catalogue::parse(EMBEDDED, "jsa.toml").unwrap_or_else(|wrong| panic!("{wrong}"));
    let count = |kind| catalogue.rows.iter().filter(|row| row.kind == kind).count();
    assert_eq!((count(RowKind::Port), count(RowKind::PublicServer), count(RowKind::Base)), (67, 3, 1));
    assert_eq!(Catalogue::embedded(), &catalogue);
}

#[test]
fn a_row_is_read_with_all_it_says() {
    let catalogue = Catalogue::embedded();
    let imq = catalogue.row("imq").unwrap();
    let dynamic = imq.dynamic.as_ref().unwrap();
    assert_eq!(imq.flows[0].to_string(), "console -> managed-host");
    assert_eq!((dynamic.tracker, dynamic.limit), (Tracker::Imq, 8));
    assert_eq!(dynamic.anchor.unwrap().to_string(), "7676/tcp");
    assert_eq!(dynamic.ports[0].to_string(), "32000-65535/tcp");
    let tomcat = catalogue.row("vulnerability-tomcat").unwrap();
    let when: Vec<String> = tomcat.when.iter().map(Condition::to_string).collect();
    assert_eq!(when, ["vulnerability-manager", "version < 7.5.0-up6"]);
    assert_eq!(catalogue.row("traefik-encrypted").unwrap().when, [Condition::EncryptedAppHost]);
    let scanner = catalogue.row("dmz-scanner").unwrap();
    assert_eq!(scanner.servers.iter().map(Server::to_string).collect::<Vec<_>>(), ["194.153.113.31", "194.153.113.32"]);
    assert_eq!(catalogue.row("dns").unwrap().flows[0].to.to_string(), "dns-server");
}

#[test]
fn a_small_catalogue_will_do() {
    check(ROW, &[]);
    check("", &[]);
}

#[test]
fn the_vocabulary_is_checked() {
    let changed = |from: &str, to: &str| told(&VOCABULARY.replace(from, to));
    assert_eq!(changed("'user'", "'user', 'user'"), ["5:21: the name `user` is taken"]);
    assert_eq!(changed("'user'", "'console'"), ["5:13: the name `console` is taken"]);
    assert_eq!(changed("'user'", "'appliance'"), ["5:13: the name `appliance` is taken"]);
    assert_eq!(changed("'user'", "'User'"), ["5:13: `User` cannot be a name"]);
    assert_eq!(changed("'console', ", ""), ["3:1: the role `console` is missing"]);
    assert_eq!(changed("'7.3.0', '7.5.0'", ""), ["1:1: `versions` is missing"]);
    assert!(changed("7.3.0", "7")[0].starts_with("2:13: not a version"));
    assert_eq!(
        told("format = 1"),
        ["1:1: unknown key `format` in a catalogue", "1:1: `groups` is missing", "1:1: `features` is missing",]
    );
}

#[test]
fn rows_are_checked() {
    let changed = |from: &str, to: &str| told(&format!("{VOCABULARY}{}", ROW.replace(from, to)));
    assert_eq!(changed("id = 'web'", "id = 'Web'"), ["7:6: `Web` cannot be a name"]);
    assert_eq!(changed("id = 'web'\n", ""), ["6:1: `id` is missing"]);
    assert_eq!(changed("description = 'Web'\n", ""), ["6:1: `description` is missing"]);
    assert_eq!(changed("['443/tcp']", "[]"), ["6:1: `ports` is missing"]);
    assert_eq!(
        changed("443/tcp", "0/tcp"),
        ["6:1: `ports` is missing", "9:10: `0/tcp`: port 0 does not exist; ports are 1 to 65535"]
    );
    assert_eq!(changed("user ->", "user >"), ["6:1: `flows` is missing", "10:10: `user > console` is not a flow"]);
    assert_eq!(changed("user ->", "usr ->"), ["6:1: `flows` is missing", "10:10: unknown group `usr`"]);
    assert_eq!(
        changed("user ->", "public-server ->"),
        ["6:1: `flows` is missing", "10:10: unknown group `public-server`"]
    );
    assert_eq!(changed("flows =", "scope = 'internal'\nflows ="), ["6:1: a row of scope `internal` has flows"]);
    assert_eq!(
        changed("flows =", "roles = ['console']\nflows ="),
        ["10:9: `roles` only says where an internal port is used"]
    );
    assert_eq!(changed("flows =", "when = ['rdp']\nflows ="), ["10:9: unknown condition `rdp`"]);
    assert_eq!(changed("flows =", "when = ['version < 8.0']\nflows ="), ["10:9: unknown version `8.0`"]);
    assert_eq!(changed("flows =", "tunneled = 'kept'\nflows ="), ["10:1: unknown key `tunneled` in [[row]]"]);
    assert_eq!(told(&format!("{VOCABULARY}{ROW}{ROW}")), ["12:6: the id `web` is taken by the row of line 6"]);
    check(&ROW.replace("[[row]]", "[[public-server]]"), &["6:1: `hosts` is missing"]);
    check(
        &ROW.replace("[[row]]", "[[public-server]]\nhosts = ['a b', '192.0.2.1/24', '1.2.3']"),
        &[
            "7:10: `a b` is neither an address nor a DNS name",
            "7:17: `192.0.2.1/24` has bits set beyond its prefix; it is read as 192.0.2.0/24",
            "7:33: `1.2.3` is neither an address nor a DNS name",
        ],
    );
}

#[test]
fn dynamic_ports_are_checked() {
    let dynamic = |keys: &str, expected: &[&str]| check(&format!("{ROW}[row.dynamic]\n{keys}"), expected);
    let root = "process = { user = 'root' }\nports = ['9/tcp']\nlimit = 1\n";
    dynamic(&format!("tracker = 'rmi'\nanchor = '9/tcp'\n{root}"), &[]);
    dynamic(&format!("tracker = 'rpc'\nprograms = [5]\n{root}"), &[]);
    dynamic("", &["11:1: `tracker` is missing"]);
    dynamic(
        "tracker = 'rmi'\n",
        &[
            "11:1: `anchor` is missing",
            "11:1: `process` is missing",
            "11:1: `ports` is missing",
            "11:1: `limit` is missing",
        ],
    );
    let anchor = |anchor: &str, expected: &[&str]| {
        dynamic(&format!("tracker = 'process'\nanchor = '{anchor}'\n{root}"), expected);
    };
    anchor("9/udp", &["13:10: `9/udp` cannot be an anchor"]);
    anchor("8-9/tcp", &["13:10: `8-9/tcp` cannot be an anchor"]);
    dynamic(
        "tracker = 'rpc'\nanchor = '9/tcp'\nprocess = { args = ['x'] }\nports = ['echo/icmp']\nlimit = 1025\nenabled = true\n",
        &[
            "11:1: `programs` is missing",
            "13:10: the tracker `rpc` has no anchor",
            "14:11: `process` names neither `user` nor `unit`",
            "15:10: `echo/icmp` is nothing that a process listens on",
            "16:9: the number is out of range",
            "17:1: unknown key `enabled` in [row.dynamic]",
        ],
    );
}
