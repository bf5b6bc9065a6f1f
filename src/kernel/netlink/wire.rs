//! Netlink messages and attributes as bytes: writing them, and reading them without trusting any length.
//!
//! Messages are read here and not by libnftnl, which ends the process at a message that it does not expect
//! (`abi_breakage`, libnftnl's src/utils.c).
#![forbid(unsafe_code)]

use super::uapi::{NFNETLINK_V0, NFNL_SUBSYS_NFTABLES, NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_REQUEST};

/// The length of `struct nlmsghdr`, linux/netlink.h.
pub(crate) const MESSAGE_HEADER: usize = 16;
/// The length of `struct nfgenmsg`, linux/netfilter/nfnetlink.h.
pub(super) const FAMILY_HEADER: usize = 4;
/// The length of `struct nlattr`, linux/netlink.h.
pub(super) const ATTRIBUTE_HEADER: usize = 4;
/// Attributes that [`Attributes`] keeps; those with higher numbers are left out. No message or nest that is read here
/// has one that matters beyond.
const KEPT_ATTRIBUTES: usize = 24;

/// A length made up to what netlink aligns to (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
pub(super) const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The type of a message of nf_tables.
pub(super) const fn nf_tables(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// What was expected of a message that does not hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The headers of a message to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// The whole type, subsystem included.
    pub(super) kind: u16,
    /// Flags besides `NLM_F_REQUEST`.
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) family: u8,
    /// `res_id` of the second header.
    pub(super) resource: u16,
}

/// Begins a message at the end of the bytes and returns where. [`end_message`] has to follow.
pub(super) fn begin_message(bytes: &mut Vec<u8>, header: Header) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&header.kind.to_ne_bytes());
    bytes.extend_from_slice(&(header.flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&header.sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&[header.family, NFNETLINK_V0]);
    bytes.extend_from_slice(&header.resource.to_be_bytes());
    start
}

/// Writes the length of the message that began at `start`. A message is far below 4 GiB: its nests are below 64 KiB.
pub(super) fn end_message(bytes: &mut [u8], start: usize) {
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute. The value is a name or number here, far below 64 KiB.
pub(super) fn put(bytes: &mut Vec<u8>, number: u16, value: &[u8]) {
    bytes.extend_from_slice(&((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(aligned(bytes.len()), 0);
}

/// Appends a number in network byte order.
pub(super) fn put_be32(bytes: &mut Vec<u8>, number: u16, value: u32) {
    put(bytes, number, &value.to_be_bytes());
}

/// Appends a text with its final zero.
pub(super) fn put_text(bytes: &mut Vec<u8>, number: u16, text: &str) {
    bytes.extend_from_slice(&((ATTRIBUTE_HEADER + text.len() + 1) as u16).to_ne_bytes());
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes.resize(aligned(bytes.len()), 0);
}

/// Begins an attribute that holds others and returns where. [`end_nest`] has to follow.
pub(super) fn begin_nest(bytes: &mut Vec<u8>, number: u16) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&0_u16.to_ne_bytes());
    bytes.extend_from_slice(&(number | NLA_F_NESTED).to_ne_bytes());
    start
}

/// Writes the length of the nest that began at `start`; whoever fills it keeps it below 64 KiB.
pub(super) fn end_nest(bytes: &mut [u8], start: usize) {
    let length = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the netlink header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The number of the message within nf_tables; `None` for messages of others.
    pub(super) fn nf_tables_kind(&self) -> Option<u16> {
        (self.kind >> 8 == NFNL_SUBSYS_NFTABLES).then_some(self.kind & 0xff)
    }

    /// The family, from the second header.
    pub(super) fn family(&self) -> Result<u8, Malformed> {
        self.payload.first().copied().ok_or(Malformed("a family"))
    }

    /// The attributes, after the second header.
    pub(super) fn attributes(&self) -> Result<Attributes<'a>, Malformed> {
        Attributes::read(self.payload.get(FAMILY_HEADER..).ok_or(Malformed("the header of a netfilter message"))?)
    }

    /// The error number at the beginning of the payload, positive; 0 when all is well.
    pub(crate) fn error(&self) -> Result<i32, Malformed> {
        let number = self.payload.first_chunk().ok_or(Malformed("an error number"))?;
        Ok(i32::from_ne_bytes(*number).saturating_neg())
    }
}

/// The messages in what was received. After a malformed one it ends.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(&mut rest);
        if message.is_err() {
            rest = &[];
        }
        Some(message)
    })
}

fn split_message<'a>(rest: &mut &'a [u8]) -> Result<Message<'a>, Malformed> {
    let malformed = Malformed("a message of the length in its header");
    let header = rest.get(..MESSAGE_HEADER).ok_or(malformed)?;
    let length = u32_at(header, 0).ok_or(malformed)? as usize;
    let payload = rest.get(MESSAGE_HEADER..length).ok_or(malformed)?;
    let message = Message {
        kind: u16_at(header, 4).ok_or(malformed)?,
        flags: u16_at(header, 6).ok_or(malformed)?,
        sequence: u32_at(header, 8).ok_or(malformed)?,
        payload,
    };
    *rest = rest.get(aligned(length)..).unwrap_or_default();
    Ok(message)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The attributes in these bytes, in their order.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let attribute = split_attribute(&mut rest);
        if attribute.is_err() {
            rest = &[];
        }
        Some(attribute)
    })
}

