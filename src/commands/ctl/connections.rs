//! `snigate ctl connections` and `snigate ctl close`.

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use tokio::time::sleep;

use super::client::{Target, json, send};
use super::print;
use super::table::{bytes, duration, table};
use crate::cli::{Close, ConnectionFilter, Connections};
use crate::commands::admin::array;
use crate::text::units::{counted, span};

/// Clears the terminal and what was scrolled (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

fn with_filter(target: Target, filter: &ConnectionFilter) -> Target {
    let ConnectionFilter { route, endpoint, client, sni, older, idle, id } = filter;
    target
        .with("route", route.as_ref())
        .with("endpoint", *endpoint)
        .with("client", client.as_ref())
        .with("sni", sni.as_ref())
        .with("older", older.map(span))
        .with("idle", idle.map(span))
        .with("id", id.as_ref())
}

pub(super) async fn list(socket: &Path, options: &Connections) -> anyhow::Result<()> {
    loop {
        let sort = options.sort.to_possible_value().map(|value| value.get_name().to_owned());
        let target = Target::new("/connections").with("sort", sort).with("limit", Some(options.limit));
        let answer = json(socket, Method::GET, with_filter(target, &options.filter)).await?;
        let text = if options.json { format!("{answer}\n") } else { listed(&answer) };
        if options.watch.is_some() && stdout().is_terminal() {
            // Not by `print`, which escapes it.
            std::io::Write::write_all(&mut stdout(), CLEAR.as_bytes())?;
        }
        print(&text)?;
        let Some(seconds) = options.watch else { return Ok(()) };
        sleep(Duration::from_secs(seconds)).await;
    }
}

fn listed(answer: &Value) -> String {
    let connections = array(&answer["connections"]);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let seconds = |value: &Value| duration(value.as_f64().unwrap_or_default());
    let size = |value: &Value| bytes(value.as_u64().unwrap_or_default());
    let round_trip = |value: &Value| value.as_f64().map_or_else(|| "-".into(), |time| format!("{time:.1}"));
    let row = |one: &Value| {
        [
            text(&one["id"]),
            text(&one["client"]),
            text(&one["server_name"]),
            text(&one["route"]),
            text(&one["endpoint"]),
            seconds(&one["age_seconds"]),
            seconds(&one["idle_seconds"]),
            size(&one["bytes_received"]),
            size(&one["bytes_sent"]),
            round_trip(&one["client_rtt_ms"]),
            text(&one["state"]),
        ]
    };
    let rows: Vec<_> = connections.iter().map(row).collect();
    let titles =
        ["ID", "CLIENT", "SNI", "ROUTE", "ENDPOINT", ">AGE", ">IDLE", ">RECEIVED", ">SENT", ">RTT MS", "STATE"];
    let matched = answer["matched"].as_u64().unwrap_or_default();
    let more = if matched > rows.len() as u64 {
        format!("{} of {matched} are listed; --limit lists more\n", rows.len())
    } else {
        String::new()
    };
    let state = |name: &str| answer["states"][name].as_u64().unwrap_or_default();
    let elsewhere = elsewhere(answer);
    format!(
        "{}{more}{elsewhere}{matched} match; of all connections {} are relayed, {} parked, {} connecting, {} without ClientHello, {} rejected\n",
        table(titles, &rows),
        state("relaying"),
        state("parked"),
        state("connecting"),
        state("awaiting_hello"),
        state("rejected")
    )
}

/// What no order reaches, for an answer that has its number.
fn elsewhere(answer: &Value) -> String {
    match answer["predecessor_connections"].as_u64().unwrap_or_default() {
        0 => String::new(),
        1 => "1 more connection has stayed in an old process, where it is neither listed nor closed\n".into(),
        more => {
            format!("{more} more connections have stayed in an old process, where they are neither listed nor closed\n")
        }
    }
}

pub(super) async fn close(socket: &Path, options: &Close) -> anyhow::Result<ExitCode> {
    let Close { filter, all, rate, dry_run } = options;
    let target = with_filter(Target::new("/close"), filter)
        .with("all", all.then_some(true))
        .with("rate", Some(rate))
        .with("dry_run", dry_run.then_some(true));
    let mut body = send(socket, Method::POST, target).await?.into_body();
    let mut lines = Lines::default();
    let mut last = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the instance closed the connection")?;
        for line in lines.add(frame.data_ref().map_or(&[], |bytes| bytes)) {
            let line: Value = serde_json::from_slice(&line)?;
            print(&progress(&line, *dry_run))?;
            last = Some(line);
        }
    }
    let last = last.context("the instance closed the connection")?;
    ensure!(*dry_run || last["done"] == true, "the instance stopped before all were closed");
    if last["missed"].as_u64().is_some_and(|missed| missed > 0) {
        bail!("some connections were being closed or handed over by others");
    }
    Ok(ExitCode::SUCCESS)
}

fn progress(line: &Value, is_dry_run: bool) -> String {
    let number = |key: &str| line[key].as_u64().unwrap_or_default();
    if let Some(routes) = line["routes"].as_object() {
        let by_route: Vec<String> = routes.iter().map(|(route, count)| format!("{route} {count}")).collect();
        let by_route = if by_route.is_empty() { String::new() } else { format!(" ({})", by_route.join(", ")) };
        let verb = if is_dry_run { "would be closed" } else { "to close" };
        let matched = counted(number("matched"), "connection");
        return format!("{}{matched} {verb}{by_route}\n", elsewhere(line));
    }
    let ended = match number("ended") {
        0 => String::new(),
        ended => format!(", {ended} had ended"),
    };
    format!("{} closed{ended}\n", number("closed"))
}

/// Splits what arrives into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are complete now.
    fn add(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.0.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            lines.push(line);
        }
        lines
    }
}
