//! `snigate plan`

mod difference;
mod running;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use crate::config::Config;
use crate::listener::{BindError, is_free, overlap};
use crate::server::{ReloadError, fixed};
use crate::upstream::LocalAddresses;
use anyhow::{Context, bail};

use self::difference::Difference;
use self::running::Running;

use super::admin::status;
use super::{WouldBeRefused, printable_lines, runtime};
use crate::cli::Plan;

/// With `--exit-code`, where connections would be closed.
const EXIT_CLOSES: u8 = 2;

pub(super) fn run(options: &Plan) -> anyhow::Result<ExitCode> {
    let new = Config::load(&options.config)?;
    let running = match (&options.admin, &options.from) {
        (Some(admin), _) => {
            let (status, addresses) = runtime::run(status(admin))??;
            let own = LocalAddresses::read();
            Running::of_status(&status, addresses.iter().all(|address| own.has(address.ip())))
                .with_context(|| format!("{admin} answers, but not as an admin listener of this version does"))?
        }
        (None, Some(from)) => Running::of_config(&Config::load(from)?),
        (None, None) => bail!("expected --admin or --from"),
    };
    if let Some(refusal) = refusal(&running, &new) {
        bail!(WouldBeRefused(format!("a reload to {} would be refused: {refusal}", options.config.display())));
    }
    // One that overlaps with a running one is bound beside it.
    let taken =
        running.new_addresses(&new).filter(|address| running.addresses().all(|running| !overlap(*address, running)));
    let taken: BTreeMap<SocketAddr, BindError> =
        taken.filter_map(|address| Some((address, is_free(address).err()?))).collect();
    let difference = Difference::between(&running, &new, &taken);
    let text = if options.json { format!("{:#}\n", difference.json()) } else { difference.text(&options.config)? };
    // Some of it is what the other end calls its routes.
    io::stdout().write_all(printable_lines(&text).as_bytes())?;
    let is_known = |taken: &&BindError| running.is_here && !may_differ(&taken.error);
    if let Some(error) = taken.values().find(is_known) {
        bail!("a reload to {} would be refused now: {error}", options.config.display());
    }
    Ok(if options.exit_code && difference.closes() { ExitCode::from(EXIT_CLOSES) } else { ExitCode::SUCCESS })
}

/// What the running instance would say, as far as that can be known here.
fn refusal(running: &Running, new: &Config) -> Option<ReloadError> {
    fixed(new).into_iter().find_map(|(key, wanted)| {
        let running = running.fixed.get(key).filter(|running| **running != wanted)?.clone();
        Some(ReloadError::Fixed { key, running, wanted })
    })
}

/// What this user may not, the running instance may.
fn may_differ(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