fn split_attribute<'a>(rest: &mut &'a [u8]) -> Result<(u16, &'a [u8]), Malformed> {
    let malformed = Malformed("an attribute of the length in its header");
    let length = usize::from(u16_at(rest, 0).ok_or(malformed)?);
    let number = u16_at(rest, 2).ok_or(malformed)? & NLA_TYPE_MASK;
    let value = rest.get(ATTRIBUTE_HEADER..length).ok_or(malformed)?;
    *rest = rest.get(aligned(length)..).unwrap_or_default();
    Ok((number, value))
}

/// The attributes of a message or nest, by number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes<'a> {
    values: [Option<&'a [u8]>; KEPT_ATTRIBUTES],
}

impl<'a> Attributes<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut read = Self::default();
        for attribute in attributes(bytes) {
            let (number, value) = attribute?;
            if let Some(slot) = read.values.get_mut(usize::from(number)) {
                *slot = Some(value);
            }
        }
        Ok(read)
    }

    pub(super) fn get(&self, number: u16) -> Option<&'a [u8]> {
        self.values.get(usize::from(number)).copied().flatten()
    }

    pub(super) fn has(&self, number: u16) -> bool {
        self.get(number).is_some()
    }

    /// A byte, when there is one.
    pub(super) fn u8(&self, number: u16) -> Result<Option<u8>, Malformed> {
        self.number(number, "a number of 1 byte").map(|bytes| bytes.map(u8::from_be_bytes))
    }

    /// A number in network byte order, when there is one.
    pub(super) fn be16(&self, number: u16) -> Result<Option<u16>, Malformed> {
        self.number(number, "a number of 2 bytes").map(|bytes| bytes.map(u16::from_be_bytes))
    }

    /// A number in network byte order, when there is one.
    pub(super) fn be32(&self, number: u16) -> Result<Option<u32>, Malformed> {
        self.number(number, "a number of 4 bytes").map(|bytes| bytes.map(u32::from_be_bytes))
    }

    /// A number in network byte order, when there is one.
    pub(super) fn be64(&self, number: u16) -> Result<Option<u64>, Malformed> {
        self.number(number, "a number of 8 bytes").map(|bytes| bytes.map(u64::from_be_bytes))
    }

    fn number<const N: usize>(&self, number: u16, what: &'static str) -> Result<Option<[u8; N]>, Malformed> {
        self.get(number).map(|value| value.try_into().map_err(|_| Malformed(what))).transpose()
    }

    /// A text, when there is one; without its final zero.
    pub(super) fn text(&self, number: u16) -> Result<Option<&'a str>, Malformed> {
        let Some(value) = self.get(number) else { return Ok(None) };
        let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map(Some).map_err(|_| Malformed("a text in UTF-8"))
    }

    /// Whether this attribute is this text. One that is no text at all is another one.
    pub(super) fn is_text(&self, number: u16, text: &str) -> bool {
        self.text(number) == Ok(Some(text))
    }

    /// A text that must be there.
    pub(super) fn name(&self, number: u16) -> Result<&'a str, Malformed> {
        self.text(number)?.ok_or(Malformed("a name"))
    }

    /// The attributes within an attribute; none when it is not there.
    pub(super) fn nested(&self, number: u16) -> Result<Self, Malformed> {
        Self::read(self.get(number).unwrap_or_default())
    }
}

/// A message of nf_tables with any bytes after its header, for tests of what reads messages.
#[cfg(test)]
pub(super) fn message_of(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((MESSAGE_HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&nf_tables(kind).to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let header = Header { kind: nf_tables(3), flags: 0x400, sequence: 7, family: 1, resource: 0 };
        let start = begin_message(&mut bytes, header);
        put_text(&mut bytes, 1, "portward");
        let nest = begin_nest(&mut bytes, 4);
        put_be32(&mut bytes, 2, 9);
        end_nest(&mut bytes, nest);
        end_message(&mut bytes, start);

        let messages: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].nf_tables_kind(), messages[0].sequence), (Some(3), 7));
        let attributes = messages[0].attributes().unwrap();
        assert_eq!(attributes.name(1), Ok("portward"));
        assert_eq!(attributes.nested(4).unwrap().be32(2), Ok(Some(9)));
        assert_eq!(attributes.be32(1), Err(Malformed("a number of 4 bytes")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic_or_run_on(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / MESSAGE_HEADER + 1);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER + 1);
        }
    }

    #[test]
    fn a_length_of_zero_ends_the_reading() {
        assert_eq!(messages(&[0; 64]).filter(Result::is_err).count(), 1);
        assert_eq!(attributes(&[0; 64]).filter(Result::is_err).count(), 1);
    }
}
