//! Copies of programs, for tests in which a program lies somewhere else.

use std::path::Path;
use std::process::Command;

/// Copies a program, ready to be started.
///
/// Another process does it. If this one had the copy open for writing, a child that another test starts at that moment
/// would inherit the descriptor, and execve(2) refuses a file that somebody may write to (`ETXTBSY`).
pub(crate) fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let output = Command::new("cp").arg("--").arg(from.as_ref()).arg(to.as_ref()).output().expect("coreutils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
