//! Writes metrics in both text formats of Prometheus at once: they differ only in the header of each family.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

use crate::telemetry::Distribution;

/// <https://prometheus.io/docs/specs/om/open_metrics_spec/> or
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The text format 0.0.4.
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Labels only, with the value 1.
    Info,
}

/// Maximum size of a piece.
pub(super) const PIECE: usize = 64 * 1024;

/// All metrics, in pieces that clients share.
#[derive(Debug)]
pub(super) struct Rendering {
    pieces: Vec<Piece>,
    gzipped: [OnceLock<Vec<Bytes>>; 2],
}

#[derive(Debug)]
struct Piece {
    open_metrics: Bytes,
    text: Bytes,
}

impl Rendering {
    /// Compresses at the first call.
    pub(super) fn gzipped(&self, format: Format) -> &[Bytes] {
        self.gzipped[format as usize].get_or_init(|| {
            let mut encoder = GzEncoder::new(Pieces::default(), Compression::fast());
            for piece in self.pieces(format) {
                // Writing to memory cannot fail.
                let _ = encoder.write_all(piece);
            }
            encoder.finish().unwrap_or_default().finish()
        })
    }

    pub(super) fn pieces(&self, format: Format) -> impl Iterator<Item = &Bytes> {
        (0..self.pieces.len()).filter_map(move |index| self.piece(format, index))
    }

    pub(super) fn piece(&self, format: Format, index: usize) -> Option<&Bytes> {
        self.pieces.get(index).map(|piece| match format {
            Format::OpenMetrics => &piece.open_metrics,
            Format::Text => &piece.text,
        })
    }
}

/// Collects written bytes in pieces, so that no large buffer is copied.
#[derive(Default)]
struct Pieces {
    full: Vec<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    fn finish(mut self) -> Vec<Bytes> {
        self.full.push(self.last.into());
        self.full
    }
}

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.last.len() + bytes.len() > PIECE {
            self.full.push(Bytes::copy_from_slice(&self.last));
            self.last.clear();
        }
        self.last.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Metrics that are being written.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    pieces: Vec<Piece>,
    samples: String,
    /// Name of the current family, with the suffix of its kind.
    name: String,
}

impl Exposition {
    /// Begins a family. `name` has no suffix such as `_total`.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.flush();
        let (kind_name, text_kind, suffix) = match kind {
            Kind::Counter => ("counter", "counter", "_total"),
            Kind::Gauge => ("gauge", "gauge", ""),
            Kind::Histogram => ("histogram", "histogram", ""),
            Kind::Info => ("info", "gauge", "_info"),
        };
        self.name = format!("{name}{suffix}");
        let unit = match kind {
            Kind::Histogram if name.ends_with("_seconds") => format!("# UNIT {name} seconds\n"),
            _ => String::new(),
        };
        self.pieces.push(Piece {
            open_metrics: format!("# HELP {name} {help}.\n# TYPE {name} {kind_name}\n{unit}").into(),
            text: format!("# HELP {0} {help}.\n# TYPE {0} {text_kind}\n", self.name).into(),
        });
    }

    /// Labels with an empty value are left out, which means the same.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.write_sample("", labels, None, value);
    }

    /// Without buckets only `+Inf` is left.
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], observed: &Distribution, has_buckets: bool) {
        for (bound, count) in observed.cumulative().filter(|_| has_buckets) {
            self.write_sample("_bucket", labels, Some(&format_args!("{bound:?}")), count);
        }
        let count = observed.count();
        self.write_sample("_bucket", labels, Some(&"+Inf"), count);
        let sum = observed.sum;
        self.write_sample("_sum", labels, None, format_args!("{}.{:06}", sum.as_secs(), sum.subsec_micros()));
        self.write_sample("_count", labels, None, count);
    }

    fn write_sample(&mut self, suffix: &str, labels: &[(&str, &str)], le: Option<&dyn Display>, value: impl Display) {
        let samples = &mut self.samples;
        samples.push_str(&self.name);
        samples.push_str(suffix);
        let mut separator = '{';
        for (label, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            samples.push(separator);
            samples.push_str(label);
            samples.push_str("=\"");
            push_escaped(samples, value);
            samples.push('"');
            separator = ',';
        }
        // Writing to a string cannot fail.
        if let Some(le) = le {
            let _ = write!(samples, "{separator}le=\"{le}\"");
            separator = ',';
        }
        if separator == ',' {
            samples.push('}');
        }
        let _ = writeln!(samples, " {value}");
        if samples.len() >= PIECE - 1024 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.samples.is_empty() {
            let samples = Bytes::copy_from_slice(self.samples.as_bytes());
            self.samples.clear();
            self.pieces.push(Piece { open_metrics: samples.clone(), text: samples });
        }
    }

    pub(super) fn finish(mut self) -> Rendering {
        self.flush();
        self.pieces.push(Piece { open_metrics: Bytes::from_static(b"# EOF\n"), text: Bytes::new() });
        Rendering { pieces: self.pieces, gzipped: Default::default() }
    }
}

