//! Writes readable YAML that parsers of YAML 1.1 and 1.2 read alike.

use std::fmt::Write as _;

use serde_yaml::{Mapping, Value};

/// Unlike `serde_yaml`, quotes text that YAML 1.1, which kubectl uses, reads as another type.
pub(super) fn document(mapping: &Mapping) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    write_entries(&mut text, mapping, 0)?;
    Ok(text)
}

fn write_entries(text: &mut String, mapping: &Mapping, indent: usize) -> Result<(), serde_json::Error> {
    for (index, (key, value)) in mapping.iter().enumerate() {
        if index > 0 {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&flow(key)?);
        text.push(':');
        match value {
            Value::Mapping(entries) if !entries.is_empty() => {
                text.push('\n');
                text.push_str(&" ".repeat(indent + 2));
                write_entries(text, entries, indent + 2)?;
            }
            Value::Sequence(items) if !items.is_empty() => {
                text.push('\n');
                write_items(text, items, indent + 2)?;
            }
            value => {
                text.push(' ');
                text.push_str(&flow(value)?);
                text.push('\n');
            }
        }
    }
    Ok(())
}

fn write_items(text: &mut String, items: &[Value], indent: usize) -> Result<(), serde_json::Error> {
    for item in items {
        text.push_str(&" ".repeat(indent));
        text.push_str("- ");
        match item {
            Value::Mapping(entries) if !entries.is_empty() => write_entries(text, entries, indent + 2)?,
            item => {
                text.push_str(&flow(item)?);
                text.push('\n');
            }
        }
    }
    Ok(())
}

/// A value on one line. Values other than text are written as JSON.
fn flow(value: &Value) -> Result<String, serde_json::Error> {
    match value {
        Value::String(text) => Ok(scalar(text)),
        value => serde_json::to_string(value),
    }
}

/// Text, quoted if necessary, also valid within brackets.
pub(super) fn scalar(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:@".contains(character);
    let has_plain_start = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/');
    if has_plain_start && text.chars().all(is_plain) && !text.ends_with(':') && !reads_as_another_type(text) {
        return text.into();
    }
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(character));
            }
        }
    }
    quoted + "\""
}

fn reads_as_another_type(text: &str) -> bool {
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b"_:".contains(&byte));
    let has_base = ["0x", "0o", "0b"].iter().any(|base| text.to_ascii_lowercase().starts_with(base));
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
        || text.replace('_', "").parse::<f64>().is_ok()
        || is_number(text)
        || has_base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_if_yaml_would_read_another_type() {
        for plain in ["a.example.com", "10.0.0.1:6443", "10.0.0.0/8", "/etc/ca.pem", "fe-2", "24h"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in [
            "*.a",
            "[::]:6443",
            "::/0",
            "a: b",
            "a b",
            "12",
            "1e3",
            "1_0.5",
            "0x1f",
            "0B1",
            "true",
            "Off",
            "",
            "-",
            "a#",
            "a:",
        ] {
            assert_eq!(scalar(quoted), format!("\"{quoted}\""));
        }
        assert_eq!(scalar("a\"\\\n"), "\"a\\\"\\\\\\U0000000A\"");
    }

    #[test]
    fn documents_round_trip() {
        let text = "a: {b: [], c: [1, 'yes', {d: ~, e: {f: [[x], {}]}}]}\n\"on\": \"0x1\\n#\"\ng: {}\n";
        let value: Mapping = serde_yaml::from_str(text).unwrap();
        let written = document(&value).unwrap();
        assert_eq!(serde_yaml::from_str::<Mapping>(&written).unwrap(), value, "{written}");
        assert!(
            written.contains("\n    - \"yes\"\n    - d: null\n      e:\n        f:\n          - [\"x\"]\n"),
            "{written}"
        );
    }
}
