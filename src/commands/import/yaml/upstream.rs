//! `upstream` of a route.

use std::fmt::Write as _;

use super::CaFiles;
use crate::commands::import::upstream_draft::{CheckDraft, CheckTls, UpstreamDraft};
use crate::commands::yaml::scalar;
use crate::text::units::span;

/// Without a line break at the end.
pub(super) fn write_upstream(text: &mut String, upstream: &UpstreamDraft, ca_files: CaFiles) -> std::fmt::Result {
    let UpstreamDraft { endpoints, backups, balance, connect_timeout, slow_start, proxy_protocol, check, .. } =
        upstream;
    let mut more = String::new();
    if let Some(balance) = balance {
        write!(more, "\n      balance: {balance}")?;
    }
    if let Some(timeout) = connect_timeout {
        write!(more, "\n      connect: {{timeout: {}}}", span(*timeout))?;
    }
    if let Some(slow_start) = slow_start {
        write!(more, "\n      slow_start: {}", span(*slow_start))?;
    }
    if let Some(version) = proxy_protocol {
        write!(more, "\n      proxy_protocol: {version}")?;
    }
    if let Some(check) = check {
        write_check(&mut more, check, ca_files)?;
    }
    let destination = |text: &dyn ToString| scalar(&text.to_string());
    if let [(endpoint, _)] = &endpoints[..]
        && more.is_empty()
        && backups.is_empty()
    {
        return write!(text, "    upstream: {}", destination(endpoint));
    }
    text.push_str("    upstream:\n      endpoints:");
    endpoints.iter().try_for_each(|(endpoint, _)| write!(text, "\n        - {}", destination(endpoint)))?;
    backups.iter().try_for_each(|backup| write!(text, "\n        # - {} # backup", destination(backup)))?;
    text.push_str(&more);
    Ok(())
}

fn write_check(text: &mut String, check: &CheckDraft, ca_files: CaFiles) -> std::fmt::Result {
    let CheckDraft { interval, timeout, rise, fall, tls, path } = check;
    let tls = tls.as_ref().map(|tls| match (tls, ca_files) {
        (CheckTls::Unverified, _) | (_, CaFiles::LeftOut) => "{verify: false}".to_owned(),
        (CheckTls::Verified { ca_file, server_name: None }, _) => format!("{{ca_file: {}}}", scalar(ca_file)),
        (CheckTls::Verified { ca_file, server_name: Some(name) }, _) => {
            format!("{{ca_file: {}, server_name: {}}}", scalar(ca_file), scalar(name))
        }
    });
    let values = [
        ("interval", interval.map(span)),
        ("timeout", timeout.map(span)),
        ("rise", rise.map(|rise| rise.to_string())),
        ("fall", fall.map(|fall| fall.to_string())),
        ("tls", tls),
        ("http", path.as_ref().map(|path| format!("{{path: {}}}", scalar(path)))),
    ];
    if values.iter().all(|(_, value)| value.is_none()) {
        return text.write_str("\n      health_check: {}");
    }
    text.push_str("\n      health_check:");
    for (key, value) in values {
        if let Some(value) = value {
            write!(text, "\n        {key}: {value}")?;
        }
    }
    Ok(())
}
