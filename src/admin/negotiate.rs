//! Which form of an answer a client asks for (RFC 9110, section 12.5).

use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AsHeaderName};

/// A text format of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// 0.0.4, which everything reads.
    Classic,
    /// `OpenMetrics` 1.0, for those who ask for it.
    OpenMetrics,
}

pub(super) fn format(headers: &HeaderMap) -> Format {
    let open = quality(headers, ACCEPT, |range| range == "application/openmetrics-text").unwrap_or(0.0);
    let classic = quality(headers, ACCEPT, |range| range == "text/plain")
        .or_else(|| quality(headers, ACCEPT, |range| range == "text/*"))
        .or_else(|| quality(headers, ACCEPT, |range| range == "*/*"))
        .unwrap_or(0.0);
    if open > 0.0 && open >= classic { Format::OpenMetrics } else { Format::Classic }
}

pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let named = quality(headers, ACCEPT_ENCODING, |coding| matches!(coding, "gzip" | "x-gzip"));
    named.or_else(|| quality(headers, ACCEPT_ENCODING, |coding| coding == "*")).is_some_and(|quality| quality > 0.0)
}

/// The highest quality of those members of a list that are meant; `None`: none is.
fn quality(headers: &HeaderMap, name: impl AsHeaderName, is_meant: impl Fn(&str) -> bool) -> Option<f32> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let members = values.flat_map(|value| value.split(','));
    let meant = members.filter_map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        is_meant(&range).then(|| quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
    });
    meant.reduce(f32::max)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it_and_everybody_else_the_classic_format() {
        for (accept, expected) in [
            ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8, */*;q=0.1", Format::OpenMetrics),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Classic),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.2", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("text/html,*/*", Format::Classic),
            ("", Format::Classic),
        ] {
            assert_eq!(format(&headers(ACCEPT, accept)), expected, "{accept}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Classic);
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (accept, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("br", false),
            ("", false),
        ] {
            assert_eq!(takes_gzip(&headers(ACCEPT_ENCODING, accept)), expected, "{accept}");
        }
    }
}
