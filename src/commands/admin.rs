//! Reads the status of a running instance from its admin listener.

use std::net::SocketAddr;
use std::time::Duration;

use crate::text::Destination;
use crate::text::units::span;
use crate::upstream::{DRAINED, error_message};
use anyhow::{Context, anyhow, bail, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::addresses;

const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for 100,000 routes.
const MAX_STATUS: usize = 256 * 1024 * 1024;

/// The status of the instance, and the addresses that `admin` resolves to.
pub(super) async fn status(admin: &Destination) -> anyhow::Result<(Value, Vec<SocketAddr>)> {
    let late = |_| Err(anyhow!("no answer within {}", span(STATUS_TIMEOUT)));
    timeout(STATUS_TIMEOUT, request(admin))
        .await
        .unwrap_or_else(late)
        .with_context(|| format!("cannot read the status from the admin listener at {admin}"))
}

/// The elements, if it is a list.
pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The endpoints of a route in the status.
pub(super) fn endpoints_of(route: &Value) -> impl Iterator<Item = &Value> {
    array(&route["upstream"]).iter().flat_map(|destination| array(&destination["endpoints"]))
}

/// The endpoints that operators have drained, each with its route.
pub(super) fn drained(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut drained = Vec::new();
    for route in array(&status["routes"]) {
        let endpoints = endpoints_of(route).filter(|endpoint| endpoint["state"] == DRAINED);
        drained.extend(endpoints.map(|endpoint| (text(&route["name"]), text(&endpoint["address"]))));
    }
    drained
}

async fn request(admin: &Destination) -> anyhow::Result<(Value, Vec<SocketAddr>)> {
    let addresses = addresses(admin).await?;
    let stream = TcpStream::connect(&*addresses).await.map_err(|error| anyhow!(error_message(&error)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let get = Request::get("/api/status").header("host", admin.to_string());
    // A shared answer may be from before the last reload.
    let get = get.header("cache-control", "no-cache").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(get).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_STATUS).collect().await;
    let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
    if status == StatusCode::MISDIRECTED_REQUEST {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    ensure!(status == StatusCode::OK, "unexpected response: {status}");
    Ok((serde_json::from_slice(&body)?, addresses))
}
