//! The packages under test, as `make deb` and `make rpm` build them.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The folder that is the workspace's.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The files that were built.
#[derive(Debug)]
pub struct Packages {
    /// For Debian 12 and its like.
    pub deb: PathBuf,
    /// For RHEL 8 and 9 and their like.
    pub rpm: PathBuf,
    /// The binary that is in both.
    pub binary: PathBuf,
}

/// The packages of this source, which are brought up to date first.
///
/// # Panics
/// With the words of make, when they cannot be built.
pub fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| build().unwrap_or_else(|error| panic!("the packages cannot be built: {error:#}")))
}

fn build() -> Result<Packages> {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "--directory", WORKSPACE, "deb", "rpm"]).stdin(Stdio::null());
    // What an outer make and cargo say to their children is not meant for these.
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CARGO_TARGET_DIR"] {
        make.env_remove(variable);
    }
    let output = make.output().context("make is needed")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let target = Path::new(WORKSPACE).join("target").canonicalize()?;
    Ok(Packages {
        deb: only(&target.join("packages"), "deb")?,
        rpm: only(&target.join("packages"), "rpm")?,
        binary: target.join("package/portward"),
    })
}

fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        found.extend(path.extension().is_some_and(|other| other == extension).then_some(path));
    }
    ensure!(found.len() == 1, "one .{extension} is expected in {}, and there are {}", folder.display(), found.len());
    found.pop().context("there is one")
}

/// The folder for what is built and kept, of the workspace.
///
/// # Errors
/// When it cannot be made.
pub fn target_folder() -> Result<PathBuf> {
    let folder = Path::new(WORKSPACE).join("target");
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}
