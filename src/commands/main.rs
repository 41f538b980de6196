//! Runs the command, and turns its result into an exit code.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Arguments;
use crate::config::ConfigError;
use crate::logging;

/// `EX_CONFIG` of sysexits(3).
pub(super) const EXIT_CONFIG: u8 = 78;

/// Runs the command of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let result = super::run(Arguments::parse());
    logging::finish();
    match result {
        Ok(code) => code,
        // The reader closed the pipe, as `head` does: no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
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
fn print_error(error: &anyhow::Error) {
    eprintln!("snigate: {}", super::printable_lines(&format!("{error:#}")));
}
