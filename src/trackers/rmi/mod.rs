//! A registry of remote Java objects (RMI, as JMX uses it): the ports at which the objects are exported.
//!
//! The registry is asked for its names and then for each name, by the protocol of the JDK (Java Remote Method Protocol,
//! JDK 17, `sun.rmi.transport`): one connection for each call (`SingleOpProtocol`), and no acknowledgement of what is
//! received, which the registry forgets after some minutes.

mod wire;

pub use wire::{Malformed, Name, parse_lookup, parse_names};

use super::claim::{Claims, Refusal};
use super::exchange::{NoAnswer, Question};
use super::stub::Endpoint;
use std::error::Error as _;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The longest answer that is read, in bytes. A stub has some hundred.
const LONGEST: usize = 256 << 10;
/// So many names are looked up.
const MOST_NAMES: usize = 64;
/// How long the registry may take for all answers; it takes a millisecond for one.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a registry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Its names and what they are bound to, in the order in which it lists them, at most 64.
    pub bindings: Vec<Binding>,
    /// How many names more it has.
    pub omitted: usize,
}

/// A name and the remote object that it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The name.
    pub name: Name,
    /// Where the object, and those that it holds, are exported; none when it is no remote object of a known kind. Or why
    /// the registry did not say it: a name may be unbound after it was listed.
    pub endpoints: Result<Vec<Endpoint>, Error>,
}

/// Why a registry did not say what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// There is no answer that could be read.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The answer is not one of a registry, or an exception.
    #[error("{place} did not answer as an RMI registry does")]
    Malformed {
        /// Who answered.
        place: String,
        /// What is wrong with the answer.
        #[source]
        source: Malformed,
    },
}

/// Asks the registry at an address of this host for its names and for the objects that they are bound to. Takes at most
/// three seconds for all, 256 KiB for each answer, and 64 names.
///
/// # Errors
/// When the names cannot be had. What goes wrong with a single name is kept with it.
pub async fn ask(address: SocketAddr) -> Result<Registry, Error> {
    let place = address.to_string();
    let deadline = Instant::now() + PATIENCE;
    let mut names = call(&place, address, deadline, &wire::list_call(), parse_names).await?;
    let omitted = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let mut bindings = Vec::with_capacity(names.len());
    for name in names {
        let endpoints = call(&place, address, deadline, &wire::lookup_call(&name), parse_lookup).await;
        bindings.push(Binding { name, endpoints });
    }
    Ok(Registry { bindings, omitted })
}

async fn call<T>(
    place: &str,
    address: SocketAddr,
    deadline: Instant,
    request: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Malformed>,
) -> Result<T, Error> {
    let question = Question { deadline, ..Question::new(place, request, LONGEST, PATIENCE) };
    // The registry closes the connection after one call.
    let answer = question.ask(TcpStream::connect(address), |_| false).await?;
    parse(&answer).map_err(|source| Error::Malformed { place: place.to_owned(), source })
}

/// The ports at which a registry claims that its objects are exported.
pub fn claims(registry: &Registry) -> Claims {
    let mut claims = Claims::default();
    for binding in &registry.bindings {
        let what = format!("rmi {}", binding.name);
        match &binding.endpoints {
            Ok(endpoints) if endpoints.is_empty() => {
                claims.refuse(what, None, Refusal::NoStub("what it is bound to"));
            }
            Ok(endpoints) => endpoints.iter().for_each(|endpoint| claims.add_tcp(endpoint.port, what.clone())),
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                claims.refuse(what, None, Refusal::NotFound(format!("{error}{cause}")));
            }
        }
    }
    if registry.omitted > 0 {
        claims.refuse(format!("rmi, {} names more", registry.omitted), None, Refusal::Beyond(MOST_NAMES));
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_a_claim_or_refused_with_the_reason() {
        let endpoint = |port| Endpoint { host: "127.0.0.1".to_owned(), port };
        let place = "127.0.0.1:9913".to_owned();
        let source = Malformed::Exception("java.rmi.NotBoundException".to_owned());
        let binding = |name: &str, endpoints| Binding { name: Name::from(name), endpoints };
        let registry = Registry {
            bindings: vec![
                binding("one", Ok(vec![endpoint(45769)])),
                binding("two", Ok(vec![endpoint(1), endpoint(2)])),
                binding("none\x1b", Ok(Vec::new())),
                binding("gone", Err(Error::Malformed { place, source })),
            ],
            omitted: 3,
        };
        let found = claims(&registry);
        let claimed: Vec<_> = found.claims.iter().map(|claim| (claim.port, claim.what.as_str())).collect();
        assert_eq!(claimed, [(45769, "rmi one"), (1, "rmi two"), (2, "rmi two")]);
        let refused: Vec<_> =
            found.refused.iter().map(|refused| format!("{}: {}", refused.what, refused.why)).collect();
        let expected = [
            "rmi none\\u{1b}: there is no reference to a remote object in what it is bound to, so its port is not known",
            "rmi gone: 127.0.0.1:9913 did not answer as an RMI registry does: it threw java.rmi.NotBoundException",
            "rmi, 3 names more: only the first 64 are looked at",
        ];
        assert_eq!(refused, expected);
    }
}
