//! Replies of rpcbind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::trackers;

fuzz_target!(|bytes: &[u8]| {
    trackers::rpcbind(bytes);
});
