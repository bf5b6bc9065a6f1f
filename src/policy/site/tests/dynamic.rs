//! Services with dynamic ports.

use super::*;
use crate::policy::{Condition, DynamicService, OnClose, Tracker};

/// A service of the site's own that is right; it begins on line 6.
const OWN: &str = "[dynamic.backup]
anchor = '9102/tcp'
process = { user = 'backup' }
ports = '20000-29999/tcp'
from = ['console']
";

/// The services of a policy, each in one line.
#[track_caller]
fn services(added: &str) -> Vec<String> {
    policy(&format!("{CONSOLE}{added}")).policy.dynamic.values().map(shown).collect()
}

/// The one service of this name.
#[track_caller]
fn service(added: &str, name: &str) -> DynamicService {
    policy(&format!("{CONSOLE}{added}")).policy.dynamic[name].clone()
}

fn shown(service: &DynamicService) -> String {
    let joined = |words: Vec<String>| words.join(" ");
    let exposure = match &service.exposure {
        Exposure::Row(row) => format!("row {row}"),
        Exposure::From(parties) => joined(parties.iter().map(|party| party.kind.to_string()).collect()),
    };
    let DynamicService {
        name, enabled, tracker, anchor, programs, process, ports, limit, on_close, when, line, ..
    } = service;
    let exe = joined(process.exe.iter().map(ToString::to_string).collect());
    let args = joined(process.args.iter().map(ToString::to_string).collect());
    let (user, unit) = (process.user.as_deref().unwrap_or("-"), process.unit.as_deref().unwrap_or("-"));
    let ports = joined(ports.iter().map(Ports::to_string).collect());
    let when = joined(when.iter().map(Condition::to_string).collect());
    format!(
        "{name} {enabled} {} {anchor:?} {programs:?} [{exe}] {user} {unit} [{args}] [{ports}] {limit} {on_close:?} \
         <{exposure}> [{when}] {line:?}",
        tracker.name()
    )
}

#[test]
fn the_catalogue_has_the_defaults() {
    let java = "[/opt/**/java /usr/lib/jvm/**/bin/java] root -";
    assert_eq!(
        services(""),
        [
            "dcom true process Some(135) [] [] root - [] [1024-65535/tcp] 32 Keep <row dcom> [] None".to_owned(),
            format!("imq true imq Some(7676) [] {java} [*imq*] [32000-65535/tcp] 8 Keep <row imq> [] None"),
            format!("rmi true rmi Some(9913) [] {java} [] [1024-65535/tcp] 4 Keep <row rmi> [] None"),
            "rpc-portmapper true rpc None [100005, 100011] [/usr/sbin/rpc.mountd /usr/sbin/rpc.rquotad] root - [] \
             [512-65535/tcp 512-65535/udp] 16 Keep <row rpc-portmapper> [nfs] None"
                .to_owned(),
        ]
    );
}

#[test]
fn the_policy_overrides_key_by_key_and_the_process_as_a_whole() {
    let imq = service("[dynamic.imq]\nprocess = { unit = 'imq.service' }\n", "imq");
    assert_eq!(
        shown(&imq),
        "imq true imq Some(7676) [] [] - imq.service [] [32000-65535/tcp] 8 Keep <row imq> [] Some(6)"
    );
    let all = "[dynamic.imq]\nenabled = false\nanchor = '17676/tcp'\nprocess = { exe = ['/opt/x'], user = '0' }\n\
               ports = ['41000-42000/tcp', '40000/tcp']\nlimit = 1\non-close = 'cut'\n";
    assert_eq!(
        shown(&service(all, "imq")),
        "imq false imq Some(17676) [] [/opt/x] 0 - [] [40000/tcp 41000-42000/tcp] 1 Cut <row imq> [] Some(6)"
    );
    let rpc = service("[dynamic]\nrpc-portmapper.programs = [100021, 100005, 100021]\n", "rpc-portmapper");
    assert_eq!((&rpc.programs[..], rpc.limit, rpc.line), (&[100_005, 100_021][..], 16, Some(7)));
    assert_eq!(rpc.when, [Condition::Feature("nfs".to_owned())]);
    let untouched = service("[dynamic.imq]\n", "imq");
    assert_eq!(DynamicService { line: None, ..untouched }, service("", "imq"));
}

