use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::super::text::Text;
use super::super::values::{TlvNumber, TlvValue};

/// TLVs of a PROXY header, by number; at least one.
pub(crate) struct Tlvs(pub(crate) BTreeMap<u8, Box<[u8]>>);

impl<'de> Deserialize<'de> for Tlvs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TlvsVisitor;

        impl<'de> Visitor<'de> for TlvsVisitor {
            type Value = Tlvs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from numbers of TLVs to values, such as {0xe0: \"kubernetes01\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tlvs, A::Error> {
                let mut tlvs = BTreeMap::new();
                while let Some((Text(TlvNumber(number)), Text(TlvValue(value)))) = map.next_entry()? {
                    if tlvs.insert(number, value).is_some() {
                        return Err(A::Error::custom(format_args!("duplicate TLV {number:#04x}")));
                    }
                }
                if tlvs.is_empty() {
                    return Err(A::Error::custom(
                        "empty map; expected at least one TLV such as {0xe0: \"kubernetes01\"}",
                    ));
                }
                Ok(Tlvs(tlvs))
            }
        }

        deserializer.deserialize_any(TlvsVisitor)
    }
}
