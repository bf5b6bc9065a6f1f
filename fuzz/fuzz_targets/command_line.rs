//! Arguments of the command line, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::cli;

fuzz_target!(|text: &str| {
    cli::arguments(&text.lines().collect::<Vec<_>>());
});
