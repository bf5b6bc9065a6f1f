//! A site's policy. What loads is planned for its hosts; the ruleset reads the same after it was written as messages to the
//! kernel, and has the answer that people are told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::fuzzing::kernel::write_and_read_back;
use portward::plan::{LocalScope, OpenPort, OpenPorts, Plan, open, opened};
use portward::policy::{Catalogue, Mode, Policy, with_mode};
use portward::ruleset::Protocol;
use portward_fuzz::{compare, packets};

/// Further hosts of a policy take the same way.
const HOSTS: usize = 3;

fuzz_target!(|text: &str| {
    let catalogue = Catalogue::embedded();
    let loaded = match Policy::parse(text, "policy.toml", catalogue) {
        Ok(loaded) => loaded,
        Err(diagnostics) => {
            assert!(!diagnostics.to_string().is_empty());
            let _ = with_mode(text, Mode::Observe);
            return;
        }
    };
    for mode in [Mode::Observe, Mode::Enforce] {
        let changed = Policy::parse(&with_mode(text, mode), "policy.toml", catalogue);
        let changed = changed.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).policy;
        assert_eq!((changed.mode, changed.hosts.len()), (mode, loaded.policy.hosts.len()));
    }
    for host in loaded.policy.hosts.values().take(HOSTS) {
        let plan = Plan::new(&loaded.policy, catalogue, host);
        let mut ruleset = plan.ruleset();
        write_and_read_back(&ruleset);
        compare(&plan, &ruleset, &packets(&plan));

        let mut ports = OpenPorts::new();
        for (exposed, port) in plan.dynamic.iter().zip(40_000..) {
            let found = OpenPort { protocol: Protocol::Tcp, port, scope: LocalScope::Any };
            ports.insert(exposed.service.name.clone(), [found].into());
        }
        let closed = ruleset.clone();
        open(&mut ruleset, &ports);
        write_and_read_back(&ruleset);
        assert_eq!(opened(&ruleset), ports);
        open(&mut ruleset, &OpenPorts::new());
        assert_eq!(ruleset, closed);
    }
});
