//! The names that an authority may vouch for, as its certificate states them (RFC 5280 section 4.2.1.10).
//!
//! A name of DNS stands for what is below it, too: the format has no other way to say it. A kind of which there is none
//! is excluded as a whole, because what is not mentioned is not limited.

use std::{collections::BTreeSet, net::IpAddr};

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};

use crate::{
    action::ProtocolId,
    policy::{ClientTls, PolicySet},
};

/// Beyond so many names and addresses none are stated: clients would read them in every handshake, and some give up.
const STATED_MAX: usize = 1000;

/// Names of upstreams that clients reach by TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Scope {
    /// All that upstreams of these policies are called by their clients.
    pub fn of(policies: &PolicySet) -> Self {
        let mut scope = Self::default();
        let upstreams = policies.policies().iter().flat_map(|policy| policy.upstreams());
        for upstream in upstreams.filter(|upstream| upstream.client_tls != ClientTls::Refuse) {
            let hosts = upstream.addresses.iter().map(|address| address.rsplit_once(':').map_or(&**address, |at| at.0));
            scope.extend(hosts);
            if upstream.protocol == ProtocolId::Postgres {
                // Its clients often say so of what is on their own host.
                scope.extend(["localhost"]);
            }
        }
        scope
    }

    /// Adds names and addresses, the latter of IPv6 in brackets or not.
    pub fn extend<'a>(&mut self, hosts: impl IntoIterator<Item = &'a str>) {
        for host in hosts {
            let host = bare(host);
            match host.parse() {
                Ok(address) => self.addresses.insert(address),
                Err(_) => self.names.insert(host),
            };
        }
    }

    /// Whether a certificate for this name, or this address, is within.
    pub fn covers(&self, name: &str) -> bool {
        if !self.is_stated() {
            return true;
        }
        if let Ok(address) = name.parse() {
            return self.addresses.contains(&address);
        }
        let is_below = |known: &String| name.strip_suffix(known.as_str()).is_some_and(|rest| rest.ends_with('.'));
        self.names.contains(name) || self.names.iter().any(is_below)
    }

    /// Whether all of another is within.
    pub fn includes(&self, other: &Self) -> bool {
        !self.is_stated()
            || other.is_stated()
                && other.addresses.is_subset(&self.addresses)
                && other.names.iter().all(|name| self.covers(name))
    }

    /// Whether a certificate states it. One of too many names does not, and is good for any.
    pub fn is_stated(&self) -> bool {
        self.names.len() + self.addresses.len() <= STATED_MAX
    }

    /// For the authority's certificate.
    pub(super) fn constraints(&self) -> Option<NameConstraints> {
        if !self.is_stated() {
            return None;
        }
        let names = self.names.iter().map(|name| GeneralSubtree::DnsName(name.clone()));
        let subnet = |address: &IpAddr| match address {
            IpAddr::V4(_) => CidrSubnet::from_addr_prefix(*address, 32),
            IpAddr::V6(_) => CidrSubnet::from_addr_prefix(*address, 128),
        };
        let addresses = self.addresses.iter().map(|address| GeneralSubtree::IpAddress(subnet(address)));
        let mut excluded = Vec::new();
        if self.names.is_empty() {
            excluded.push(GeneralSubtree::DnsName(String::new()));
        }
        if self.addresses.is_empty() {
            excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
            excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
        }
        Some(NameConstraints { permitted_subtrees: names.chain(addresses).collect(), excluded_subtrees: excluded })
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        if !self.is_stated() {
            return write!(f, "any name: the policies have more than {STATED_MAX}");
        }
        let names = count(self.names.len(), "name", "names");
        write!(f, "{names} and {} of the policies", count(self.addresses.len(), "address", "addresses"))
    }
}

/// A host without the brackets of IPv6 and the dot of an absolute name, in lower case.
pub(super) fn bare(host: &str) -> String {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = inner.filter(|host| host.parse::<IpAddr>().is_ok()).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
