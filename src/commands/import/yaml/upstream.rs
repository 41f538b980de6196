//! `upstream` of a route.

use std::fmt::Write as _;

use super::CaFiles;
use crate::commands::import::tlv;
use crate::commands::import::upstream_draft::{
    CheckDraft, CheckTls, EndpointDraft, HeaderDraft, SourceDraft, UpstreamDraft,
};
use crate::commands::yaml::scalar;
use crate::text::units::span;

/// Without a line break at the end.
pub(super) fn write_upstream(text: &mut String, upstream: &UpstreamDraft, ca_files: CaFiles) -> std::fmt::Result {
    let UpstreamDraft { endpoints, balance, connect_timeout, slow_start, source, proxy_protocol, check, .. } = upstream;
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
    match source {
        SourceDraft::Any => {}
        SourceDraft::Client => more.push_str("\n      source: client"),
        SourceDraft::Addresses(all) => {
            let written: Vec<String> = all.iter().map(|address| scalar(&address.to_string())).collect();
            match &written[..] {
                [one] => write!(more, "\n      source: {one}")?,
                all => write!(more, "\n      source: [{}]", all.join(", "))?,
            }
        }
    }
    if let Some(header) = proxy_protocol {
        write_header(&mut more, header)?;
    }
    if let Some(check) = check {
        write_check(&mut more, check, ca_files)?;
    }
    let written = written_endpoints(endpoints);
    if let ([endpoint], "") = (&written[..], more.as_str()) {
        return write!(text, "    upstream: {endpoint}");
    }
    text.push_str("    upstream:\n      endpoints:");
    written.iter().try_for_each(|endpoint| write!(text, "\n        - {endpoint}"))?;
    text.push_str(&more);
    Ok(())
}

/// Equal weights are the same as none.
fn written_endpoints(endpoints: &[EndpointDraft]) -> Vec<String> {
    let has_weights = endpoints.iter().any(|endpoint| endpoint.weight != endpoints[0].weight);
    let written = |EndpointDraft { destination, weight, is_backup, location: _ }: &EndpointDraft| {
        let address = scalar(&destination.to_string());
        let weight = if has_weights && *weight != 1 { format!(", weight: {weight}") } else { String::new() };
        match (is_backup, weight.as_str()) {
            (false, "") => address,
            (false, _) => format!("{{address: {address}{weight}}}"),
            (true, _) => format!("{{address: {address}{weight}, backup: true}}"),
        }
    };
    endpoints.iter().map(written).collect()
}

fn write_header(text: &mut String, header: &HeaderDraft) -> std::fmt::Result {
    let HeaderDraft { version, tlvs, pass } = header;
    if tlvs.is_empty() && pass.is_empty() {
        return write!(text, "\n      proxy_protocol: {version}");
    }
    write!(text, "\n      proxy_protocol:\n        version: {version}")?;
    if !tlvs.is_empty() {
        let written = tlvs.iter().map(|(number, value)| format!("{number:#04x}: {}", scalar(&tlv::text(value))));
        write!(text, "\n        tlvs: {{{}}}", written.collect::<Vec<_>>().join(", "))?;
    }
    if !pass.is_empty() {
        let written: Vec<String> = pass.iter().map(|number| format!("{number:#04x}")).collect();
        write!(text, "\n        pass: [{}]", written.join(", "))?;
    }
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
