//! The criteria of conditions: a sample, a matching method and values.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::pattern_file;
use super::sample::{MapLookup, Sample, Variables, is_sni};
use super::test_arguments::TestArguments;
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::expression::{ClientLimit, Expression, Test};
use crate::commands::import::files::SourceFiles;
use crate::commands::import::name_set::NameSet;
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::tlv;
use crate::commands::import::values::{LIMITS, network};

pub(super) const CASE_IGNORED: &str = "HAProxy compares the server name case-sensitively here (neither `-i` nor \
    `lower`); snigate ignores case, as in DNS";

/// Reads the criteria of one section.
pub(super) struct CriterionReader<'a> {
    pub(super) variables: Variables,
    pub(super) files: &'a SourceFiles,
    /// Whether all, none or only some of the section's `bind` lines terminate TLS.
    terminates_tls: Option<bool>,
}

/// Values with the lines that they are in.
type Values = Vec<(String, Location)>;

impl<'a> CriterionReader<'a> {
    pub(super) fn new(files: &'a SourceFiles, terminates_tls: Option<bool>) -> Self {
        Self { variables: Variables::default(), files, terminates_tls }
    }

    /// Adds the lines of variables that the test uses to `locations`.
    pub(super) fn read(
        &self,
        words: &[&str],
        location: &Location,
        locations: &mut BTreeSet<Location>,
        notes: &mut Notes,
    ) -> Expression {
        let test = self.try_read(words, location, locations, notes);
        test.unwrap_or_else(|reason| Expression::unknown(format!("`{}`: {reason}", words.join(" "))))
    }

    fn try_read(
        &self,
        words: &[&str],
        location: &Location,
        locations: &mut BTreeSet<Location>,
        notes: &mut Notes,
    ) -> Result<Expression, String> {
        let (sample, rest) = words.split_first().ok_or("a condition is missing")?;
        let (sample, method) = ["end", "dom", "str", "beg", "sub", "dir", "reg"]
            .into_iter()
            .find_map(|method| Some((sample.strip_suffix(method)?.strip_suffix('_')?, method)))
            .unwrap_or((sample, "str"));
        let Sample { fetch, is_lower_case, lookup, locations: of } = Sample::read(sample, &self.variables, self.files)?;
        locations.extend(of);
        let TestArguments { method, ignores_case, values, files } = TestArguments::read(method, rest)?;
        let mut values: Values = values.iter().map(|value| ((*value).into(), location.clone())).collect();
        for file in files {
            values.extend(pattern_file::read(file, self.files)?.into_iter().map(|entry| (entry.key, entry.location)));
        }
        if let Some(lookup) = lookup {
            if !is_lower_case {
                notes.note(location, CASE_IGNORED);
            }
            return of_lookup(&lookup, method, &values);
        }
        let fetch = fetch.as_str();
        if is_sni(fetch) || fetch == "ssl_fc_has_sni" {
            if fetch.starts_with("ssl_fc") && self.terminates_tls == Some(false) {
                return Ok(Expression::constant(false));
            }
            if method == "found" || fetch == "ssl_fc_has_sni" {
                return Ok(Expression::of(Test::HasSni));
            }
            if !ignores_case && !is_lower_case {
                notes.note(location, CASE_IGNORED);
            }
            return of_names(method, &values, notes);
        }
        if matches!(fetch, "req.ssl_alpn" | "ssl_fc_alpn") {
            return of_alpn(fetch, method, &values, location, notes);
        }
        if let Some(number) = header_tlv(fetch) {
            let ignores_case = ignores_case || is_lower_case;
            return of_tlv(number, method, ignores_case, &values);
        }
        self.of_fetch(fetch, &values)
    }

