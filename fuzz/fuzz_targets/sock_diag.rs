//! Messages of sock_diag, by each of the modules that read them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::{daemon, kernel, listeners};

fuzz_target!(|bytes: &[u8]| {
    listeners::sock_diag(bytes);
    daemon::sock_diag(bytes);
    kernel::sock_diag(bytes);
});
