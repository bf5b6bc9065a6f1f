//! Numbers of linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h and
//! linux/netfilter/nfnetlink_conntrack.h that portward uses.
//!
//! Attribute numbers count within their own message or nest, so each group is a module of its own.
#![forbid(unsafe_code)]

/// Message types below this are netlink's own (`NLMSG_MIN_TYPE`).
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// Bit of an attribute's type that says that it holds attributes (`NLA_F_NESTED`).
pub(super) const NLA_F_NESTED: u16 = 1 << 15;
/// Mask of the bits that are the attribute's number (`NLA_TYPE_MASK`).
pub(super) const NLA_TYPE_MASK: u16 = !(0b11 << 14);

pub(super) const NFNETLINK_V0: u8 = 0;
pub(super) const NFNL_SUBSYS_CTNETLINK: u16 = 1;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
/// Attribute of the message that begins a batch: the generation that the batch was made for.
pub(super) const NFNL_BATCH_GENID: u16 = 1;

pub(super) const NFPROTO_UNSPEC: u8 = 0;
/// The family of tables for both IPv4 and IPv6.
pub(super) const NFPROTO_INET: u8 = 1;

/// Message types of sock_diag, linux/sock_diag.h.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const SOCK_DESTROY: u16 = 21;

/// `enum nf_tables_msg_types`.
pub(super) mod message {
    pub(in super::super) const NEWTABLE: u16 = 0;
    pub(in super::super) const GETTABLE: u16 = 1;
    pub(in super::super) const DELTABLE: u16 = 2;
    pub(in super::super) const NEWCHAIN: u16 = 3;
    pub(in super::super) const GETCHAIN: u16 = 4;
    pub(in super::super) const DELCHAIN: u16 = 5;
    pub(in super::super) const NEWRULE: u16 = 6;
    pub(in super::super) const GETRULE: u16 = 7;
    pub(in super::super) const DELRULE: u16 = 8;
    pub(in super::super) const NEWSET: u16 = 9;
    pub(in super::super) const GETSET: u16 = 10;
    pub(in super::super) const DELSET: u16 = 11;
    pub(in super::super) const NEWSETELEM: u16 = 12;
    pub(in super::super) const GETSETELEM: u16 = 13;
    pub(in super::super) const DELSETELEM: u16 = 14;
    pub(in super::super) const NEWGEN: u16 = 15;
    pub(in super::super) const GETGEN: u16 = 16;
    pub(in super::super) const NEWOBJ: u16 = 18;
    pub(in super::super) const GETOBJ: u16 = 19;
    pub(in super::super) const DELOBJ: u16 = 20;
    pub(in super::super) const NEWFLOWTABLE: u16 = 22;
    pub(in super::super) const GETFLOWTABLE: u16 = 23;
    pub(in super::super) const DELFLOWTABLE: u16 = 24;
}

/// The attribute that names the table, in messages about chains, rules, sets, elements, objects and flowtables.
pub(super) const OF_TABLE: u16 = 1;

/// `NFTA_LIST_ELEM`: one entry of a list.
pub(super) const LIST_ENTRY: u16 = 1;

/// `enum nft_gen_attributes`.
pub(super) mod generation {
    pub(in super::super) const ID: u16 = 1;
    pub(in super::super) const PROCESS_ID: u16 = 2;
    pub(in super::super) const PROCESS_NAME: u16 = 3;
}

/// `enum nft_table_attributes`.
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
}

/// `enum nft_chain_attributes`, `enum nft_hook_attributes` and `enum nft_chain_flags`.
pub(super) mod chain {
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const FLAGS: u16 = 10;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const FLAG_BASE: u32 = 1;
    pub(in super::super) const FLAG_BINDING: u32 = 4;
    /// `NF_DROP` and `NF_ACCEPT` (linux/netfilter.h).
    pub(in super::super) const POLICY_DROP: u32 = 0;
    pub(in super::super) const POLICY_ACCEPT: u32 = 1;
    /// `enum nf_inet_hooks` (linux/netfilter.h).
    pub(in super::super) const HOOK_INPUT: u32 = 1;
    pub(in super::super) const HOOK_FORWARD: u32 = 2;
    pub(in super::super) const HOOK_OUTPUT: u32 = 3;
}

/// `enum nft_rule_attributes`.
pub(super) mod rule {
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const HANDLE: u16 = 3;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
    pub(in super::super) const COMPAT: u16 = 5;
}

