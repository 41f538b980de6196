//! What the admin listener of a running instance tells.

use std::net::SocketAddr;
use std::time::Duration;

use crate::text::Destination;
use crate::text::units::span;
use crate::upstream::error_message;
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

/// For it to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for the status of 100,000 routes.
const MAX_STATUS: usize = 256 * 1024 * 1024;

/// What runs there, and all addresses that the destination stands for.
pub(super) async fn status(admin: &Destination) -> anyhow::Result<(Value, Vec<SocketAddr>)> {
    let late = |_| Err(anyhow!("no answer within {}", span(PATIENCE)));
    timeout(PATIENCE, ask(admin))
        .await
        .unwrap_or_else(late)
        .with_context(|| format!("cannot ask the admin listener at {admin}"))
}

async fn ask(admin: &Destination) -> anyhow::Result<(Value, Vec<SocketAddr>)> {
    let addresses = addresses(admin).await?;
    let stream = TcpStream::connect(&*addresses).await.map_err(|error| anyhow!(error_message(&error)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/api/status").header("host", admin.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_STATUS).collect().await;
    let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
    if status == StatusCode::MISDIRECTED_REQUEST {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    ensure!(status == StatusCode::OK, "it answers {status}");
    Ok((serde_json::from_slice(&body)?, addresses))
}
