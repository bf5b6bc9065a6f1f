use super::*;

const ISSUE: &str = include_str!("../../../policy/default.toml");

fn parse(text: &str) -> Result<Loaded, Diagnostics> {
    Policy::parse(text, "policy.toml", Catalogue::embedded())
}

#[test]
fn the_default_policy_is_without_fault() {
    let loaded = parse(ISSUE).unwrap();
    assert_eq!(loaded.warnings.to_string(), "");
}
