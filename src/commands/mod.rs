//! One file per subcommand.

mod check;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod explain;
mod import;
mod kubeconfig;
mod man;
mod plan;
mod run;
mod schema;
mod yaml;

use std::process::ExitCode;

use snigate::config::{Config, Route};
use snigate::route::RouteTable;

pub(crate) use self::kubeconfig::Server;
use crate::cli::{Arguments, Command};

/// A configuration is valid and would not be taken all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(options) => run::run(options),
        Command::Check { file } => check::run(&file),
        Command::Explain(options) => explain::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Kubeconfig(options) => kubeconfig::run(&options),
        Command::Schema => schema::run(),
        Command::Completions { shell } => completions::run(shell),
        Command::Man => man::run(),
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::run(&options),
    }
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

/// How many routes are named to who names none of them.
const MAX_LISTED: usize = 20;

fn listed<'c>(routes: impl ExactSizeIterator<Item = &'c Route>) -> String {
    let more = routes.len().saturating_sub(MAX_LISTED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    routes.take(MAX_LISTED).map(|route| &*route.name).collect::<Vec<_>>().join(", ") + &more
}
