//! `snigate man`

mod config;

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::{Arguments, ManPage};

pub(super) fn run(page: ManPage) -> anyhow::Result<ExitCode> {
    let text = match page {
        ManPage::Command => command_page()?,
        ManPage::Config => config::page()?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// One page, with a section for each command.
fn command_page() -> anyhow::Result<String> {
    let mut page = Vec::new();
    let man = Man::new(Arguments::command().subcommand_value_name("command"));
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;

    let mut command = Arguments::command().disable_help_flag(true).disable_version_flag(true);
    command.build();
    // The demo is no part of what is installed.
    let documented = command.get_subcommands().filter(|command| !["demo", "help"].contains(&command.get_name()));
    for command in documented {
        Roff::new().control("SH", [command.get_bin_name().unwrap_or_default()]).to_writer(&mut page)?;
        let man = Man::new(command.clone());
        let mut sections = Vec::new();
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        page.extend(String::from_utf8(sections)?.replace("\n.SH ", "\n.SS ").into_bytes());
    }
    tables().to_writer(&mut page)?;
    Ok(String::from_utf8(page)?)
}

fn tables() -> Roff {
    let mut roff = Roff::new();
    for (heading, rows) in TABLES {
        roff.control("SH", [*heading]);
        for (term, meaning) in *rows {
            roff.control("TP", []).text([roman(*term)]).text([roman(*meaning)]);
        }
    }
    roff
}

type Table = (&'static str, &'static [(&'static str, &'static str)]);

const TABLES: &[Table] = &[
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT, SIGQUIT",
                "Stop when open connections have ended, or after timeouts.drain; a second one: at once.",
            ),
            ("SIGHUP", "Read the configuration anew, and take it as a whole or not at all."),
            ("SIGUSR2", "Hand the listeners to a new process of the binary that is there now."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "It was done; stopped by a signal."),
            ("1", "Another error; stopped by a second signal."),
            ("2", "The command line is wrong."),
            ("78", "The configuration is wrong, or would be refused."),
        ],
    ),
    ("ENVIRONMENT", &[("RUST_LOG", "What is logged; wins over the configuration."), ("NO_COLOR", "No colours.")]),
    ("FILES", &[("/etc/snigate/snigate.yaml", "The configuration of the service: see snigate.yaml(5).")]),
];
