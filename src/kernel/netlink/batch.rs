//! Changes as one batch of messages.
#![forbid(unsafe_code)]

use super::native::{LONGEST_NAME, RuleWriter, Unbuildable};
use super::uapi::{
    self, NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFPROTO_INET,
    NFPROTO_UNSPEC, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, chain, data, element, message,
    rule, set, table,
};
use super::wire::{
    ATTRIBUTE_HEADER, Header, begin_message, begin_nest, end_message, end_nest, nf_tables, put, put_be32, put_text,
};
use crate::kernel::expression::lower;
use crate::ruleset::diff::Change;
use crate::ruleset::{
    Address, AddressRange, BaseChain, ChainPolicy, Family, Hook, Name, Set, TABLE, Verdict, VerdictMap,
};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A nest's length is 16 bits wide. An element takes less than the room that is left below that.
const NEST_LIMIT: usize = u16::MAX as usize - 1024;

/// In place of a generation: the transaction is for whatever there is (`nf_tables_valid_genid`,
/// net/netfilter/nf_tables_api.c). A table of portward's is there when the first change comes.
pub(super) const ANY_GENERATION: u32 = 0;

/// The messages of a transaction, and which change each of them belongs to.
pub(super) struct Batch {
    /// To be sent by one system call.
    pub(super) bytes: Vec<u8>,
    /// The sequence number of the message that the kernel acknowledges: the last change.
    pub(super) last: u32,
    /// The sequence number of each change's first message.
    first_of_change: Vec<u32>,
}

impl Batch {
    /// The index of the change that the message with this sequence number belongs to.
    pub(super) fn change_of(&self, sequence: u32) -> Option<usize> {
        self.first_of_change.partition_point(|first| *first <= sequence).checked_sub(1)
    }
}

/// The handles of the rules of each chain, in their order.
pub(super) type Handles = BTreeMap<Name, Vec<u64>>;

/// Builds the batch. `first` is the sequence number of the message that begins it.
pub(super) fn build(changes: &[Change], generation: u32, handles: &Handles, first: u32) -> Result<Batch, Unbuildable> {
    let mut writer = Writer { bytes: Vec::new(), sequence: first, rules: RuleWriter::new() };
    let begin = writer.bracket(NFNL_MSG_BATCH_BEGIN);
    put_be32(&mut writer.bytes, NFNL_BATCH_GENID, generation);
    end_message(&mut writer.bytes, begin);

    if generation == ANY_GENERATION {
        // One that exists is fine, so that it can be deleted whether it existed or not.
        let start = writer.begin(message::NEWTABLE, NLM_F_CREATE);
        put_text(&mut writer.bytes, table::NAME, TABLE);
        end_message(&mut writer.bytes, start);
    }
    let mut first_of_change = Vec::with_capacity(changes.len());
    let mut last_start = 0;
    for change in changes {
        first_of_change.push(writer.sequence);
        last_start = writer.change(change, handles)?;
    }
    let last = writer.sequence.wrapping_sub(1);
    // Only the last message asks for an acknowledgement. The kernel answers after the commit, and reports errors of the
    // others whether asked or not.
    if let Some(flags) = writer.bytes.get_mut(last_start + 6..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
    }
    let end = writer.bracket(NFNL_MSG_BATCH_END);
    end_message(&mut writer.bytes, end);
    Ok(Batch { bytes: writer.bytes, last, first_of_change })
}

struct Writer {
    bytes: Vec<u8>,
    sequence: u32,
    rules: RuleWriter,
}

