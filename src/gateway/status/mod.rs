//! What to write into the status of objects. Each function is given the status as it is, and returns what it is to be, or
//! `None` where nothing changes. What others wrote is kept.

use serde_json::Value;

use super::plan::{Applied, ClassStatus, GatewayStatus, Published, RouteStatus};

/// `now` is in RFC 3339, in UTC and whole seconds.
pub(crate) fn class(_existing: &Value, _wanted: &ClassStatus, _now: &str) -> Option<Value> {
    None
}

pub(crate) fn gateway(
    _existing: &Value,
    _wanted: &GatewayStatus,
    _published: &Published,
    _applied: &Applied,
    _now: &str,
) -> Option<Value> {
    None
}

/// For all routes: without a status that is wanted, the entries of this controller are removed.
pub(crate) fn route(_existing: &Value, _wanted: Option<&RouteStatus>, _controller: &str, _now: &str) -> Option<Value> {
    None
}

/// For Ingress objects that are served.
pub(crate) fn ingress(_existing: &Value, _published: &Published, _applied: &Applied) -> Option<Value> {
    None
}
