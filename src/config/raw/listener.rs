use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::text::{OneOrMany, Short, Shorthand, Text, scalar_or_list_hint};
use super::super::values::Label;
use super::{NetworkEntry, present};
use crate::client_hello::Ja4;

/// An address, or a list of addresses and maps.
pub(crate) struct Listen(pub(crate) Vec<Short<Listener>>);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListenVisitor;

        impl<'de> serde::de::Visitor<'de> for ListenVisitor {
            type Value = Listen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address such as 0.0.0.0:6443, or a list of addresses and of maps with `address`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                scalar_or_list_hint(text).map(|Text(address)| Listen(vec![Short(Listener::at(address))]))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Listen, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, sequence: A) -> Result<Listen, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(sequence)).map(Listen)
            }
        }

        deserializer.deserialize_any(ListenVisitor)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// Unique name in logs, metrics and `routes[].listener`. Default: the address.
    #[serde(default, deserialize_with = "present")]
    pub(crate) name: Option<Text<Label>>,
    /// IP address and port. `[::]` accepts IPv4 too; port 0 lets the kernel choose.
    pub(crate) address: Text<SocketAddr>,
    /// How a client is rejected on this listener. Default: the top-level `refuse`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) refuse: Option<RejectWith>,
    /// Networks to accept clients from. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(crate) allow: Option<OneOrMany<Short<NetworkEntry>>>,
    /// Networks to deny clients from; overrides `allow`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny: Option<OneOrMany<Short<NetworkEntry>>>,
    /// JA4 fingerprints of clients to deny. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny_ja4: Option<OneOrMany<Text<Ja4>>>,
    /// Load balancers that connect here and send a PROXY header with the client's address. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) accept_proxy: Option<AcceptProxy>,
    /// Listen although no interface has the address yet (`IP_FREEBIND`). Default: false.
    #[serde(default)]
    pub(crate) freebind: bool,
    /// How to treat an IP address as SNI, which RFC 6066 forbids but some clients send. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) ip_literal_sni: Option<IpLiteralSni>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IpLiteralSni {
    /// Reject the client (`malformed`).
    Refuse,
    /// Route the client as if it sent no SNI.
    None,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AcceptProxy {
    /// Networks of the load balancers.
    pub(crate) from: OneOrMany<Short<NetworkEntry>>,
    /// How connections from elsewhere are treated. Default: refuse.
    #[serde(default, deserialize_with = "present")]
    pub(crate) others: Option<Others>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Others {
    /// Reject them (`proxy_header`).
    Refuse,
    /// They are clients that connect directly, without a PROXY header.
    Direct,
}

impl Listener {
    /// A listener with defaults for everything but its address.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self {
            name: None,
            address: Text(address),
            refuse: None,
            allow: None,
            deny: None,
            deny_ja4: None,
            accept_proxy: None,
            freebind: false,
            ip_literal_sni: None,
        }
    }
}

impl Shorthand for Listener {
    const EXPECTED: &'static str = "an address such as 0.0.0.0:6443, or a map with `address`";
    type Scalar = SocketAddr;

    fn from_text(address: SocketAddr) -> Self {
        Self::at(address)
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RejectWith {
    /// Send a TLS alert, on which clients fail immediately.
    Alert,
    /// Close the connection.
    Close,
    /// Reset the connection (TCP RST).
    Reset,
}