impl Writer {
    fn take_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }

    fn bracket(&mut self, kind: u16) -> usize {
        let sequence = self.take_sequence();
        let header = Header { kind, flags: 0, sequence, family: NFPROTO_UNSPEC, resource: NFNL_SUBSYS_NFTABLES };
        begin_message(&mut self.bytes, header)
    }

    fn begin(&mut self, kind: u16, flags: u16) -> usize {
        let sequence = self.take_sequence();
        let header = Header { kind: nf_tables(kind), flags, sequence, family: NFPROTO_INET, resource: 0 };
        begin_message(&mut self.bytes, header)
    }

    /// A message with the table and the name of an object in it.
    fn named(&mut self, kind: u16, flags: u16, number: u16, name: &str) -> usize {
        let start = self.begin(kind, flags);
        put_text(&mut self.bytes, uapi::OF_TABLE, TABLE);
        put_text(&mut self.bytes, number, name);
        start
    }

    /// Appends the messages of a change and returns where the last of them begins.
    fn change(&mut self, change: &Change, handles: &Handles) -> Result<usize, Unbuildable> {
        check_names(change)?;
        const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
        let start = match change {
            Change::AddTable => {
                let start = self.begin(message::NEWTABLE, CREATE);
                put_text(&mut self.bytes, table::NAME, TABLE);
                start
            }
            Change::DeleteTable => {
                let start = self.begin(message::DELTABLE, 0);
                put_text(&mut self.bytes, table::NAME, TABLE);
                start
            }
            Change::AddSet(name, kind, size) => {
                let flags = match kind {
                    Set::Ipv4Ranges(_) | Set::Ipv6Ranges(_) => set::FLAG_INTERVAL,
                    Set::Record(_) => set::FLAG_EVAL,
                    Set::Ipv4Addresses(_) | Set::Ipv6Addresses(_) => 0,
                };
                let start = self.new_set(name, key_of(kind), flags);
                if let Some(size) = size {
                    let nest = begin_nest(&mut self.bytes, set::DESCRIPTION);
                    put_be32(&mut self.bytes, set::DESCRIPTION_SIZE, *size);
                    end_nest(&mut self.bytes, nest);
                }
                start
            }
            Change::AddMap(name, interval) => {
                let flags = set::FLAG_MAP | if *interval { set::FLAG_INTERVAL } else { 0 };
                let start = self.new_set(name, (set::TYPE_PORT, 2), flags);
                put_be32(&mut self.bytes, set::DATA_TYPE, set::DATA_VERDICT);
                start
            }
            Change::AddChain(name, base) => {
                let start = self.named(message::NEWCHAIN, CREATE, chain::NAME, name);
                if let Some(base) = base {
                    let nest = begin_nest(&mut self.bytes, chain::HOOK);
                    put_be32(&mut self.bytes, chain::HOOK_NUMBER, hook_number(base.hook));
                    put_be32(&mut self.bytes, chain::HOOK_PRIORITY, base.priority.cast_unsigned());
                    end_nest(&mut self.bytes, nest);
                    put_be32(&mut self.bytes, chain::POLICY, policy_number(base));
                    put_text(&mut self.bytes, chain::TYPE, "filter");
                }
                start
            }
            Change::SetChainPolicy(name, base) => {
                let start = self.named(message::NEWCHAIN, 0, chain::NAME, name);
                put_be32(&mut self.bytes, chain::POLICY, policy_number(base));
                start
            }
            Change::AddElements(name, elements) => {
                return Ok(self.elements(message::NEWSETELEM, CREATE, name, elements));
            }
            Change::DeleteElements(name, elements) => return Ok(self.elements(message::DELSETELEM, 0, name, elements)),
            Change::AddVerdicts(name, map) => return Ok(self.verdicts(message::NEWSETELEM, CREATE, name, map)),
            Change::DeleteVerdicts(name, map) => return Ok(self.verdicts(message::DELSETELEM, 0, name, map)),
            Change::AddRule { chain, before, rule } => {
                let position = before.map(|index| handle(handles, chain, index)).transpose()?;
                // With a position and without NLM_F_APPEND, the rule goes before the one at the position.
                let flags = NLM_F_REQUEST | NLM_F_CREATE | if position.is_none() { NLM_F_APPEND } else { 0 };
                let expressions = lower(&rule.statements)
                    .map_err(|_| Unbuildable("a rule holds a statement that portward does not write"))?;
                let header = (message::NEWRULE, flags, self.take_sequence());
                let start = self.bytes.len();
                self.rules.write(&mut self.bytes, header, chain, position, &expressions)?;
                return Ok(start);
            }
            Change::DeleteRule { chain, index } => {
                let handle = handle(handles, chain, *index)?;
                let start = self.named(message::DELRULE, 0, rule::CHAIN, chain);
                put(&mut self.bytes, rule::HANDLE, &handle.to_be_bytes());
                start
            }
            // Without a handle the kernel deletes all rules of the chain.
            Change::FlushChain(name) => self.named(message::DELRULE, 0, rule::CHAIN, name),
            Change::DeleteChain(name) => self.named(message::DELCHAIN, 0, chain::NAME, name),
            Change::DeleteSet(name, _) | Change::DeleteMap(name) => self.named(message::DELSET, 0, set::NAME, name),
        };
        end_message(&mut self.bytes, start);
        Ok(start)
    }

    fn new_set(&mut self, name: &str, (key, length): (u32, u32), flags: u32) -> usize {
        // Any number that is unique in the batch will do; the message's own is.
        let id = self.sequence;
        let start = self.named(message::NEWSET, NLM_F_CREATE | NLM_F_EXCL, set::NAME, name);
        put_be32(&mut self.bytes, set::FLAGS, flags);
        put_be32(&mut self.bytes, set::KEY_TYPE, key);
        put_be32(&mut self.bytes, set::KEY_LENGTH, length);
        put_be32(&mut self.bytes, set::ID, id);
        start
    }

    fn elements(&mut self, kind: u16, flags: u16, name: &str, elements: &Set) -> usize {
        match elements {
            Set::Ipv4Addresses(addresses) => self.lists(kind, flags, name, addresses, |bytes, address: &Ipv4Addr| {
                put_element(bytes, &address.octets(), 0, None);
            }),
            Set::Ipv6Addresses(addresses) => self.lists(kind, flags, name, addresses, |bytes, address: &Ipv6Addr| {
                put_element(bytes, &address.octets(), 0, None);
            }),
            Set::Ipv4Ranges(ranges) => self.lists(kind, flags, name, ranges, |bytes, range| {
                put_range(bytes, range, |address: Ipv4Addr| address.octets());
            }),
            Set::Ipv6Ranges(ranges) => self.lists(kind, flags, name, ranges, |bytes, range| {
                put_range(bytes, range, |address: Ipv6Addr| address.octets());
            }),
            // They have none that portward puts there.
            Set::Record(_) => self.lists(kind, flags, name, &[], |_, (): &()| ()),
        }
    }

    fn verdicts(&mut self, kind: u16, flags: u16, name: &str, map: &VerdictMap) -> usize {
        self.lists(kind, flags, name, &map.elements, |bytes, (ports, verdict)| {
            put_element(bytes, &ports.first.to_be_bytes(), 0, Some(verdict));
            if map.interval
                && let Some(end) = ports.last.checked_add(1)
            {
                put_element(bytes, &end.to_be_bytes(), element::FLAG_INTERVAL_END, None);
            }
        })
    }

    /// Messages with lists of elements, each list below the limit of a nest.
    fn lists<T>(&mut self, kind: u16, flags: u16, name: &str, of: &[T], put_one: impl Fn(&mut Vec<u8>, &T)) -> usize {
        let mut rest = of.iter().peekable();
        loop {
            let start = self.named(kind, flags, element::OF_SET, name);
            let list = begin_nest(&mut self.bytes, element::LIST);
            while self.bytes.len() - list < NEST_LIMIT {
                let Some(one) = rest.next() else { break };
                put_one(&mut self.bytes, one);
            }
            end_nest(&mut self.bytes, list);
            end_message(&mut self.bytes, start);
            if rest.peek().is_none() {
                return start;
            }
        }
    }
}

