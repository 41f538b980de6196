//! Gives up what the process will not need, so that whoever takes it over has little.
//!
//! All of it is per thread and inherited, so it is done before there is another thread, and binds the binary of an upgrade,
//! too: nothing that a reload or an upgrade needs is given up.

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
    /// As far as the kernel lets it.
    Auto,
    /// All of it, or there is no start.
    Require,
    /// Not at all.
    Off,
}

impl Sandbox {
    /// Its value in the configuration.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    /// What could not be given up, and why.
    pub(crate) shortcomings: Vec<String>,
    /// Whether there were capabilities that files may have been read by.
    pub(crate) had_more: bool,
}

/// Low ports: a reload may add one.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Gives up, for good: core dumps (they have what clients sent), new privileges, all capabilities but
/// `CAP_NET_BIND_SERVICE`, and writing to any file but `/dev/null`. Must be called before there is another thread.
pub(crate) fn enter() -> Entered {
    let mut entered = Entered::default();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(reason) = result {
            entered.shortcomings.push(format!("{what}: {reason}"));
        }
    };
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    note("core dumps", no_core.map_err(|error| error.to_string()));
    note("new privileges", set_no_new_privs(true).map_err(|error| error.to_string()));
    let had = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    note("capabilities", drop_capabilities().map_err(|error| error.to_string()));
    note(
        "writing files",
        deny_writes().map_err(|error| error.to_string()).and_then(|status| match status {
            RulesetStatus::FullyEnforced => Ok(()),
            RulesetStatus::PartiallyEnforced => Err("the kernel's Landlock is too old to deny all of it".into()),
            RulesetStatus::NotEnforced => Err("the kernel has no Landlock".into()),
        }),
    );
    entered.had_more = !KEPT.contains(had);
    entered
}

fn drop_capabilities() -> io::Result<()> {
    let had = capabilities(None)?;
    for capability in CapabilitySet::all().iter().filter(|capability| *capability != KEPT) {
        // Those that this kernel does not know are not there.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            match remove_capability_from_bounding_set(capability) {
                // Who may not change the set has nothing to gain from it either, without new privileges.
                Ok(()) | Err(io::Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let kept = had.permitted & KEPT;
    clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    if had != sets {
        set_capabilities(None, sets)?;
    }
    if kept == KEPT {
        // The binary of an upgrade has it, too, whatever its file says.
        configure_capability_in_ambient_set(KEPT, true)?;
    }
    Ok(())
}

fn deny_writes() -> Result<RulesetStatus, RulesetError> {
    let writes = AccessFs::from_write(ABI::V3);
    let ruleset = Ruleset::default().handle_access(writes)?.create()?;
    let ruleset = match PathFd::new("/dev/null") {
        // A process that is started without a standard stream opens it in its place.
        Ok(null) => ruleset.add_rule(PathBeneath::new(null, AccessFs::WriteFile | AccessFs::Truncate))?,
        Err(_) => ruleset,
    };
    Ok(ruleset.restrict_self()?.ruleset)
}
