//! The portmapper's answer, and the ports that it claims.

use super::super::claim::{Claims, Refusal};
use super::super::exchange::beginning;
use super::super::stub::{Endpoint, endpoints};
use super::super::text::{harmless, shown, shown_bytes};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The type of the portmapper's own entry.
const PORTMAPPER: &str = "PORTMAPPER";
/// The property that holds the URL of a JMX connector.
const URL: &str = "url";
/// What precedes a serialized stub in such a URL (`javax.management.remote.rmi.RMIConnector`).
const STUB: &str = "/stub/";

/// The table of a broker. Its texts hold no characters that a terminal obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortTable {
    /// The name of the broker, such as `imqbroker`.
    pub instance: String,
    /// The version of the broker, such as `4.4 Update 1`.
    pub version: String,
    /// Its services in the order of the table.
    pub services: Vec<Service>,
    /// Whether the table was answered to its end. One that was cut off lacks services; those that it names are whole.
    pub complete: bool,
}

/// A service of a broker: one line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, such as `jms`.
    pub name: String,
    /// How it is spoken with, such as `tcp`, `tls` or `rmi`.
    pub protocol: String,
    /// What it is for, such as `NORMAL`, `ADMIN` or `JMX`.
    pub kind: String,
    /// Its TCP port; 0 when it has none, or when the port is in the property `url`.
    pub port: u16,
    /// What else the broker says of it.
    pub properties: BTreeMap<String, String>,
}

/// Why an answer is no table of ports.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The first line is not that of a table.
    #[error("expected `101 INSTANCE VERSION`, but the answer begins with `{0}`")]
    NoTable(String),
    /// The answer ended before the first line did.
    #[error("the answer ended within its first line")]
    Cut,
    /// A line is not that of a service.
    #[error("line {line}: expected `NAME PROTOCOL TYPE PORT [PROPERTIES]`, not `{text}`")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

/// Reads the portmapper's answer. A last line without its line feed is left out: half a port number is another port.
///
/// # Errors
/// When the answer is not a table, or not even one that was cut off.
pub fn parse(answer: &[u8]) -> Result<PortTable, Malformed> {
    let mut lines = answer.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n"));
    let first = lines.next().flatten();
    let (instance, version) = match first.map(read_heading) {
        Some(Some(heading)) => heading,
        Some(None) => return Err(Malformed::NoTable(beginning(answer))),
        None if b"101 ".starts_with(answer) || answer.starts_with(b"101 ") => return Err(Malformed::Cut),
        None => return Err(Malformed::NoTable(beginning(answer))),
    };
    let mut table = PortTable { instance, version, services: Vec::new(), complete: false };
    // A line that is not whole can only be the last.
    for (index, line) in lines.flatten().enumerate() {
        if line == b"." {
            table.complete = true;
            break;
        }
        let service = read_service(line);
        table.services.push(service.ok_or_else(|| Malformed::Line { line: index + 2, text: shown_bytes(line) })?);
    }
    Ok(table)
}

fn read_heading(line: &[u8]) -> Option<(String, String)> {
    let line = std::str::from_utf8(line).ok()?;
    let (instance, version) = line.strip_prefix("101 ")?.split_once(' ')?;
    let named = !instance.is_empty() && !version.is_empty();
    named.then(|| (harmless(instance), harmless(version)))
}

