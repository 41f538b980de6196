//! What a process has, second by second, as a table and as a picture.

use std::fmt::Write;
use std::path::Path;

use crate::support::Router;

/// At the end of a second.
pub struct Sample {
    second: u64,
    /// In the order of [`FIGURES`].
    values: [f64; FIGURES.len()],
}

const FIGURES: [(&str, &str); 5] = [
    ("memory_bytes", "resident memory, bytes"),
    ("descriptors", "descriptors"),
    ("series", "series of /metrics"),
    ("tasks", "tasks"),
    ("connections", "connections ended so far"),
];

impl Sample {
    pub fn take(router: &Router, second: u64) -> Self {
        let (_, metrics) = router.get("/metrics");
        let series = metrics.lines().filter(|line| !line.starts_with('#'));
        let values = [
            sum(&metrics, "process_resident_memory_bytes"),
            router.descriptors() as f64,
            series.count() as f64,
            sum(&metrics, "snigate_runtime_tasks"),
            sum(&metrics, "snigate_connections_total{"),
        ];
        Self { second, values }
    }

    pub fn memory(&self) -> f64 {
        self.values[0]
    }
}

/// Of all series that begin so.
pub fn sum(metrics: &str, prefix: &str) -> f64 {
    let of_it = metrics.lines().filter(|line| line.starts_with(prefix));
    of_it.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Writes `soak.csv` and `soak.svg`.
pub fn write(samples: &[Sample], directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("soak.csv"), table(samples)).unwrap();
    std::fs::write(directory.join("soak.svg"), picture(samples)).unwrap();
}

fn table(samples: &[Sample]) -> String {
    let mut table = format!("second,{}\n", FIGURES.map(|(name, _)| name).join(","));
    for Sample { second, values } in samples {
        writeln!(table, "{second},{}", values.map(|value| value.to_string()).join(",")).unwrap();
    }
    table
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 110.0;
const MARGIN: f64 = 30.0;

/// A panel for each figure, from 0 to its maximum. A column of a pixel has the least and the greatest of its seconds.
fn picture(samples: &[Sample]) -> String {
    let height = (HEIGHT + MARGIN) * FIGURES.len() as f64 + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + 2.0 * MARGIN
    );
    let last = samples.last().map_or(1, |sample| sample.second.max(1)) as f64;
    for (index, (_, label)) in FIGURES.into_iter().enumerate() {
        let values: Vec<(f64, f64)> =
            samples.iter().map(|sample| (sample.second as f64 / last * WIDTH, sample.values[index])).collect();
        let most = values.iter().fold(1.0_f64, |most, (_, value)| most.max(*value));
        let least = values.iter().fold(most, |least, (_, value)| least.min(*value));
        let bottom = MARGIN + (HEIGHT + MARGIN) * index as f64 + HEIGHT;
        let y = |value: f64| bottom - value / most * HEIGHT;
        let mut line = String::new();
        for column in values.chunk_by(|one, next| one.0.floor() == next.0.floor()) {
            let by_value = |one: &&(f64, f64), next: &&(f64, f64)| one.1.total_cmp(&next.1);
            let ends = [column.iter().min_by(by_value).unwrap(), column.iter().max_by(by_value).unwrap()];
            for (_, value) in ends {
                write!(line, "{:.0},{:.1} ", MARGIN + column[0].0, y(*value)).unwrap();
            }
        }
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{:.0}\">{label}: {least} to {most}</text>\n\
             <polyline fill=\"none\" stroke=\"#999\" points=\"{MARGIN},{bottom} {1},{bottom}\"/>\n\
             <polyline fill=\"none\" stroke=\"#06c\" points=\"{2}\"/>",
            bottom - HEIGHT - 4.0,
            MARGIN + WIDTH,
            line.trim_end()
        )
        .unwrap();
    }
    write!(svg, "<text x=\"{MARGIN}\" y=\"{:.0}\">{last} seconds</text>\n</svg>\n", height - 12.0).unwrap();
    svg
}
