//! The calls of a registry and its answers as bytes.
//!
//! Sources: the JDK's `sun.rmi.transport.TransportConstants`, `StreamRemoteCall` and `sun.rmi.registry.RegistryImpl_Skel`
//! (JDK 17); the grammar of serialized objects is in the "Java Object Serialization Specification", chapter 6.
//!
//! Objects are not deserialized: of a list of names the few forms are read that it has, and a bound object is searched for
//! references.

use super::super::exchange::beginning;
use super::super::reader::Reader;
use super::super::stub::{Endpoint, endpoints};
use super::super::text::shown_bytes;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// `JRMI`, version 2, and the protocol of one call a connection.
const TRANSPORT: &[u8] = b"JRMI\0\x02\x4c";
const CALL: u8 = 0x50;
const RETURN: u8 = 0x51;
const NORMAL_RETURN: u8 = 1;
const EXCEPTIONAL_RETURN: u8 = 2;

/// `STREAM_MAGIC` and `STREAM_VERSION`.
const STREAM: &[u8] = b"\xac\xed\0\x05";
const TC_NULL: u8 = 0x70;
const TC_REFERENCE: u8 = 0x71;
const TC_CLASSDESC: u8 = 0x72;
const TC_OBJECT: u8 = 0x73;
const TC_STRING: u8 = 0x74;
const TC_ARRAY: u8 = 0x75;
const TC_BLOCKDATA: u8 = 0x77;
const TC_ENDBLOCKDATA: u8 = 0x78;
/// The number of the first object of a stream that may be referred to (`baseWireHandle`).
const FIRST_HANDLE: u32 = 0x7e_0000;

/// The object of a registry: number 0 (`ObjID.REGISTRY_ID`) and an empty `UID`.
const REGISTRY: [u8; 22] = [0; 22];
const LIST: u32 = 1;
const LOOKUP: u32 = 2;
/// `RegistryImpl_Skel.interfaceHash`.
const INTERFACE: u64 = 0x4415_4dc9_d4e6_3bdf;
/// The length of a `UID`, which follows the kind of a return.
const UID: usize = 14;

/// A name of a registry, as Java writes it (`java.io.DataInput`, "modified UTF-8"), at most 65,535 bytes. Copies share it: a
/// list may refer to one long name very many times.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

impl From<&str> for Name {
    /// The name of an object; what is beyond the longest name is cut off.
    fn from(name: &str) -> Self {
        Self(name.bytes().take(u16::MAX.into()).collect())
    }
}

/// Fit for a log.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown_bytes(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Why an answer is not that of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// It is not the protocol.
    #[error("expected a return of the RMI protocol, but the answer begins with `{0}`")]
    NoReturn(String),
    /// The registry threw an exception; the text is its class.
    #[error("it threw {0}")]
    Exception(String),
    /// The answer ended too early or holds what does not belong there.
    #[error("expected {0}")]
    Expected(&'static str),
}

fn call(operation: u32) -> Vec<u8> {
    let target = [REGISTRY.as_slice(), &operation.to_be_bytes(), &INTERFACE.to_be_bytes()].concat();
    [TRANSPORT, &[CALL], STREAM, &[TC_BLOCKDATA, target.len() as u8], &target].concat()
}

/// The connection's beginning and the call `list()`.
pub(super) fn list_call() -> Vec<u8> {
    call(LIST)
}

/// The connection's beginning and the call `lookup(name)`.
pub(super) fn lookup_call(name: &Name) -> Vec<u8> {
    let length = (name.0.len() as u16).to_be_bytes();
    [call(LOOKUP).as_slice(), &[TC_STRING], &length, &name.0].concat()
}

/// What follows the head of a normal return.
fn read_return(answer: &[u8]) -> Result<Reader<'_>, Malformed> {
    let mut reader = Reader::new(answer);
    let kind = read_head(&mut reader).ok_or_else(|| Malformed::NoReturn(beginning(answer)))?;
    match kind {
        NORMAL_RETURN => Ok(reader),
        EXCEPTIONAL_RETURN => {
            let class = read_class_name(&mut reader).ok_or(Malformed::Expected("the class of an exception"))?;
            Err(Malformed::Exception(shown_bytes(class)))
        }
        _ => Err(Malformed::Expected("a normal or an exceptional return")),
    }
}

fn read_head(reader: &mut Reader<'_>) -> Option<u8> {
    reader.expect(&[RETURN])?;
    reader.expect(STREAM)?;
    reader.expect(&[TC_BLOCKDATA, 1 + UID as u8])?;
    let kind = reader.u8()?;
    reader.take(UID)?;
    Some(kind)
}

fn read_class_name<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    reader.expect(&[TC_OBJECT, TC_CLASSDESC])?;
    reader.counted()
}

