//! The PROXY header that a server gets: `send-proxy` and the like.

use std::collections::{BTreeMap, BTreeSet};

use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::tlv;
use crate::commands::import::upstream_draft::HeaderDraft;

#[derive(Clone, Default)]
pub(super) struct HeaderParameters {
    version: Option<&'static str>,
    tlvs: BTreeMap<u8, Vec<u8>>,
    pass: BTreeSet<u8>,
}

/// The value of a TLV.
enum TlvFormat {
    Constant(Vec<u8>),
    /// The value of the client's own header.
    Passed,
}

impl HeaderParameters {
    pub(super) fn read_flag(&mut self, word: &str) -> bool {
        self.version = match word {
            "send-proxy" => Some("v1"),
            "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => Some("v2"),
            "no-send-proxy" | "no-send-proxy-v2" => None,
            _ => return false,
        };
        true
    }

    /// Whether the parameter is one that sets a TLV.
    pub(super) fn read_tlv(&mut self, word: &str, value: &str, location: &Location, notes: &mut Notes) -> bool {
        let Some(number) = word.strip_prefix("set-proxy-v2-tlv-fmt(").and_then(|rest| rest.strip_suffix(')')) else {
            return false;
        };
        match read_tlv(number, value) {
            Ok((number, TlvFormat::Constant(value))) => {
                self.pass.remove(&number);
                self.tlvs.insert(number, value);
            }
            Ok((number, TlvFormat::Passed)) => {
                self.tlvs.remove(&number);
                self.pass.insert(number);
            }
            Err(reason) => notes.note(location, format!("`{word} {value}` left out: {reason}")),
        }
        true
    }

    pub(super) fn translate(&self, location: &Location, notes: &mut Notes) -> Option<HeaderDraft> {
        let has_tlvs = !self.tlvs.is_empty() || !self.pass.is_empty();
        if has_tlvs && self.version != Some("v2") {
            notes.note(location, "`set-proxy-v2-tlv-fmt` has no effect without `send-proxy-v2`");
        }
        match self.version? {
            version @ "v2" => Some(HeaderDraft { version, tlvs: self.tlvs.clone(), pass: self.pass.clone() }),
            version => Some(HeaderDraft::of_version(version)),
        }
    }
}

fn read_tlv(number: &str, format: &str) -> Result<(u8, TlvFormat), String> {
    let number = tlv::number(number).ok_or("expected the number of a TLV")?;
    match number {
        0x01 | 0x02 => return Err("snigate sends the client's SNI and ALPN itself".into()),
        0x03 | 0x04 => return Err("snigate does not send this TLV".into()),
        _ => {}
    }
    let fetch = format.strip_prefix("%[fc_pp_tlv(").and_then(|rest| rest.strip_suffix(")]"));
    if fetch.and_then(tlv::number) == Some(number) {
        return Ok((number, TlvFormat::Passed));
    }
    let constant = format.replace("%%", "");
    if constant.contains('%') {
        return Err(
            "the value of a TLV is a constant in `tlvs`, or passed on from the client's own header by `pass`".into()
        );
    }
    tlv::checked(format.replace("%%", "%").into_bytes()).map(|value| (number, TlvFormat::Constant(value)))
}
