//! The text format 0.0.4 of Prometheus, from `OpenMetrics`: the types that it has, counters by their full names, and neither
//! units nor an end mark.

use std::fmt::Write as _;

/// The same metrics in the classic format.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut lines = text.lines();
    let mut help: Option<(&str, &str)> = None;
    for line in &mut lines {
        let Some(comment) = line.strip_prefix("# ") else {
            classic.push_str(line);
            classic.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            // The type, which follows, says what the metric is called.
            (Some("HELP"), Some(name), text) => help = Some((name, text.unwrap_or_default())),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "gauge" => ("", "gauge"),
                    "histogram" => ("", "histogram"),
                    _ => ("", "untyped"),
                };
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    let _ = writeln!(classic, "# HELP {name}{suffix} {text}");
                }
                let _ = writeln!(classic, "# TYPE {name}{suffix} {kind}");
            }
            _ => {}
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_infos_are_called_by_their_full_names() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{b=\"c\"} 1\n# HELP d_seconds Time.\n# TYPE d_seconds histogram\n# UNIT d_seconds seconds\nd_seconds_sum 0.5\n# HELP e Build.\n# TYPE e info\ne_info{v=\"1\"} 1\n# EOF\n";
        let classic = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"c\"} 1\n# HELP d_seconds Time.\n# TYPE d_seconds histogram\nd_seconds_sum 0.5\n# HELP e_info Build.\n# TYPE e_info gauge\ne_info{v=\"1\"} 1\n";
        assert_eq!(from_open_metrics(open), classic);
    }
}
