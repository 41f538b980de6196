//! Drops privileges that the running process does not need, to limit what an attacker could do with it.
//!
//! All of it is per thread and inherited, so it is done before other threads are started, and it also applies to the new
//! process of an upgrade. Nothing that a reload or an upgrade needs is dropped.

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use rustix::io;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use strum::IntoStaticStr;

/// Whether the process gives up what it will not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Sandbox {
    /// As much as the kernel supports.
    Auto,
    /// Fail to start if any part of it is not possible.
    Require,
    Off,
}

impl Sandbox {
    /// The value in the configuration.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// The result of entering the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    /// The parts that failed, and why.
    pub(crate) failures: Vec<String>,
    /// Whether capabilities were dropped that may have been needed to read files.
    pub(crate) dropped_capabilities: bool,
}

/// For ports below 1024, which a reload may add.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Connections from the addresses of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transparent {
    /// Some route has them: `CAP_NET_ADMIN` is kept.
    Yes,
    No,
}

/// Permanently disables core dumps (they contain clients' data), new privileges, all capabilities but
/// `CAP_NET_BIND_SERVICE` and the one for transparent connections, and writing to any file but `/dev/null`. Must be called
/// before other threads are started.
pub(crate) fn enter(transparent: Transparent) -> Entered {
    let kept = match transparent {
        Transparent::Yes => KEPT | CapabilitySet::NET_ADMIN,
        Transparent::No => KEPT,
    };
    let mut entered = Entered::default();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(reason) = result {
            entered.failures.push(format!("{what}: {reason}"));
        }
    };
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    note("core dumps", no_core.map_err(|error| error.to_string()));
    note("new privileges", set_no_new_privs(true).map_err(|error| error.to_string()));
    let had = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    note("capabilities", drop_capabilities(kept).map_err(|error| error.to_string()));
    note(
        "writing files",
        deny_writes().map_err(|error| error.to_string()).and_then(|status| match status {
            RulesetStatus::FullyEnforced => Ok(()),
            RulesetStatus::PartiallyEnforced => Err("this kernel's Landlock is too old to deny all writes".into()),
            RulesetStatus::NotEnforced => Err("this kernel does not support Landlock".into()),
        }),
    );
    entered.dropped_capabilities = !kept.contains(had);
    entered
}

fn drop_capabilities(wanted: CapabilitySet) -> io::Result<()> {
    let had = capabilities(None)?;
    for capability in CapabilitySet::all().iter().filter(|capability| !wanted.contains(*capability)) {
        // An error means that this kernel does not know the capability.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            match remove_capability_from_bounding_set(capability) {
                // Without the right to change the set, it grants nothing either: there are no new privileges.
                Ok(()) | Err(io::Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let kept = had.permitted & wanted;
    clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    if had != sets {
        set_capabilities(None, sets)?;
    }
    for capability in kept.iter() {
        // So that the new process of an upgrade has it, whatever its file capabilities.
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

fn deny_writes() -> Result<RulesetStatus, RulesetError> {
    let writes = AccessFs::from_write(ABI::V3);
    let ruleset = Ruleset::default().handle_access(writes)?.create()?;
    let ruleset = match PathFd::new("/dev/null") {
        // A process that is started without a standard stream opens this instead.
        Ok(null) => ruleset.add_rule(PathBeneath::new(null, AccessFs::WriteFile | AccessFs::Truncate))?,
        Err(_) => ruleset,
    };
    Ok(ruleset.restrict_self()?.ruleset)
}
