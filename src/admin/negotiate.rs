//! The format and encoding that a client asks for (RFC 9110, section 12.5).

use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName};

use super::exposition::Format;

/// `OpenMetrics` for clients that list it and do not prefer another; for all others, including those without `Accept`, the
/// text format, which every scraper reads.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let (mut open_metrics, mut text): (Option<f32>, Option<(u8, f32)>) = (None, None);
    for item in items(headers, &ACCEPT) {
        let is_version = |version: &str| item.parameter("version").is_none_or(|wanted| wanted == version);
        // The most specific range counts.
        let rank = match &*item.name {
            "application/openmetrics-text" if is_version("1.0.0") => {
                open_metrics = Some(open_metrics.unwrap_or(0.0).max(item.quality));
                continue;
            }
            "text/plain" if is_version("0.0.4") => 3,
            "text/*" => 2,
            "*/*" => 1,
            _ => continue,
        };
        if text.is_none_or(|(before, quality)| rank > before || (rank == before && item.quality > quality)) {
            text = Some((rank, item.quality));
        }
    }
    let wanted = open_metrics.unwrap_or(0.0);
    if wanted > 0.0 && wanted >= text.map_or(0.0, |(_, quality)| quality) { Format::OpenMetrics } else { Format::Text }
}

/// Whether the client accepts a compressed response.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for item in items(headers, &ACCEPT_ENCODING) {
        match &*item.name {
            "gzip" | "x-gzip" => gzip = Some(item.quality),
            "*" => any = Some(item.quality),
            "identity" => identity = Some(item.quality),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// An element of a list header.
struct Item {
    name: String,
    parameters: Vec<(String, String)>,
    quality: f32,
}

impl Item {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }
}

/// Malformed elements are skipped.
fn items(headers: &HeaderMap, header: &HeaderName) -> impl Iterator<Item = Item> {
    headers
        .get_all(header)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|item| {
            let mut parts = item.split(';').map(|part| part.trim().to_ascii_lowercase());
            let name = parts.next().filter(|name| !name.is_empty())?;
            let mut parameters = Vec::new();
            let mut quality = 1.0;
            for part in parts {
                let (key, value) = part.split_once('=')?;
                let value = value.trim().trim_matches('"');
                if key.trim() == "q" {
                    quality = value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?;
                } else {
                    parameters.push((key.trim().to_owned(), value.to_owned()));
                }
            }
            Some(Item { name, parameters, quality })
        })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(header: &HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (header.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn open_metrics_is_for_clients_that_name_it() {
        for values in [
            &["application/openmetrics-text"][..],
            // Prometheus 2.42, and 3.
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            ],
            &["text/plain;q=0.4", "Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.5"],
            &["application/openmetrics-text, text/plain"],
            &["text/plain;q=0, */*;q=0.9, application/openmetrics-text;q=0.1"],
        ] {
            assert_eq!(format(&headers(&ACCEPT, values)), Format::OpenMetrics, "{values:?}");
        }
        for values in [
            &[][..],
            &["*/*"],
            &["text/plain;version=0.0.4;q=1,*/*;q=0.1"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["application/openmetrics-text;q=0.3, text/plain;q=0.5"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=0.3, */*"],
            &["application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
            &["application/*", "application/json"],
            &["application/openmetrics-text;q=2", ";;,=,;q,\t"],
        ] {
            assert_eq!(format(&headers(&ACCEPT, values)), Format::Text, "{values:?}");
        }
    }

    #[test]
    fn gzip_is_for_clients_that_accept_it() {
        for values in [&["gzip"][..], &["deflate, gzip;q=0.5"], &["*"], &["br", "x-gzip"], &["gzip, identity"]] {
            assert!(accepts_gzip(&headers(&ACCEPT_ENCODING, values)), "{values:?}");
        }
        for values in [&[][..], &["identity"], &["gzip;q=0"], &["gzip;q=0, *"], &["br"], &["gzip;q=0.5, identity"]] {
            assert!(!accepts_gzip(&headers(&ACCEPT_ENCODING, values)), "{values:?}");
        }
    }
}
