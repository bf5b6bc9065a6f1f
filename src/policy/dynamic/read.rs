//! Reading the keys of a service with dynamic ports, which the catalogue and the site's policy write alike.

use super::{OnClose, ProcessMatch};
use crate::policy::diagnostic::{Mistake, Report, quoted};
use crate::policy::document::{self, Table, report_twice};
use crate::policy::{Ports, Tracker, words};
use crate::ruleset::{PortRange, Protocol};
use glob::Pattern;
use std::collections::BTreeSet;
use toml::Spanned;
use toml::de::DeValue;

/// More dynamic ports than any service of the vendor's page opens; a larger limit would be a slip of the pen.
const MOST_PORTS: u32 = 1024;

/// The first port that every process may listen on, whoever runs it: ip_unprivileged_port_start as the kernel sets it.
const FIRST_UNPRIVILEGED: u16 = 1024;

pub(in crate::policy) const PROCESS_KEYS: [&str; 4] = ["exe", "user", "unit", "args"];

/// The longest pattern, in bytes: longer than any path of a program that somebody types.
const LONGEST_PATTERN: usize = 1024;

/// So many `*` may stand between two `/` of a path. A path that a process chose is matched in a time that grows with
/// the power of this number.
const MOST_STARS: usize = 3;

/// The longest name of a unit, in bytes, with its suffix (UNIT_NAME_MAX of systemd).
const LONGEST_UNIT: usize = 255;

/// The highest user id; the one above it means "no user" to the kernel.
const HIGHEST_USER: u32 = u32::MAX - 1;

/// What a table says of a service; `None`: nothing.
pub(in crate::policy) struct Keys {
    pub(in crate::policy) anchor: Option<u16>,
    pub(in crate::policy) programs: Option<Vec<u32>>,
    pub(in crate::policy) process: Option<ProcessMatch>,
    pub(in crate::policy) ports: Option<Vec<Ports>>,
    pub(in crate::policy) limit: Option<u16>,
}

impl Keys {
    /// Reads the keys that are there.
    pub(in crate::policy) fn read(report: &mut Report<'_>, table: &Table<'_>, tracker: Tracker) -> Self {
        Self {
            anchor: anchor(report, table, tracker),
            programs: programs(report, table, tracker),
            process: table.get("process").and_then(|value| process(report, value)),
            ports: table.get("ports").map(|_| ports(report, table, tracker)),
            limit: table.number(report, "limit", 1..=MOST_PORTS).and_then(|limit| u16::try_from(limit).ok()),
        }
    }

    /// Reports which of the keys are missing that no service can do without.
    pub(in crate::policy) fn report_missing(report: &mut Report<'_>, table: &Table<'_>, tracker: Tracker) {
        let known_by = match tracker {
            Tracker::Rpc => ("programs", "[100005]"),
            Tracker::Imq | Tracker::Rmi | Tracker::Process => ("anchor", "\"9913/tcp\""),
        };
        let process = ("process", "{ user = \"root\", exe = [\"/opt/app/bin/app\"] }");
        for (key, example) in [known_by, process, ("ports", "\"1024-65535/tcp\"")] {
            if table.get(key).is_none() {
                table.report_missing(report, key, example);
            }
        }
    }
}

/// Reads who finds the ports out.
pub(in crate::policy) fn tracker(report: &mut Report<'_>, table: &Table<'_>) -> Option<Tracker> {
    let known = [Tracker::Imq, Tracker::Rpc, Tracker::Rmi, Tracker::Process].map(|kind| (kind.name(), kind));
    table.choice(report, "tracker", &known)
}

/// Reads what happens to the connections of a port that closes.
pub(in crate::policy) fn on_close(report: &mut Report<'_>, table: &Table<'_>) -> Option<OnClose> {
    table.choice(report, "on-close", &[("keep", OnClose::Keep), ("cut", OnClose::Cut)])
}

