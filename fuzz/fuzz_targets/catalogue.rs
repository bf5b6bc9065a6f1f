//! A catalogue in place of the built-in one, under the default policy.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::kernel::write_and_read_back;
use portward::plan::Plan;
use portward::policy::{Catalogue, DEFAULT_POLICY, Policy};
use portward_fuzz::{compare, packets};

fuzz_target!(|text: &str| {
    let catalogue = match Catalogue::parse(text, "catalogue.toml") {
        Ok(catalogue) => catalogue,
        Err(diagnostics) => return assert!(!diagnostics.to_string().is_empty()),
    };
    let Ok(loaded) = Policy::parse(DEFAULT_POLICY, "policy.toml", &catalogue) else { return };
    for host in loaded.policy.hosts.values().take(2) {
        let plan = Plan::new(&loaded.policy, &catalogue, host);
        let ruleset = plan.ruleset();
        write_and_read_back(&ruleset);
        compare(&plan, &ruleset, &packets(&plan));
    }
});
