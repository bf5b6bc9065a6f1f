//! Messages of connection tracking, and the order to delete the flow that one tells of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::kernel;

fuzz_target!(|bytes: &[u8]| {
    kernel::conntrack(bytes);
});
