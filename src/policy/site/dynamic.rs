//! Reading `[dynamic.NAME]`: the catalogue's services with dynamic ports as the site adjusts them, and the site's own.

use super::parties::{self, Vocabulary};
use super::read::known_row;
use super::{DynamicService, RowAdjustment};
use crate::policy::diagnostic::{Mistake, Report, listed, quoted};
use crate::policy::document::{self, Table, Text};
use crate::policy::dynamic::read::{self, Keys};
use crate::policy::{Exposure, Group, Row, Tracker, words};
use std::collections::BTreeMap;

/// What can be said of every service.
pub(super) const KEYS: [&str; 7] = ["enabled", "anchor", "programs", "process", "ports", "limit", "on-close"];

/// What can be said of every service, and what only of one of the site's own.
pub(super) const OWN_KEYS: [&str; 10] =
    ["enabled", "tracker", "anchor", "programs", "process", "ports", "limit", "on-close", "row", "from"];

/// How many ports a service of the site's own may have open at once when the file does not say.
const DEFAULT_LIMIT: u16 = 8;

/// Reads all services with dynamic ports, by name: those of the catalogue, whether the file names them or not, and the
/// site's own.
pub(super) fn read(
    report: &mut Report<'_>,
    root: &Table<'_>,
    vocabulary: &Vocabulary<'_>,
    rows: &BTreeMap<String, RowAdjustment>,
) -> BTreeMap<String, DynamicService> {
    let catalogue = vocabulary.catalogue;
    let mut services: BTreeMap<String, DynamicService> = catalogue
        .rows
        .iter()
        .filter_map(DynamicService::of_row)
        .map(|service| (service.name.clone(), service))
        .collect();
    let Some(tables) = root.table(report, "dynamic") else { return services };
    for name in tables.keys() {
        let Some(value) = tables.get(name.value) else { continue };
        let header = format!("a table, `[dynamic.{}]`", name.value);
        let Some(table) = document::table(report, value, &header) else { continue };
        if let Some(service) = services.get_mut(name.value) {
            adjust(report, &name, &table, service);
        } else if catalogue.row(name.value).is_some() {
            let with_ports = catalogue.rows.iter().filter(|row| row.dynamic.is_some()).map(|row| row.id.as_str());
            let mistake = Mistake::new(format!("the row {} has no dynamic ports", quoted(name.value)))
                .expected(format!("a row that has some ({}), or a name of your own", listed(with_ports)))
                .help(format!(
                    "for a service whose ports are for whoever may reach this row: `row = \"{}\"`",
                    name.value
                ));
            report.error(name.span, mistake);
        } else if let Some(service) = own(report, &name, &table, vocabulary, rows) {
            services.insert(service.name.clone(), service);
        }
    }
    services
}

/// Changes what the catalogue says of a service into what the file says.
fn adjust(report: &mut Report<'_>, name: &Text<'_>, table: &Table<'_>, service: &mut DynamicService) {
    for key in table.keys().filter(|key| !KEYS.contains(&key.value)) {
        let (message, help) = match key.value {
            "tracker" => (
                format!("the tracker of {} is the catalogue's: `{}`", quoted(name.value), service.tracker.name()),
                "for another one, write `enabled = false` here and declare a service with a name of your own"
                    .to_owned(),
            ),
            "row" | "from" => (
                format!("the ports of {} are for whoever may reach the row", quoted(name.value)),
                format!(
                    "narrow the row by `only-from` in [row.{}]; for others, declare a service with a name of your own",
                    name.value
                ),
            ),
            _ => {
                document::report_unknown_key(report, &key, "a [dynamic] of the catalogue", &KEYS);
                continue;
            }
        };
        let mistake = Mistake::new(message).expected(format!("one of: {}", listed(KEYS))).help(help);
        report.error(key.span, mistake);
    }
    let keys = Keys::read(report, table, service.tracker);
    service.enabled = table.boolean(report, "enabled", service.enabled);
    service.anchor = keys.anchor.or(service.anchor);
    service.limit = keys.limit.unwrap_or(service.limit);
    service.on_close = read::on_close(report, table).unwrap_or(service.on_close);
    if let Some(programs) = keys.programs {
        service.programs = programs;
    }
    if let Some(process) = keys.process {
        service.process = process;
    }
    if let Some(ports) = keys.ports {
        service.ports = ports;
    }
    service.line = Some(report.line(name.span.start));
}

