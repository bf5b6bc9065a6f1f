//! State files, with the checksum that they have and with the right one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::state;

fuzz_target!(|bytes: &[u8]| {
    state::files(bytes);
});
