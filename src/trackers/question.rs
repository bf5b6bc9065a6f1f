//! What a service is asked for its ports, and what it has said.

use super::exchange::NoAnswer;
use super::state::RefusedPort;
use super::{Claim, Claims, imq, rmi, rpc, verify};
use crate::describe;
use crate::listeners::Listener;
use crate::plan::LocalScope;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Where a listener can be asked from this host.
pub(super) fn address(listener: &Listener) -> SocketAddr {
    let ip = match listener.scope {
        LocalScope::Any | LocalScope::Ipv4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        LocalScope::Ipv6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        LocalScope::Address(address) => address,
    };
    SocketAddr::new(ip, listener.port)
}

/// What a service has said.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) claims: Vec<Claim>,
    /// What cannot even be a claim, and why.
    pub(super) refused: Vec<RefusedPort>,
}

/// Why a service did not answer.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) message: String,
    /// Whether it cannot answer in any form that is understood, so that its process's listeners take the answer's place.
    pub(super) final_word: bool,
}

/// What a service is asked. Its answer is bounded in size and time.
pub(super) enum Question {
    Imq(SocketAddr),
    Rmi(SocketAddr),
    Rpc(PathBuf, Vec<u32>),
}

impl Question {
    pub(super) async fn ask(self) -> Result<Answer, Failure> {
        match self {
            Self::Imq(address) => match imq::ask(address).await {
                Ok(table) if table.complete => Ok(imq::claims(&table).into()),
                Ok(_) => Err(Failure { message: "its port table ended before its end".to_owned(), final_word: false }),
                Err(error) => {
                    let final_word = matches!(error, imq::Error::NoAnswer(NoAnswer::Tls { .. }));
                    Err(Failure { message: describe(&error), final_word })
                }
            },
            Self::Rmi(address) => {
                rmi::ask(address).await.map(|registry| rmi::claims(&registry).into()).map_err(|error| {
                    let final_word = !matches!(error, rmi::Error::NoAnswer(NoAnswer::Connect { .. }));
                    Failure { message: describe(&error), final_word }
                })
            }
            Self::Rpc(socket, programs) => match rpc::ask(&socket).await {
                Ok(registrations) => Ok(rpc::claims(&registrations, &programs).into()),
                Err(error) => Err(Failure { message: describe(&error), final_word: false }),
            },
        }
    }
}

impl From<Claims> for Answer {
    fn from(claims: Claims) -> Self {
        let refused = claims.refused.into_iter().map(|refused| RefusedPort {
            port: refused.port.map_or_else(|| "-".to_owned(), |(protocol, port)| verify::name(protocol, port)),
            what: refused.what,
            why: refused.why.to_string(),
        });
        Self { refused: refused.collect(), claims: claims.claims }
    }
}
