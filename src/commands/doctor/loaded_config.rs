//! Whether the running snigate has loaded this file.

use std::net::SocketAddr;

use crate::text::units::time;
use serde_json::Value;

use super::context::{Context, reachable_at};
use super::report::{CheckResult, Verdict};
use crate::commands::admin;

/// Nothing if there is no admin listener, or no snigate on this machine is expected.
pub(super) async fn check(context: &Context) -> Vec<CheckResult> {
    let configured = context.config.admin.as_ref().map(|admin| admin.address).filter(|address| address.port() != 0);
    let Some(address) = configured.map(reachable_at) else { return Vec::new() };
    let status = admin::status(&address.into()).await.map(|(status, _)| status);
    let drained = status.as_ref().map(admin::drained).unwrap_or_default();
    let drained = drained.into_iter().map(|(route, endpoint)| {
        let says = format!(
            "drained by an operator: it gets no new connections until `snigate ctl resume '{route}' {endpoint}`"
        );
        CheckResult::new(Verdict::Note, "drained", format!("{route} {endpoint}"), says)
    });
    file(context, address, status).into_iter().chain(drained).collect()
}

fn file(context: &Context, address: SocketAddr, status: anyhow::Result<Value>) -> Option<CheckResult> {
    let config = &context.config;
    let is_another =
        context.is_local(address.ip()) && context.through.iter().any(|through| !context.is_local(through.ip()));
    let result = |verdict, says: String| {
        let (verdict, says) = if is_another {
            (Verdict::Note, format!("on this machine, not at --through: {says}"))
        } else {
            (verdict, says)
        };
        Some(CheckResult::new(verdict, "file", address, says))
    };
    let status = match status {
        Ok(status) => status,
        Err(_) if !context.through.is_empty() => return None,
        Err(error) => {
            return result(
                Verdict::Note,
                format!("unknown whether the running snigate has loaded this file: {error:#}"),
            );
        }
    };
    let running = &status["config"];
    let digest = running["digest"].as_str();
    let (Some(digest), Some(loaded)) = (digest, running["last_success_timestamp_seconds"].as_u64()) else {
        return result(Verdict::Note, "the server at this address is not snigate's admin listener".into());
    };
    let loaded = time(loaded);
    let is_rejected = running["last_reload_successful"] == false;
    let error = running["last_error"].as_str().unwrap_or("see its log");
    let is_this = config.digest.is_some_and(|ours| digest == format!("{ours:016x}"));
    let (version, our_version) = (status["version"].as_str().unwrap_or("?"), env!("CARGO_PKG_VERSION"));
    let process = &status["process"];
    match (is_this, is_rejected) {
        (true, false) => result(Verdict::Ok, format!("the running snigate loaded this file at {loaded}")),
        (true, true) => result(
            Verdict::Note,
            format!("the running snigate loaded this file at {loaded}, and rejected another one since: {error}"),
        ),
        (false, true) => result(
            Verdict::Failed,
            format!(
                "the running snigate has another configuration, loaded at {loaded}: it rejected the last reload: {error}"
            ),
        ),
        (false, false) if version != our_version => result(
            Verdict::Note,
            format!(
                "cannot compare configurations, as the running snigate is version {version} and this one {our_version}; it \
                 loaded its file at {loaded}"
            ),
        ),
        (false, false) => result(
            Verdict::Note,
            format!(
                "the running snigate has another configuration, loaded at {loaded}; `snigate plan` shows what a reload would \
                 change; to reload, run `systemctl reload snigate` or `kill -HUP {process}`"
            ),
        ),
    }
}