/// Names that an attribute or the kernel could not take are refused before anything is written.
fn check_names(change: &Change) -> Result<(), Unbuildable> {
    let check = |name: &Name| {
        if name.len() <= LONGEST_NAME && !name.contains('\0') {
            Ok(())
        } else {
            Err(Unbuildable("a name is longer than 255 bytes or holds a zero byte"))
        }
    };
    match change {
        Change::AddTable | Change::DeleteTable => Ok(()),
        Change::AddVerdicts(name, map) | Change::DeleteVerdicts(name, map) => {
            check(name)?;
            map.elements.iter().filter_map(|(_, verdict)| verdict.target()).try_for_each(check)
        }
        Change::AddSet(name, ..)
        | Change::AddMap(name, _)
        | Change::AddChain(name, _)
        | Change::SetChainPolicy(name, _)
        | Change::AddElements(name, _)
        | Change::DeleteElements(name, _)
        | Change::AddRule { chain: name, .. }
        | Change::DeleteRule { chain: name, .. }
        | Change::FlushChain(name)
        | Change::DeleteChain(name)
        | Change::DeleteSet(name, _)
        | Change::DeleteMap(name) => check(name),
    }
}

/// The end of a range is the first address after it; none after the last address of the family.
fn put_range<A: Address, const N: usize>(bytes: &mut Vec<u8>, range: &AddressRange<A>, octets: impl Fn(A) -> [u8; N]) {
    put_element(bytes, &octets(range.first), 0, None);
    if let Some(end) = range.last.next() {
        put_element(bytes, &octets(end), element::FLAG_INTERVAL_END, None);
    }
}

fn put_element(bytes: &mut Vec<u8>, key: &[u8], flags: u32, verdict: Option<&Verdict>) {
    let entry = begin_nest(bytes, uapi::LIST_ENTRY);
    if flags != 0 {
        put_be32(bytes, element::FLAGS, flags);
    }
    let nest = begin_nest(bytes, element::KEY);
    put(bytes, data::VALUE, key);
    end_nest(bytes, nest);
    if let Some(verdict) = verdict {
        let nest = begin_nest(bytes, element::DATA);
        let inner = begin_nest(bytes, data::VERDICT);
        put_be32(bytes, data::VERDICT_CODE, verdict_code(verdict).cast_unsigned());
        if let Some(chain) = verdict.target() {
            put_text(bytes, data::VERDICT_CHAIN, chain);
        }
        end_nest(bytes, inner);
        end_nest(bytes, nest);
    }
    end_nest(bytes, entry);
    debug_assert!(bytes.len() - entry < u16::MAX as usize - NEST_LIMIT - ATTRIBUTE_HEADER);
}

