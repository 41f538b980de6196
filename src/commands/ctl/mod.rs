//! `snigate ctl`: asks a running instance, or changes it, through its control socket.

mod client;
mod connections;
mod listed;
mod table;
#[cfg(feature = "top")]
mod top;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use hyper::Method;
use serde_json::Value;

use self::client::{Target, json};
use super::{printable_lines, runtime};
use crate::cli::{Ctl, RouteOrEndpoint, Verb};
use crate::text::units::counted;

pub(super) fn run(options: &Ctl) -> anyhow::Result<ExitCode> {
    runtime::run(carry_out(&options.socket, &options.verb))?
}

async fn carry_out(socket: &Path, verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Connections(options) => connections::list(socket, options).await?,
        Verb::Close(options) => return connections::close(socket, options).await,
        Verb::Drain(what) => change(socket, "/drain", what).await?,
        Verb::Resume(what) => change(socket, "/resume", what).await?,
        Verb::Reload => {
            let changes = json(socket, Method::POST, Target::new("/reload")).await?;
            let number = |key: &str| changes[key].as_u64().unwrap_or_default();
            print(&format!(
                "reloaded: {} added, {} changed, {} removed, {} unchanged\n",
                counted(number("added"), "route"),
                number("changed"),
                number("removed"),
                number("unchanged")
            ))?;
        }
        Verb::LogLevel { level } => {
            let level = level.to_possible_value().map(|value| value.get_name().to_owned());
            let answer = json(socket, Method::POST, Target::new("/log-level").with("level", level)).await?;
            print(&format!("log level {} until the next reload\n", answer["level"].as_str().unwrap_or_default()))?;
        }
        #[cfg(feature = "top")]
        Verb::Top(options) => top::run(socket, options).await?,
        Verb::Routes(options) => listed::routes(socket, options).await?,
        Verb::Endpoints { route, listed } => listed::endpoints(socket, route.as_deref(), listed).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Names come from the other instance, and from its clients.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(printable_lines(text).as_bytes())?;
    stdout.flush()
}

async fn change(socket: &Path, path: &str, what: &RouteOrEndpoint) -> anyhow::Result<()> {
    let RouteOrEndpoint { route, endpoint } = what;
    let target = Target::new(path).with("route", Some(route)).with("endpoint", *endpoint);
    let answer = json(socket, Method::POST, target).await?;
    print(&describe_drain(&answer, route, endpoint.map(|endpoint| endpoint.to_string())))?;
    Ok(())
}

fn describe_drain(answer: &Value, route: &str, endpoint: Option<String>) -> String {
    let number = |key: &str| answer[key].as_u64().unwrap_or_default();
    let what = endpoint.map_or_else(|| format!("route {route}"), |endpoint| format!("{endpoint} of route {route}"));
    let is_drained = answer["drained"].as_bool().unwrap_or_default();
    let is_new = answer["changed"].as_bool().unwrap_or_default();
    let state = match (is_drained, is_new) {
        (true, true) => "drained",
        (true, false) => "was drained before",
        (false, true) => "resumed",
        (false, false) => "was not drained",
    };
    let (open, in_service) = (number("connections"), number("in_service"));
    let stay = match open {
        _ if !is_drained => String::new(),
        1 => "; 1 open connection stays".into(),
        more => format!("; {more} open connections stay"),
    };
    let left = match in_service {
        0 => "; NO endpoint of the route is in service: new clients are refused".into(),
        1 => "; 1 endpoint of the route is in service".into(),
        more => format!("; {more} endpoints of the route are in service"),
    };
    format!("{what}: {state}{stay}{left}\n")
}
