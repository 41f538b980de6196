//! Notes on clients that snigate does not serve as the source does.

use crate::text::units::first_of;

use super::rule_list::Uncertainty;
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::draft::Action;
use crate::commands::import::notes::{Location, Severity};

/// Networks that a note lists.
const MAX_LISTED: usize = 4;

pub(super) struct ClientNote {
    pub(super) severity: Severity,
    pub(super) location: Location,
    pub(super) reason: String,
}

pub(super) fn of_phase(uncertainty: &Uncertainty<'_>) -> ClientNote {
    use Severity::{AdmitsMore, RejectsOrReroutes};
    let (severity, effect) = match (&uncertainty.rule.then, uncertainty.is_assumed) {
        (Action::Reject, false) => (AdmitsMore, "clients that this rule would reject are admitted"),
        (Action::Reject, true) => (RejectsOrReroutes, "these clients are rejected, too"),
        (_, false) => (RejectsOrReroutes, "clients that this rule would accept may be rejected by a later one"),
        (_, true) => (AdmitsMore, "these clients are accepted, too"),
    };
    note(severity, uncertainty, effect)
}

pub(super) fn of_routing(uncertainty: &Uncertainty<'_>) -> Vec<ClientNote> {
    use Severity::{AdmitsMore, RejectsOrReroutes};
    let Uncertainty { rule, is_assumed, otherwise, .. } = uncertainty;
    let rejected_otherwise = otherwise.contains(&Action::Reject);
    let routed_otherwise = otherwise.iter().any(|action| *action != Action::Reject);
    let mut notes = Vec::new();
    let mut add = |severity, effect: &str| notes.push(note(severity, uncertainty, effect));
    match (&rule.then, is_assumed) {
        (Action::RouteTo(key), true) => {
            let upstream = backend_name(key);
            if rejected_otherwise {
                add(AdmitsMore, &format!("these clients are routed to `{upstream}` instead of rejected"));
            }
            if routed_otherwise {
                add(RejectsOrReroutes, &format!("these clients are routed to `{upstream}` instead of by a later rule"));
            }
        }
        (Action::RouteTo(key), false) => {
            let upstream = backend_name(key);
            add(RejectsOrReroutes, &format!("clients that this rule would route to `{upstream}` go on to later rules"));
        }
        (_, true) => add(RejectsOrReroutes, "these clients are rejected, too"),
        (_, false) => add(AdmitsMore, "clients that this rule would reject go on to later rules"),
    }
    notes
}

fn note(severity: Severity, uncertainty: &Uncertainty<'_>, effect: &str) -> ClientNote {
    let reasons = uncertainty.reasons.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
    let reason = format!("cannot be matched exactly ({reasons}): {effect}");
    ClientNote { severity, location: uncertainty.rule.location.clone(), reason }
}

pub(super) fn networks(clients: &AddressSet) -> String {
    first_of(clients.networks().iter(), MAX_LISTED)
}

/// The key of an upstream may have a number after the name.
pub(super) fn backend_name(key: &str) -> &str {
    key.split(' ').next().unwrap_or(key)
}
