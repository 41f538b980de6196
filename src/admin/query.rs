//! The query of a request.

use std::str::FromStr;

use hyper::Request;

/// The parameters that were not taken yet, decoded.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self::from(request.uri().query().unwrap_or_default())
    }

    /// Takes the parameter with this name out, if it is there.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(index).1)
    }

    /// The value of a key, parsed; the error says what is expected.
    pub(super) fn parse<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, String> {
        self.parse_with(name, expected, |value| value.parse().ok())
    }

    pub(super) fn parse_with<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let parsed = |value: String| parse(&value).ok_or_else(|| format!("{name}: `{value}`: expected {expected}"));
        self.take(name).map(parsed).transpose()
    }

    /// Whether the parameter is `true`.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, String> {
        Ok(self.parse(name, "true or false")?.unwrap_or(false))
    }

    /// Fails if there is a parameter that was not taken.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("unknown or repeated parameter `{name}`")),
        }
    }
}

impl From<&str> for Query {
    fn from(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }
}

/// Percent-decoded (RFC 3986, section 2.1).
fn decode(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_decoded_and_none_is_ignored() {
        let mut query = Query::from("route=a%20b%2Bc+d&older=10&all=true&&x");
        assert_eq!(query.take("route").as_deref(), Some("a b+c d"));
        assert_eq!((query.parse::<u8>("older", "a number"), query.flag("all")), (Ok(Some(10)), Ok(true)));
        assert_eq!(query.flag("dry_run"), Ok(false));
        assert_eq!(query.finish(), Err("unknown or repeated parameter `x`".into()));
        let mut query = Query::from("older=%zz");
        assert_eq!(query.parse::<u8>("older", "a number"), Err("older: `%zz`: expected a number".into()));
        assert_eq!(query.finish(), Ok(()));
    }
}
