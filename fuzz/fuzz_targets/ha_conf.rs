//! The vendor's file about a high-availability pair.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::policy::first::HaPair;

fuzz_target!(|text: &str| {
    if let Ok(pair) = HaPair::parse(text) {
        assert_ne!(pair.primary, pair.secondary);
        let written = format!("PRIMARY_IP={}\nSECONDARY_IP={}\n", pair.primary, pair.secondary);
        assert_eq!(HaPair::parse(&written), Ok(pair));
    }
});
