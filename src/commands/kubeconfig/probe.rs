//! The hostnames in the certificates of a route's endpoints, which are asked for them.

use std::net::SocketAddr;

use anyhow::{anyhow, bail};
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::exact_names;
use crate::commands::addresses;
use crate::config::Route;
use crate::text::units::span;
use crate::upstream::health::{Handshake, TlsClient};
use crate::upstream::{EndpointCertificate, EndpointSettings, Purpose, TlsCheck, connect_to, error_message};

/// Asks all endpoints; an error if none has a certificate.
pub(super) async fn names(route: &Route) -> anyhow::Result<Vec<String>> {
    // Which CA has signed it does not matter for the names.
    let unverified = TlsCheck { ca_file: None, verified_name: None, asked_name: None, client: None };
    let client = TlsClient::read(&unverified).map_err(|reason| anyhow!(reason))?;
    let client = client.offering(vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
    let mut names: Vec<String> = Vec::new();
    let mut failures = Vec::new();
    for EndpointSettings { destination, .. } in &route.upstream.endpoints {
        let addresses = match addresses(destination).await {
            Ok(addresses) => addresses,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        for address in addresses {
            match certificate(route, &client, address).await {
                Ok(certificate) => names.extend(certificate.names.iter().map(|name| name.to_ascii_lowercase())),
                Err(reason) => failures.push(format!("{address}: {reason}")),
            }
        }
    }
    names.sort();
    names.dedup();
    if names.is_empty() {
        bail!("no endpoint of the route `{}` has shown a certificate with names: {}", route.name, failures.join("; "));
    }
    Ok(names)
}

async fn certificate(route: &Route, client: &TlsClient, address: SocketAddr) -> Result<EndpointCertificate, String> {
    let (dial, within) = (route.upstream.dial(address), route.upstream.budget.per_try);
    let name = exact_names(route).next().and_then(|name| ServerName::try_from(name.to_owned()).ok());
    let name = name.unwrap_or_else(|| ServerName::from(address.ip()));
    let handshake = async {
        let (mut stream, _) = connect_to(address, dial.local, Purpose::Check).await?;
        let header = dial.header(&stream)?;
        stream.write_all(&header).await?;
        Ok::<Handshake, std::io::Error>(client.handshake(name, stream).await)
    };
    let handshake = timeout(within, handshake).await.map_err(|_| format!("no response within {}", span(within)))?;
    let Handshake { certificate, stream } = handshake.map_err(|error| error_message(&error))?;
    certificate.ok_or_else(|| stream.err().map_or("no certificate".into(), |error| error_message(&error)))
}
