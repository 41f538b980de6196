//! `snigate plan`: what a reload would change.

mod difference;
mod running;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use crate::config::Config;
use crate::listener::{BindError, Presence, is_free, overlap};
use crate::server::{ReloadError, fixed};
use crate::upstream::LocalAddresses;
use anyhow::{Context, bail};

use self::difference::Difference;
use self::running::Running;

use super::admin::status;
use super::{WouldBeRefused, printable_lines, runtime};
use crate::cli::Plan;

/// With `--exit-code`, if the reload would close connections, or might.
const EXIT_CLOSES: u8 = 2;

pub(super) fn run(options: &Plan) -> anyhow::Result<ExitCode> {
    let new = Config::load(&options.config)?;
    let running = match (&options.admin, &options.from) {
        (Some(admin), _) => {
            let (status, addresses) = runtime::run(status(admin))??;
            let local = LocalAddresses::read();
            Running::from_status(&status, addresses.iter().all(|address| local.has(address.ip())))
                .with_context(|| format!("{admin} is not an admin listener of this version of snigate"))?
        }
        (None, Some(from)) => Running::from_config(&Config::load(from)?),
        (None, None) => bail!("expected --admin or --from"),
    };
    if let Some(error) = fixed_key_changed(&running, &new) {
        bail!(WouldBeRefused(format!("a reload to {} would be rejected: {error}", options.config.display())));
    }
    // The running instance can bind an address that overlaps with one of its own, but this process cannot.
    let testable =
        running.new_addresses(&new).filter(|address| running.addresses().all(|running| !overlap(*address, running)));
    let presence = |address| {
        let listener = new.listeners.iter().find(|listener| listener.address == address);
        listener.map_or(Presence::Required, |listener| listener.presence)
    };
    let bind_errors: BTreeMap<SocketAddr, BindError> =
        testable.filter_map(|address| Some((address, is_free(address, presence(address)).err()?))).collect();
    let difference = Difference::between(&running, &new, &bind_errors);
    let text = if options.json { format!("{:#}\n", difference.json()) } else { difference.text(&options.config)? };
    // The names of routes are from the other instance.
    io::stdout().write_all(printable_lines(&text).as_bytes())?;
    let is_certain = |error: &&BindError| running.is_here && !lacks_permission(&error.error);
    if let Some(error) = bind_errors.values().find(is_certain) {
        bail!("a reload to {} would fail now: {error}", options.config.display());
    }
    Ok(if options.exit_code && difference.closes() { ExitCode::from(EXIT_CLOSES) } else { ExitCode::SUCCESS })
}

/// Why the running instance would reject the configuration: it changes a key that a reload cannot change.
fn fixed_key_changed(running: &Running, new: &Config) -> Option<ReloadError> {
    fixed(new).into_iter().find_map(|(key, wanted)| {
        let (running, wanted) = (running.fixed.get(key)?.clone(), wanted?);
        (running != wanted).then_some(ReloadError::Fixed { key, running, wanted })
    })
}

/// The running instance may have more permissions than this user.
fn lacks_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
