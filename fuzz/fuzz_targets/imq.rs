//! The table of a broker's portmapper, and the stub in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::trackers::imq::{claims, parse};

fuzz_target!(|answer: &[u8]| {
    let Ok(table) = parse(answer) else { return };
    let claims = claims(&table);
    assert!(claims.claims.iter().all(|claim| claim.port != 0));
    let texts = claims.claims.iter().map(|claim| &claim.what).chain(claims.refused.iter().map(|refused| &refused.what));
    assert!(!texts.into_iter().any(|text| text.chars().any(char::is_control)));
    let refusals: usize = claims.refused.iter().map(|refused| refused.why.to_string().len()).sum();
    assert!(refusals <= 1000 * (1 + answer.len()));
});