/// The type and the length in bytes of the key of a set. Each part of a key fills whole words of 32 bits.
pub(super) fn key_of(kind: &Set) -> (u32, u32) {
    let (address, length) = match kind.family() {
        Family::Ipv4 => (set::TYPE_IPV4_ADDRESS, 4),
        Family::Ipv6 => (set::TYPE_IPV6_ADDRESS, 16),
    };
    match kind.record() {
        Some(record) if record.with_port => {
            ((address << set::TYPE_BITS | set::TYPE_PROTOCOL) << set::TYPE_BITS | set::TYPE_PORT, length + 8)
        }
        _ => (address, length),
    }
}

/// The kernel's number of a verdict.
pub(super) fn verdict_code(verdict: &Verdict) -> i32 {
    match verdict {
        Verdict::Accept => data::ACCEPT,
        Verdict::Drop => data::DROP,
        Verdict::Jump(_) => data::JUMP,
        Verdict::Goto(_) => data::GOTO,
        Verdict::Return => data::RETURN,
    }
}

fn handle(handles: &Handles, chain: &Name, index: usize) -> Result<u64, Unbuildable> {
    handles
        .get(chain)
        .and_then(|handles| handles.get(index))
        .copied()
        .ok_or(Unbuildable("a rule to be changed is not in the kernel"))
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Input => chain::HOOK_INPUT,
        Hook::Forward => chain::HOOK_FORWARD,
        Hook::Output => chain::HOOK_OUTPUT,
    }
}

fn policy_number(base: &BaseChain) -> u32 {
    match base.policy {
        ChainPolicy::Accept => chain::POLICY_ACCEPT,
        ChainPolicy::Drop => chain::POLICY_DROP,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::messages;
    use super::*;
    use crate::ruleset::{AddressSide, PortRange, Rule, Statement};

    #[test]
    fn only_the_last_message_is_acknowledged_and_each_knows_its_change() {
        let addresses = Set::ipv4_addresses((0..10_000).map(Ipv4Addr::from_bits).collect());
        let changes = [
            Change::AddTable,
            Change::AddSet("s".into(), addresses.empty_like(), None),
            Change::AddElements("s".into(), addresses),
        ];
        let batch = build(&changes, 5, &Handles::new(), 100).unwrap();
        let messages: Vec<_> = messages(&batch.bytes).map(Result::unwrap).collect();
        // 10,000 elements of 16 bytes need three messages below 64 KiB.
        assert_eq!(messages.len(), 2 + 2 + 3);
        let acknowledged: Vec<_> = messages.iter().filter(|message| message.flags & NLM_F_ACK != 0).collect();
        assert_eq!(acknowledged.len(), 1);
        assert_eq!(acknowledged[0].sequence, batch.last);
        let sequences: Vec<_> = messages.iter().map(|message| message.sequence).collect();
        assert_eq!(sequences, (100..107).collect::<Vec<_>>());
        let changes: Vec<_> = sequences[..6].iter().map(|&sequence| batch.change_of(sequence)).collect();
        assert_eq!(changes, [None, Some(0), Some(1), Some(2), Some(2), Some(2)]);
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let refused = |change: Change| build(&[change], 1, &Handles::new(), 1).is_err();
        assert!(refused(Change::AddChain("x".repeat(256).into(), None)));
        assert!(refused(Change::DeleteMap("a\0b".into())));
        let verdict = Verdict::Jump("x".repeat(70_000).into());
        let elements = vec![(PortRange::single(1), verdict)];
        assert!(refused(Change::AddVerdicts("m".into(), VerdictMap { interval: false, elements })));
        assert!(refused(Change::DeleteRule { chain: "c".into(), index: 0 }));
        let rule = |statement: Statement, count| Change::AddRule {
            chain: "c".into(),
            before: None,
            rule: Rule::new(vec![statement; count]),
        };
        assert!(refused(rule(Statement::Unknown("meta mark".into()), 1)));
        assert!(refused(rule(Statement::Counter, 1_000)));
        assert!(refused(rule(Statement::InSet(AddressSide::Source, Family::Ipv4, "x".repeat(256).into()), 1)));
        assert!(!refused(rule(Statement::InSet(AddressSide::Source, Family::Ipv4, "x".repeat(255).into()), 16)));
    }
}
