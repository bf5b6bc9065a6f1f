//! What other tables have on the hooks. Their rules are never read.
#![forbid(unsafe_code)]

use super::uapi::{self, NFPROTO_INET, NFPROTO_UNSPEC, NLM_F_DUMP, chain, message, table};
use super::wire::{Attributes, Malformed, Message};
use super::{Answer, DUMP_ATTEMPTS, Error, Netlink};
use crate::ruleset::{ChainPolicy, TABLE};
use std::collections::BTreeSet;

/// Chains that are kept. Somebody else made them, so there may be any number.
const MOST_CHAINS: usize = 1024;
/// `NFT_TABLE_F_DORMANT`, linux/netfilter/nf_tables.h: the table's chains are on no hook.
const DORMANT: u32 = 1;
/// `NFTA_CHAIN_USE`: what refers to the chain. No rule may jump to a base chain, so these are its own rules.
const CHAIN_USE: u16 = 6;

/// A base chain of a table that is not portward's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    /// The family of its table: `ip`, `ip6`, `inet`, `arp`, `bridge` or `netdev`.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The hook: `prerouting`, `input`, `forward`, `output`, `postrouting`, or `ingress` for what comes before or is not
    /// known.
    pub hook: &'static str,
    /// The priority at the hook: lower ones are asked first.
    pub priority: i32,
    /// Whether a packet that reaches the chain's end is dropped.
    pub drops: bool,
    /// How many rules it has.
    pub rules: u32,
}

impl Netlink {
    /// The base chains of all tables but portward's, sorted; those of dormant tables are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or gives no whole answer.
    pub fn foreign_chains(&mut self) -> Result<Vec<ForeignChain>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut reader = Reader::default();
            let tables = (message::GETTABLE, NLM_F_DUMP, NFPROTO_UNSPEC);
            let chains = (message::GETCHAIN, NLM_F_DUMP, NFPROTO_UNSPEC);
            if self.ask("listing tables", tables, &[], |message| reader.table(message))? == Answer::Complete
                && self.ask("listing chains", chains, &[], |message| reader.chain(message))? == Answer::Complete
            {
                reader.chains.sort_unstable();
                return Ok(reader.chains);
            }
        }
        Err(Error::Changed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Reader {
    dormant: BTreeSet<(u8, String)>,
    chains: Vec<ForeignChain>,
}

impl Reader {
    pub(super) fn table(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let attributes = message.attributes()?;
        if attributes.be32(table::FLAGS)?.unwrap_or_default() & DORMANT != 0 && self.dormant.len() < MOST_CHAINS {
            self.dormant.insert((message.family()?, name(&attributes, table::NAME)));
        }
        Ok(())
    }

    pub(super) fn chain(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let attributes = message.attributes()?;
        let (family, table) = (message.family()?, name(&attributes, uapi::OF_TABLE));
        let is_own = family == NFPROTO_INET && table == TABLE;
        if message.nf_tables_kind() != Some(message::NEWCHAIN)
            || !attributes.has(chain::HOOK)
            || is_own
            || self.dormant.contains(&(family, table.clone()))
            || self.chains.len() >= MOST_CHAINS
        {
            return Ok(());
        }
        let hook = attributes.nested(chain::HOOK)?;
        let family = family_name(family);
        self.chains.push(ForeignChain {
            family,
            table,
            chain: name(&attributes, chain::NAME),
            hook: hook_name(family, hook.be32(chain::HOOK_NUMBER)?),
            priority: hook.be32(chain::HOOK_PRIORITY)?.unwrap_or_default().cast_signed(),
            drops: policy(&attributes)? == ChainPolicy::Drop,
            rules: attributes.be32(CHAIN_USE)?.unwrap_or_default(),
        });
        Ok(())
    }
}

fn policy(attributes: &Attributes<'_>) -> Result<ChainPolicy, Malformed> {
    Ok(match attributes.be32(chain::POLICY)? {
        Some(chain::POLICY_DROP) => ChainPolicy::Drop,
        _ => ChainPolicy::Accept,
    })
}

/// A name. The kernel takes any bytes.
fn name(attributes: &Attributes<'_>, number: u16) -> String {
    let bytes = attributes.get(number).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// `NFPROTO_*`, linux/netfilter.h, as nft calls them.
fn family_name(family: u8) -> &'static str {
    match family {
        NFPROTO_INET => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

/// `enum nf_inet_hooks`, linux/netfilter.h; netdev has hooks of its own.
fn hook_name(family: &str, hook: Option<u32>) -> &'static str {
    match hook {
        Some(0) if family != "netdev" => "prerouting",
        Some(chain::HOOK_INPUT) => "input",
        Some(chain::HOOK_FORWARD) => "forward",
        Some(chain::HOOK_OUTPUT) => "output",
        Some(4) => "postrouting",
        _ => "ingress",
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{
        Header, begin_message, begin_nest, end_message, end_nest, message_of, messages, nf_tables, put_be32, put_text,
    };
    use super::*;
    use proptest::prelude::*;

    fn chain_message(family: u8, table: &str, policy: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header { kind: nf_tables(message::NEWCHAIN), flags: 0, sequence: 1, family, resource: 0 };
        let start = begin_message(&mut bytes, header);
        put_text(&mut bytes, uapi::OF_TABLE, table);
        put_text(&mut bytes, chain::NAME, "INPUT");
        let nest = begin_nest(&mut bytes, chain::HOOK);
        put_be32(&mut bytes, chain::HOOK_NUMBER, chain::HOOK_INPUT);
        put_be32(&mut bytes, chain::HOOK_PRIORITY, (-10_i32).cast_unsigned());
        end_nest(&mut bytes, nest);
        put_be32(&mut bytes, chain::POLICY, policy);
        put_be32(&mut bytes, CHAIN_USE, 3);
        end_message(&mut bytes, start);
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<ForeignChain> {
        let mut reader = Reader::default();
        messages(bytes).for_each(|message| reader.chain(&message.unwrap()).unwrap());
        reader.chains
    }

    #[test]
    fn chains_of_others_are_told_and_our_own_are_not() {
        let own = chain_message(NFPROTO_INET, TABLE, chain::POLICY_DROP);
        let others = chain_message(2, TABLE, chain::POLICY_DROP);
        let expected = ForeignChain {
            family: "ip",
            table: TABLE.to_owned(),
            chain: "INPUT".to_owned(),
            hook: "input",
            priority: -10,
            drops: true,
            rules: 3,
        };
        assert_eq!(read(&[own, others].concat()), [expected]);
        assert!(!read(&chain_message(10, "filter", chain::POLICY_ACCEPT))[0].drops);
    }

    proptest! {
        #[test]
        fn no_message_makes_reading_panic(kind in 0_u16..30, payload in proptest::collection::vec(any::<u8>(), 0..128)) {
            let bytes = message_of(kind, &payload);
            let mut reader = Reader::default();
            for message in messages(&bytes).map_while(Result::ok) {
                let _ = (reader.table(&message), reader.chain(&message));
            }
        }
    }
}