/// Reads the answer to `list()`: an array of strings.
///
/// # Errors
/// When it is something else, or an exception.
pub fn parse_names(answer: &[u8]) -> Result<Vec<Name>, Malformed> {
    let mut reader = read_return(answer)?;
    read_names(&mut reader).ok_or(Malformed::Expected("an array of names"))
}

fn read_names(reader: &mut Reader<'_>) -> Option<Vec<Name>> {
    // What may be referred to, by its number: the strings; `None` for the class and the array.
    let mut handles = vec![None];
    reader.expect(&[TC_ARRAY, TC_CLASSDESC])?;
    if reader.counted()? != b"[Ljava.lang.String;" {
        return None;
    }
    let _serial_version = reader.take(8)?;
    let _flags = reader.u8()?;
    reader.expect(&[0, 0])?;
    // The class's annotation: where to load it from, a string or null.
    loop {
        match reader.u8()? {
            TC_ENDBLOCKDATA => break,
            TC_NULL => {}
            TC_STRING => handles.push(Some(Name(reader.counted()?.into()))),
            _ => return None,
        }
    }
    reader.expect(&[TC_NULL])?;
    handles.push(None);
    let count = reader.u32()?;
    // The count is not trusted with memory: each name takes some bytes of the answer.
    let mut names = Vec::new();
    for _ in 0..count {
        match reader.u8()? {
            TC_STRING => {
                let name = Name(reader.counted()?.into());
                handles.push(Some(name.clone()));
                names.push(name);
            }
            TC_REFERENCE => {
                let handle = usize::try_from(reader.u32()?.checked_sub(FIRST_HANDLE)?).ok()?;
                names.push(handles.get(handle)?.clone()?);
            }
            _ => return None,
        }
    }
    Some(names)
}

