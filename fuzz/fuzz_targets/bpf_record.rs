//! Records of the BPF programs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::listeners;

fuzz_target!(|bytes: &[u8]| {
    listeners::event(bytes);
});