fn anchor(report: &mut Report<'_>, table: &Table<'_>, tracker: Tracker) -> Option<u16> {
    let word = table.text(report, "anchor")?;
    if tracker == Tracker::Rpc {
        report.error(word.span, Mistake::new("the tracker `rpc` has no anchor").expected("`programs`"));
        return None;
    }
    let mistake = match words::ports(word.value) {
        Ok(Ports::Range(Protocol::Tcp, PortRange { first, last })) if first == last => return Some(first),
        Ok(_) => Mistake::new(format!("{} cannot be an anchor", quoted(word.value))),
        Err(_) if words::ports(&format!("{}/tcp", word.value)).is_ok() => {
            Mistake::new(format!("{}: the protocol is missing", quoted(word.value)))
                .help(format!("write `{}/tcp`", word.value))
        }
        Err(mistake) => mistake,
    };
    report.error(word.span, mistake.expected("one TCP port, such as `9913/tcp`"));
    None
}

fn programs(report: &mut Report<'_>, table: &Table<'_>, tracker: Tracker) -> Option<Vec<u32>> {
    let list = table.list(report, "programs")?;
    if tracker != Tracker::Rpc {
        report.error(list.span, Mistake::new("`programs` belongs to the tracker `rpc`").expected("`anchor`"));
        return None;
    }
    table.refuse_empty(report, "programs", "[100005]");
    let programs: BTreeSet<u32> =
        list.value.iter().filter_map(|value| document::number(report, value, 1..=u32::MAX)).collect();
    Some(programs.into_iter().collect())
}

fn ports(report: &mut Report<'_>, table: &Table<'_>, tracker: Tracker) -> Vec<Ports> {
    const EXPECTED: &str = "ports such as `32000-65535/tcp` or `512-1023/udp`";
    table.refuse_empty(report, "ports", "\"1024-65535/tcp\"");
    let mut ports = BTreeSet::new();
    for word in table.text_or_texts(report, "ports") {
        match words::ports(word.value) {
            Ok(Ports::Echo) => {
                let mistake = Mistake::new(format!("{} is nothing that a process listens on", quoted(word.value)));
                report.error(word.span, mistake.expected(EXPECTED));
            }
            Ok(range @ Ports::Range(protocol, PortRange { first, .. })) => {
                if !ports.insert(range) {
                    report_twice(report, &word);
                } else if protocol == Protocol::Udp && matches!(tracker, Tracker::Imq | Tracker::Rmi) {
                    let mistake = Mistake::new(format!("the tracker `{}` finds TCP ports only", tracker.name()))
                        .help("this can go");
                    report.warning(word.span, mistake);
                } else if tracker == Tracker::Process && first < FIRST_UNPRIVILEGED {
                    let mistake = Mistake::new(format!("{} begins among the well-known ports", quoted(word.value)))
                        .help("a port that has a number of its own is better named in an [[allow]]; begin at 1024");
                    report.warning(word.span, mistake);
                }
            }
            Err(mistake) => report.error(word.span, mistake.expected(EXPECTED)),
        }
    }
    ports.into_iter().collect()
}

fn process(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>) -> Option<ProcessMatch> {
    let table = document::table(report, value, "a table, such as `{ user = \"root\", args = [\"imqbroker\"] }`")?;
    table.check_keys(report, "`process`", &PROCESS_KEYS);
    if table.get("user").is_none() && table.get("unit").is_none() {
        let mistake = Mistake::new("`process` names neither `user` nor `unit`")
            .expected("at least one of the two, such as `user = \"root\"`")
            .help("anyone can fake a program and its arguments by running it: `exe` and `args` alone prove nothing");
        report.error(table.span.clone(), mistake);
    }
    let user = table.get("user").and_then(|value| user(report, value));
    let unit = table
        .text(report, "unit")
        .and_then(|word| unit(word.value).map_err(|mistake| report.error(word.span, mistake)).ok());
    let exe = patterns(report, &table, "exe", "[\"/opt/**/java\"]", exe);
    let args = patterns(report, &table, "args", "[\"imqbroker\"]", |word| Ok((pattern(word)?, None)));
    Some(ProcessMatch { exe, user, unit, args })
}

fn user(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>) -> Option<String> {
    if value.get_ref().is_integer() {
        return document::number(report, value, 0..=HIGHEST_USER).map(|number| number.to_string());
    }
    let word = document::text(report, value)?;
    user_name(word.value).map_err(|mistake| report.error(word.span, mistake)).ok()
}

