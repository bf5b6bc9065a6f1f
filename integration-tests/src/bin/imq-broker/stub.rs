//! The stub of the broker's JMX connector, as JDK 17 serializes it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What precedes the reference: the classes `RMIServerImpl_Stub`, `RemoteStub` and `RemoteObject`, without fields.
const CLASSES: [(&str, [u8; 8], u8); 3] = [
    ("javax.management.remote.rmi.RMIServerImpl_Stub", [0, 0, 0, 0, 0, 0, 0, 2], 2),
    ("java.rmi.server.RemoteStub", [0xe9, 0xfe, 0xdc, 0xc9, 0x8b, 0xe1, 0x65, 0x1a], 2),
    ("java.rmi.server.RemoteObject", [0xd3, 0x61, 0xb4, 0x91, 0x0c, 0x61, 0x33, 0x1e], 3),
];
/// The number of the object within its process, from a capture.
const OBJECT: [u8; 22] = [
    0x9f, 0x32, 0x41, 0x62, 0x4b, 0xeb, 0x30, 0xd2, 0xd3, 0x81, 0x6d, 0x42, 0, 0, 1, 0xa2, 0x0e, 0x6d, 0x95, 0x28,
    0x80, 1,
];

/// The stub of an object that is exported on this port, in base64.
pub(crate) fn encoded(host: &str, port: u16) -> String {
    STANDARD.encode(serialized(host, port))
}

fn serialized(host: &str, port: u16) -> Vec<u8> {
    // The magic number and version of a stream, then TC_OBJECT.
    let mut bytes = b"\xac\xed\0\x05\x73".to_vec();
    for (name, serial_version, flags) in CLASSES {
        bytes.push(b'\x72');
        push_text(&mut bytes, name);
        bytes.extend(serial_version);
        // No fields; the end of the annotations.
        bytes.extend([flags, 0, 0, b'\x78']);
    }
    let mut reference = Vec::new();
    push_text(&mut reference, "UnicastRef");
    push_text(&mut reference, host);
    reference.extend(u32::from(port).to_be_bytes());
    reference.extend(OBJECT);
    reference.push(0);
    // No further superclass, and the block of data that `RemoteObject` writes.
    bytes.extend([b'\x70', b'\x77', u8::try_from(reference.len()).expect("a host has a short name")]);
    bytes.extend(reference);
    bytes.push(b'\x78');
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names are short");
    bytes.extend(length.to_be_bytes());
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `JMXConnectorServer.getAddress()` of JDK 17.
    const CAPTURE: &str = "rO0ABXNyAC5qYXZheC5tYW5hZ2VtZW50LnJlbW90ZS5ybWkuUk1JU2VydmVySW1wbF9TdHViAAAAAAAAAAICAAB4c\
gAaamF2YS5ybWkuc2VydmVyLlJlbW90ZVN0dWLp/tzJi+FlGgIAAHhyABxqYXZhLnJtaS5zZXJ2ZXIuUmVtb3RlT2JqZWN002G0kQxhMx4DAAB4cHcxAApVb\
mljYXN0UmVmAAgxMC45LjkuMQAAk1ufMkFiS+sw0tOBbUIAAAGiDm2VKIABAHg=";

    #[test]
    fn the_stub_is_that_of_a_jvm() {
        assert_eq!(encoded("10.9.9.1", 37723), CAPTURE);
    }
}