#[test]
fn a_service_of_the_sites_own() {
    let backup = "backup true process Some(9102) [] [] backup - [] [20000-29999/tcp] 8 Keep <console> [] Some(6)";
    assert_eq!(shown(&service(OWN, "backup")), backup);
    assert_eq!(services(OWN).len(), 5);
    let row = OWN.replace("from = ['console']", "row = 'syslog'\nlimit = 1024\nenabled = false");
    let row = service(&row, "backup");
    assert_eq!((row.exposure, row.limit, row.enabled), (Exposure::Row("syslog".to_owned()), 1024, false));
    let rpc = "[dynamic.quota]\ntracker = 'rpc'\nprograms = [100011]\nprocess.user = 0x0\nports = '1-65535/udp'\n\
               from = ['10.0.0.0/8']\non-close = 'keep'\n";
    let rpc = service(rpc, "quota");
    assert_eq!((rpc.tracker, rpc.anchor, rpc.programs), (Tracker::Rpc, None, vec![100_011]));
    assert_eq!((rpc.process.user.as_deref(), rpc.on_close), (Some("0"), OnClose::Keep));
}

#[test]
fn a_process_that_anyone_can_fake_is_shown_with_the_reason() {
    let text = format!("{CONSOLE}[dynamic.imq]\nprocess = {{ exe = [\"/opt/**/java\"] }}\n");
    assert_eq!(
        parse(&text).unwrap_err().to_string(),
        "\
policy.toml:7:11: `process` names neither `user` nor `unit`
  |
7 | process = { exe = [\"/opt/**/java\"] }
  |           ^^^^^^^^^^^^^^^^^^^^^^^^^^ expected at least one of the two, such as `user = \"root\"`
  = anyone can fake a program and its arguments by running it: `exe` and `args` alone prove nothing"
    );
}

#[test]
fn what_belongs_to_services_of_ones_own_is_refused_for_the_catalogues() {
    assert_eq!(
        parse(&format!("{CONSOLE}[dynamic.rmi]\ntracker = 'process'\nfrom = ['admin']\nrow = 'ssh'\n"))
            .unwrap_err()
            .to_string(),
        "\
policy.toml:7:1: the tracker of `rmi` is the catalogue's: `rmi`
  |
7 | tracker = 'process'
  | ^^^^^^^ expected one of: enabled, anchor, programs, process, ports, limit, on-close
  = for another one, write `enabled = false` here and declare a service with a name of your own

policy.toml:8:1: the ports of `rmi` are for whoever may reach the row
  |
8 | from = ['admin']
  | ^^^^ expected one of: enabled, anchor, programs, process, ports, limit, on-close
  = narrow the row by `only-from` in [row.rmi]; for others, declare a service with a name of your own

policy.toml:9:1: the ports of `rmi` are for whoever may reach the row
  |
9 | row = 'ssh'
  | ^^^ expected one of: enabled, anchor, programs, process, ports, limit, on-close
  = narrow the row by `only-from` in [row.rmi]; for others, declare a service with a name of your own"
    );
}

#[test]
fn names() {
    assert_eq!(
        parse(&format!("{CONSOLE}[dynamic.ssh]\nlimit = 1\n")).unwrap_err().to_string(),
        "\
policy.toml:6:10: the row `ssh` has no dynamic ports
  |
6 | [dynamic.ssh]
  |          ^^^ expected a row that has some (rpc-portmapper, dcom, imq, rmi), or a name of your own
  = for a service whose ports are for whoever may reach this row: `row = \"ssh\"`"
    );
    check(
        "[dynamic.imqq]\nlimit = 16\n",
        &[
            "6:1: `imqq` has neither `row` nor `from`, so nobody could reach it | did you mean `imq`?",
            "6:1: `anchor` is missing",
            "6:1: `process` is missing",
            "6:1: `ports` is missing",
        ],
    );
    check(&OWN.replace("backup]", "Backup]"), &["6:10: `Backup` cannot be a name"]);
    check("[dynamic]\nimq = 5\n", &["7:7: this is an integer"]);
    check("[[dynamic]]\nname = 'imq'\n", &["6:1: this is an array"]);
    assert_eq!(
        told(&format!("dynamics = 1\n{CONSOLE}")),
        ["1:1: unknown key `dynamics` in a policy | did you mean `dynamic`?"]
    );
}

#[test]
fn keys() {
    let imq = |keys: &str, expected: &[&str]| check(&format!("[dynamic.imq]\n{keys}\n"), expected);
    imq("enable = true", &["7:1: unknown key `enable` in a [dynamic] of the catalogue | did you mean `enabled`?"]);
    imq("enabled = 'no'", &["7:11: this is a string"]);
    imq("limit = 0", &["7:9: the number is out of range"]);
    imq("limit = 1025", &["7:9: the number is out of range"]);
    imq(
        "on_close = 'cut'",
        &["7:1: unknown key `on_close` in a [dynamic] of the catalogue | did you mean `on-close`?"],
    );
    imq("on-close = 'cuts'", &["7:12: unknown on-close `cuts` | did you mean `cut`?"]);
    imq("programs = [100005]", &["7:12: `programs` belongs to the tracker `rpc`"]);
    imq("anchor = 7676", &["7:10: this is an integer"]);
    imq("anchor = '7676'", &["7:10: `7676`: the protocol is missing | write `7676/tcp`"]);
    imq("anchor = '7676/udp'", &["7:10: `7676/udp` cannot be an anchor"]);
    imq("anchor = '7676-7677/tcp'", &["7:10: `7676-7677/tcp` cannot be an anchor"]);
    imq("anchor = '0/tcp'", &["7:10: `0/tcp`: port 0 does not exist; ports are 1 to 65535"]);

    let rpc = |keys: &str, expected: &[&str]| check(&format!("[dynamic.rpc-portmapper]\n{keys}\n"), expected);
    rpc("anchor = '111/tcp'", &["7:10: the tracker `rpc` has no anchor"]);
    rpc("programs = []", &["7:12: `programs` is empty"]);
    rpc("programs = 100005", &["7:12: this is an integer"]);
    rpc("programs = [0, 'mountd']", &["7:13: the number is out of range", "7:16: this is a string"]);

    let own = |from: &str, to: &str, expected: &[&str]| check(&OWN.replace(from, to), expected);
    own(
        "from =",
        "form =",
        &[
            "6:1: `backup` has neither `row` nor `from`, so nobody could reach it",
            "10:1: unknown key `form` in a [dynamic] of your own | did you mean `from`?",
        ],
    );
    own(
        "from =",
        "row = 'web'\nfrom =",
        &[
            "11:8: `from` stands beside `row` | with `row` the ports are for whoever may reach that row, with `from` for these parties",
        ],
    );
    own(
        "['console']",
        "['consol']",
        &["10:9: unknown role, group, host or address `consol` | did you mean `console`?"],
    );
    own("['console']", "[]", &["10:8: `from` is empty"]);
    own("['console']", "'console'", &["10:8: this is a string"]);
    own("from = ['console']", "row = 'sylog'", &["10:7: unknown row `sylog` | did you mean `syslog`?"]);
    own("anchor = '9102/tcp'\n", "", &["6:1: `anchor` is missing"]);
    own("process = { user = 'backup' }\n", "", &["6:1: `process` is missing"]);
    own("ports = '20000-29999/tcp'\n", "", &["6:1: `ports` is missing"]);
    own("anchor", "tracker = 'rcp'\nanchor", &["7:11: unknown tracker `rcp` | did you mean `rpc`?"]);
    own("anchor", "tracker = 'rpc'\nanchor", &["6:1: `programs` is missing", "8:10: the tracker `rpc` has no anchor"]);
}

#[test]
fn ranges() {
    let imq = |ports: &str, expected: &[&str]| check(&format!("[dynamic.imq]\nports = {ports}\n"), expected);
    imq("'7676/tcp'", &[]);
    imq("[]", &["7:9: `ports` is empty"]);
    imq("5", &["7:9: this is an integer"]);
    imq("[5]", &["7:10: this is an integer"]);
    imq("'32000'", &["7:9: `32000`: the protocol is missing | write `32000/tcp` or `32000/udp`"]);
    imq("['9-8/tcp']", &["7:10: `9-8/tcp`: the range is reversed; write 8-9"]);
    imq("'echo/icmp'", &["7:9: `echo/icmp` is nothing that a process listens on"]);
    imq("['5/tcp', '5/tcp']", &["7:19: warning: `5/tcp` is listed twice | one of the two can go"]);
    imq("['5/tcp', '5/udp']", &["7:19: warning: the tracker `imq` finds TCP ports only | this can go"]);
    check("[dynamic.rpc-portmapper]\nports = ['600-1023/tcp', '600-1023/udp']\n", &[]);
    check(
        "[dynamic.dcom]\nports = ['1023-65535/tcp', '1024-65535/udp']\n",
        &[
            "7:10: warning: `1023-65535/tcp` begins among the well-known ports | a port that has a number of its own is better named in an [[allow]]; begin at 1024",
        ],
    );
    let malformed = parse(&format!("{CONSOLE}[dynamic.imq]\nports = 'all'\n")).unwrap_err();
    assert_eq!(malformed.list[0].expected.as_deref(), Some("ports such as `32000-65535/tcp` or `512-1023/udp`"));
}

#[test]
fn processes() {
    let process = |keys: &str, expected: &[&str]| check(&format!("[dynamic.imq.process]\n{keys}\n"), expected);
    check("[dynamic.imq]\nprocess = 'java'\n", &["7:11: this is a string"]);
    process(
        "",
        &[
            "6:1: `process` names neither `user` nor `unit` | anyone can fake a program and its arguments by running it: `exe` and `args` alone prove nothing",
        ],
    );
    process("user = 'root'\npath = ['/x']", &["8:1: unknown key `path` in `process`"]);

    for right in ["'root'", "'DOMAIN\\jsa'", "'4294967294'", "0", "'svc-1'"] {
        process(&format!("user = {right}"), &[]);
    }
    assert_eq!(service("[dynamic.imq]\nprocess.user = '0042'\n", "imq").process.user.as_deref(), Some("42"));
    process("user = ''", &["7:8: `` cannot be a user"]);
    process("user = 'a:b'", &["7:8: `a:b` cannot be a user"]);
    process("user = 'a b'", &["7:8: `a b` cannot be a user"]);
    process("user = '4294967295'", &["7:8: `4294967295` cannot be a user"]);
    process("user = 4294967295", &["7:8: the number is out of range"]);
    process("user = -1", &["7:8: the number is out of range"]);
    process("user = ['root']", &["7:8: this is an array"]);

    process("unit = 'imq@a\\x2db.service'", &[]);
    process("unit = 'imq'", &["7:8: `imq` is not the name of a service unit | write `imq.service`"]);
    process("unit = 'imq.socket'", &["7:8: `imq.socket` is not the name of a service unit | write `imq.service`"]);
    process("unit = 'a.b'", &["7:8: `a.b` is not the name of a service unit | write `a.b.service`"]);
    process("unit = '.service'", &["7:8: `.service` is not the name of a service unit"]);
    process("unit = ''", &["7:8: `` is not the name of a service unit"]);
    process("unit = '/etc/imq.service'", &["7:8: `/etc/imq.service` is not the name of a service unit"]);
}

#[test]
fn patterns() {
    let exe = |word: &str, expected: &[&str]| {
        check(&format!("[dynamic.imq.process]\nuser = 'root'\nexe = [{word}]\n"), expected);
    };
    exe("'/usr/lib/jvm/java-1.8.0-*/jre/bin/java', '/**/java', '/opt/[a-z]?/x'", &[]);
    exe("", &["8:7: `exe` is empty"]);
    exe("5", &["8:8: this is an integer"]);
    exe("''", &["8:8: `` is not an absolute path"]);
    exe(
        "'bin/java'",
        &["8:8: `bin/java` is not an absolute path | write the whole path, or `/**/bin/java` for any folder"],
    );
    exe("'**/java'", &["8:8: `**/java` is not an absolute path | write `/**/java`"]);
    exe("'/usr/bin/../java'", &["8:8: `/usr/bin/../java` is no path that the kernel would show"]);
    exe("'/usr//java'", &["8:8: `/usr//java` is no path that the kernel would show"]);
    exe("'/opt/java/'", &["8:8: `/opt/java/` is no path that the kernel would show"]);
    exe("'/'", &["8:8: `/` is no path that the kernel would show"]);
    exe("'/opt/*a*b*c*'", &["8:8: `/opt/*a*b*c*` has too many `*`"]);
    exe("'/opt/**java'", &["8:8: `/opt/**java` is no pattern: recursive wildcards must form a single path component"]);
    exe("'/opt/***/java'", &["8:8: `/opt/***/java` is no pattern: wildcards are either regular `*` or recursive `**`"]);
    exe("'/opt/[a'", &["8:8: `/opt/[a` is no pattern: invalid range pattern"]);
    exe("'/opt/x', '/opt/x'", &["8:18: warning: `/opt/x` is listed twice | one of the two can go"]);
    exe(
        "'/sbin/rpc.mountd'",
        &[
            "8:8: warning: `/sbin` is a link to `/usr/sbin`, and the kernel shows where links lead | write `/usr/sbin/rpc.mountd`",
        ],
    );
    let long = format!("'/{}'", "x".repeat(1024));
    let told = told(&format!("{CONSOLE}[dynamic.imq.process]\nuser = 'root'\nexe = [{long}]\n"));
    assert!(told[0].ends_with("x...` is no pattern"), "{told:?}");

    let args = |word: &str, expected: &[&str]| {
        check(&format!("[dynamic.imq.process]\nuser = 'root'\nargs = [{word}]\n"), expected);
    };
    args("'imqbroker', '-D*/mq', '*', 'relative/*'", &[]);
    args("", &["8:8: `args` is empty"]);
    args("''", &["8:9: `` is no pattern"]);
    args("'a', 'a'", &["8:14: warning: `a` is listed twice | one of the two can go"]);
}

#[test]
fn a_service_that_opens_nothing_is_told() {
    let row = |row: &str, more: &str, expected: &[&str]| {
        let own = OWN.replace("from = ['console']", &format!("row = '{row}'"));
        check(&format!("{own}{more}"), expected);
    };
    row("syslog", "", &[]);
    row("dcom", "", &[]);
    row(
        "smtp",
        "",
        &[
            "10:7: warning: the row `smtp` lets nobody in, so this opens nothing | name another row, or the parties: `from = [...]`",
        ],
    );
    row(
        "vault",
        "",
        &[
            "10:7: warning: the row `vault` lets nobody in, so this opens nothing | name another row, or the parties: `from = [...]`",
        ],
    );
    row(
        "syslog",
        "[row.syslog]\nenabled = false\n",
        &[
            "10:7: warning: the row `syslog` is closed by line 11, so this opens nothing | name another row, or the parties: `from = [...]`",
        ],
    );
    row("smtp", "enabled = false\n", &[]);
    check(
        &OWN.replace("console", "user"),
        &[
            "10:9: warning: the group `user` is empty, so this allows nothing | list its addresses in [groups]: `user = [...]`",
        ],
    );
}

proptest! {
    #[test]
    fn no_pattern_makes_it_panic(
        pattern in "[/a*?!\\[\\]-]{0,24}",
        path in "[/ab*\\[-]{0,24}",
    ) {
        let text = format!("{CONSOLE}[dynamic.imq.process]\nuser = 0\nexe = ['/{pattern}']\n");
        let with_args = text.replace("exe = ['/", "args = ['");
        for loaded in [parse(&text), parse(&with_args)].into_iter().flatten() {
            let process = &loaded.policy.dynamic["imq"].process;
            let _ = process.allows_exe(path.as_ref());
            let _ = process.missing_argument(&[&path]);
        }
    }

    #[test]
    fn a_path_without_wildcards_allows_itself_alone(path in "(/[a-z .é-]{1,9}){1,4}", other in "(/[a-z .é-]{1,9}){1,4}") {
        let text = format!("{CONSOLE}[dynamic.imq.process]\nuser = 0\nexe = ['{path}']\n");
        if let Ok(loaded) = parse(&text) {
            let process = &loaded.policy.dynamic["imq"].process;
            prop_assert!(process.allows_exe(path.as_ref()));
            prop_assert_eq!(process.allows_exe(other.as_ref()), path == other);
        } else {
            prop_assert!(path.split('/').any(|part| part == "." || part == ".."));
        }
    }
}
