//! The network: listening, dialing, names, and TLS on both sides.
//!
//! [`Net`] is what sessions see of it, through [`crate::session::Network`]. Every wait has a limit. TLS uses its own
//! provider in each configuration and no process-wide default, so that no other part of the program can weaken it.

pub mod ca;
pub mod deaf;
mod dial;
pub mod gathered;
pub mod handed;
pub mod listener;
pub mod namespace;
mod sockdiag;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod tls;

pub use ca::{RuntimeCa, Scope};
pub use gathered::Gathered;

use std::{net::IpAddr, sync::Arc};

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::{
    policy::TlsSpec,
    secrets::{DialError, Dialer, Stream},
    session::{Alpn, Asked, BoxIo, Hello, NetError, Network, Secured},
};

/// The host's network.
pub struct Net {
    names: dial::Names,
    client: tls::Client,
    ca: Arc<RuntimeCa>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").finish_non_exhaustive()
    }
}

impl Net {
    /// A network whose server side answers with leaves of `ca`.
    pub fn new(ca: Arc<RuntimeCa>) -> Self {
        Self { names: dial::Names::default(), client: tls::Client::default(), ca }
    }

    /// The CA that governed clients trust.
    pub fn ca(&self) -> &Arc<RuntimeCa> {
        &self.ca
    }
}

impl Network for Net {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NetError>> {
        Box::pin(self.names.resolve(host))
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<BoxIo, NetError>> {
        Box::pin(async move { Ok(Box::new(Gathered::new(dial::dial(&self.names, address).await?)) as BoxIo) })
    }

    fn secure<'a>(
        &'a self,
        io: BoxIo,
        host: &'a str,
        tls: &'a TlsSpec,
        protocols: &'a [Alpn],
        certificate: Option<&'a SecretString>,
    ) -> BoxFuture<'a, Result<Secured, NetError>> {
        Box::pin(self.client.secure(io, host, tls, protocols, certificate))
    }

    fn asked_name(&self, first: &[u8]) -> Asked {
        tls::asked_name(first)
    }

    fn read_hello(&self, io: BoxIo) -> BoxFuture<'_, Result<Box<dyn Hello>, NetError>> {
        Box::pin(tls::read_hello(&self.ca, io))
    }
}

impl Dialer for Net {
    fn reach<'a>(
        &'a self,
        address: &'a str,
        host: &'a str,
        tls: Option<&'a TlsSpec>,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, DialError>> {
        Box::pin(async move {
            let io: BoxIo = Box::new(dial::dial(&self.names, address).await.map_err(detailed)?);
            let Some(tls) = tls else { return Ok(Box::new(io) as Box<dyn Stream>) };
            let secured = self.client.secure(io, host, tls, &[b"http/1.1"], None).await.map_err(detailed)?;
            Ok(Box::new(secured.io) as Box<dyn Stream>)
        })
    }
}

/// For the operator.
fn detailed(error: NetError) -> DialError {
    error.into()
}