fn push_escaped(text: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        text.push_str(value);
        return;
    }
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Histogram;

    fn text(rendering: &Rendering, format: Format) -> String {
        String::from_utf8(rendering.pieces(format).flatten().copied().collect()).unwrap()
    }

    #[test]
    fn both_formats_have_the_same_samples_below_their_own_headers() {
        let mut exposition = Exposition::default();
        exposition.family("a", Kind::Counter, "Ends");
        exposition.sample(&[("route", "x\"\\\n")], 3);
        exposition.family("b_seconds", Kind::Histogram, "Takes");
        let histogram = Histogram::new(&[0.5, 2.0]);
        histogram.observe(Duration::from_millis(1500));
        exposition.histogram(&[("route", "x")], &histogram.get(), true);
        exposition.histogram(&[], &histogram.get(), false);
        exposition.family("c", Kind::Info, "Runs");
        exposition.sample(&[("version", "1")], 1);
        let rendering = exposition.finish();
        let samples = [
            "a_total{route=\"x\\\"\\\\\\n\"} 3\n",
            "b_seconds_bucket{route=\"x\",le=\"0.5\"} 0\nb_seconds_bucket{route=\"x\",le=\"2.0\"} 1\n\
             b_seconds_bucket{route=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{route=\"x\"} 1.500000\nb_seconds_count{route=\"x\"} 1\n\
             b_seconds_bucket{le=\"+Inf\"} 1\nb_seconds_sum 1.500000\nb_seconds_count 1\n",
            "c_info{version=\"1\"} 1\n",
        ];
        let [a, b, c] = samples;
        assert_eq!(
            text(&rendering, Format::OpenMetrics),
            format!(
                "# HELP a Ends.\n# TYPE a counter\n{a}# HELP b_seconds Takes.\n# TYPE b_seconds histogram\n\
                 # UNIT b_seconds seconds\n{b}# HELP c Runs.\n# TYPE c info\n{c}# EOF\n"
            )
        );
        assert_eq!(
            text(&rendering, Format::Text),
            format!(
                "# HELP a_total Ends.\n# TYPE a_total counter\n{a}# HELP b_seconds Takes.\n\
                 # TYPE b_seconds histogram\n{b}# HELP c_info Runs.\n# TYPE c_info gauge\n{c}"
            )
        );
    }

    #[test]
    fn a_long_answer_is_in_pieces_and_the_same_when_compressed() {
        let mut exposition = Exposition::default();
        exposition.family("a", Kind::Gauge, "Many");
        for number in 0..20_000 {
            exposition.sample(&[("route", &format!("route-{number}"))], number);
        }
        let rendering = exposition.finish();
        for format in [Format::OpenMetrics, Format::Text] {
            let plain = text(&rendering, format);
            let zipped: Vec<u8> = rendering.gzipped(format).iter().flatten().copied().collect();
            let mut unzipped = String::new();
            flate2::read::GzDecoder::new(&zipped[..]).read_to_string(&mut unzipped).unwrap();
            assert!(plain == unzipped && zipped.len() < plain.len() / 5, "{} of {}", zipped.len(), plain.len());
            assert!(rendering.pieces(format).chain(rendering.gzipped(format)).all(|piece| piece.len() <= PIECE));
        }
    }
}
