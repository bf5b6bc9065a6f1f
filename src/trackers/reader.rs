//! Reads numbers in network byte order and counted bytes, without trusting any length. Java's serialization
//! (`java.io.DataOutput`) and XDR (RFC 4506) both write so.

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'m> {
    rest: &'m [u8],
}

impl<'m> Reader<'m> {
    pub(super) fn new(message: &'m [u8]) -> Self {
        Self { rest: message }
    }

    /// The next so many bytes; `None`, here and below, when there are fewer.
    pub(super) fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'m [u8] {
        self.rest
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Bytes after their number in two bytes, as `DataOutput.writeUTF` writes a text.
    pub(super) fn counted(&mut self) -> Option<&'m [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// Takes these bytes if they come next.
    pub(super) fn expect(&mut self, expected: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }
}
