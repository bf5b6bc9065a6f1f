//! Counters of rules, as nft lists them.

use crate::lab::Host;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// The packets that the counters of each chain of table `inet portward` have counted, rule by rule in the order of the
/// chain. Rules without a counter are left out, and so are chains without such rules.
///
/// # Errors
/// When there is no table.
pub fn packets(host: &Host) -> Result<BTreeMap<String, Vec<u64>>> {
    packets_in(&host.nft_output(&["-j", "list", "table", "inet", "portward"])?)
}

/// The same, out of what `nft -j list table inet portward` has printed.
///
/// # Errors
/// When that is not nft's listing.
pub fn packets_in(listing: &str) -> Result<BTreeMap<String, Vec<u64>>> {
    let listing: Value = serde_json::from_str(listing).context("nft's listing is not JSON")?;
    let mut chains: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for rule in listing["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("rule")) {
        let chain = rule["chain"].as_str().context("a rule without a chain")?;
        for statement in rule["expr"].as_array().into_iter().flatten() {
            if let Some(packets) = statement["counter"]["packets"].as_u64() {
                chains.entry(chain.to_owned()).or_default().push(packets);
            }
        }
    }
    Ok(chains)
}

/// The sum of the counters of one chain.
///
/// # Errors
/// When there is no table.
pub fn packets_of(host: &Host, chain: &str) -> Result<u64> {
    Ok(packets(host)?.get(chain).map_or(0, |packets| packets.iter().sum()))
}
