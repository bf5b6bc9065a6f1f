//! docs/policy.md knows every key and every word that the reader knows, and no others.

use super::dynamic::{KEYS, OWN_KEYS};
use super::read::{ALLOW_KEYS, DOCUMENT_KEYS, HOST_KEYS, LOG_KEYS, ROW_KEYS};
use crate::policy::dynamic::read::PROCESS_KEYS;
use crate::policy::{Catalogue, DynamicService};
use std::collections::BTreeSet;

const TEXT: &str = include_str!("../../../docs/policy.md");

/// What stands under the heading that begins so, up to the next one.
fn section(heading: &str) -> &'static str {
    let (_, rest) = TEXT.split_once(&format!("\n## {heading}")).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// The tables of a section, each by the first cells of its lines, heading and rule excepted.
fn tables(section: &str) -> Vec<Vec<&str>> {
    let mut tables: Vec<Vec<&str>> = Vec::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with('|') || lines.next_if(|rule| rule.starts_with("|--")).is_none() {
            continue;
        }
        let mut cells = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
            cells.push(line.trim_start_matches('|').split('|').next().unwrap().trim());
        }
        tables.push(cells);
    }
    tables
}

/// The words in backticks.
fn words<'t>(cells: &[&'t str]) -> BTreeSet<&'t str> {
    cells.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    let at_top: BTreeSet<&str> = words(&tables(section("At the top"))[0]);
    // These have sections of their own.
    let tables_at_top = [
        ("log", "`[log]`"),
        ("groups", "`[groups]`"),
        ("host", "`[[host]]`"),
        ("allow", "`[[allow]]`"),
        ("row", "`[row.ID]`"),
        ("dynamic", "`[dynamic.NAME]`"),
    ];
    for (_, heading) in tables_at_top {
        assert!(!section(heading).is_empty());
    }
    let documented: BTreeSet<&str> = at_top.into_iter().chain(tables_at_top.map(|(key, _)| key)).collect();
    assert_eq!(documented, BTreeSet::from(DOCUMENT_KEYS), "left: docs/policy.md, right: the reader");

    let dynamic = tables(section("`[dynamic.NAME]`"));
    let of_first = |heading| tables(section(heading)).swap_remove(0);
    let keys: [(&str, Vec<&str>, &[&str]); 6] = [
        ("[log]", of_first("`[log]`"), &LOG_KEYS),
        ("[[host]]", of_first("`[[host]]`"), &HOST_KEYS),
        ("[[allow]]", of_first("`[[allow]]`"), &ALLOW_KEYS),
        ("[row]", of_first("`[row.ID]`"), &ROW_KEYS),
        ("[dynamic]", dynamic[0].clone(), &OWN_KEYS),
        ("process", dynamic[1].clone(), &PROCESS_KEYS),
    ];
    for (what, documented, known) in keys {
        let known: BTreeSet<&str> = known.iter().copied().collect();
        assert_eq!(words(&documented), known, "{what}; left: docs/policy.md, right: the reader");
    }
    assert!(KEYS.iter().all(|key| OWN_KEYS.contains(key)));
}

#[test]
fn every_word_of_the_catalogue_is_documented() {
    let catalogue = Catalogue::embedded();
    let places: [(&str, &Vec<String>); 3] =
        [("`[groups]`", &catalogue.external), ("`[[host]]`", &catalogue.roles), ("At the top", &catalogue.features)];
    for (heading, known) in places {
        for word in known {
            let (plain, quoted) = (format!("`{word}`"), format!("`\"{word}\"`"));
            let text = section(heading);
            assert!(
                text.contains(&plain) || text.contains(&quoted),
                "{word} is missing in {heading} of docs/policy.md"
            );
        }
    }
    for version in &catalogue.versions {
        assert!(section("At the top").contains(&format!("`\"{version}\"`")), "{version}");
    }
}

#[test]
fn the_services_of_the_catalogue_are_documented_as_they_are() {
    let text = section("`[dynamic.NAME]`");
    let services: Vec<_> = Catalogue::embedded().rows.iter().filter_map(DynamicService::of_row).collect();
    assert!(services.len() >= 4);
    for service in services {
        let name = format!("| `{}`", service.name);
        let line = text.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{name} is missing"));
        let process = &service.process;
        let mut expected: Vec<String> = vec![format!("`{}`", service.tracker.name()), format!("| {} |", service.limit)];
        expected.extend(process.exe.iter().chain(&process.args).map(|pattern| format!("`{pattern}`")));
        expected.extend(service.anchor.map(|port| format!("{port}/tcp")));
        expected.extend(service.programs.iter().map(ToString::to_string));
        expected.extend(process.user.iter().map(|user| format!("`user` {user}")));
        // Of the protocols after the first only the name is written.
        expected.extend(service.ports.iter().take(1).map(ToString::to_string));
        for word in expected {
            assert!(line.contains(&word), "{}: `{word}` is missing in: {line}", service.name);
        }
    }
}