/// Reads a service of the site's own.
fn own(
    report: &mut Report<'_>,
    name: &Text<'_>,
    table: &Table<'_>,
    vocabulary: &Vocabulary<'_>,
    rows: &BTreeMap<String, RowAdjustment>,
) -> Option<DynamicService> {
    if let Err(mistake) = words::check_name(name.value) {
        report.error(name.span.clone(), mistake);
    }
    table.check_keys(report, "a [dynamic] of your own", &OWN_KEYS);
    let enabled = table.boolean(report, "enabled", true);
    let exposure = exposure(report, name, table, vocabulary);
    if let (true, Some(Exposure::Row(id)), Some(value)) = (enabled, &exposure, table.get("row"))
        && let Some(mistake) = vocabulary.catalogue.row(id).and_then(|row| closed(row, rows.get(id)))
    {
        report.warning(value.span(), mistake);
    }
    let on_close = read::on_close(report, table).unwrap_or_default();
    let tracker = match table.get("tracker") {
        Some(_) => read::tracker(report, table)?,
        None => Tracker::Process,
    };
    Keys::report_missing(report, table, tracker);
    let keys = Keys::read(report, table, tracker);
    Some(DynamicService {
        name: name.value.to_owned(),
        enabled,
        tracker,
        anchor: keys.anchor,
        programs: keys.programs.unwrap_or_default(),
        process: keys.process?,
        ports: keys.ports?,
        limit: keys.limit.unwrap_or(DEFAULT_LIMIT),
        on_close,
        exposure: exposure?,
        when: Vec::new(),
        line: Some(report.line(name.span.start)),
    })
}

/// Reads who may reach the ports.
fn exposure(
    report: &mut Report<'_>,
    name: &Text<'_>,
    table: &Table<'_>,
    vocabulary: &Vocabulary<'_>,
) -> Option<Exposure> {
    match (table.get("row"), table.get("from")) {
        (None, None) => {
            // Perhaps a service of the catalogue was meant: it needs neither.
            let known = vocabulary.catalogue.rows.iter().filter(|row| row.dynamic.is_some());
            let mistake =
                Mistake::new(format!("{} has neither `row` nor `from`, so nobody could reach it", quoted(name.value)))
                    .expected("`row = \"ID\"`, a row of the catalogue, or `from = [...]`, as in an [[allow]]")
                    .suggest(name.value, known.map(|row| row.id.as_str()));
            report.error(table.span.clone(), mistake);
            None
        }
        (Some(_), Some(from)) => {
            let mistake = Mistake::new("`from` stands beside `row`")
                .expected("one of the two")
                .help("with `row` the ports are for whoever may reach that row, with `from` for these parties");
            report.error(from.span(), mistake);
            None
        }
        (Some(_), None) => {
            let id = table.text(report, "row")?;
            known_row(report, &id, vocabulary.catalogue).map(|row| Exposure::Row(row.id.clone()))
        }
        (None, Some(_)) => Some(Exposure::From(parties::read(report, table, "from", vocabulary))),
    }
}

/// Why nobody can reach a row on any appliance, if that is so whatever else the file says.
fn closed(row: &Row, adjustment: Option<&RowAdjustment>) -> Option<Mistake> {
    let appliances = |group: &Group| !matches!(group, Group::External(_) | Group::PublicServer);
    let why = if let Some(adjustment) = adjustment.filter(|adjustment| !adjustment.enabled) {
        format!("the row `{}` is closed by line {}", row.id, adjustment.line)
    } else if row.flows.iter().any(|flow| appliances(&flow.to) || (flow.both && appliances(&flow.from))) {
        return None;
    } else {
        format!("the row `{}` lets nobody in", row.id)
    };
    Some(Mistake::new(format!("{why}, so this opens nothing")).help("name another row, or the parties: `from = [...]`"))
}
