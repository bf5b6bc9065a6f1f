//! The table as the kernel describes it, read back into a [`Ruleset`]. Nothing here trusts a message.
#![forbid(unsafe_code)]

use super::batch::{Handles, key_of};
use super::uapi::{self, NFPROTO_INET, chain, data, element, expression as attribute, message, rule, set, table};
#[cfg(any(test, feature = "fuzzing"))]
use super::wire;
use super::wire::{Attributes, Malformed, Message, attributes};
use crate::kernel::Snapshot;
use crate::kernel::expression::{ConnectionKey, Expression, FurtherKey, MetaKey, PayloadBase, lift};
use crate::ruleset::{
    Address, AddressRange, BaseChain, Chain, ChainPolicy, Family, Hook, LogTarget, Name, PortRange, Record, Rule,
    Ruleset, Set, TABLE, Verdict, VerdictMap,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Collects the messages of several dumps.
pub(super) struct TableReader {
    generation: u32,
    exists: bool,
    ruleset: Ruleset,
    foreign: Vec<String>,
    /// Rules may come before their chains are known.
    rules: BTreeMap<Name, Vec<(u64, Rule)>>,
    elements: BTreeMap<Name, Vec<Element>>,
    /// Chains that are part of a rule.
    bound_chains: BTreeSet<Name>,
}

/// An element as it stands in a dump: intervals are two of them.
#[derive(PartialEq, Eq)]
struct Element {
    key: Vec<u8>,
    is_end: bool,
    verdict: Option<Verdict>,
}

impl TableReader {
    pub(super) fn new(generation: u32) -> Self {
        Self {
            generation,
            exists: false,
            ruleset: Ruleset::default(),
            foreign: Vec::new(),
            rules: BTreeMap::new(),
            elements: BTreeMap::new(),
            bound_chains: BTreeSet::new(),
        }
    }

    /// Takes the answer about the table itself.
    pub(super) fn table(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        self.exists = true;
        if message.attributes()?.be32(table::FLAGS)?.unwrap_or_default() != 0 {
            self.foreign.push("flags of the table (dormant or owned)".to_owned());
        }
        Ok(())
    }

    /// Takes a chain, set, rule, stateful object or flowtable; those of other tables are left out.
    pub(super) fn object(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let attributes = message.attributes()?;
        if message.family()? != NFPROTO_INET || !attributes.is_text(uapi::OF_TABLE, TABLE) {
            return Ok(());
        }
        let kind = message.nf_tables_kind();
        // The kernel takes any bytes for a name.
        let name = if kind == Some(message::NEWCHAIN) { chain::NAME } else { set::NAME };
        if attributes.text(name).is_err() {
            let what = "objects whose names are no text".to_owned();
            if !self.foreign.contains(&what) {
                self.foreign.push(what);
            }
            return Ok(());
        }
        match kind {
            Some(message::NEWCHAIN) => self.chain(&attributes),
            Some(message::NEWSET) => self.set(&attributes),
            Some(message::NEWRULE) => self.rule(&attributes),
            // The name is the second attribute of both.
            Some(message::NEWOBJ) => {
                self.foreign.push(format!("stateful object {}", attributes.name(2)?));
                Ok(())
            }
            Some(message::NEWFLOWTABLE) => {
                self.foreign.push(format!("flowtable {}", attributes.name(2)?));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn chain(&mut self, attributes: &Attributes<'_>) -> Result<(), Malformed> {
        let name = attributes.name(chain::NAME)?;
        let flags = attributes.be32(chain::FLAGS)?.unwrap_or_default();
        if flags & chain::FLAG_BINDING != 0 {
            // The chain of a block within a rule, which is deleted with the rule.
            self.bound_chains.insert(name.into());
            return Ok(());
        }
        if flags & !chain::FLAG_BASE != 0 {
            self.foreign.push(format!("chain {name} (flags)"));
            return Ok(());
        }
        let base = if attributes.has(chain::HOOK) {
            let hook = attributes.nested(chain::HOOK)?;
            let number = hook.be32(chain::HOOK_NUMBER)?;
            let priority = hook.be32(chain::HOOK_PRIORITY)?.unwrap_or_default().cast_signed();
            let policy = match attributes.be32(chain::POLICY)? {
                Some(chain::POLICY_DROP) => ChainPolicy::Drop,
                _ => ChainPolicy::Accept,
            };
            let hook = match number {
                Some(chain::HOOK_INPUT) => Some(Hook::Input),
                Some(chain::HOOK_FORWARD) => Some(Hook::Forward),
                Some(chain::HOOK_OUTPUT) => Some(Hook::Output),
                _ => None,
            };
            match hook {
                Some(hook) if attributes.text(chain::TYPE)? == Some("filter") => {
                    Some(BaseChain { hook, priority, policy })
                }
                _ => {
                    self.foreign.push(format!("chain {name} (its hook or type)"));
                    return Ok(());
                }
            }
        } else {
            None
        };
        self.ruleset.chains.insert(name.into(), Chain { base, rules: Vec::new() });
        Ok(())
    }

    fn set(&mut self, attributes: &Attributes<'_>) -> Result<(), Malformed> {
        let name: Name = attributes.name(set::NAME)?.into();
        let flags = attributes.be32(set::FLAGS)?.unwrap_or_default();
        let key = (attributes.be32(set::KEY_TYPE)?, attributes.be32(set::KEY_LENGTH)?);
        let interval = flags & set::FLAG_INTERVAL != 0;
        let plain = (flags & !(set::FLAG_INTERVAL | set::FLAG_MAP) == 0 || flags == set::FLAG_EVAL)
            && ![set::TIMEOUT, set::EXPRESSION, set::EXPRESSIONS].iter().any(|number| attributes.has(*number));
        let size = attributes.nested(set::DESCRIPTION)?.be32(set::DESCRIPTION_SIZE)?;
        let verdicts = attributes.be32(set::DATA_TYPE)? == Some(set::DATA_VERDICT);
        let records = [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .flat_map(|family| [true, false].map(|with_port| Set::Record(Record { family, with_port })));
        let empty = match (flags & set::FLAG_MAP != 0, key) {
            _ if !plain => None,
            (false, (Some(kind), Some(length))) if flags == set::FLAG_EVAL => {
                records.into_iter().find(|record| key_of(record) == (kind, length))
            }
            (true, (Some(set::TYPE_PORT), Some(2))) if verdicts && size.is_none() => {
                self.ruleset.maps.insert(name, VerdictMap { interval, elements: Vec::new() });
                return Ok(());
            }
            (false, (Some(set::TYPE_IPV4_ADDRESS), Some(4))) if interval => Some(Set::Ipv4Ranges(Vec::new())),
            (false, (Some(set::TYPE_IPV4_ADDRESS), Some(4))) => Some(Set::Ipv4Addresses(Vec::new())),
            (false, (Some(set::TYPE_IPV6_ADDRESS), Some(16))) if interval => Some(Set::Ipv6Ranges(Vec::new())),
            (false, (Some(set::TYPE_IPV6_ADDRESS), Some(16))) => Some(Set::Ipv6Addresses(Vec::new())),
            _ => None,
        };
        match empty {
            Some(set) => {
                self.ruleset.sizes.extend(size.map(|size| (name.clone(), size)));
                self.ruleset.sets.insert(name, set);
            }
            // Anonymous sets belong to a rule, which is deleted with them.
            None if flags & set::FLAG_ANONYMOUS != 0 => {}
            None => self.foreign.push(format!("set or map {name} (its type or flags)")),
        }
        Ok(())
    }

    fn rule(&mut self, attributes: &Attributes<'_>) -> Result<(), Malformed> {
        let handle = attributes
            .get(rule::HANDLE)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes)
            .ok_or(Malformed("the handle of a rule"))?;
        let mut expressions = read_expressions(attributes.get(rule::EXPRESSIONS).unwrap_or_default())?;
        if attributes.has(rule::COMPAT) {
            expressions.push(Expression::Unknown("made by iptables".to_owned()));
        }
        let chain = attributes.name(rule::CHAIN)?.into();
        self.rules.entry(chain).or_default().push((handle, Rule { statements: lift(&expressions) }));
        Ok(())
    }

    /// The sets and maps whose elements are still to be read. Those that are the kernel's own are not.
    pub(super) fn element_holders(&self) -> Vec<Name> {
        let sets = self.ruleset.sets.iter().filter(|(_, set)| set.record().is_none()).map(|(name, _)| name);
        sets.chain(self.ruleset.maps.keys()).cloned().collect()
    }

    /// Takes elements of a set or map.
    pub(super) fn elements(&mut self, set: &Name, message: &Message<'_>) -> Result<(), Malformed> {
        if message.nf_tables_kind() != Some(message::NEWSETELEM) {
            return Ok(());
        }
        let list = message.attributes()?.get(element::LIST).unwrap_or_default();
        let elements = self.elements.entry(set.clone()).or_default();
        for entry in attributes(list) {
            let entry = Attributes::read(entry?.1)?;
            let foreign =
                [element::TIMEOUT, element::EXPRESSION, element::EXPRESSIONS, element::OBJECT, element::KEY_END];
            let flags = entry.be32(element::FLAGS)?.unwrap_or_default();
            let verdict = entry.get(element::DATA).map(read_verdict);
            let verdict_is_known = matches!(verdict, None | Some(Ok(Some(_))));
            if !verdict_is_known
                || foreign.iter().any(|number| entry.has(*number))
                || flags & !element::FLAG_INTERVAL_END != 0
            {
                let what = format!("elements of {set} (timeout, counter, unknown verdict or the like)");
                if !self.foreign.contains(&what) {
                    self.foreign.push(what);
                }
                continue;
            }
            let key = entry.nested(element::KEY)?.get(data::VALUE).ok_or(Malformed("the key of an element"))?.to_vec();
            let verdict = verdict.and_then(Result::ok).flatten();
            elements.push(Element { key, is_end: flags & element::FLAG_INTERVAL_END != 0, verdict });
        }
        Ok(())
    }

    pub(super) fn into_handles(self) -> Handles {
        self.rules
            .into_iter()
            .map(|(chain, rules)| (chain, rules.into_iter().map(|(handle, _)| handle).collect()))
            .collect()
    }

    /// What was read; `None` when a set was read while its hash table grew. The kernel goes on with such a dump by the
    /// number of elements that it has given (`nft_rhash_walk`, net/netfilter/nft_set_hash.c), so when the order changes
    /// it gives some elements twice and leaves out as many, and does not call the dump interrupted.
    pub(super) fn into_snapshot(mut self) -> Option<Snapshot> {
        if !self.exists {
            return Some(Snapshot { generation: self.generation, table: None, foreign: Vec::new() });
        }
        for elements in self.elements.values_mut() {
            // At the same key an end comes before the next start.
            elements.sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
            if elements.windows(2).any(|pair| pair[0] == pair[1]) {
                return None;
            }
        }
        for (name, rules) in std::mem::take(&mut self.rules) {
            match self.ruleset.chains.get_mut(&name) {
                Some(chain) => chain.rules = rules.into_iter().map(|(_, rule)| rule).collect(),
                None if self.bound_chains.contains(&name) => {}
                None => self.foreign.push(format!("rules of chain {name}")),
            }
        }
        for (name, elements) in std::mem::take(&mut self.elements) {
            if self.fill(&name, elements).is_none() {
                self.foreign.push(format!("elements of {name}"));
            }
        }
        Some(Snapshot { generation: self.generation, table: Some(self.ruleset), foreign: self.foreign })
    }

    /// Puts sorted elements into their set or map; `None` when they are not what it holds.
    fn fill(&mut self, name: &Name, elements: Vec<Element>) -> Option<()> {
        if let Some(map) = self.ruleset.maps.get_mut(name) {
            map.elements = if map.interval {
                ranges(&elements, port, u16::MAX, |end| end.checked_sub(1))?
                    .into_iter()
                    .map(|(first, last, verdict)| Some((PortRange { first, last }, verdict?)))
                    .collect::<Option<_>>()?
            } else {
                elements
                    .iter()
                    .map(|element| Some((PortRange::single(port(&element.key)?), element.verdict.clone()?)))
                    .collect::<Option<_>>()?
            };
            return Some(());
        }
        match self.ruleset.sets.get_mut(name)? {
            Set::Ipv4Addresses(addresses) => {
                *addresses = elements.iter().map(|element| ipv4(&element.key)).collect::<Option<_>>()?;
            }
            Set::Ipv6Addresses(addresses) => {
                *addresses = elements.iter().map(|element| ipv6(&element.key)).collect::<Option<_>>()?;
            }
            Set::Ipv4Ranges(of) => {
                let before = |end: Ipv4Addr| end.to_bits().checked_sub(1).map(Ipv4Addr::from_bits);
                *of = address_ranges(&elements, ipv4, Ipv4Addr::BROADCAST, before)?;
            }
            Set::Ipv6Ranges(of) => {
                let before = |end: Ipv6Addr| end.to_bits().checked_sub(1).map(Ipv6Addr::from_bits);
                *of = address_ranges(&elements, ipv6, Ipv6Addr::from_bits(u128::MAX), before)?;
            }
            Set::Record(_) => {}
        }
        Some(())
    }
}

fn address_ranges<A: Address>(
    elements: &[Element],
    read: impl Fn(&[u8]) -> Option<A>,
    highest: A,
    before: impl Fn(A) -> Option<A>,
) -> Option<Vec<AddressRange<A>>> {
    let ranges = ranges(elements, read, highest, before)?;
    Some(ranges.into_iter().map(|(first, last, _)| AddressRange { first, last }).collect())
}

/// Pairs starts with ends. An end without a start before it is the one that nft puts at the lowest key; the last start
/// without an end reaches to the highest key. `None` when another start has no end: such an interval could not be
/// deleted as portward deletes them.
fn ranges<K: Copy + PartialEq>(
    elements: &[Element],
    read: impl Fn(&[u8]) -> Option<K>,
    highest: K,
    before: impl Fn(K) -> Option<K>,
) -> Option<Vec<(K, K, Option<Verdict>)>> {
    let mut ranges = Vec::new();
    let mut open: Option<(K, Option<Verdict>)> = None;
    for element in elements {
        let key = read(&element.key)?;
        if let Some((first, verdict)) = open.take() {
            if !element.is_end {
                return None;
            }
            ranges.push((first, before(key)?, verdict));
        }
        if !element.is_end {
            open = Some((key, element.verdict.clone()));
        }
    }
    if let Some((first, verdict)) = open {
        ranges.push((first, highest, verdict));
    }
    Some(ranges)
}

fn port(key: &[u8]) -> Option<u16> {
    key.try_into().ok().map(u16::from_be_bytes)
}

fn ipv4(key: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(key).ok().map(Ipv4Addr::from)
}

fn ipv6(key: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(key).ok().map(Ipv6Addr::from)
}

/// The verdict in the data of an element or of an immediate expression; `None`: it is something else.
fn read_verdict(bytes: &[u8]) -> Result<Option<Verdict>, Malformed> {
    let outer = Attributes::read(bytes)?;
    if !outer.has(data::VERDICT) {
        return Ok(None);
    }
    let verdict = outer.nested(data::VERDICT)?;
    let code = verdict.be32(data::VERDICT_CODE)?.map(u32::cast_signed);
    let chain = || verdict.name(data::VERDICT_CHAIN).map(Name::from);
    Ok(Some(match code {
        Some(data::ACCEPT) => Verdict::Accept,
        Some(data::DROP) => Verdict::Drop,
        Some(data::RETURN) => Verdict::Return,
        Some(data::JUMP) => Verdict::Jump(chain()?),
        Some(data::GOTO) => Verdict::Goto(chain()?),
        _ => return Ok(None),
    }))
}

fn read_expressions(list: &[u8]) -> Result<Vec<Expression>, Malformed> {
    attributes(list)
        .map(|entry| {
            let entry = Attributes::read(entry?.1)?;
            let name = entry.name(attribute::NAME)?;
            // What holds no text where portward writes one, such as a log prefix of any bytes, is not portward's.
            let known = read_expression(name, &entry.nested(attribute::DATA)?).unwrap_or_default();
            Ok(known.unwrap_or_else(|| Expression::Unknown(name.to_owned())))
        })
        .collect()
}

/// An expression that portward writes, with exactly the values that it writes; `None`: another one.
fn read_expression(name: &str, of: &Attributes<'_>) -> Result<Option<Expression>, Malformed> {
    let is = |number, value| of.be32(number).map(|found| found == Some(value));
    let register = attribute::REGISTER_1;
    Ok(match name {
        "meta" => match of.be32(attribute::META_KEY)? {
            Some(attribute::META_KEY_IIF) => Some(MetaKey::InputInterface),
            Some(attribute::META_KEY_OIF) => Some(MetaKey::OutputInterface),
            Some(attribute::META_KEY_NFPROTO) => Some(MetaKey::Family),
            Some(attribute::META_KEY_L4PROTO) => Some(MetaKey::Protocol),
            _ => None,
        }
        .zip(of.be32(attribute::META_DESTINATION)?.and_then(word))
        .map(|(key, word)| match word {
            0 => Expression::Meta(key),
            word => Expression::Further(word, FurtherKey::Meta(key)),
        }),
        "ct" => match (of.be32(attribute::CT_KEY)?, of.u8(attribute::CT_DIRECTION)?) {
            (Some(attribute::CT_KEY_STATE), None) => Some(ConnectionKey::State),
            (Some(attribute::CT_KEY_STATUS), None) => Some(ConnectionKey::Status),
            (Some(attribute::CT_KEY_PROTO_DST), Some(attribute::CT_DIRECTION_ORIGINAL)) => {
                Some(ConnectionKey::OriginalDestinationPort)
            }
            _ => None,
        }
        .zip(of.be32(attribute::CT_DESTINATION)?.and_then(word))
        .map(|(key, word)| match word {
            0 => Expression::Connection(key),
            word => Expression::Further(word, FurtherKey::Connection(key)),
        }),
        "payload" if is(attribute::PAYLOAD_DESTINATION, register)? => {
            let base = match of.be32(attribute::PAYLOAD_BASE)? {
                Some(attribute::PAYLOAD_BASE_NETWORK) => Some(PayloadBase::Network),
                Some(attribute::PAYLOAD_BASE_TRANSPORT) => Some(PayloadBase::Transport),
                _ => None,
            };
            match (base, of.be32(attribute::PAYLOAD_OFFSET)?, of.be32(attribute::PAYLOAD_LENGTH)?) {
                (Some(base), Some(offset), Some(length)) => Some(Expression::Payload { base, offset, length }),
                _ => None,
            }
        }
        "bitwise"
            if is(attribute::BITWISE_SOURCE, register)?
                && is(attribute::BITWISE_DESTINATION, register)?
                // The operation "mask and xor" is 0; kernels before 5.6 do not have the attribute.
                && of.be32(attribute::BITWISE_OPERATION)?.unwrap_or_default() == 0 =>
        {
            let mask = of.nested(attribute::BITWISE_MASK)?.get(data::VALUE);
            let xor = of.nested(attribute::BITWISE_XOR)?.get(data::VALUE);
            match (mask, xor) {
                (Some(mask), Some(xor)) if xor.iter().all(|byte| *byte == 0) => Some(Expression::Mask(mask.to_vec())),
                _ => None,
            }
        }
        "cmp" if is(attribute::CMP_SOURCE, register)? => {
            let equal = match of.be32(attribute::CMP_OPERATION)? {
                Some(attribute::CMP_EQ) => Some(true),
                Some(attribute::CMP_NEQ) => Some(false),
                _ => None,
            };
            let value = of.nested(attribute::CMP_DATA)?.get(data::VALUE);
            equal.zip(value).map(|(equal, value)| Expression::Compare { equal, value: value.to_vec() })
        }
        "lookup"
            if is(attribute::LOOKUP_SOURCE, register)?
                && of.be32(attribute::LOOKUP_FLAGS)?.unwrap_or_default() == 0 =>
        {
            let set = of.name(attribute::LOOKUP_SET)?.into();
            match of.be32(attribute::LOOKUP_DESTINATION)? {
                None => Some(Expression::Lookup(set)),
                Some(attribute::REGISTER_VERDICT) => Some(Expression::LookupVerdict(set)),
                Some(_) => None,
            }
        }
        "dynset"
            if is(attribute::DYNSET_KEY, register)?
                && is(attribute::DYNSET_OPERATION, attribute::DYNSET_ADD)?
                && of.be32(attribute::DYNSET_FLAGS)?.unwrap_or_default() == 0
                && of.be64(attribute::DYNSET_TIMEOUT)?.unwrap_or_default() == 0
                && ![attribute::DYNSET_DATA, attribute::DYNSET_EXPRESSION, attribute::DYNSET_EXPRESSIONS]
                    .iter()
                    .any(|number| of.has(*number)) =>
        {
            Some(Expression::Record(of.name(attribute::DYNSET_SET)?.into()))
        }
        "limit"
            if of.be32(attribute::LIMIT_TYPE)?.unwrap_or_default() == attribute::LIMIT_PACKETS
                && of.be32(attribute::LIMIT_FLAGS)?.unwrap_or_default() == 0
                && of.be64(attribute::LIMIT_UNIT)? == Some(1) =>
        {
            let rate = of.be64(attribute::LIMIT_RATE)?;
            rate.zip(of.be32(attribute::LIMIT_BURST)?)
                .map(|(per_second, burst)| Expression::Limit { per_second, burst })
        }
        "counter" => Some(Expression::Counter),
        "log" => read_log(of)?,
        "immediate" if is(attribute::IMMEDIATE_DESTINATION, attribute::REGISTER_VERDICT)? => {
            read_verdict(of.get(attribute::IMMEDIATE_DATA).unwrap_or_default())?.map(Expression::Verdict)
        }
        "reject" => match (of.be32(attribute::REJECT_TYPE)?, of.u8(attribute::REJECT_CODE)?) {
            (Some(attribute::REJECT_TCP_RESET), _) => Some(Expression::RejectTcpReset),
            (Some(attribute::REJECT_ICMPX), Some(code)) => Some(Expression::RejectIcmp(code)),
            _ => None,
        },
        _ => None,
    })
}

/// The number of a register as that of its first word, from 0 at the beginning of register 1.
fn word(register: u32) -> Option<u32> {
    match register {
        attribute::REGISTER_1..=attribute::REGISTER_4 => Some((register - attribute::REGISTER_1) * 4),
        attribute::WORD_0..=attribute::WORD_15 => Some(register - attribute::WORD_0),
        _ => None,
    }
}

fn read_log(of: &Attributes<'_>) -> Result<Option<Expression>, Malformed> {
    let prefix = of.text(attribute::LOG_PREFIX)?.unwrap_or_default().into();
    if let Some(group) = of.be16(attribute::LOG_GROUP)? {
        // A length of 0, which would log packets without a byte of them, is not what portward writes: nothing.
        let plain = !of.has(attribute::LOG_SNAPLEN) && !of.has(attribute::LOG_QTHRESHOLD);
        return Ok(plain.then_some(Expression::Log { prefix, target: LogTarget::Group(group) }));
    }
    let plain = of.be32(attribute::LOG_LEVEL)?.is_none_or(|level| level == attribute::LOG_LEVEL_WARNING)
        && of.be32(attribute::LOG_FLAGS)?.unwrap_or_default() == 0;
    Ok(plain.then_some(Expression::Log { prefix, target: LogTarget::Kernel }))
}

/// What the kernel would answer to dumps of a table that these messages have made.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_back(bytes: &[u8]) -> TableReader {
    let mut reader = TableReader::new(1);
    for message in wire::messages(bytes).map_while(Result::ok) {
        let _ = match message.nf_tables_kind() {
            Some(message::NEWTABLE) => reader.table(&message),
            Some(message::NEWSETELEM) => {
                let set: Option<Name> = message
                    .attributes()
                    .ok()
                    .and_then(|attributes| attributes.text(element::OF_SET).ok().flatten().map(Name::from));
                set.map_or(Ok(()), |set| reader.elements(&set, &message))
            }
            Some(message::NEWRULE) => {
                // The kernel gives each rule a handle.
                let mut payload = message.payload.to_vec();
                wire::put(&mut payload, rule::HANDLE, &7_u64.to_be_bytes());
                reader.object(&Message { payload: &payload, ..message })
            }
            _ => reader.object(&message),
        };
    }
    reader
}

#[cfg(test)]
mod tests {
    use super::super::batch;
    use super::super::wire::{Header, begin_message, end_message, message_of, messages, nf_tables, put};
    use super::*;
    use crate::kernel::testing;
    use crate::ruleset::diff::{Change, diff};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ruleset in testing::any_ruleset()) {
            let batch = batch::build(&diff(None, Some(&ruleset)), 1, &Handles::new(), 1).unwrap();
            let snapshot = read_back(&batch.bytes).into_snapshot().unwrap();
            prop_assert_eq!(snapshot.foreign, Vec::<String>::new());
            prop_assert_eq!(snapshot.table, Some(ruleset));
        }

        #[test]
        fn no_damage_makes_the_reader_panic(
            ruleset in testing::any_ruleset(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = batch::build(&diff(None, Some(&ruleset)), 1, &Handles::new(), 1).unwrap().bytes;
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = read_back(&bytes).into_snapshot();
        }

        #[test]
        fn no_message_makes_the_reader_panic(
            kind in 0_u16..30,
            payload in proptest::collection::vec(any::<u8>(), 0..256),
        ) {
            let bytes = message_of(kind, &payload);
            let mut reader = TableReader::new(1);
            for message in messages(&bytes) {
                let message = message.unwrap();
                let _ = reader.table(&message);
                let _ = reader.object(&message);
                let _ = reader.elements(&"set".into(), &message);
            }
            let _ = read_expressions(&payload);
            let _ = read_verdict(&payload);
            let _ = reader.into_snapshot();
        }
    }
    fn made_by_somebody(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header { kind: nf_tables(kind), flags: 0, sequence: 1, family: NFPROTO_INET, resource: 0 };
        let start = begin_message(&mut bytes, header);
        for (number, value) in attributes {
            put(&mut bytes, *number, value);
        }
        end_message(&mut bytes, start);
        bytes
    }

    #[test]
    fn names_that_are_no_text_do_not_keep_the_table_from_being_read() {
        let mut bytes = made_by_somebody(message::NEWTABLE, &[(table::NAME, b"portward\0")]);
        bytes.extend(made_by_somebody(message::NEWCHAIN, &[(uapi::OF_TABLE, b"\xff\xfe\0"), (chain::NAME, b"a\0")]));
        bytes.extend(made_by_somebody(message::NEWCHAIN, &[(uapi::OF_TABLE, b"portward\0"), (chain::NAME, b"a\0")]));
        let snapshot = read_back(&bytes).into_snapshot().unwrap();
        assert_eq!(snapshot.foreign, Vec::<String>::new());
        assert!(snapshot.table.unwrap().chains.contains_key("a"));

        bytes.extend(made_by_somebody(message::NEWSET, &[(uapi::OF_TABLE, b"portward\0"), (set::NAME, b"\xff\0")]));
        assert_eq!(read_back(&bytes).into_snapshot().unwrap().foreign, ["objects whose names are no text"]);
    }

    #[test]
    fn a_set_that_was_read_while_its_hash_table_grew_is_not_believed() {
        let set = Set::ipv4_addresses(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        let ruleset = Ruleset { sets: [("s".into(), set.clone())].into(), ..Ruleset::default() };
        let mut changes = diff(None, Some(&ruleset));
        changes.push(Change::AddElements("s".into(), set));
        let bytes = batch::build(&changes, 1, &Handles::new(), 1).unwrap().bytes;
        assert_eq!(read_back(&bytes).into_snapshot(), None);
    }

    #[test]
    fn intervals_close_where_they_end_and_nfts_end_at_zero_is_none() {
        let element = |port: u16, is_end: bool| Element { key: port.to_be_bytes().to_vec(), is_end, verdict: None };
        let read = |elements: &[Element]| {
            let ranges = ranges(elements, port, u16::MAX, |end| end.checked_sub(1))?;
            Some(ranges.into_iter().map(|(first, last, _)| (first, last)).collect::<Vec<_>>())
        };
        let touching = [element(0, true), element(5, false), element(7, true), element(7, false), element(9, true)];
        assert_eq!(read(&touching), Some(vec![(5, 6), (7, 8)]));
        assert_eq!(read(&[element(60_000, false)]), Some(vec![(60_000, u16::MAX)]));
        assert_eq!(read(&[element(1, false), element(5, false), element(9, true)]), None);
    }
}