/// `enum nft_set_attributes`, `enum nft_set_flags`, and nft's numbers of data types.
pub(super) mod set {
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LENGTH: u16 = 5;
    pub(in super::super) const DATA_TYPE: u16 = 6;
    pub(in super::super) const DESCRIPTION: u16 = 9;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const TIMEOUT: u16 = 11;
    pub(in super::super) const EXPRESSION: u16 = 17;
    pub(in super::super) const EXPRESSIONS: u16 = 18;
    pub(in super::super) const DESCRIPTION_SIZE: u16 = 1;
    pub(in super::super) const FLAG_ANONYMOUS: u32 = 0x1;
    pub(in super::super) const FLAG_INTERVAL: u32 = 0x4;
    pub(in super::super) const FLAG_MAP: u32 = 0x8;
    /// `NFT_SET_EVAL`: rules add elements.
    pub(in super::super) const FLAG_EVAL: u32 = 0x20;
    /// `NFT_DATA_VERDICT`: the data of a verdict map.
    pub(in super::super) const DATA_VERDICT: u32 = 0xffff_ff00;
    /// nft's `TYPE_IPADDR`, `TYPE_IP6ADDR`, `TYPE_INET_SERVICE` (nftables, include/datatype.h). The kernel only keeps
    /// them for nft.
    pub(in super::super) const TYPE_IPV4_ADDRESS: u32 = 7;
    pub(in super::super) const TYPE_IPV6_ADDRESS: u32 = 8;
    pub(in super::super) const TYPE_PORT: u32 = 13;
    /// nft's `TYPE_INET_PROTOCOL`.
    pub(in super::super) const TYPE_PROTOCOL: u32 = 12;
    /// A key of several parts has their types, each in so many bits, the first in the highest (`TYPE_BITS`).
    pub(in super::super) const TYPE_BITS: u32 = 6;
}

/// `enum nft_set_elem_list_attributes`, `enum nft_set_elem_attributes` and `enum nft_set_elem_flags`.
pub(super) mod element {
    pub(in super::super) const OF_SET: u16 = 2;
    pub(in super::super) const LIST: u16 = 3;
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const TIMEOUT: u16 = 4;
    pub(in super::super) const EXPRESSION: u16 = 7;
    pub(in super::super) const OBJECT: u16 = 9;
    pub(in super::super) const KEY_END: u16 = 10;
    pub(in super::super) const EXPRESSIONS: u16 = 11;
    pub(in super::super) const FLAG_INTERVAL_END: u32 = 0x1;
}

/// `enum nft_data_attributes`, `enum nft_verdict_attributes` and the verdicts.
pub(super) mod data {
    pub(in super::super) const VALUE: u16 = 1;
    pub(in super::super) const VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    pub(in super::super) const DROP: i32 = 0;
    pub(in super::super) const ACCEPT: i32 = 1;
    pub(in super::super) const JUMP: i32 = -3;
    pub(in super::super) const GOTO: i32 = -4;
    pub(in super::super) const RETURN: i32 = -5;
}

/// Attributes and values of expressions (`NFTA_EXPR_*`, `NFTA_META_*` and so on).
pub(super) mod expression {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;

    pub(in super::super) const REGISTER_VERDICT: u32 = 0;
    pub(in super::super) const REGISTER_1: u32 = 1;
    /// `NFT_REG_4` and `NFT_REG32_00` to `NFT_REG32_15`: registers of 128 bits, and the words that they consist of. The kernel
    /// names the first word of a register by the register.
    pub(in super::super) const REGISTER_4: u32 = 4;
    pub(in super::super) const WORD_0: u32 = 8;
    pub(in super::super) const WORD_15: u32 = 23;

    pub(in super::super) const META_DESTINATION: u16 = 1;
    pub(in super::super) const META_KEY: u16 = 2;
    pub(in super::super) const META_KEY_IIF: u32 = 4;
    pub(in super::super) const META_KEY_OIF: u32 = 5;
    pub(in super::super) const META_KEY_NFPROTO: u32 = 15;
    pub(in super::super) const META_KEY_L4PROTO: u32 = 16;

    pub(in super::super) const CT_DESTINATION: u16 = 1;
    pub(in super::super) const CT_KEY: u16 = 2;
    pub(in super::super) const CT_DIRECTION: u16 = 3;
    pub(in super::super) const CT_KEY_STATE: u32 = 0;
    pub(in super::super) const CT_KEY_STATUS: u32 = 2;
    pub(in super::super) const CT_KEY_PROTO_DST: u32 = 12;
    /// `IP_CT_DIR_ORIGINAL` (linux/netfilter/nf_conntrack_tuple_common.h).
    pub(in super::super) const CT_DIRECTION_ORIGINAL: u8 = 0;

    pub(in super::super) const PAYLOAD_DESTINATION: u16 = 1;
    pub(in super::super) const PAYLOAD_BASE: u16 = 2;
    pub(in super::super) const PAYLOAD_OFFSET: u16 = 3;
    pub(in super::super) const PAYLOAD_LENGTH: u16 = 4;
    pub(in super::super) const PAYLOAD_BASE_NETWORK: u32 = 1;
    pub(in super::super) const PAYLOAD_BASE_TRANSPORT: u32 = 2;

