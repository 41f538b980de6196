//! `snigate completions`

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::cli::Arguments;

pub(super) fn run(shell: Shell) -> anyhow::Result<ExitCode> {
    // Not at once to standard output: it panics where nobody reads.
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), env!("CARGO_PKG_NAME"), &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
