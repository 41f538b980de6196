//! TLVs of PROXY headers: their numbers and values.

use std::fmt::Write as _;

/// Maximum length of a value that a configuration accepts, in bytes.
const MAX_VALUE: usize = 4096;

/// As a number, or by the name that HAProxy has for it.
pub(super) fn number(text: &str) -> Option<u8> {
    match text.trim() {
        "ALPN" => Some(0x01),
        "AUTHORITY" => Some(0x02),
        "CRC32C" => Some(0x03),
        "UNIQUE_ID" => Some(0x05),
        "SSL" => Some(0x20),
        "NETNS" => Some(0x30),
        text => match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) if !digits.starts_with('+') => u8::from_str_radix(digits, 16).ok(),
            Some(_) => None,
            None => text.parse().ok().filter(|_| !text.starts_with('+')),
        },
    }
}

/// Two hexadecimal digits for each byte.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |two: &[u8]| match *two {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

pub(super) fn checked(value: Vec<u8>) -> Result<Vec<u8>, String> {
    if value.len() > MAX_VALUE { Err(format!("values have at most {MAX_VALUE} bytes")) } else { Ok(value) }
}

/// As in a configuration: text, or bytes in hexadecimal.
pub(super) fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.starts_with("0x") && !text.chars().any(char::is_control) => text.into(),
        _ => value.iter().fold("0x".to_owned(), |mut all, byte| {
            let _ = write!(all, "{byte:02x}");
            all
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_values_are_read_and_written() {
        for (written, expected) in
            [("0xE0", Some(224)), ("224", Some(224)), ("NETNS", Some(48)), ("0x+1", None), ("256", None), ("x", None)]
        {
            assert_eq!(number(written), expected, "{written}");
        }
        assert_eq!(from_hex("6b31"), Some(b"k1".to_vec()));
        assert_eq!((from_hex("6b3"), from_hex("zz")), (None, None));
        assert_eq!([text(b"k1"), text(b"0x6b"), text(b"\x00\xff"), text(b"")], ["k1", "0x30783662", "0x00ff", ""]);
    }
}
