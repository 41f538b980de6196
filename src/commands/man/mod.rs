//! `snigate man`

mod config;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
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
    // The commit is not for a page that is written into the repository.
    let own = Arguments::command().long_version(env!("CARGO_PKG_VERSION")).subcommand_value_name("command");
    let man = Man::new(own);
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;

    let mut command = Arguments::command().disable_help_flag(true).disable_version_flag(true);
    command.build();
    // Packages are built without the demo.
    let documented = command.get_subcommands().filter(|command| !["demo", "help"].contains(&command.get_name()));
    for command in documented.flat_map(with_verbs) {
        Roff::new().control("SH", [command.get_bin_name().unwrap_or_default()]).to_writer(&mut page)?;
        let man = Man::new(command.clone());
        let mut sections = Vec::new();
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        page.extend(String::from_utf8(sections)?.replace("\n.SH ", "\n.SS ").into_bytes());
    }
    extra_sections().to_writer(&mut page)?;
    Ok(String::from_utf8(page)?)
}

/// The command, and those below it.
fn with_verbs(command: &Command) -> impl Iterator<Item = &Command> {
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
    std::iter::once(command).chain(verbs)
}

fn extra_sections() -> Roff {
    let mut roff = Roff::new();
    for (heading, rows) in SECTIONS {
        roff.control("SH", [*heading]);
        for (term, meaning) in *rows {
            roff.control("TP", []).text([roman(*term)]).text([roman(*meaning)]);
        }
    }
    roff
}

type ManSection = (&'static str, &'static [(&'static str, &'static str)]);

const SECTIONS: &[ManSection] = &[
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT, SIGQUIT",
                "Shut down gracefully: wait for open connections, at most timeouts.drain. A second signal exits immediately.",
            ),
            ("SIGHUP", "Reload the configuration. An invalid one is rejected as a whole."),
            ("SIGUSR2", "Upgrade: start the installed binary and hand over the listeners to it."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "Success, or stopped by a signal."),
            ("1", "Error, or stopped by a second signal."),
            ("2", "Invalid command line."),
            ("78", "Invalid configuration, or one that a reload would refuse."),
        ],
    ),
    ("ENVIRONMENT", &[("RUST_LOG", "Log filter; overrides the configuration."), ("NO_COLOR", "Disables colors.")]),
    (
        "FILES",
        &[
            ("/etc/snigate/snigate.yaml", "The configuration of the service: see snigate.yaml(5)."),
            ("/run/snigate/control.sock", "The control socket of the service, for snigate ctl."),
        ],
    ),
];
