//! What the fuzz targets need of the command line.

use super::{Cli, status};
use crate::daemon::status::Status;
use clap::Parser;
use std::hint::black_box;

/// Reads arguments. Nothing is run.
pub fn arguments(arguments: &[&str]) {
    let _ = black_box(Cli::try_parse_from(["portward"].iter().chain(arguments)).map_err(|error| error.to_string()));
}

/// A daemon's status as people read it.
pub fn status(status: &Status, now: u64) -> String {
    self::status::render(status, now)
}
