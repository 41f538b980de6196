//! What all commands have in common: how they end.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Arguments;
use crate::config::ConfigError;
use crate::logging;

/// `EX_CONFIG` of sysexits(3).
pub(super) const EXIT_CONFIG: u8 = 78;

/// Does what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    let result = super::run(Arguments::parse());
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
    if error.is::<ConfigError>() || error.is::<super::WouldBeRefused>() { EXIT_CONFIG } else { 1 }
}

#[expect(clippy::print_stderr, reason = "errors of the command line go to the terminal, not into the log")]
fn complain(error: &anyhow::Error) {
    eprintln!("snigate: {}", super::printable_lines(&format!("{error:#}")));
}
