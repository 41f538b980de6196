//! The command line of [`snigate`].

mod cli;
mod commands;
mod logging;

use std::process::ExitCode;

use clap::Parser;
use snigate::config::ConfigError;

/// `EX_CONFIG` of sysexits(3).
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let result = commands::run(cli::Arguments::parse());
    logging::finish();
    match result {
        Ok(code) => code,
        // Who reads what we print has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() || error.is::<commands::Refused>() { EXIT_CONFIG } else { 1 }
}

#[expect(clippy::print_stderr, reason = "errors of the command line go to the terminal, not into the log")]
fn complain(error: &anyhow::Error) {
    eprintln!("snigate: {}", commands::printable_lines(&format!("{error:#}")));
}
