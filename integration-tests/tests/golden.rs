//! The example policies as nft text: compared with committed files, accepted by nft, and the same in the kernel whether
//! nft loads the text or portward applies the policy.
//!
//! A committed file is the text for people to review: each element of a map stands on a line of its own, and ports that
//! follow each other with the same verdict share one.
//!
//! `UPDATE_GOLDEN=1 cargo test -p portward-integration-tests --test golden` writes the files anew.
#![forbid(unsafe_code)]

use ::portward::policy::{Catalogue, Policy};
use anyhow::{Context, Result, anyhow, ensure};
use portward_integration_tests::portward::{self, ruleset, table};
use portward_integration_tests::{Host, HostSpec, Lab};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The example policies and the hosts in each.
fn examples() -> Result<Vec<(String, PathBuf, Vec<String>)>> {
    let mut examples = Vec::new();
    for entry in fs::read_dir(repository().join("policy/examples"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
            let loaded = Policy::load(&path, Catalogue::embedded()).map_err(|error| anyhow!("{error}"))?;
            examples.push((name, path, loaded.policy.hosts.into_keys().collect()));
        }
    }
    examples.sort();
    Ok(examples)
}

fn show(policy: &Path, host: &str) -> Result<String> {
    let output = Command::new(portward::binary())
        .args(["show", "--format", "nft", "--host", host, "--policy"])
        .arg(policy)
        .output()?;
    ensure!(output.status.success(), "portward show: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The text as it is committed.
fn reviewable(text: &str) -> String {
    let mut lines = String::new();
    // First and last port of the run so far, and its verdict.
    let mut run: Option<(u32, u32, &str)> = None;
    let flush = |lines: &mut String, run: Option<(u32, u32, &str)>| match run {
        None => {}
        Some((first, last, verdict)) if first == last => {
            writeln!(lines, "\t\t\t{first} : {verdict}").unwrap_or_default()
        }
        Some((first, last, verdict)) => {
            writeln!(lines, "\t\t\t{first} to {last}, one by one : {verdict}").unwrap_or_default();
        }
    };
    for line in text.lines() {
        let elements: Option<Vec<(u32, &str)>> = line
            .trim()
            .trim_end_matches(',')
            .split(", ")
            .map(|element| element.split_once(" : ").and_then(|(port, verdict)| Some((port.parse().ok()?, verdict))))
            .collect();
        let Some(elements) = elements else {
            flush(&mut lines, run.take());
            lines.push_str(line.trim_end());
            lines.push('\n');
            continue;
        };
        for (port, verdict) in elements {
            run = match run {
                Some((first, last, same)) if last + 1 == port && same == verdict => Some((first, port, verdict)),
                other => {
                    flush(&mut lines, other);
                    Some((port, port, verdict))
                }
            };
        }
    }
    flush(&mut lines, run);
    lines
}

/// The kernel's table as nft lists it. nft lists objects in the order in which they were made; here they are sorted.
fn listing(host: &Host) -> Result<BTreeSet<String>> {
    let text = host.nft_output(&["--stateless", "list", "table", "inet", "portward"])?;
    let mut blocks = BTreeSet::new();
    let mut block = String::new();
    for line in text.lines().map(|line| line.trim_end()) {
        block.push_str(line);
        block.push('\n');
        if line == "\t}" {
            blocks.insert(std::mem::take(&mut block));
        }
    }
    ensure!(blocks.len() > 5, "a listing of {} objects:\n{text}", blocks.len());
    Ok(blocks)
}

#[test]
fn examples_are_as_committed_and_nft_agrees() -> Result<()> {
    let lab = Lab::new(&[HostSpec::new("subject", &["10.255.0.1"])])?;
    let subject = lab.host("subject");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut expected_files = BTreeSet::new();
    let mut differences = Vec::new();
    for (example, policy, hosts) in examples()? {
        for host in hosts {
            let label = format!("{example} {host}");
            let golden = folder.join(&example).join(format!("{host}.txt"));
            let text = show(&policy, &host)?;
            let shown = reviewable(&text);
            if update {
                fs::create_dir_all(folder.join(&example))?;
                fs::write(&golden, &shown)?;
            }
            let committed = fs::read_to_string(&golden).unwrap_or_default();
            if committed != shown {
                let line = committed.lines().zip(shown.lines()).position(|(old, new)| old != new);
                differences.push(format!("{} differs, first after {line:?} equal lines", golden.display()));
            }
            expected_files.insert(golden.clone());

            let file = tempfile::NamedTempFile::new()?;
            fs::write(file.path(), &text)?;
            let path = portward::text(file.path())?;
            subject.nft_output(&["-c", "-f", path]).with_context(|| label.clone())?;
            subject.nft_output(&["-f", path]).with_context(|| label.clone())?;
            let loaded = listing(subject)?;
            assert_eq!(portward::portward(subject, &["down"])?.code, 0, "{label}");

            portward::apply(subject, &policy, &host)?;
            assert_eq!(table(subject)?, Some(ruleset(&fs::read_to_string(&policy)?, &host)?), "{label}");
            let applied = listing(subject)?;
            for (only, of, other) in [("nft", &loaded, &applied), ("portward", &applied, &loaded)] {
                let only_here: Vec<_> = of.difference(other).map(String::as_str).collect();
                assert!(only_here.is_empty(), "{label}: only as {only} loads it:\n{}", only_here.concat());
            }
            let diff = portward::portward(subject, &["diff", "--policy", portward::text(&policy)?, "--host", &host])?;
            assert_eq!(diff.code, 0, "{label}: nothing is left to change: {}", diff.stdout);
            assert_eq!(portward::portward(subject, &["down"])?.code, 0, "{label}");
        }
    }
    assert!(differences.is_empty(), "{}\nUPDATE_GOLDEN=1 writes them anew", differences.join("\n"));
    assert!(expected_files.len() >= 10, "{} golden files", expected_files.len());
    for example in fs::read_dir(&folder)? {
        for file in fs::read_dir(example?.path())? {
            let file = file?.path();
            assert!(expected_files.contains(&file), "{} belongs to no example", file.display());
        }
    }
    Ok(())
}
