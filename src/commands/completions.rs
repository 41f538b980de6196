//! `snigate completions`

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::cli::Arguments;

pub(super) fn run(shell: Shell) -> anyhow::Result<ExitCode> {
    // `generate` panics on a broken pipe.
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), env!("CARGO_PKG_NAME"), &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
