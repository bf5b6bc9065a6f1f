//! The documentation: its links lead somewhere, and the README names the commands that there are.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders that hold Markdown of ours.
const FOLDERS: [&str; 4] = [".", "docs", "packaging", "integration-tests"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files with documentation, with their paths below the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.insert(path.canonicalize().unwrap(), text);
            }
        }
    }
    assert!(pages.len() > 10, "{} pages only", pages.len());
    pages
}

/// The lines outside of blocks of code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((index + 1, line))
    })
}

/// The anchors that GitHub gives to the headings: small letters, hyphens for spaces, no other signs than these two; a
/// number for those that come again.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|sign| sign.is_alphanumeric() || "-_ ".contains(*sign));
        let anchor: String = kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect();
        let time = times.entry(anchor.clone()).or_default();
        anchors.insert(if *time == 0 { anchor } else { format!("{anchor}-{time}") });
        *time += 1;
    }
    anchors
}

/// The targets of the links in a line: what stands in `[text](target)`, outside of code.
fn targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut rest = line;
    while let Some((_, after)) = rest.split_once("](") {
        let Some((target, next)) = after.split_once(')') else { break };
        targets.push(target);
        rest = next;
    }
    targets
}

/// What is wrong with a link of a page, if it is one within the repository.
fn broken(page: &Path, target: &str, pages: &BTreeMap<PathBuf, String>) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
    let Ok(path) = path.canonicalize() else { return Some("there is no such file".to_owned()) };
    if !path.starts_with(root().canonicalize().unwrap()) {
        return Some("it leads out of the repository".to_owned());
    }
    if anchor.is_empty() {
        return None;
    }
    let Some(text) = pages.get(&path) else { return Some("it is no page with headings".to_owned()) };
    (!anchors(text).contains(anchor)).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut links = 0;
    let mut wrong = Vec::new();
    for (page, text) in &pages {
        for (number, line) in prose(text) {
            for target in targets(line) {
                links += 1;
                if let Some(why) = broken(page, target, &pages) {
                    wrong.push(format!("{}:{number}: ({target}): {why}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(links > 50, "{links} links only");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = root().join("README.md").canonicalize().unwrap();
    let pages = pages();
    let good =
        ["docs/policy.md", "docs/policy.md#log", "#the-commands", "https://example.com/#none", "policy/examples"];
    for target in good {
        assert_eq!(broken(&page, target, &pages), None, "{target}");
    }
    for target in ["docs/none.md", "docs/policy.md#none", "#none", "LICENSE#none", "../../etc"] {
        assert!(broken(&page, target, &pages).is_some(), "{target}");
    }
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# `[row.ID]`: rows, adjusted\n## Log\n```\n# a comment\n```\n## Log\n## on-close\n";
    let expected = ["rowid-rows-adjusted", "log", "log-1", "on-close"];
    assert_eq!(anchors(text), expected.map(str::to_owned).into());
    assert_eq!(targets("[a](b.md), [`c`](d.md#e) and (f)"), ["b.md", "d.md#e"]);
}

/// The subcommands that `portward --help` lists.
fn commands() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_portward")).arg("--help").output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let (_, listed) = help.split_once("Commands:\n").unwrap();
    let names = listed.lines().take_while(|line| !line.is_empty());
    // Descriptions that are continued stand further to the right.
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// The subcommands that the README's table of commands names: the first words after `portward` in its first column.
fn documented_commands(readme: &str) -> BTreeSet<String> {
    let (_, section) = readme.split_once("\n## The commands\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let names = cells.flat_map(|cell| cell.split("`portward ").skip(1));
    names.map(|rest| rest.split([' ', '`']).next().unwrap().to_owned()).collect()
}

#[test]
fn the_readme_names_the_commands_that_there_are() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut there = commands();
    assert!(there.contains("check"), "{there:?}");
    there.remove("help");
    assert_eq!(documented_commands(&readme), there, "left: README.md, right: portward --help");
}
