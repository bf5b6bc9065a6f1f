//! Files of /proc and of /etc, and what systemctl says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::{daemon, doctor, listeners};

fuzz_target!(|bytes: &[u8]| {
    listeners::files(bytes);
    daemon::files(bytes);
    doctor::files(&String::from_utf8_lossy(bytes));
});
