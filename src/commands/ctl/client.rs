//! Requests to the control socket.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;

use crate::upstream::error_message;
use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// A path with a query.
pub(super) struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    pub(super) fn new(path: &str) -> Self {
        Self { text: path.into(), has_query: false }
    }

    /// Adds a parameter, if it has a value.
    pub(super) fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.text.push(if self.has_query { '&' } else { '?' });
            self.has_query = true;
            self.text.push_str(name);
            self.text.push('=');
            encode(&value.to_string(), &mut self.text);
        }
        self
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986, section 2.3).
fn encode(value: &str, text: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

/// The response, if it is no error.
pub(super) async fn send(socket: &Path, method: Method, target: Target) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(target.text).header("host", "snigate");
    // Not an answer that others have just received.
    let request = request.header("cache-control", "no-cache").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the instance closed the connection")?;
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::CONFLICT => {
            let answer: Value = serde_json::from_slice(&all(response).await?)?;
            bail!("{}", answer["error"].as_str().unwrap_or("not carried out"))
        }
        _ => bail!("{}", String::from_utf8_lossy(&all(response).await?).trim()),
    }
}

fn unreachable(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let path = socket.display();
    match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("{path}: there is no such socket; set `control: {path}` in the configuration, or use --socket")
        }
        ErrorKind::ConnectionRefused => anyhow!("{path}: no process listens there"),
        ErrorKind::PermissionDenied => {
            anyhow!("{path}: permission denied; only the user of the instance and root may connect")
        }
        _ => anyhow!("{path}: {}", error_message(error)),
    }
}

async fn all(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    Ok(response.into_body().collect().await.context("the instance closed the connection")?.to_bytes())
}

/// The whole answer.
pub(super) async fn json(socket: &Path, method: Method, target: Target) -> anyhow::Result<Value> {
    let answer: Value = serde_json::from_slice(&all(send(socket, method, target).await?).await?)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded() {
        let target =
            Target::new("/drain").with("route", Some("a b&c=ü")).with("endpoint", None::<&str>).with("n", Some(1));
        assert_eq!(target.text, "/drain?route=a%20b%26c%3D%C3%BC&n=1");
    }
}