    fn of_fetch(&self, fetch: &str, values: &Values) -> Result<Expression, String> {
        let texts: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
        match fetch {
            "src" => Ok(Expression::of(Test::ClientAddress(networks(&texts)?))),
            "dst" | "fc_dst" => Ok(Expression::of(Test::Destination(networks(&texts)?))),
            "req.ssl_hello_type" | "req_ssl_hello_type" => Ok(Expression::constant(texts.contains(&"1"))),
            "ssl_fc" => {
                let terminates = self.terminates_tls.ok_or("only some `bind` lines of this section have `ssl`")?;
                Ok(Expression::constant(terminates))
            }
            "req.ssl_ver" | "req_ssl_ver" if is_every_version(&texts) => Ok(Expression::constant(true)),
            "req.len" | "req_len" if is_above_zero(&texts) => Ok(Expression::constant(true)),
            "always_true" => Ok(Expression::constant(true)),
            "always_false" => Ok(Expression::constant(false)),
            "dst_port" | "fc_dst_port" | "so_name" | "so_id" => {
                Err("it tests the listener that clients connect to; a route can have `listener` for that".into())
            }
            _ => match client_limit(fetch, &texts) {
                Some(limit) => Ok(Expression::of(Test::OverLimit(limit))),
                None if fetch.starts_with("src_") || fetch.starts_with("sc") || fetch.ends_with("conn") => {
                    Err("snigate has no such counter; see `limits`, and `max_connections` of a route".into())
                }
                None => Err("snigate can test addresses, TLVs, SNI and ALPN only, nothing inside TLS".into()),
            },
        }
    }
}

fn networks(texts: &[&str]) -> Result<AddressSet, String> {
    let networks: Option<Vec<IpNet>> = texts.iter().map(|value| network(value)).collect();
    let networks = networks.filter(|networks| !networks.is_empty()).ok_or("expected networks")?;
    Ok(AddressSet::of(&networks))
}

/// The number of the TLV of the client's PROXY header that a sample has.
fn header_tlv(fetch: &str) -> Option<u8> {
    match fetch {
        "fc_pp_authority" => tlv::number("AUTHORITY"),
        "fc_pp_unique_id" => tlv::number("UNIQUE_ID"),
        _ => tlv::number(fetch.strip_prefix("fc_pp_tlv(")?.strip_suffix(')')?),
    }
}

fn of_tlv(number: u8, method: &str, ignores_case: bool, values: &Values) -> Result<Expression, String> {
    if !matches!(method, "str" | "bin") {
        return Err(format!("`proxy_tlv` of a route compares whole values; `-m {method}` does not"));
    }
    let mut all = BTreeSet::new();
    for (value, _) in values {
        if ignores_case && value.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            return Err("`proxy_tlv` of a route does not ignore case".into());
        }
        let value = match method {
            "bin" => tlv::from_hex(value).ok_or_else(|| format!("`{value}` is not hexadecimal"))?,
            _ => value.clone().into_bytes(),
        };
        all.insert(tlv::checked(value)?);
    }
    if all.is_empty() { Err("expected a value".into()) } else { Ok(Expression::of(Test::ProxyTlv(number, all))) }
}

fn of_names(method: &str, values: &Values, notes: &mut Notes) -> Result<Expression, String> {
    let mut names = NameSet::default();
    let mut unknown = Vec::new();
    for (value, location) in values {
        match pattern_file::name_matches(method, value) {
            Ok((matches, may_match)) => {
                if method == "reg" {
                    let listed: Vec<String> = matches.iter().map(ToString::to_string).collect();
                    notes.note(location, format!("`{value}` is translated as {}", listed.join(", ")));
                }
                names.extend(NameSet::of(matches).and_maybe(may_match));
            }
            Err(reason) => unknown.push(Expression::unknown(format!("`{value}`: {reason}"))),
        }
    }
    if names.is_empty() && unknown.is_empty() {
        return Err("expected a name".into());
    }
    if unknown.is_empty() {
        return Ok(Expression::names(names));
    }
    Ok(Expression::Any(std::iter::once(Expression::names(names)).chain(unknown).collect()))
}