/// Reads the answer to `lookup(name)`: where the object, and those that it holds, are exported.
///
/// # Errors
/// When it is no return of a call, or an exception.
pub fn parse_lookup(answer: &[u8]) -> Result<Vec<Endpoint>, Malformed> {
    read_return(answer).map(|reader| endpoints(reader.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// JDK 17: a registry made by hand with the names `service` and `with-factory`, and that of JMX.
    const LIST_RETURN: &[u8] = include_bytes!("captures/list.bin");
    const JMX_LIST_RETURN: &[u8] = include_bytes!("captures/list-jmx.bin");
    /// `service`, an object exported by a dynamic proxy.
    const LOOKUP_RETURN: &[u8] = include_bytes!("captures/lookup.bin");
    /// `with-factory`, an object with a socket factory for clients.
    const FACTORY_RETURN: &[u8] = include_bytes!("captures/lookup-with-factory.bin");
    /// `jmxrmi`.
    const JMX_RETURN: &[u8] = include_bytes!("captures/lookup-jmx.bin");
    /// A name that is not bound.
    const NOT_BOUND: &[u8] = include_bytes!("captures/not-bound.bin");
    const CAPTURES: [&[u8]; 6] = [LIST_RETURN, JMX_LIST_RETURN, LOOKUP_RETURN, FACTORY_RETURN, JMX_RETURN, NOT_BOUND];

    fn names(list: &[&str]) -> Vec<Name> {
        list.iter().map(|&name| Name::from(name)).collect()
    }

    fn at(port: u16) -> Vec<Endpoint> {
        vec![Endpoint { host: "127.0.0.1".to_owned(), port }]
    }

    #[test]
    fn the_calls_as_the_jdk_expects_them() {
        let head = b"JRMI\0\x02\x4c\x50\xac\xed\0\x05\x77\x22".as_slice();
        let list = [head, &[0; 22], b"\0\0\0\x01\x44\x15\x4d\xc9\xd4\xe6\x3b\xdf"].concat();
        assert_eq!(list_call(), list);
        let lookup = [head, &[0; 22], b"\0\0\0\x02\x44\x15\x4d\xc9\xd4\xe6\x3b\xdf\x74\0\x06jmxrmi"].concat();
        assert_eq!(lookup_call(&Name::from("jmxrmi")), lookup);
        assert_eq!(lookup_call(&Name::from(&*"x".repeat(70_000))).len(), 48 + 3 + 65_535);
    }

    #[test]
    fn what_real_registries_answer() {
        let mut listed = parse_names(LIST_RETURN).unwrap();
        listed.sort();
        assert_eq!(listed, names(&["service", "with-factory"]));
        assert_eq!(parse_names(JMX_LIST_RETURN), Ok(names(&["jmxrmi"])));
        assert_eq!(parse_lookup(LOOKUP_RETURN), Ok(at(45769)));
        assert_eq!(parse_lookup(FACTORY_RETURN), Ok(at(45827)));
        assert_eq!(parse_lookup(JMX_RETURN), Ok(at(42733)));
        let exception = Malformed::Exception("java.rmi.NotBoundException".to_owned());
        assert_eq!(parse_lookup(NOT_BOUND), Err(exception.clone()));
        assert_eq!(parse_names(NOT_BOUND), Err(exception));
        assert_eq!(parse_lookup(LIST_RETURN), Ok(Vec::new()));
        assert_eq!(parse_names(LOOKUP_RETURN), Err(Malformed::Expected("an array of names")));
    }

    /// A list of names that begins as a real one and goes on so after its annotation.
    fn list_with(annotation: &[u8], rest: &[u8]) -> Vec<u8> {
        let class_end =
            LIST_RETURN.windows(3).position(|window| window == [TC_NULL, TC_ENDBLOCKDATA, TC_NULL]).unwrap();
        [&LIST_RETURN[..class_end], annotation, &[TC_ENDBLOCKDATA, TC_NULL], rest].concat()
    }

    #[test]
    fn a_place_to_load_from_and_names_that_are_referred_to() {
        let codebase = b"\x74\0\x06file:/";
        let repeated = list_with(codebase, b"\0\0\0\x03\x74\0\x01a\x71\0\x7e\0\x03\x71\0\x7e\0\x01");
        assert_eq!(parse_names(&repeated), Ok(names(&["a", "a", "file:/"])));
        assert_eq!(parse_names(&list_with(&[TC_NULL], &[0; 4])), Ok(Vec::new()));
    }

    #[test]
    fn a_long_name_that_is_referred_to_very_often_is_kept_once() {
        let long = [b"\x74\xff\xff".as_slice(), &[b'a'; 0xffff]].concat();
        let rest = [b"\0\0\x80\x01".as_slice(), &long, &b"\x71\0\x7e\0\x02".repeat(0x8000)].concat();
        // Copies would take two gigabytes.
        let found = parse_names(&list_with(&[TC_NULL], &rest)).unwrap();
        assert_eq!(found.len(), 0x8001);
        assert!(found.iter().all(|name| Arc::ptr_eq(&name.0, &found[0].0)));
    }

    #[test]
    fn what_is_no_list_of_names_is_an_error() {
        let null = [TC_NULL];
        for rest in [
            b"\0\0\0\x01\x70".as_slice(),
            b"\0\0\0\x02\x74\0\x01a",
            b"\0\0\0\x01\x71\0\x7e\0\0",
            b"\0\0\0\x01\x71\0\x7e\0\x09",
            b"\0\0\0\x01\x71\0\0\0\0",
            b"\xff\xff\xff\xff\x74\0\x01a",
            b"\0\0",
        ] {
            let answer = list_with(&null, rest);
            assert_eq!(parse_names(&answer), Err(Malformed::Expected("an array of names")), "{rest:?}");
        }
        let http = parse_names(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err();
        let message = "expected a return of the RMI protocol, but the answer begins with `HTTP/1.1 400 Bad Request\\r`";
        assert_eq!(http.to_string(), message);
        assert!(matches!(parse_names(b"\x4f"), Err(Malformed::NoReturn(_))));
        let mut third = LIST_RETURN.to_vec();
        third[7] = 3;
        assert_eq!(parse_names(&third), Err(Malformed::Expected("a normal or an exceptional return")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            for answer in [bytes.clone(), [&LIST_RETURN[..22], &bytes].concat(), list_with(&[], &bytes)] {
                let _ = parse_names(&answer);
                let _ = parse_lookup(&answer);
            }
        }

        #[test]
        fn a_cut_answer_claims_nothing_that_the_whole_does_not(capture in 0..CAPTURES.len(), cut in any::<prop::sample::Index>()) {
            let capture = CAPTURES[capture];
            let cut = &capture[..cut.index(capture.len())];
            prop_assert!(parse_names(cut).is_err());
            if let Ok(found) = parse_lookup(cut) {
                prop_assert!(found.is_empty() || parse_lookup(capture) == Ok(found));
            }
        }

        #[test]
        fn a_changed_byte_is_no_panic_and_its_text_is_harmless(
            capture in 0..CAPTURES.len(),
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut answer = CAPTURES[capture].to_vec();
            let place = place.index(answer.len());
            answer[place] = byte;
            let names = parse_names(&answer).into_iter().flatten().map(|name| name.to_string());
            let hosts = parse_lookup(&answer).into_iter().flatten().map(|endpoint| endpoint.host);
            let errors = parse_names(&answer).err().map(|error| error.to_string());
            for text in names.chain(hosts).chain(errors) {
                prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
            }
        }
    }
}
