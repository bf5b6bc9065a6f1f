//! Dumps and notifications of nf_tables. What is taken for portward's own table reads the same when it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::kernel;

fuzz_target!(|bytes: &[u8]| {
    kernel::nf_tables(bytes);
});
