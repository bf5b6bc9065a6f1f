//! The `portward` command: see [`portward::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    portward::cli::main()
}