/// Checks a user; a number comes back without leading zeros.
fn user_name(word: &str) -> Result<String, Mistake> {
    let wrong =
        || Mistake::new(format!("{} cannot be a user", quoted(word))).expected("a name, such as `root`, or a user id");
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = word.parse::<u32>().ok().filter(|number| *number <= HIGHEST_USER);
        return number.map(|number| number.to_string()).ok_or_else(wrong);
    }
    // What stands between two colons of a line of /etc/passwd.
    let fits =
        |character: char| !matches!(character, ':' | '/') && !character.is_whitespace() && !character.is_control();
    if word.is_empty() || !word.chars().all(fits) {
        return Err(wrong());
    }
    Ok(word.to_owned())
}

/// Checks the name of a service unit, see systemd.unit(5).
fn unit(word: &str) -> Result<String, Mistake> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
    let mistake = Mistake::new(format!("{} is not the name of a service unit", quoted(word)))
        .expected("a name such as `imq.service`");
    if word.is_empty() || !word.bytes().all(allowed) || word.len() > LONGEST_UNIT {
        return Err(mistake);
    }
    if word.strip_suffix(".service").is_some_and(|name| !name.is_empty()) {
        return Ok(word.to_owned());
    }
    // A process that a socket or a timer starts belongs to the service all the same.
    const OTHERS: [&str; 6] = ["socket", "timer", "path", "target", "scope", "slice"];
    let name = word.rsplit_once('.').filter(|(_, kind)| OTHERS.contains(kind)).map_or(word, |(name, _)| name);
    Err(match name {
        "" | ".service" => mistake,
        _ => mistake.help(format!("write `{name}.service`")),
    })
}

/// Reads a pattern of the path of a program, and tells what is odd about it.
fn exe(word: &str) -> Result<(Pattern, Option<Mistake>), Mistake> {
    const EXAMPLE: &str = "an absolute path such as `/usr/lib/jvm/**/bin/java`";
    if !word.starts_with('/') {
        let mistake = Mistake::new(format!("{} is not an absolute path", quoted(word))).expected(EXAMPLE);
        return Err(match word {
            "" => mistake,
            _ if word.starts_with("**/") => mistake.help(format!("write `/{word}`")),
            _ => mistake.help(format!("write the whole path, or `/**/{word}` for any folder")),
        });
    }
    let parts = || word.split('/').skip(1);
    if parts().any(|part| matches!(part, "" | "." | "..")) {
        return Err(Mistake::new(format!("{} is no path that the kernel would show", quoted(word)))
            .expected("one without empty parts, `.` and `..`"));
    }
    if parts().any(|part| part != "**" && part.matches('*').count() > MOST_STARS) {
        return Err(Mistake::new(format!("{} has too many `*`", quoted(word)))
            .expected(format!("at most {MOST_STARS} between two `/`")));
    }
    let linked = ["bin", "sbin", "lib", "lib64"].into_iter().find(|name| parts().next() == Some(name));
    let warning = linked.map(|name| {
        Mistake::new(format!("`/{name}` is a link to `/usr/{name}`, and the kernel shows where links lead"))
            .help(format!("write `/usr{word}`"))
    });
    Ok((pattern(word)?, warning))
}

fn pattern(word: &str) -> Result<Pattern, Mistake> {
    if word.is_empty() || word.len() > LONGEST_PATTERN {
        return Err(Mistake::new(format!("{} is no pattern", quoted(word)))
            .expected(format!("a pattern of 1 to {LONGEST_PATTERN} bytes")));
    }
    Pattern::new(word).map_err(|error| {
        Mistake::new(format!("{} is no pattern: {}", quoted(word), error.msg))
            .expected("`*` or `?` for any characters, `[abc]` for one of these, `[*]` for the sign itself")
    })
}

/// Reads a list of patterns with what reads one of them.
fn patterns(
    report: &mut Report<'_>,
    table: &Table<'_>,
    key: &str,
    example: &str,
    read: impl Fn(&str) -> Result<(Pattern, Option<Mistake>), Mistake>,
) -> Vec<Pattern> {
    table.refuse_empty(report, key, example);
    let mut patterns = BTreeSet::new();
    for word in table.texts(report, key) {
        match read(word.value) {
            Ok((pattern, _)) if patterns.contains(&pattern) => report_twice(report, &word),
            Ok((pattern, warning)) => {
                patterns.insert(pattern);
                if let Some(mistake) = warning {
                    report.warning(word.span, mistake);
                }
            }
            Err(mistake) => report.error(word.span, mistake),
        }
    }
    patterns.into_iter().collect()
}