fn of_lookup(lookup: &MapLookup, method: &str, values: &Values) -> Result<Expression, String> {
    let compare: fn(&str, &str) -> bool = match method {
        "found" => return Ok(lookup.finds_any()),
        "str" => |value, text| value == text,
        "beg" => |value, text| value.starts_with(text),
        "end" => |value, text| value.ends_with(text),
        "sub" => |value, text| value.contains(text),
        _ => return Err(format!("values of a map cannot be matched with `-m {method}`")),
    };
    Ok(lookup.finds(|value| values.iter().any(|(text, _)| compare(value, text))))
}

/// `req.ssl_alpn` is the client's whole list, separated by commas; `ssl_fc_alpn` the protocol that HAProxy agreed on.
/// `alpn` of a route matches clients that offer a protocol, among others.
fn of_alpn(
    fetch: &str,
    method: &str,
    values: &Values,
    location: &Location,
    notes: &mut Notes,
) -> Result<Expression, String> {
    let protocols: BTreeSet<String> = values.iter().map(|(value, _)| value.clone()).collect();
    if protocols.is_empty() {
        return Err("expected a protocol".into());
    }
    // ACME validation offers nothing else (RFC 8737, section 3), so all of these mean the same.
    let is_acme = protocols.iter().all(|protocol| protocol.starts_with("acme-tls/"));
    let is_whole = protocols.iter().all(|protocol| !protocol.is_empty() && !protocol.contains(','));
    match (fetch, method) {
        (_, "str") if is_acme => {}
        ("req.ssl_alpn", "sub") if is_whole => {
            if !is_acme {
                let reason = "`-m sub` also finds the text inside longer protocol names; `alpn` of a route matches whole \
                    names only";
                notes.note(location, reason);
            }
        }
        ("req.ssl_alpn", "str") => {
            return Err(
                "it matches clients that offer exactly this list; `alpn` of a route matches clients that offer \
                a protocol among others (`-m sub`)"
                    .into(),
            );
        }
        ("ssl_fc_alpn", _) => {
            return Err(
                "it tests the protocol that HAProxy negotiates; with snigate the server does that, and `alpn` \
                of a route matches what the client offers"
                    .into(),
            );
        }
        _ => return Err("`alpn` of a route can only test whether the client offers a protocol".into()),
    }
    Ok(Expression::of(Test::Alpn(protocols)))
}

/// Whether every client that snigate accepts has one of these versions.
fn is_every_version(values: &[&str]) -> bool {
    let number = |text: &str| {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    match values {
        ["gt", text] => number(text).is_some_and(|number| number < (3, 1)),
        ["ge", text] => number(text).is_some_and(|number| number <= (3, 1)),
        [text] => text.strip_suffix(':').and_then(number).is_some_and(|number| number <= (3, 1)),
        _ => false,
    }
}

fn is_above_zero(values: &[&str]) -> bool {
    matches!(values, ["gt", "0"] | ["ge", "1" | "0"] | ["1:"])
}

/// A comparison of the connections that the client's address has or opens.
fn client_limit(fetch: &str, values: &[&str]) -> Option<ClientLimit> {
    let allowed = match values {
        ["gt", number] => number.parse().ok()?,
        ["ge", number] => number.parse::<u64>().ok()?.checked_sub(1)?,
        _ => return None,
    };
    let allowed = Some(allowed).filter(|allowed| LIMITS.contains(allowed))?;
    let counter = fetch.strip_prefix("src_").or_else(|| {
        let counter = fetch.strip_prefix("sc")?;
        counter.strip_prefix(['0', '1', '2', '_'])
    })?;
    match counter.trim_start_matches('_').split('(').next()? {
        "conn_cur" => Some(ClientLimit::Connections(allowed)),
        "conn_rate" => Some(ClientLimit::Rate(allowed, None)),
        _ => None,
    }
}
