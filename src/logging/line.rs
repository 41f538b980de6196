//! Formats log lines: one JSON object each, or human-readable text.

use std::fmt::{self, Debug, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use crate::text::escape::is_visible;
use serde::Serialize;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// All fields as a JSON object.
pub(super) fn json(line: &mut Vec<u8>, event: &Event<'_>) {
    line.extend(b"{\"timestamp\":");
    quote_formatted(line, format_args!("{}", humantime::format_rfc3339_micros(SystemTime::now())));
    let mut fields = JsonFields(line);
    fields.put_str("level", event.metadata().level().as_str());
    event.record(&mut fields);
    line.push(b'}');
}

struct JsonFields<'l>(&'l mut Vec<u8>);

impl JsonFields<'_> {
    /// Field names come from the code and need no escaping.
    fn key(&mut self, name: &str) {
        self.0.extend(b",\"");
        self.0.extend(name.as_bytes());
        self.0.extend(b"\":");
    }

    fn put(&mut self, name: &str, value: &impl Serialize) {
        self.key(name);
        // Writing numbers to memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.0, value);
    }

    fn put_str(&mut self, name: &str, value: &str) {
        self.key(name);
        quote(self.0, |line| line.extend(value.as_bytes()));
    }
}

/// Writes a JSON string. Optimised for strings without escapes: a serializer's search byte by byte would take a third of
/// the time of a line.
fn quote(line: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = line.len();
    line.push(b'"');
    write(line);
    // `fold`, not `any`: without an early exit it is vectorised.
    let is_special = |byte: u8| !(b' '..=b'~').contains(&byte) || byte == b'"' || byte == b'\\';
    if line[start + 1..].iter().fold(false, |found, byte| found | is_special(*byte)) {
        let text = line.split_off(start).split_off(1);
        let quoted = Value::from(String::from_utf8_lossy(&text)).to_string();
        for character in quoted.chars() {
            // JSON lines are viewed in terminals, too.
            if is_visible(character) {
                line.extend(character.encode_utf8(&mut [0; 4]).bytes());
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    } else {
        line.push(b'"');
    }
}

/// Like [`quote`], for a formatted value.
fn quote_formatted(line: &mut Vec<u8>, value: fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    quote(line, |line| drop(line.write_fmt(value)));
}

impl Visit for JsonFields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_str(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.key(field.name());
        quote_formatted(self.0, format_args!("{value:?}"));
    }
}

/// The message and the most useful fields as text.
pub(super) fn text(line: &mut Vec<u8>, event: &Event<'_>, is_colored: bool) {
    let mut fields = EventFields::default();
    event.record(&mut fields);
    let level = *event.metadata().level();
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let (dim, color_code, reset) = if is_colored { ("\x1b[2m", color(level), "\x1b[0m") } else { ("", "", "") };
    let text = if fields.has("client.address") { fields.connection() } else { fields.generic() };
    // Writing to memory cannot fail.
    let _ = write!(line, "{dim}{time}{reset} {color_code}{level:>5}{reset} ");
    for character in text.chars() {
        let _ = if is_visible(character) {
            write!(line, "{character}")
        } else {
            write!(line, "{}", character.escape_debug())
        };
    }
}

fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

/// The fields of an event, in order.
#[derive(Default)]
struct EventFields(Vec<(&'static str, Value)>);

impl EventFields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn str(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    fn number(&self, name: &str) -> f64 {
        self.get(name).and_then(Value::as_f64).unwrap_or_default()
    }

    /// The message and all fields.
    fn generic(&self) -> String {
        let mut text = self.str("message").unwrap_or_default().to_owned();
        for (name, value) in self.0.iter().filter(|(name, _)| *name != "message") {
            let _ = match value {
                Value::String(word) if !word.is_empty() && !word.contains([' ', '"', '=']) => {
                    write!(text, " {name}={word}")
                }
                other => write!(text, " {name}={other}"),
            };
        }
        text
    }

    /// The line of a connection.
    fn connection(&self) -> String {
        let mut text = self.str("message").unwrap_or_default().to_owned();
        let client = (self.str("client.address").unwrap_or_default(), self.number("client.port"));
        let _ = match client {
            (ip, port) if ip.contains(':') => write!(text, " [{ip}]:{port}"),
            (ip, port) => write!(text, " {ip}:{port}"),
        };
        let name = self.str("server.address");
        let _ = write!(text, " -> {}", name.unwrap_or("(no SNI)"));
        if let Some(route) = self.str("route").filter(|route| Some(*route) != name && !route.starts_with('_')) {
            let _ = write!(text, " (route {route})");
        }
        if let Some(upstream) = self.str("upstream.address") {
            let _ = write!(text, " -> {upstream}");
        }
        let duration = span(self.number("duration_ms"));
        let _ = match (self.str("outcome"), self.str("closed_by")) {
            (Some(outcome), Some(by)) => write!(text, ": {outcome}, closed by {by} after {duration}"),
            _ => write!(text, ": for {duration}"),
        };
        if self.has("upstream.address") {
            let (up, down) = (self.number("bytes.received"), self.number("bytes.sent"));
            let _ = write!(text, ", {} up, {} down", size(up), size(down));
        }
        if let Some(alert) = self.str("tls.alert") {
            let _ = write!(text, ", API server sent alert {alert}");
        }
        if let Some(reason) = self.str("reason") {
            let _ = write!(text, "; {reason}");
        }
        text
    }
}

impl Visit for EventFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.into()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}").into()));
    }
}

fn span(milliseconds: f64) -> String {
    let seconds = milliseconds / 1e3;
    match seconds {
        0.0..1.0 => format!("{milliseconds:.1} ms"),
        1.0..120.0 => format!("{seconds:.1} s"),
        120.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        0.0..1e3 => format!("{bytes} B"),
        1e3..1e6 => format!("{:.1} kB", bytes / 1e3),
        1e6..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e10_strings_are_valid_json() {
        for text in [
            "",
            "a.example",
            "[::1]:443",
            "a\"b",
            "\\",
            "\n",
            "\u{1b}[31m",
            "\u{202e}\u{e9}",
            "a\0b",
            "\x7f\u{9b}",
            "\u{e0041}",
        ] {
            let mut line = b"before".to_vec();
            quote_formatted(&mut line, format_args!("{text}"));
            let quoted = line.strip_prefix(b"before").unwrap();
            assert_eq!(serde_json::from_slice::<String>(quoted).unwrap(), text);
            assert!(str::from_utf8(quoted).unwrap().chars().all(is_visible), "{}", quoted.escape_ascii());
        }
    }
}