    pub(in super::super) const BITWISE_SOURCE: u16 = 1;
    pub(in super::super) const BITWISE_DESTINATION: u16 = 2;
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const BITWISE_OPERATION: u16 = 6;

    pub(in super::super) const CMP_SOURCE: u16 = 1;
    pub(in super::super) const CMP_OPERATION: u16 = 2;
    pub(in super::super) const CMP_DATA: u16 = 3;
    pub(in super::super) const CMP_EQ: u32 = 0;
    pub(in super::super) const CMP_NEQ: u32 = 1;

    pub(in super::super) const LOOKUP_SET: u16 = 1;
    pub(in super::super) const LOOKUP_SOURCE: u16 = 2;
    pub(in super::super) const LOOKUP_DESTINATION: u16 = 3;
    pub(in super::super) const LOOKUP_FLAGS: u16 = 5;

    pub(in super::super) const DYNSET_SET: u16 = 1;
    pub(in super::super) const DYNSET_OPERATION: u16 = 3;
    pub(in super::super) const DYNSET_KEY: u16 = 4;
    pub(in super::super) const DYNSET_DATA: u16 = 5;
    pub(in super::super) const DYNSET_TIMEOUT: u16 = 6;
    pub(in super::super) const DYNSET_EXPRESSION: u16 = 7;
    pub(in super::super) const DYNSET_FLAGS: u16 = 9;
    pub(in super::super) const DYNSET_EXPRESSIONS: u16 = 10;
    /// `NFT_DYNSET_OP_ADD`.
    pub(in super::super) const DYNSET_ADD: u32 = 0;

    pub(in super::super) const LIMIT_RATE: u16 = 1;
    pub(in super::super) const LIMIT_UNIT: u16 = 2;
    pub(in super::super) const LIMIT_BURST: u16 = 3;
    pub(in super::super) const LIMIT_TYPE: u16 = 4;
    pub(in super::super) const LIMIT_FLAGS: u16 = 5;
    pub(in super::super) const LIMIT_PACKETS: u32 = 0;

    pub(in super::super) const LOG_GROUP: u16 = 1;
    pub(in super::super) const LOG_PREFIX: u16 = 2;
    pub(in super::super) const LOG_SNAPLEN: u16 = 3;
    pub(in super::super) const LOG_QTHRESHOLD: u16 = 4;
    pub(in super::super) const LOG_LEVEL: u16 = 5;
    pub(in super::super) const LOG_FLAGS: u16 = 6;
    /// `NFT_LOGLEVEL_WARNING`: what the kernel takes when no level is given.
    pub(in super::super) const LOG_LEVEL_WARNING: u32 = 4;

    pub(in super::super) const IMMEDIATE_DESTINATION: u16 = 1;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;

    pub(in super::super) const REJECT_TYPE: u16 = 1;
    pub(in super::super) const REJECT_CODE: u16 = 2;
    pub(in super::super) const REJECT_TCP_RESET: u32 = 1;
    pub(in super::super) const REJECT_ICMPX: u32 = 2;
}

/// `enum cntl_msg_types`, `enum ctattr_type` and what is nested in it.
pub(super) mod conntrack {
    pub(in super::super) const NEW: u16 = 0;
    pub(in super::super) const GET: u16 = 1;
    pub(in super::super) const DELETE: u16 = 2;

    pub(in super::super) const TUPLE_ORIGINAL: u16 = 1;
    pub(in super::super) const TUPLE_REPLY: u16 = 2;
    pub(in super::super) const STATUS: u16 = 3;
    pub(in super::super) const PROTOCOL_INFORMATION: u16 = 4;
    pub(in super::super) const TIMEOUT: u16 = 7;
    pub(in super::super) const ID: u16 = 12;
    pub(in super::super) const ZONE: u16 = 18;

    pub(in super::super) const TUPLE_ADDRESSES: u16 = 1;
    pub(in super::super) const TUPLE_PROTOCOL: u16 = 2;
    pub(in super::super) const TUPLE_ZONE: u16 = 3;

    pub(in super::super) const IPV4_SOURCE: u16 = 1;
    pub(in super::super) const IPV4_DESTINATION: u16 = 2;
    pub(in super::super) const IPV6_SOURCE: u16 = 3;
    pub(in super::super) const IPV6_DESTINATION: u16 = 4;

    pub(in super::super) const PROTOCOL_NUMBER: u16 = 1;
    pub(in super::super) const SOURCE_PORT: u16 = 2;
    pub(in super::super) const DESTINATION_PORT: u16 = 3;
    pub(in super::super) const ICMP_ID_TYPE_CODE: [u16; 3] = [4, 5, 6];
    pub(in super::super) const ICMPV6_ID_TYPE_CODE: [u16; 3] = [7, 8, 9];

    pub(in super::super) const INFORMATION_TCP: u16 = 1;
    pub(in super::super) const TCP_STATE: u16 = 1;
}
