//! The disks of virtual machines: the image that `integration-tests/vm/image.sh` builds, and what is laid over it.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where everything about virtual machines is kept.
///
/// # Errors
/// When the image has not been built.
pub(super) fn folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm");
    let folder = folder.canonicalize().unwrap_or(folder);
    ensure!(
        folder.join("made-from").exists(),
        "{} holds no image of a virtual machine: run `make vm-test`, or integration-tests/vm/image.sh",
        folder.display()
    );
    Ok(folder)
}

/// The package under test: the file that `PORTWARD_DEB` names.
///
/// # Errors
/// When the variable is not set or there is no such file.
pub(super) fn package() -> Result<PathBuf> {
    let path = std::env::var_os("PORTWARD_DEB").map(PathBuf::from);
    let path = path.context("PORTWARD_DEB must name the .deb to test: run `make vm-test`, or `make deb` first")?;
    // Cargo runs tests in the package's folder, make in the repository's.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    path.canonicalize().with_context(|| format!("{} is not there", path.display()))
}

/// Makes a read-only file system out of files, which the machines find at /payload.
///
/// # Errors
/// When a file cannot be read, or the disk not be made.
pub(super) fn payload(disk: &Path, files: &[(&Path, &str)]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut bytes = 8 << 20;
    for (from, name) in files {
        bytes += fs::copy(from, folder.path().join(name)).with_context(|| from.display().to_string())? * 5 / 4;
    }
    fs::File::create(disk)?.set_len(bytes.next_multiple_of(1 << 20))?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "payload", "-d"]).arg(folder.path()).arg(disk))
}

/// Makes a disk that begins as a copy of another one and keeps only what is changed.
///
/// # Errors
/// When it cannot be made.
pub(super) fn overlay(base: &Path, disk: &Path) -> Result<()> {
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(disk))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
