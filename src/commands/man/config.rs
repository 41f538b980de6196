//! snigate.yaml(5), from the schema.

use clap_mangen::roff::{Inline, Roff, bold, roman};
use serde_json::Value;

use crate::config;

const DESCRIPTION: [&str; 3] = [
    "snigate reads one YAML file. snigate check FILE validates it and prints what it means; a file that is wrong is rejected as \
    a whole, with line, key and what was expected.",
    "Durations have a unit: 500ms, 10s, 15m, 24h. Sizes are bytes, or have a unit: 16KiB. Lists of one element need no \
    brackets. Files are relative to the directory of the file that names them.",
    "Of the routes that match a client, the one with the most specific hostname wins: an exact name, then the longest wildcard, \
    then the route without sni.",
];

const EXAMPLE: &str = r#"listen: "[::]:6443"
routes:
  - sni: [dev.example.com, "*.dev.example.com"]
    upstream: dev-api.internal:6443
  - {sni: prod.example.com, upstream: ["10.0.0.1:6443", "10.0.0.2:6443"]}"#;

pub(super) fn page() -> anyhow::Result<String> {
    let schema: Value = serde_json::from_str(&config::schema())?;
    let mut roff = Roff::new();
    let version = concat!("snigate ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["snigate.yaml", "5", "", version]);
    roff.control("SH", ["NAME"]).text([roman("snigate.yaml - the configuration of snigate")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        roff.control("PP", []).text([roman(paragraph)]);
    }
    roff.control("SH", ["KEYS"]);
    add_keys(&mut roff, &schema, &schema, "");
    roff.control("SH", ["EXAMPLE"]).control("EX", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    roff.control("SH", ["FILES"]).text([roman("/etc/snigate/snigate.yaml")]);
    roff.control("SH", ["SEE ALSO"]).text([bold("snigate"), roman("(1)")]);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(String::from_utf8(text)?)
}

/// The keys of the maps that this schema allows, each before its own keys.
fn add_keys(roff: &mut Roff, root: &Value, schema: &Value, path: &str) {
    let maps = maps(root, schema, false);
    for (map, is_element) in maps.iter().copied() {
        // One map, or a list of such maps: once is enough.
        let is_listed = |(other, is_element): &(&Value, bool)| *is_element && std::ptr::eq(*other, map);
        if !is_element && maps.iter().any(is_listed) {
            continue;
        }
        let prefix = match (path, is_element) {
            ("", _) => String::new(),
            (path, true) => format!("{path}[]."),
            (path, false) => format!("{path}."),
        };
        for (key, property) in map["properties"].as_object().into_iter().flatten() {
            let path = format!("{prefix}{key}");
            roff.control("TP", []).text([bold(&*path)]).text(meaning(root, property));
            add_keys(roff, root, property, &path);
        }
    }
}

/// The maps that this schema allows, and whether as elements of a list.
fn maps<'s>(root: &'s Value, schema: &'s Value, is_element: bool) -> Vec<(&'s Value, bool)> {
    let schema = resolved(root, schema);
    if schema["properties"].is_object() {
        return vec![(schema, is_element)];
    }
    let choices = choices(schema).flat_map(|choice| maps(root, choice, is_element));
    choices.chain(schema.get("items").into_iter().flat_map(|items| maps(root, items, true))).collect()
}

fn choices(schema: &Value) -> impl Iterator<Item = &Value> {
    ["allOf", "anyOf", "oneOf"].iter().filter_map(|key| schema[key].as_array()).flatten()
}

fn resolved<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let reference = schema["$ref"].as_str().and_then(|reference| root.pointer(reference.strip_prefix('#')?));
    reference.unwrap_or(schema)
}

/// What a key means, and the values that it may have if these are few.
fn meaning(root: &Value, property: &Value) -> Vec<Inline> {
    let description = property["description"].as_str().unwrap_or_default().replace('`', "");
    let mut text = vec![roman(description)];
    for (value, meaning) in values(root, property) {
        text.extend([
            roman(" "),
            bold(value),
            roman(meaning.map_or_else(|| ".".into(), |meaning| format!(": {meaning}"))),
        ]);
    }
    text
}

fn values<'s>(root: &'s Value, schema: &'s Value) -> Vec<(&'s str, Option<&'s str>)> {
    let schema = resolved(root, schema);
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(|value| Some((value.as_str()?, None)));
    let described = schema["const"].as_str().map(|value| (value, schema["description"].as_str()));
    plain.chain(described).chain(choices(schema).flat_map(|choice| values(root, choice))).collect()
}
