//! The benchmark: what loading and changing a policy takes, and what the ruleset costs a packet, beside the floor that the
//! kernel's interface allows and beside `nft -f`, measured in turns in one run.
//!
//! `make bench` runs all of it; `portward-bench packets` a part: `load`, `change`, `daemon`, `packets`,
//! `listeners`. Everything happens in
//! network namespaces of its own. Nothing is asserted: the last column says whether a target is met on this machine.
#![forbid(unsafe_code)]

mod daemon;
mod deployment;
mod floor;
mod listeners;
mod loading;
mod namespace;
mod packets;
mod report;

use anyhow::{Result, bail, ensure};
use std::fs;
use std::path::Path;

const PARTS: [&str; 5] = ["load", "change", "daemon", "packets", "listeners"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, command)) = arguments.split_first()
        && first == daemon::PEAK_MEMORY
    {
        return daemon::print_peak_memory(command);
    }
    if let Some(unknown) = arguments.iter().find(|argument| !PARTS.contains(&argument.as_str())) {
        bail!("there is no part `{unknown}`; there are: {}", PARTS.join(", "));
    }
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes network namespaces");

    let folder = std::env::temp_dir().join(format!("portward-bench-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let result = measure(&arguments, &folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn measure(parts: &[String], folder: &Path) -> Result<()> {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let kernel = nix::sys::utsname::uname()?;
    println!("Linux {}, {} processors", kernel.release().to_string_lossy(), std::thread::available_parallelism()?);
    println!("Medians of turns; in brackets the half of the turns around the median.");
    if wanted("load") {
        loading::measure_loads(folder)?;
    }
    if wanted("change") {
        loading::measure_changes(folder)?;
    }
    if wanted("daemon") {
        daemon::measure(folder)?;
    }
    if wanted("packets") {
        packets::measure()?;
    }
    if wanted("listeners") {
        listeners::measure(folder)?;
    }
    Ok(())
}
