//! One file per subcommand.

mod check;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod explain;
mod import;
mod man;
mod plan;
mod run;
mod schema;

use std::process::ExitCode;

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
        Command::Plan(options) => plan::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Schema => schema::run(),
        Command::Completions { shell } => completions::run(shell),
        Command::Man => man::run(),
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::run(&options),
    }
}
