//! One file per subcommand.

mod admin;
mod check;
mod completions;
mod ctl;
#[cfg(feature = "demo")]
mod demo;
mod dns;
mod doctor;
mod explain;
mod import;
mod kubeconfig;
mod main;
mod man;
#[cfg(feature = "gateway")]
mod manifests;
mod named;
mod output;
mod plan;
mod routing;
mod run;
mod runtime;
mod schema;
#[cfg(feature = "gateway")]
mod served;
mod suggest;
mod yaml;

use std::process::ExitCode;

use self::dns::{addresses, unresolved};
pub use self::main::main;
use self::output::{printable, printable_lines};
use self::routing::{kubectl_alpn, listed, route_table};
use self::suggest::{did_you_mean, nearest};
use crate::cli::{Arguments, Command};

/// A valid configuration that the running instance would refuse.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WouldBeRefused(String);

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(options) => run::run(options),
        #[cfg(feature = "gateway")]
        Command::Gateway(options) => run::run_gateway(options),
        Command::Check(options) => check::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Ctl(options) => ctl::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Kubeconfig(options) => kubeconfig::run(&options),
        Command::Schema => schema::run(),
        Command::Completions { shell } => completions::run(shell),
        Command::Man { page } => man::run(page),
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::run(&options),
    }
}
