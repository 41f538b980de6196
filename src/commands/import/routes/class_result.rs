//! What happens to a class of clients.

use super::client_notes::{backend_name, networks};
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::notes::{Location, Notes};

#[derive(Clone, Debug)]
pub(super) struct ClassResult {
    /// `None`: all are rejected.
    pub(super) upstream: Option<String>,
    pub(super) admitted: AddressSet,
    /// Where the source decides it.
    pub(super) location: Location,
    /// A rule lists the very pattern of the class.
    pub(super) is_listed: bool,
}

impl PartialEq for ClassResult {
    fn eq(&self, other: &Self) -> bool {
        (&self.upstream, &self.admitted) == (&other.upstream, &other.admitted)
    }
}

/// Clients without SNI have no route of their own.
pub(super) fn compare_without_sni(others: &ClassResult, without_sni: &ClassResult, notes: &mut Notes) {
    let location = &without_sni.location;
    match (others.upstream.as_deref().map(backend_name), without_sni.upstream.as_deref().map(backend_name)) {
        (None, None) => {}
        (None, Some(expected)) => {
            let reason = format!(
                "clients without SNI are rejected instead of routed to `{expected}`: only a route without `sni` matches \
                them, and it would match all other names, too"
            );
            notes.rejects_or_reroutes(location, reason);
        }
        (Some(upstream), None) => {
            let reason = format!(
                "clients without SNI are routed to `{upstream}` instead of rejected: the route without `sni` matches \
                them, too"
            );
            notes.admits_more(location, reason);
        }
        (Some(upstream), Some(expected)) => {
            if upstream != expected {
                let reason = format!(
                    "clients without SNI are routed to `{upstream}` instead of `{expected}`: one route without `sni` \
                    matches both them and all other names"
                );
                notes.rejects_or_reroutes(location, reason);
            }
            let why = "one route without `sni` matches both them and all other names, and has one `allow` and `deny`";
            let more = others.admitted.minus(&without_sni.admitted);
            if !more.is_empty() {
                let from = networks(&more);
                notes.admits_more(location, format!("clients without SNI are admitted from {from}, too: {why}"));
            }
            let fewer = without_sni.admitted.minus(&others.admitted);
            if !fewer.is_empty() {
                let from = networks(&fewer);
                notes.rejects_or_reroutes(location, format!("clients without SNI are rejected from {from}: {why}"));
            }
        }
    }
}
