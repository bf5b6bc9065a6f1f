mod dynamic;

use super::*;
use crate::policy::{Exposure, Severity};
use proptest::prelude::*;
use std::fmt::Write as _;

/// The smallest policy there is; what a test adds begins on line 6.
const CONSOLE: &str = "format = 1
[[host]]
name = \"console\"
addresses = [\"192.0.2.10\"]
roles = [\"console\"]
";

fn parse(text: &str) -> Result<Loaded, Diagnostics> {
    Policy::parse(text, "policy.toml", Catalogue::embedded())
}

/// A policy that must be right.
#[track_caller]
fn policy(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// What is told about the text, in short: place, message, and the remedy after a bar.
#[track_caller]
fn told(text: &str) -> Vec<String> {
    let diagnostics = match parse(text) {
        Ok(loaded) => loaded.warnings,
        Err(errors) => errors,
    };
    diagnostics
        .iter()
        .map(|diagnostic| {
            let mut line = format!("{}:{}: ", diagnostic.line, diagnostic.column);
            if diagnostic.severity == Severity::Warning {
                line.push_str("warning: ");
            }
            line.push_str(&diagnostic.message);
            if let Some(help) = &diagnostic.help {
                let _ = write!(line, " | {help}");
            }
            line
        })
        .collect()
}

#[track_caller]
fn check(added: &str, expected: &[&str]) {
    assert_eq!(told(&format!("{CONSOLE}{added}")), expected, "{added}");
}

/// A console and further hosts: name, last byte of the address, peer.
fn hosts(others: &[(&str, u8, &str)]) -> String {
    let mut text = CONSOLE.to_owned();
    for (name, byte, peer) in others {
        let _ =
            write!(text, "[[host]]\nname = \"{name}\"\naddresses = [\"192.0.2.{byte}\"]\nroles = [\"data-node\"]\n");
        if !peer.is_empty() {
            let _ = writeln!(text, "ha-peer = \"{peer}\"");
        }
    }
    text
}

const EVERYTHING: &str = r#"
format = 1
mode = "observe"
egress = "enforce"
deny = "reject"
version = "7.5.0"
features = ["nfs", "fips"]
allow-lockout = true

[log]
to = "nflog"
group = 7
rate = 100
burst = 5

[groups]
admin = ["192.0.2.0/24", "2001:db8::/32"]
log-source = ["0.0.0.0/0", "::/0"]
user = []
flow-source = [
    "198.51.100.9",
    "198.51.100.7",
]

[[host]]
name = "console"
addresses = ["10.0.0.10", "fd00::10"]
roles = ["console"]

[[host]]
name = "ep1"
addresses = ["10.0.0.21"]
roles = ["event-processor", "event-collector"]
encrypted = true
ha-peer = "ep1b"

[[host]]
name = "ep1b"
addresses = ["10.0.0.22"]
roles = ["event-processor"]

[[allow]]
name = "monitoring"
ports = ["echo/icmp", "10050/tcp", "100-200/udp"]
from = ["192.0.2.5", "admin", "2001:db8::/64", "ep1", "managed-host"]
to = ["appliance"]

[row.web-admin]
enabled = false

[row.syslog]
only-from = ["10.0.0.0/8", "fd00::1"]

[dynamic.imq]
enabled = true
anchor = "7676/tcp"
process = { exe = ["/usr/lib/jvm/**/bin/java"], user = "root", unit = "imq.service", args = ["imqbroker"] }
ports = "32000-65535/tcp"
limit = 16

[dynamic.rpc-portmapper]
programs = [100005]

[dynamic.backup]
tracker = "process"
anchor = "9102/tcp"
process = { exe = ["/opt/backup/bin/*"], user = 990, unit = "backup@1.service" }
ports = ["20000-29999/tcp", "20000-29999/udp"]
limit = 2
on-close = "cut"
from = ["192.0.2.5", "managed-host"]
"#;

#[test]
fn every_key_is_read() {
    let Loaded { policy, warnings } = policy(EVERYTHING);
    assert_eq!(warnings.to_string(), "");
    assert_eq!((policy.mode, policy.egress, policy.deny), (Mode::Observe, EgressMode::Enforce, Deny::Reject));
    assert_eq!(policy.logging, Logging { target: Some(LogTarget::Group(7)), per_second: 100, burst: 5 });
    assert_eq!(policy.version.as_str(), "7.5.0");
    assert_eq!(policy.features.iter().collect::<Vec<_>>(), ["fips", "nfs"]);
    assert!(policy.allow_lockout);

    assert_eq!(policy.groups.keys().collect::<Vec<_>>(), ["admin", "flow-source", "log-source"]);
    let sources: Vec<_> = policy.groups["flow-source"].ipv4.iter().map(|m| (m.network.to_string(), m.line)).collect();
    assert_eq!(sources, [("198.51.100.7/32".to_owned(), 22), ("198.51.100.9/32".to_owned(), 21)]);

    let ep1 = &policy.hosts["ep1"];
    assert_eq!(ep1.addresses, ["10.0.0.21".parse::<IpAddr>().unwrap()]);
    assert_eq!(ep1.roles.iter().collect::<Vec<_>>(), ["event-collector", "event-processor"]);
    assert_eq!((ep1.encrypted, ep1.ha_peer.as_deref(), ep1.line), (true, Some("ep1b"), 30));
    assert_eq!(policy.hosts["ep1b"].ha_peer.as_deref(), Some("ep1"), "named on one of the two is enough");

    let allow = &policy.allows["monitoring"];
    assert_eq!(allow.ports.iter().map(Ports::to_string).collect::<Vec<_>>(), ["10050/tcp", "100-200/udp", "echo/icmp"]);
    let from: Vec<String> = allow.from.iter().map(|party| party.kind.to_string()).collect();
    assert_eq!(from, ["managed-host", "admin", "ep1", "192.0.2.5", "2001:db8::/64"]);
    assert_eq!((allow.line, allow.from[0].line), (42, 45));

    assert_eq!((policy.rows["web-admin"].enabled, policy.rows["web-admin"].line), (false, 48));
    let syslog = &policy.rows["syslog"];
    assert!(syslog.enabled);
    assert_eq!(syslog.only_from.as_ref().unwrap().ipv6[0].network.to_string(), "fd00::1/128");

    let lines: Vec<_> = policy.dynamic.iter().map(|(name, service)| (name.as_str(), service.line)).collect();
    let expected =
        [("backup", Some(64)), ("dcom", None), ("imq", Some(54)), ("rmi", None), ("rpc-portmapper", Some(61))];
    assert_eq!(lines, expected);
}

#[test]
fn what_the_file_leaves_out_has_a_default() {
    let policy = policy(CONSOLE).policy;
    assert_eq!((policy.mode, policy.egress, policy.deny), (Mode::Enforce, EgressMode::Off, Deny::Drop));
    assert_eq!(policy.logging, Logging { target: Some(LogTarget::Kernel), per_second: 10, burst: 20 });
    assert_eq!(policy.version.as_str(), "7.5.0-up7");
    assert!(!policy.allow_lockout && policy.features.is_empty() && policy.groups.is_empty() && policy.rows.is_empty());
}

#[test]
fn established_flows_are_kept_unless_the_file_says_otherwise() {
    let on_tighten = |line: &str| policy(&CONSOLE.replacen('\n', &format!("\n{line}\n"), 1)).policy.on_tighten;
    assert_eq!(on_tighten(""), OnTighten::Keep);
    assert_eq!(on_tighten("on-tighten = \"keep\""), OnTighten::Keep);
    assert_eq!(on_tighten("on-tighten = \"cut\""), OnTighten::Cut);
    let wrong = told(&CONSOLE.replacen('\n', "\non-tighten = \"kep\"\n", 1));
    assert_eq!(wrong, ["2:14: unknown on-tighten `kep` | did you mean `keep`?"]);
}

#[test]
fn the_policies_that_come_with_portward_are_without_fault() {
    let examples = [
        ("default", crate::policy::DEFAULT_POLICY),
        ("all-in-one", include_str!("../../../policy/examples/all-in-one.toml")),
        ("distributed", include_str!("../../../policy/examples/distributed.toml")),
        ("ha-pair", include_str!("../../../policy/examples/ha-pair.toml")),
        ("fips", include_str!("../../../policy/examples/fips.toml")),
        ("app-host", include_str!("../../../policy/examples/app-host.toml")),
        ("dual-stack", include_str!("../../../policy/examples/dual-stack.toml")),
    ];
    for (name, text) in examples {
        let loaded = parse(text).unwrap_or_else(|wrong| panic!("{name}\n{wrong}"));
        assert_eq!(loaded.warnings.to_string(), "", "{name}");
    }
}

#[test]
fn an_unknown_role_is_shown_with_the_nearest() {
    let text = CONSOLE.replace("[\"console\"]", "[\"console\", \"event-procesor\"]");
    assert_eq!(
        parse(&text).unwrap_err().to_string(),
        "\
policy.toml:5:21: unknown role `event-procesor`
  |
5 | roles = [\"console\", \"event-procesor\"]
  |                     ^^^^^^^^^^^^^^^^ expected a role: console, event-collector, event-processor, flow-processor, \
         data-node, app-host, risk-manager, vulnerability-processor, vulnerability-scanner
  = did you mean `event-processor`?"
    );
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text =
        format!("{CONSOLE}[groups]\n\tuser = [\"x\"]\n[[allow]]\nname = \"X\"\nports = [\"514\"]\nto = [\"ep1\"]\n");
    let groups = "console, event-collector, event-processor, flow-processor, data-node, app-host, risk-manager, \
                  vulnerability-processor, vulnerability-scanner, appliance, managed-host, ha-peer, admin, user, \
                  api-client, log-source, flow-source, snmp-manager, wincollect-agent, windows-host, smtp-gateway, \
                  ntp-server, nfs-server, certificate-client, dns-server";
    let expected = format!(
        "\
policy.toml:7:10: `x` is not an address
  |
7 | \tuser = [\"x\"]
  | \t        ^^^ expected an IPv4 or IPv6 address, such as `192.0.2.5` or `2001:db8::5`

policy.toml:8:1: `from` is missing
  |
8 | [[allow]]
  | ^^^^^^^^^ expected `from = [\"192.0.2.5\", \"admin\"]`

policy.toml:9:8: `X` cannot be a name
  |
9 | name = \"X\"
  |        ^^^ expected a lower-case letter, then lower-case letters, digits and `-`, at most 63 in all

policy.toml:10:10: `514`: the protocol is missing
   |
10 | ports = [\"514\"]
   |          ^^^^^ expected a port such as `514/udp`, `20000-23000/tcp` or `echo/icmp`
   = write `514/tcp` or `514/udp`

policy.toml:11:7: unknown role, group, host or address `ep1`
   |
11 | to = [\"ep1\"]
   |       ^^^^^ expected an address, a network, a host, or one of: {groups}"
    );
    assert_eq!(parse(&text).unwrap_err().to_string(), expected);
}

#[test]
fn what_is_no_toml_is_shown_where_it_goes_wrong() {
    assert_eq!(
        parse("format = 1\nmode = \"enforce\nx = 1\n").unwrap_err().to_string(),
        "\
policy.toml:2:16: not valid TOML: invalid basic string
  |
2 | mode = \"enforce
  |                ^ expected `\"`"
    );
    assert_eq!(told("format = 1\nformat = 1\n"), ["2:1: `format` is already in this table | put both into one"]);
    check("[row.ssh]\n[row.ssh]\n", &["7:6: `ssh` is already in this table | put both into one"]);
}

#[test]
fn a_warning_says_that_it_is_one() {
    assert_eq!(
        policy(&format!("{CONSOLE}[groups]\nuser = [\"192.0.2.5/24\"]\n")).warnings.to_string(),
        "\
policy.toml:7:9: warning: `192.0.2.5/24` has bits set beyond its prefix; it is read as 192.0.2.0/24
  |
7 | user = [\"192.0.2.5/24\"]
  |         ^^^^^^^^^^^^^^
  = write `192.0.2.0/24` for the network, or `192.0.2.5` for the one address"
    );
}

#[test]
fn a_long_line_is_cut_around_the_mark() {
    let many: String = (1..=60).map(|byte| format!("\"198.51.100.{byte}\", ")).collect();
    let wrong = parse(&format!("{CONSOLE}[groups]\nuser = [{many}\"nobody\", {many}]\n")).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "\
policy.toml:7:1020: `nobody` is not an address
  |
7 | ....51.100.59\", \"198.51.100.60\", \"nobody\", \"198.51.100.1\", \"198.51.100.2\", \"198.51.100.3\", \
         \"198.51.100.4\", \"198.51.100.5\", ...
  |                                  ^^^^^^^^ expected an IPv4 or IPv6 address, such as `192.0.2.5` or `2001:db8::5`"
    );
}

#[test]
fn what_would_move_a_terminals_cursor_is_not_shown_as_it_is() {
    let text = format!("{CONSOLE}[groups]\nuser = [\"\\u001b[31m\", \"\u{202e}gnp\"]\n");
    let shown = parse(&text).unwrap_err().to_string();
    assert!(shown.contains("`\\u{1b}[31m` is not an address"), "{shown}");
    assert!(shown.contains("`\\u{202e}gnp` is not an address"), "{shown}");
    assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{shown}");
}

#[test]
fn so_many_mistakes_are_counted_rather_than_listed() {
    let many: String = (0..1000).map(|index| format!("\"x{index}\",")).collect();
    let wrong = parse(&format!("{CONSOLE}[groups]\nuser = [{many}]\n")).unwrap_err();
    assert_eq!((wrong.list.len(), wrong.omitted), (100, 900));
    assert!(wrong.to_string().ends_with("\n\nand 900 more"));
}

#[test]
fn diagnostics_serialise_for_scripts() {
    let wrong = parse(&CONSOLE.replace("roles", "rolls")).unwrap_err();
    let json = serde_json::to_value(&wrong.list[1]).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "severity": "error", "file": "policy.toml", "line": 5, "column": 1,
            "message": "unknown key `rolls` in a [[host]]",
            "expected": "one of: name, addresses, roles, encrypted, ha-peer",
            "help": "did you mean `roles`?",
        })
    );
}

#[test]
fn the_document_itself() {
    assert_eq!(told(""), ["1:1: the policy is empty"]);
    assert_eq!(told("# nothing\n\n  \t\n"), ["1:1: the policy is empty"]);
    assert_eq!(told("# hi\n\n mode = 'enforce'\n"), ["3:2: `format` is missing"]);
    assert_eq!(told("format = 2\nno = 1"), ["1:10: the file is of format 2, which this portward does not know"]);
    assert_eq!(told("format = '1'"), ["1:10: this is a string"]);
    assert_eq!(told("format = 1.0"), ["1:10: this is a floating-point number"]);
    assert_eq!(told("format = 1"), ["1:1: the policy has no hosts"]);
    assert_eq!(told("format = 1\nhost = []"), ["1:1: the policy has no hosts"]);
    assert_eq!(told("format = 1\nhost = 5"), ["2:8: this is an integer"]);
    let mode = |line: &str| told(&CONSOLE.replacen('\n', &format!("\n{line}\n"), 1));
    assert_eq!(mode("mod = 'enforce'"), ["2:1: unknown key `mod` in a policy | did you mean `mode`?"]);
    assert_eq!(mode("mode = 'Enforce'"), ["2:8: unknown mode `Enforce` | did you mean `enforce`?"]);
    assert_eq!(mode("egress = 'on'"), ["2:10: unknown egress `on`"]);
    assert_eq!(mode("deny = 'rejct'"), ["2:8: unknown deny `rejct` | did you mean `reject`?"]);
    assert_eq!(mode("allow-lockout = 1"), ["2:17: this is an integer"]);
    assert_eq!(mode("version = 7"), ["2:11: this is an integer"]);
    assert_eq!(mode("version = '7.6.0'"), ["2:11: unknown version `7.6.0` | did you mean `7.3.0`?"]);
    assert_eq!(mode("version = '7.5.0-up12'"), [""; 0]);
    assert_eq!(mode("features = ['nsf']"), ["2:13: unknown feature `nsf` | did you mean `nfs`?"]);
    assert_eq!(mode("features = ['nfs', 'nfs']"), ["2:20: warning: `nfs` is listed twice | one of the two can go"]);
}

#[test]
fn the_log() {
    check("[log]\nto = 'nflog'\ngroup = 65535\nrate = 1\nburst = 10000\n", &[]);
    check("[log]\nto = 'syslog'\n", &["7:6: unknown to `syslog`"]);
    check("[log]\ngroup = 5\n", &["7:9: `group` is a netlink group, and the log does not go to one"]);
    check("[log]\nto = 'nflog'\ngroup = 65536\n", &["8:9: the number is out of range"]);
    check("[log]\nrate = 0\nburst = 10001\n", &["7:8: the number is out of range", "8:9: the number is out of range"]);
    assert_eq!(policy(&format!("{CONSOLE}[log]\nto = 'off'\n")).policy.logging.target, None);
    assert_eq!(policy(&format!("{CONSOLE}[log]\nto = 'nflog'\n")).policy.logging.target, Some(LogTarget::Group(0)));
}

#[test]
fn addresses_and_networks() {
    let list = |list: &str, expected: &[&str]| check(&format!("[groups]\nuser = [{list}]\n"), expected);
    list(
        "'192.0.2.5', '2001:db8::/32', '0.0.0.0/0', '::/0'",
        &[
            "7:9: warning: `192.0.2.5` is within `0.0.0.0/0` of line 7 | one of the two can go",
            "7:22: warning: `2001:db8::/32` is within `::/0` of line 7 | one of the two can go",
        ],
    );
    list("'192.0.2.256'", &["7:9: `192.0.2.256` is not an address"]);
    list("'192.0.2.05'", &["7:9: `192.0.2.05` is not an address"]);
    list("''", &["7:9: `` is not an address"]);
    list("5", &["7:9: this is an integer"]);
    list("'192.0.2.0/33'", &["7:9: `192.0.2.0/33` is not a network"]);
    list(
        "'::ffff:192.0.2.1'",
        &["7:9: `::ffff:192.0.2.1` is IPv4 written as IPv6, which no packet on the wire carries | write `192.0.2.1`"],
    );
    list(
        "'::ffff:192.0.2.9/120'",
        &[
            "7:9: `::ffff:192.0.2.9/120` is IPv4 written as IPv6, which no packet on the wire carries | write `192.0.2.0/24`",
        ],
    );
    list(
        "'192.0.2.0/255.255.255.0'",
        &["7:9: `192.0.2.0/255.255.255.0` is not a network | write the prefix length: `192.0.2.0/24`"],
    );
    list("'0.0.0.0'", &["7:9: warning: `0.0.0.0` is one address that no host has | everybody is `0.0.0.0/0`"]);
    list(
        "'2001:db8::1/64'",
        &[
            "7:9: warning: `2001:db8::1/64` has bits set beyond its prefix; it is read as 2001:db8::/64 | write `2001:db8::/64` for the network, or `2001:db8::1` for the one address",
        ],
    );
    list(
        "'192.0.2.5',\n'192.0.2.5/32'",
        &["8:1: warning: `192.0.2.5` is already in this list, on line 7 | one of the two can go"],
    );
    check("[groups]\nadmins = []\n", &["7:1: unknown group `admins` | did you mean `admin`?"]);
    check(
        "[groups]\nconsole = []\n",
        &["7:1: unknown group `console` | appliances are not listed here; each has a [[host]] with its roles"],
    );
    check("[groups]\nuser = '192.0.2.5'\n", &["7:8: this is a string"]);
    check("groups = 5\n", &["6:1: unknown key `groups` in a [[host]]"]);
}

#[test]
fn members_are_sorted_and_stand_once() {
    let text = format!(
        "{CONSOLE}[groups]\nuser = [\"192.0.2.9\", \"192.0.2.0/25\",\n\"192.0.2.9\", \"::2\", \"192.0.2.77/25\"]\n"
    );
    let members = &policy(&text).policy.groups["user"];
    let shown: Vec<_> = members.ipv4.iter().map(|member| (member.network.to_string(), member.line)).collect();
    assert_eq!(shown, [("192.0.2.0/25".to_owned(), 7), ("192.0.2.9/32".to_owned(), 7)]);
    assert_eq!(members.ipv6.iter().map(|member| member.line).collect::<Vec<_>>(), [8]);
}

#[test]
fn hosts_and_their_addresses() {
    let changed = |from: &str, to: &str| told(&CONSOLE.replace(from, to));
    assert_eq!(
        changed("\"console\"]", "\"data-node\"]"),
        ["2:1: no host is a console | give the console a [[host]] with `roles = [\"console\"]`"]
    );
    assert_eq!(changed("[\"console\"]", "\"console\""), ["5:9: this is a string"]);
    assert_eq!(changed("[\"console\"]", "[]"), ["5:9: `roles` is empty"]);
    assert_eq!(changed("[\"console\"]", "[1]"), ["5:10: this is an integer"]);
    assert_eq!(
        changed("roles = ", "rolls = "),
        ["2:1: `roles` is missing", "5:1: unknown key `rolls` in a [[host]] | did you mean `roles`?"]
    );
    assert_eq!(changed("name = \"console\"\n", ""), ["2:1: `name` is missing"]);
    assert_eq!(changed("name = \"console\"", "name = \"con sole\""), ["3:8: `con sole` cannot be the name of a host"]);
    assert_eq!(
        changed("name = \"console\"", "name = \"192.0.2.1\""),
        ["3:8: `192.0.2.1` is an address, not the name of a host"]
    );
    assert_eq!(changed("[\"192.0.2.10\"]", "[]"), ["4:13: `addresses` is empty"]);
    assert_eq!(changed("192.0.2.10", "192.0.2.10/24"), ["4:14: `192.0.2.10/24` is a network | write `192.0.2.10`"]);
    assert_eq!(changed("192.0.2.10", "127.0.0.1"), ["4:14: `127.0.0.1` is a loopback address, which every host has"]);
    assert_eq!(changed("192.0.2.10", "::"), ["4:14: `::` is no host's address"]);
    assert_eq!(changed("192.0.2.10", "ff02::1"), ["4:14: `ff02::1` is a multicast address"]);
    assert_eq!(changed("192.0.2.10", "255.255.255.255"), ["4:14: `255.255.255.255` is the broadcast address"]);
    assert_eq!(
        changed("\"192.0.2.10\"", "\"192.0.2.10\", \"192.0.2.10\""),
        ["4:28: the address 192.0.2.10 is already there, on line 4"]
    );
    assert_eq!(told(&hosts(&[("console", 11, "")])), ["7:8: the host `console` is already there, on line 2"]);
    assert_eq!(
        told(&hosts(&[("ep1", 10, "")])),
        ["8:14: the address 192.0.2.10 is that of host `console` too, on line 4"]
    );
    check(
        "encrypted = true\n",
        &[
            "6:13: warning: `encrypted` has no effect on a console | it is about the link between the console and a managed host: set it there",
        ],
    );
    check("encrypted = 'yes'\n", &["6:13: this is a string"]);
}

#[test]
fn pairs() {
    let peer_of = |text: &str, name: &str| policy(text).policy.hosts[name].ha_peer.clone();
    let both = hosts(&[("a", 1, "b"), ("b", 2, "a")]);
    assert_eq!((peer_of(&both, "a").as_deref(), peer_of(&both, "b").as_deref()), (Some("b"), Some("a")));
    let later = hosts(&[("a", 1, ""), ("b", 2, "a")]);
    assert_eq!((peer_of(&later, "a").as_deref(), peer_of(&later, "b").as_deref()), (Some("b"), Some("a")));
    check("ha-peer = 'ep1b'\n", &["6:11: unknown host `ep1b`"]);
    check("ha-peer = 'console'\n", &["6:11: the host `console` cannot be its own peer"]);
    assert_eq!(
        told(&hosts(&[("ep1", 1, ""), ("ep2", 2, "ep-1")])),
        ["14:11: unknown host `ep-1` | did you mean `ep1`?"]
    );
    assert_eq!(
        told(&hosts(&[("a", 1, "b"), ("b", 2, "c"), ("c", 3, "b")])),
        ["10:11: `b` says on line 15 that its peer is `c`"]
    );
    assert_eq!(
        told(&hosts(&[("a", 1, "c"), ("b", 2, "c"), ("c", 3, "")])),
        ["15:11: `c` is already the peer of `a`, by line 10"]
    );
}

#[test]
fn allowances() {
    let ports = |ports: &str, expected: &[&str]| {
        check(&format!("[[allow]]\nname = 'x'\nports = [{ports}]\nfrom = ['console']\nto = ['192.0.2.1']\n"), expected);
    };
    ports("'1/tcp', '65535/udp', '1-65535/tcp', 'echo/icmp'", &[]);
    ports("'514'", &["8:10: `514`: the protocol is missing | write `514/tcp` or `514/udp`"]);
    ports("'0/tcp'", &["8:10: `0/tcp`: port 0 does not exist; ports are 1 to 65535"]);
    ports("'0-9/tcp'", &["8:10: `0-9/tcp`: port 0 does not exist; ports are 1 to 65535"]);
    ports("'900-800/tcp'", &["8:10: `900-800/tcp`: the range is reversed; write 800-900"]);
    ports("'65536/udp'", &["8:10: `65536/udp`: `65536` is not a port number; ports are 1 to 65535"]);
    ports("'+5/udp'", &["8:10: `+5/udp`: `+5` is not a port number"]);
    ports("'1-/udp'", &["8:10: `1-/udp`: a port number is missing"]);
    ports("'1-2-3/udp'", &["8:10: `1-2-3/udp`: `2-3` is not a port number"]);
    ports("'tcp/22'", &["8:10: `tcp/22`: the port comes before the protocol | did you mean `22/tcp`?"]);
    ports("'22/TCP'", &["8:10: `22/TCP`: unknown protocol `TCP` | did you mean `tcp`?"]);
    ports("'ping/icmp'", &["8:10: `ping/icmp`: of ICMP only echo requests are known | did you mean `echo/icmp`?"]);
    ports("'5/tcp', '5/tcp'", &["8:19: warning: `5/tcp` is listed twice | one of the two can go"]);
    ports("", &["8:9: `ports` is empty"]);

    let from = |from: &str, expected: &[&str]| {
        check(&format!("[[allow]]\nname = 'x'\nports = ['1/tcp']\nto = ['console']\nfrom = [{from}]\n"), expected);
    };
    from("'managed-host', 'ha-peer', 'appliance', 'data-node', '::1', '10.0.0.0/8'", &[]);
    from("", &["10:8: `from` is empty"]);
    from("'apliance'", &["10:9: unknown role, group, host or address `apliance` | did you mean `appliance`?"]);
    from("'public-server'", &["10:9: unknown role, group, host or address `public-server`"]);
    from("'10.0.0.256'", &["10:9: `10.0.0.256` is not an address"]);
    from(
        "'10.0.0.1/8'",
        &[
            "10:9: warning: `10.0.0.1/8` has bits set beyond its prefix; it is read as 10.0.0.0/8 | write `10.0.0.0/8` for the network, or `10.0.0.1` for the one address",
        ],
    );
    from("'10.0.0.1', '10.0.0.1/32'", &["10:21: warning: `10.0.0.1/32` is listed twice | one of the two can go"]);
    from(
        "'user'",
        &[
            "10:9: warning: the group `user` is empty, so this allows nothing | list its addresses in [groups]: `user = [...]`",
        ],
    );

    let complete = "ports = ['1/tcp']\nfrom = ['console']\nto = ['console']\n";
    check(&format!("[[allow]]\n{complete}"), &["6:1: `name` is missing"]);
    check(&format!("[[allow]]\nname = 'X'\n{complete}"), &["7:8: `X` cannot be a name"]);
    check(
        &format!("[[allow]]\nname = 'x'\n{complete}[[allow]]\nname = 'x'\n{complete}"),
        &["12:8: the allowance `x` is already there, on line 6"],
    );
}

#[test]
fn a_name_that_means_two_things_is_refused() {
    let second = "[[host]]\nname = 'console2'\naddresses = ['192.0.2.11']\nroles = ['console']\n";
    let allow = "[[allow]]\nname = 'x'\nports = ['1/tcp']\nfrom = ['console']\nto = ['console2']\n";
    check(allow.replace("'console2'", "'console'").as_str(), &[]);
    check(
        &format!("{second}{allow}"),
        &["13:9: `console` is both a role and a host | give the host another name, or write its addresses here"],
    );
    check(
        &format!("{}{allow}", second.replace("console2", "admin"))
            .replace("['console']\nto", "['admin']\nto")
            .replace("'console2'", "'console'"),
        &[
            "13:9: `admin` is both a group and a host | give the host another name, or write its addresses here",
            "14:7: `console` is both a role and a host | give the host another name, or write its addresses here",
        ],
    );
}

#[test]
fn adjustments_of_rows() {
    check("[row.sylog]\n", &["6:6: unknown row `sylog` | did you mean `syslog`?"]);
    check(
        "[row.syslog]\nonly-from = []\n",
        &["7:13: `only-from` is empty | to close the row, write `enabled = false`"],
    );
    check("[row.syslog]\nenable = true\n", &["7:1: unknown key `enable` in a [row] | did you mean `enabled`?"]);
    check("[row]\nssh = 1\n", &["7:7: this is an integer"]);
    check("[[row]]\nid = 'ssh'\n", &["6:1: this is an array"]);
    let dotted = policy(&format!("{CONSOLE}[row]\ndns.enabled = false\n"));
    assert_eq!((dotted.policy.rows["dns"].enabled, dotted.policy.rows["dns"].line), (false, 7));
}

#[test]
fn byte_order_mark_and_line_ends_of_other_systems_are_taken() {
    let text = format!("\u{feff}{}", EVERYTHING.replace('\n', "\r\n"));
    assert_eq!(policy(&text), policy(EVERYTHING));
    let wrong = parse(&text.replace("\"reject\"", "\"refuse\"")).unwrap_err().to_string();
    assert!(
        wrong.starts_with("policy.toml:5:8: unknown deny `refuse`\n  |\n5 | deny = \"refuse\"\n  |        ^"),
        "{wrong}"
    );
}

/// The policy with all lines set to 0.
fn without_lines(mut policy: Policy) -> Policy {
    fn members(members: &mut Members) {
        members.ipv4.iter_mut().for_each(|member| member.line = 0);
        members.ipv6.iter_mut().for_each(|member| member.line = 0);
    }
    policy.groups.values_mut().for_each(members);
    policy.hosts.values_mut().for_each(|host| host.line = 0);
    for allow in policy.allows.values_mut() {
        allow.line = 0;
        allow.from.iter_mut().chain(&mut allow.to).for_each(|party| party.line = 0);
    }
    for row in policy.rows.values_mut() {
        row.line = 0;
        row.only_from.as_mut().into_iter().for_each(members);
    }
    for service in policy.dynamic.values_mut() {
        service.line = service.line.map(|_| 0);
        if let Exposure::From(parties) = &mut service.exposure {
            parties.iter_mut().for_each(|party| party.line = 0);
        }
    }
    policy
}

/// The keys and tables of a policy, in any order; lists within them as well.
fn shuffled() -> impl Strategy<Value = String> {
    fn list(words: &[&str]) -> impl Strategy<Value = String> + use<> {
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        Just(words).prop_shuffle().prop_map(|words| format!("[{}]", words.join(", ")))
    }
    fn table(header: &'static str, keys: Vec<BoxedStrategy<String>>) -> BoxedStrategy<String> {
        keys.prop_flat_map(|keys| Just(keys).prop_shuffle())
            .prop_map(move |keys| format!("{header}\n{}\n", keys.join("\n")))
            .boxed()
    }
    fn key(name: &'static str, words: &[&str]) -> BoxedStrategy<String> {
        list(words).prop_map(move |list| format!("{name} = {list}")).boxed()
    }
    fn line(text: &'static str) -> BoxedStrategy<String> {
        Just(text.to_owned()).boxed()
    }
    let top = vec![line("format = 1"), line("egress = 'enforce'"), key("features", &["nfs", "rdp", "fips"])];
    let tables = vec![
        table(
            "[groups]",
            vec![
                key("user", &["192.0.2.1", "192.0.2.0/24", "192.0.2.7/24", "::5", "192.0.2.1", "2001:db8::/32"]),
                key("admin", &["198.51.100.7", "198.51.100.6"]),
                key("log-source", &["0.0.0.0/0", "::/0"]),
            ],
        ),
        table(
            "[[host]]",
            vec![
                line("name = 'c'"),
                key("addresses", &["10.0.0.1", "fd00::1"]),
                key("roles", &["console", "data-node"]),
            ],
        ),
        table(
            "[[host]]",
            vec![
                line("name = 'a'"),
                key("addresses", &["10.0.0.2"]),
                key("roles", &["data-node"]),
                line("ha-peer = 'b'"),
            ],
        ),
        table(
            "[[host]]",
            vec![
                line("name = 'b'"),
                key("addresses", &["10.0.0.3"]),
                key("roles", &["data-node"]),
                line("encrypted = true"),
            ],
        ),
        table(
            "[[allow]]",
            vec![
                line("name = 'x'"),
                key("ports", &["5/tcp", "4/udp", "echo/icmp"]),
                key("from", &["a", "user", "192.0.2.9", "::1", "console"]),
                key("to", &["appliance", "b"]),
            ],
        ),
        table(
            "[[allow]]",
            vec![line("name = 'w'"), key("ports", &["9/tcp"]), key("from", &["a"]), key("to", &["b", "b", "c"])],
        ),
        table("[row.syslog]", vec![key("only-from", &["10.0.0.0/8", "10.1.0.0/16", "::1"]), line("enabled = true")]),
        table("[row.dns]", vec![line("enabled = false")]),
        table(
            "[dynamic.backup]",
            vec![
                line("anchor = '9102/tcp'"),
                key("ports", &["2000/tcp", "3000-3999/udp", "3000-3999/tcp"]),
                key("process.exe", &["/opt/**/backup", "/opt/backup"]),
                key("process.args", &["-f", "*.conf"]),
                line("process.unit = 'backup.service'"),
                key("from", &["a", "192.0.2.9", "user"]),
            ],
        ),
        table("[dynamic.imq]", vec![line("limit = 16"), line("enabled = false")]),
        table("[dynamic.rpc-portmapper]", vec![line("programs = [100005, 100003]"), line("on-close = 'cut'")]),
    ];
    (table("", top), tables.prop_flat_map(|tables| Just(tables).prop_shuffle()))
        .prop_map(|(top, tables)| format!("{top}{}", tables.concat()))
}

proptest! {
    #[test]
    fn the_order_of_things_never_matters(one in shuffled(), other in shuffled()) {
        let [one, other] = [one, other].map(|text| without_lines(policy(&text).policy));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        if let Err(wrong) = parse(&text) {
            prop_assert!(!wrong.to_string().is_empty());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = parse(&text).map_err(|wrong| wrong.to_string());
        let _ = Catalogue::parse(&text, "x").map_err(|wrong| wrong.to_string());
    }

    #[test]
    fn no_change_to_a_policy_makes_it_panic(
        place in 0..EVERYTHING.len(),
        length in 0usize..40,
        put in prop_oneof![Just(String::new()), "[\\[\\]\"'=#.,\n\t {}a-z0-9:/é]{0,6}", any::<String>()],
    ) {
        let mut text = EVERYTHING.to_owned();
        text.replace_range(place..(place + length).min(EVERYTHING.len()), &put);
        match parse(&text) {
            Ok(loaded) => { let _ = loaded.warnings.to_string(); }
            Err(wrong) => {
                prop_assert!(wrong.has_errors());
                for diagnostic in wrong.iter() {
                    let line = text.split('\n').nth(diagnostic.line as usize - 1);
                    prop_assert!(line.is_some_and(|line| diagnostic.column as usize <= line.chars().count() + 1));
                }
                prop_assert!(!wrong.to_string().is_empty());
            }
        }
    }
}
