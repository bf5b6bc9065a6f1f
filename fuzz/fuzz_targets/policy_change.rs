//! From one policy to the next, divided by a line of equals signs: the changes lead from each ruleset to the one after it,
//! by transactions that the kernel takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::kernel::{FakeKernel, Kernel};
use portward::plan::Plan;
use portward::policy::{Catalogue, Policy};
use portward::ruleset::Ruleset;
use portward::ruleset::diff::diff;

/// So many hosts of each policy are looked at.
const HOSTS: usize = 2;

fuzz_target!(|text: &str| {
    let mut kernel = FakeKernel::new(None);
    let mut current: Option<Ruleset> = None;
    for text in text.split("\n=====\n").take(3) {
        let Ok(loaded) = Policy::parse(text, "policy.toml", Catalogue::embedded()) else { return };
        for host in loaded.policy.hosts.values().take(HOSTS) {
            let next = Plan::new(&loaded.policy, Catalogue::embedded(), host).ruleset();
            let generation = kernel.snapshot.generation;
            let committed = kernel.commit(&diff(current.as_ref(), Some(&next)), generation);
            assert!(committed.is_ok(), "{committed:?}");
            assert_eq!(kernel.snapshot.table.as_ref(), Some(&next));
            current = Some(next);
        }
    }
});
