//! Answers of an RMI registry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::trackers::rmi::{parse_lookup, parse_names};

fuzz_target!(|answer: &[u8]| {
    if let Ok(names) = parse_names(answer) {
        // A name takes one byte of the answer at least.
        assert!(names.len() <= answer.len());
        assert!(names.iter().take(8).all(|name| !name.to_string().chars().any(char::is_control)));
    }
    if let Ok(endpoints) = parse_lookup(answer) {
        assert!(endpoints.iter().all(|endpoint| endpoint.port != 0 && !endpoint.to_string().contains('\n')));
    }
});
