//! Whether the running snigate has taken the file.

use crate::text::units::time;

use super::listener::reached_at;
use super::report::{Check, Mark};
use super::route::Here;
use crate::commands::admin;

/// `None`: there is nobody to ask.
pub(super) async fn examine(here: &Here) -> Option<Check> {
    let config = &here.config;
    let address = reached_at(config.admin.as_ref().map(|admin| admin.address).filter(|address| address.port() != 0)?);
    let is_elsewhere = here.has(address.ip()) && here.through.iter().any(|through| !here.has(through.ip()));
    let check = |mark, says: String| {
        let (mark, says) = if is_elsewhere {
            (Mark::Note, format!("on this machine, not where --through leads: {says}"))
        } else {
            (mark, says)
        };
        Some(Check::new(mark, "file", address, says))
    };
    let status = match admin::status(&address.into()).await {
        Ok((status, _)) => status,
        Err(_) if !here.through.is_empty() => return None,
        Err(error) => {
            return check(
                Mark::Note,
                format!("whether the running snigate has taken this file is not known: {error:#}"),
            );
        }
    };
    let told = &status["config"];
    let (Some(digest), Some(taken)) = (told["digest"].as_str(), told["last_success_timestamp_seconds"].as_u64()) else {
        return check(Mark::Note, "what answers is no admin listener of snigate".into());
    };
    let taken = time(taken);
    let refused = told["last_reload_successful"] == false;
    let error = told["last_error"].as_str().unwrap_or("its log says why");
    let is_this = config.digest.is_some_and(|ours| digest == format!("{ours:016x}"));
    let (running, ours) = (status["version"].as_str().unwrap_or("?"), env!("CARGO_PKG_VERSION"));
    let process = &status["process"];
    match (is_this, refused) {
        (true, false) => check(Mark::Ok, format!("the running snigate has taken this file at {taken}")),
        (true, true) => check(
            Mark::Note,
            format!("the running snigate has taken this file at {taken}, and refused another one since: {error}"),
        ),
        (false, true) => check(
            Mark::Failed,
            format!(
                "the running snigate has another configuration, taken at {taken}, as it has refused the last reload: {error}"
            ),
        ),
        (false, false) if running != ours => check(
            Mark::Note,
            format!(
                "the running snigate is {running} and this one {ours}, so whether it has taken this file cannot be compared; it has taken one at {taken}"
            ),
        ),
        (false, false) => check(
            Mark::Note,
            format!(
                "the running snigate has another configuration than this file, taken at {taken}: `snigate plan` says what a \
                 reload would change, and kill -HUP {process} (systemctl reload snigate) makes one"
            ),
        ),
    }
}
