//! How values written as text or numbers are deserialized: alone, in lists, and in place of a map.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::schema::ValueSyntax;
use crate::text::escape::visible;
use crate::text::pasted;

/// A value written as text or as a number.
pub(super) trait Written: Sized {
    /// What is expected, with an example.
    const EXPECTED: &'static str;

    /// Its syntax in the schema. The range of numbers is also enforced here; the pattern is for editors only.
    const SYNTAX: ValueSyntax;

    /// The error is the reason; empty if there is nothing to add to [`Self::EXPECTED`].
    fn read(text: &str) -> Result<Self, String>;

    /// Reads it; the error is the reason, and what is expected.
    fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|reason| {
            let reason = if reason.is_empty() { reason } else { format!("{reason}; ") };
            format!("{reason}expected {}", Self::EXPECTED)
        })
    }

    /// Called with numbers in the range of [`Self::SYNTAX`] only.
    fn from_number(_: u64) -> Option<Self> {
        None
    }
}

/// Deserializes a [`Written`] value.
#[derive(Clone, Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: Written> TextVisitor<T> {
    fn result<E: Error>(read: Result<T, String>, written: impl fmt::Display) -> Result<Text<T>, E> {
        read.map(Text).map_err(|reason| {
            let reason = if reason.is_empty() { String::new() } else { format!("{reason}; ") };
            E::custom(format_args!("`{written}`: {reason}expected {}", T::EXPECTED))
        })
    }
}

impl<T: Written> Visitor<'_> for TextVisitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Self::result(T::read(text), visible(text))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        if T::SYNTAX.numbers.is_some() {
            Self::result(number_in_range(number), number)
        } else {
            Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &self))
        }
    }
}

pub(super) fn number_in_range<T: Written>(number: u64) -> Result<T, String> {
    let is_within = T::SYNTAX.numbers.is_some_and(|range| range.contains(&number));
    is_within.then(|| T::from_number(number)).flatten().ok_or_else(|| "out of range".into())
}

/// One value, or a list of at least one.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<'de, T: Written> Deserialize<'de> for OneOrMany<Text<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Written> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<Text<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of them", T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        scalar_or_list_hint(text).map(|one| OneOrMany(vec![one]))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        TextVisitor(PhantomData).visit_u64(number).map(|one| OneOrMany(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        at_least_one(sequence, T::EXPECTED)
    }
}

impl<'de, T: Shorthand + Deserialize<'de>> Deserialize<'de> for OneOrMany<Short<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortsVisitor(PhantomData))
    }
}

struct ShortsVisitor<T>(PhantomData<T>);

impl<'de, T: Shorthand + Deserialize<'de>> Visitor<'de> for ShortsVisitor<T> {
    type Value = OneOrMany<Short<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of them", T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        scalar_or_list_hint(text).map(|one| OneOrMany(vec![Short(T::from_text(one.0))]))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|one| OneOrMany(vec![Short(one)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        at_least_one(sequence, T::EXPECTED)
    }
}

fn at_least_one<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    sequence: A,
    expected: &str,
) -> Result<OneOrMany<T>, A::Error> {
    let many = Vec::deserialize(SeqAccessDeserializer::new(sequence))?;
    if many.is_empty() {
        Err(A::Error::custom(format_args!("empty list; expected {expected}")))
    } else {
        Ok(OneOrMany(many))
    }
}

/// Reads one value where a list is allowed, too: several values in one string get a hint to write a list.
pub(super) fn scalar_or_list_hint<T: Written, E: Error>(text: &str) -> Result<Text<T>, E> {
    match pasted::list(text, |part| T::read(part).is_ok()) {
        Some(list) if T::read(text).is_err() => TextVisitor::result(Err(list), visible(text)),
        _ => TextVisitor(PhantomData).visit_str(text),
    }
}

/// A map that can also be written as text.
pub(super) trait Shorthand: Sized {
    /// What is expected, with an example.
    const EXPECTED: &'static str;

    type Scalar: Written;

    fn from_text(text: Self::Scalar) -> Self;

    fn from_list(_: Vec<Text<Self::Scalar>>) -> Option<Self> {
        None
    }
}

/// Deserializes a [`Shorthand`] value.
#[derive(Clone, Debug)]
pub(super) struct Short<T>(pub(super) T);

impl<'de, T: Shorthand + Deserialize<'de>> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

struct ShortVisitor<T>(PhantomData<T>);

impl<'de, T: Shorthand + Deserialize<'de>> Visitor<'de> for ShortVisitor<T> {
    type Value = Short<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let text = if T::from_list(Vec::new()).is_some() {
            scalar_or_list_hint(text)?
        } else {
            TextVisitor(PhantomData).visit_str(text)?
        };
        Ok(Short(T::from_text(text.0)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        let list: OneOrMany<_> = OneOrManyVisitor(PhantomData).visit_seq(sequence)?;
        T::from_list(list.0).map(Short).ok_or_else(|| A::Error::invalid_type(serde::de::Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Short)
    }
}
