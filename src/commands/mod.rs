//! One file per subcommand.

mod admin;
mod check;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod explain;
mod import;
mod kubeconfig;
mod main;
mod man;
mod named;
mod plan;
mod run;
mod runtime;
mod schema;
mod yaml;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;

use crate::client_hello::Alpn;
use crate::config::{Config, Listener, Route};
use crate::route::RouteTable;
use crate::text::Destination;
use crate::text::escape::visible;
use crate::text::units::first_of;
use crate::upstream::{error_message, lookup};

pub use self::main::main;
use crate::cli::{Arguments, Command};

/// A configuration is valid and would not be taken all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WouldBeRefused(String);

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(options) => run::run(options),
        Command::Check(options) => check::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Kubeconfig(options) => kubeconfig::run(&options),
        Command::Schema => schema::run(),
        Command::Completions { shell } => completions::run(shell),
        Command::Man { page } => man::run(page),
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::run(&options),
    }
}

/// The application protocols that kubectl offers.
fn kubectl_alpn() -> Option<Alpn<'static>> {
    Alpn::from_list(b"\x02h2\x08http/1.1").ok()
}

/// Where a destination is, or that its name does not resolve.
async fn addresses(of: &Destination) -> anyhow::Result<Vec<SocketAddr>> {
    let Some((host, port)) = of.name() else { return Ok(of.address().into_iter().collect()) };
    lookup(host, port).await.map_err(|error| anyhow::anyhow!("{host} does not resolve: {}", unresolved(&error)))
}

/// What the resolver says, without how it was asked.
fn unresolved(error: &std::io::Error) -> String {
    error_message(error).trim_start_matches("failed to lookup address information: ").to_owned()
}

/// What others have written does not steer the terminal, nor end a comment.
fn printable(text: &str) -> String {
    visible(text).into_owned()
}

/// The same of each line.
pub(crate) fn printable_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Longer words are no misspelt ones.
const LONGEST: usize = 253;

/// Those of the known words that were probably meant: the nearest ones, if they are near.
fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> BTreeSet<&'k str> {
    let mut nearest = BTreeSet::new();
    if word.len() > LONGEST {
        return nearest;
    }
    let word = word.to_ascii_lowercase();
    let mut least = 3.min(word.len() / 4 + 1);
    for known in known {
        let distance = strsim::damerau_levenshtein(&word, &known.to_ascii_lowercase());
        if distance < least {
            least = distance;
            nearest.clear();
        }
        if distance == least {
            nearest.insert(known);
        }
    }
    nearest
}

/// A question behind an error.
fn did_you_mean(nearest: &BTreeSet<&str>) -> Option<String> {
    let names: Vec<String> = nearest.iter().take(3).map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("did you mean {}?", names.join(" or ")))
}

/// Leads to the numbers of routes.
fn route_table(config: &Config) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (number, route) in config.routes.iter().enumerate() {
        // The configuration is valid, so there are no conflicts.
        let _ = table.insert(&route.patterns, &route.matchers, &number);
    }
    table
}

/// As a client offers them.
fn alpn_list<'p>(protocols: impl IntoIterator<Item = &'p [u8]>) -> Vec<u8> {
    let mut list = Vec::new();
    for protocol in protocols {
        list.push(u8::try_from(protocol.len()).unwrap_or(u8::MAX));
        list.extend(protocol);
    }
    list
}

fn any_protocol(of: &[Box<[u8]>]) -> String {
    of.iter().map(|protocol| protocol.escape_ascii().to_string()).collect::<Vec<_>>().join(" or ")
}

fn any_listener(of: &[usize], listeners: &[Listener]) -> String {
    of.iter().map(|number| &*listeners[*number].name).collect::<Vec<_>>().join(" or ")
}

/// How many routes are named to who names none of them.
const MAX_LISTED: usize = 20;

fn listed<'c>(routes: impl ExactSizeIterator<Item = &'c Route>) -> String {
    first_of(routes.map(|route| &route.name), MAX_LISTED)
}