fn read_service(line: &[u8]) -> Option<Service> {
    // A property may hold a path in the broker's own encoding.
    let line = String::from_utf8_lossy(line);
    let mut words = line.splitn(5, ' ');
    let mut word = || words.next().filter(|word| !word.is_empty());
    let (name, protocol, kind, port) = (word()?, word()?, word()?, word()?);
    let properties = match words.next() {
        Some(list) => read_properties(list.strip_prefix('[')?.strip_suffix(']')?),
        None => BTreeMap::new(),
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    Some(Service {
        name: harmless(name),
        protocol: harmless(protocol),
        kind: harmless(kind),
        port: port.parse().ok().filter(|_| digits)?,
        properties,
    })
}

fn read_properties(list: &str) -> BTreeMap<String, String> {
    let mut properties: Vec<(String, String)> = Vec::new();
    for property in list.split(',').filter(|property| !property.is_empty()) {
        match (property.split_once('='), properties.last_mut()) {
            (Some((key, value)), _) => properties.push((harmless(key), harmless(value))),
            // The broker does not escape commas, so one may be within a value.
            (None, Some((_, value))) => value.extend([",", &harmless(property)]),
            (None, None) => {}
        }
    }
    properties.into_iter().collect()
}

/// The ports that a broker claims: those of its table, and the one within the stub of its JMX connector. The portmapper's
/// own, by which it was asked, is not among them, even when other services share it (port unification).
pub fn claims(table: &PortTable) -> Claims {
    let is_portmapper = |service: &&Service| service.kind == PORTMAPPER;
    let own: BTreeSet<u16> = table.services.iter().filter(is_portmapper).map(|service| service.port).collect();
    let shares = |service: &Service| service.port != 0 && own.contains(&service.port);
    let mut claims = Claims::default();
    for service in table.services.iter().filter(|service| !is_portmapper(service) && !shares(service)) {
        let what = shown(&service.name);
        match service.properties.get(URL).filter(|_| service.port == 0) {
            None => claims.add_tcp(service.port, what),
            Some(url) => match stub_endpoints(url) {
                endpoints if endpoints.is_empty() => claims.refuse(what, None, Refusal::NoStub("its URL")),
                endpoints => endpoints.iter().for_each(|endpoint| claims.add_tcp(endpoint.port, what.clone())),
            },
        }
    }
    claims
}

/// The endpoints in the stub that a JMX URL carries, such as `service:jmx:rmi://host/stub/rO0AB...`; none when it carries
/// none, as a URL that names a registry.
fn stub_endpoints(url: &str) -> Vec<Endpoint> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let encoded = url.split_once(STUB).map(|(_, rest)| rest.split(';').next().unwrap_or_default());
    encoded.and_then(|encoded| BASE64.decode(encoded).ok()).map(|stub| endpoints(&stub)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::claim::{Claim, Refused};
    use super::*;
    use crate::ruleset::Protocol;
    use proptest::prelude::*;

    /// The answer of a broker; the URL is that of a JMX connector of JDK 17, whose port is 37723.
    const TABLE: &str = "\
101 imqbroker 301
portmapper tcp PORTMAPPER 7676 [sessionid=5391831323872154368,imqhome=/x,imqvarhome=/x/var]
cluster_discovery tcp CLUSTER_DISCOVERY 44913
jmxrmi rmi JMX 0 [url=service:jmx:rmi://10.9.9.1/stub/rO0ABXNyAC5qYXZheC5tYW5hZ2VtZW50LnJlbW90ZS5ybWkuUk1JU2VydmVySW1\
wbF9TdHViAAAAAAAAAAICAAB4cgAaamF2YS5ybWkuc2VydmVyLlJlbW90ZVN0dWLp/tzJi+FlGgIAAHhyABxqYXZhLnJtaS5zZXJ2ZXIuUmVtb3RlT2JqZ\
WN002G0kQxhMx4DAAB4cHcxAApVbmljYXN0UmVmAAgxMC45LjkuMQAAk1ufMkFiS+sw0tOBbUIAAAGiDm2VKIABAHg=]
admin tcp ADMIN 42615 [hostname=10.9.9.1]
jms tcp NORMAL 7677 [hostname=10.9.9.1]
cluster tcp CLUSTER 37079 [hostname=10.9.9.1,hostaddr=10.9.9.1]
.
";

    fn claimed(table: &PortTable) -> Vec<(u16, String)> {
        claims(table).claims.into_iter().map(|claim| (claim.port, claim.what)).collect()
    }

    #[test]
    fn the_table_of_a_broker() {
        let table = parse(TABLE.as_bytes()).unwrap();
        assert_eq!((table.instance.as_str(), table.version.as_str(), table.complete), ("imqbroker", "301", true));
        let names: Vec<_> = table.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["portmapper", "cluster_discovery", "jmxrmi", "admin", "jms", "cluster"]);
        let cluster = &table.services[5];
        assert_eq!((cluster.protocol.as_str(), cluster.kind.as_str(), cluster.port), ("tcp", "CLUSTER", 37079));
        assert_eq!(cluster.properties["hostaddr"], "10.9.9.1");
        assert_eq!(table.services[0].properties["imqvarhome"], "/x/var");
        let ports =
            [(44913, "cluster_discovery"), (37723, "jmxrmi"), (42615, "admin"), (7677, "jms"), (37079, "cluster")];
        assert_eq!(claimed(&table), ports.map(|(port, what)| (port, what.to_owned())));
        assert_eq!(claims(&table).refused, []);
        assert!(claims(&table).claims.iter().all(|claim| claim.protocol == Protocol::Tcp));
    }

    #[test]
    fn a_version_with_spaces_and_values_with_what_separates() {
        let table =
            parse(b"101 imqbroker 4.4 Update 1\na tls NORMAL 1 [x=/a,b=c:d=e,y=f,g,z=[h],]\nb tcp ADMIN 2 []\n.\n");
        let table = table.unwrap();
        assert_eq!(table.version, "4.4 Update 1");
        let properties = [("b", "c:d=e"), ("x", "/a"), ("y", "f,g"), ("z", "[h]")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(table.services[0].properties, properties.into());
        assert_eq!(table.services[1].properties, BTreeMap::new());
        assert_eq!(claimed(&table), [(1, "a".to_owned()), (2, "b".to_owned())]);
    }

    #[test]
    fn a_table_that_was_cut_holds_whole_lines_only() {
        let table = parse(b"101 imqbroker 301\njms tcp NORMAL 7677\nadmin tcp ADMIN 426").unwrap();
        assert!(!table.complete);
        assert_eq!(claimed(&table), [(7677, "jms".to_owned())]);
        assert!(!parse(b"101 imqbroker 301\njms tcp NORMAL 7677\n.").unwrap().complete);
        for cut in ["", "1", "101", "101 imqbroker 301"] {
            assert_eq!(parse(cut.as_bytes()), Err(Malformed::Cut), "{cut}");
        }
        // A broker that starts.
        let table = parse(b"101 imqbroker 301\nportmapper tcp PORTMAPPER 7676\n.\n").unwrap();
        assert!(table.complete);
        assert_eq!(claims(&table), Claims::default());
    }

    #[test]
    fn a_port_shared_with_the_portmapper_is_not_claimed() {
        let table = parse(b"101 b 1\njms tcp NORMAL 7676\nportmapper tcp PORTMAPPER 7676\nadmin tcp ADMIN 7677\n.\n");
        let found = claims(&table.unwrap());
        let admin = Claim { protocol: Protocol::Tcp, port: 7677, what: "admin".to_owned() };
        assert_eq!(found, Claims { claims: vec![admin], refused: Vec::new() });
    }

    #[test]
    fn what_has_no_port_is_refused_with_the_reason() {
        let table = parse(
            b"101 imqbroker 301\nadmin tcp ADMIN 0 [hostname=h]\njmxrmi rmi JMX 0 [url=service:jmx:rmi://h/stub/!]\n\
              other rmi JMX 0 [url=service:jmx:rmi://h/jndi/rmi://h:1099/h/7676/jmxrmi]\nssl rmi JMX 0\n.\n",
        );
        let refused = |what: &str, why| Refused { what: what.to_owned(), port: None, why };
        let expected = Claims {
            claims: Vec::<Claim>::new(),
            refused: vec![
                refused("admin", Refusal::NoPort),
                refused("jmxrmi", Refusal::NoStub("its URL")),
                refused("other", Refusal::NoStub("its URL")),
                refused("ssl", Refusal::NoPort),
            ],
        };
        assert_eq!(claims(&table.unwrap()), expected);
    }

    #[test]
    fn what_is_no_table_is_named() {
        for (answer, message) in [
            ("HTTP/1.1 400\r\n\r\n", "expected `101 INSTANCE VERSION`, but the answer begins with `HTTP/1.1 400\\r`"),
            ("102 imqbroker 301\n", "expected `101 INSTANCE VERSION`, but the answer begins with `102 imqbroker 301`"),
            ("101 imqbroker\n", "expected `101 INSTANCE VERSION`, but the answer begins with `101 imqbroker`"),
            ("101 a b\njms tcp\n", "line 2: expected `NAME PROTOCOL TYPE PORT [PROPERTIES]`, not `jms tcp`"),
            ("101 a b\nc d e 65536\n", "line 2: expected `NAME PROTOCOL TYPE PORT [PROPERTIES]`, not `c d e 65536`"),
            ("101 a b\nc d e +1\n", "line 2: expected `NAME PROTOCOL TYPE PORT [PROPERTIES]`, not `c d e +1`"),
            (
                "101 a b\nc d e 1\nc d e 1 [\x1b\n",
                "line 3: expected `NAME PROTOCOL TYPE PORT [PROPERTIES]`, not `c d e 1 [\\u{1b}`",
            ),
        ] {
            assert_eq!(parse(answer.as_bytes()).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes);
            if let Ok(table) = parse(&[b"101 a b\n", bytes.as_slice()].concat()) {
                let _ = claims(&table);
            }
        }

        #[test]
        fn a_cut_table_claims_nothing_that_the_whole_does_not(length in 0..TABLE.len()) {
            let whole = claimed(&parse(TABLE.as_bytes()).unwrap());
            if let Ok(table) = parse(&TABLE.as_bytes()[..length]) {
                prop_assert!(!table.complete);
                prop_assert!(whole.starts_with(&claimed(&table)));
            }
        }

        #[test]
        fn a_changed_byte_is_no_panic_and_its_text_is_harmless(place in 0..TABLE.len(), byte in any::<u8>()) {
            let mut answer = TABLE.as_bytes().to_vec();
            answer[place] = byte;
            if let Ok(table) = parse(&answer) {
                let found = claims(&table);
                prop_assert!(found.claims.iter().all(|claim| claim.port != 0));
                for service in &table.services {
                    let properties = service.properties.iter().flat_map(|(key, value)| [key, value]);
                    for text in [&service.name, &service.protocol, &service.kind].into_iter().chain(properties) {
                        prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
                    }
                }
                for text in [table.instance, table.version].iter().chain(found.claims.iter().map(|claim| &claim.what)) {
                    prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
                }
            }
        }
    }
}
