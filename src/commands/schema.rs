//! `snigate schema`

use std::io::Write as _;
use std::process::ExitCode;

use crate::config;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(config::schema().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
