//! The JSON Schema of the configuration file, generated from the types that read it. It may accept what they reject,
//! never the reverse.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::raw;
use super::text::{OneOrMany, Short, Shorthand, Text, Written};

/// The JSON Schema (draft-07) of a configuration file.
pub(crate) fn schema() -> String {
    let mut settings = SchemaSettings::draft07();
    settings.transforms.insert(0, Box::new(without_null));
    let schema = settings.into_generator().into_root_schema_for::<raw::Config>();
    format!("{:#}\n", schema.as_value())
}

/// schemars lets every optional key be null. We reject an empty key, unless its value is a map whose keys are all
/// optional.
fn without_null(schema: &mut Schema) {
    if schema.get("required").is_none() && schema.get("properties").is_some() {
        schema.insert("type".into(), vec!["object", "null"].into());
    } else if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(only)] = &choices[..] {
            let only = only.clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(only);
        }
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    transform_subschemas(&mut without_null, schema);
}

/// The syntax of a value, as far as a schema can express it.
pub(super) struct ValueSyntax {
    name: &'static str,
    /// A regular expression that matches all accepted text; `None`: text is not accepted. It uses only what all regex
    /// engines have: no look-ahead.
    pattern: Option<&'static str>,
    /// The numbers that are accepted.
    pub(super) numbers: Option<RangeInclusive<u64>>,
}

impl ValueSyntax {
    pub(super) const fn text(name: &'static str, pattern: &'static str) -> Self {
        Self { name, pattern: Some(pattern), numbers: None }
    }

    pub(super) const fn number(name: &'static str, range: RangeInclusive<u64>) -> Self {
        Self { name, pattern: None, numbers: Some(range) }
    }

    pub(super) const fn or_number(self, range: RangeInclusive<u64>) -> Self {
        Self { numbers: Some(range), ..self }
    }
}

impl<T: Written> JsonSchema for Text<T> {
    fn schema_name() -> Cow<'static, str> {
        T::SYNTAX.name.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let ValueSyntax { name: _, pattern, numbers } = T::SYNTAX;
        let mut schema = json_schema!({"description": T::EXPECTED});
        let kind = match (&pattern, &numbers) {
            (_, None) => "string".into(),
            (None, Some(_)) => "integer".into(),
            (Some(_), Some(_)) => Value::from(vec!["string", "integer"]),
        };
        schema.insert("type".into(), kind);
        if let Some(pattern) = pattern {
            schema.insert("pattern".into(), pattern.into());
        }
        if let Some(range) = numbers {
            schema.insert("minimum".into(), (*range.start()).into());
            schema.insert("maximum".into(), (*range.end()).into());
        }
        schema
    }
}

impl<T: Written> JsonSchema for OneOrMany<Text<T>> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrMany", T::SYNTAX.name).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Text<T>>();
        json_schema!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
    }
}

impl<T: Shorthand + JsonSchema> JsonSchema for Short<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrText", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (text, map) = (generator.subschema_for::<Text<T::Scalar>>(), generator.subschema_for::<T>());
        if T::from_list(Vec::new()).is_some() {
            json_schema!({"anyOf": [text, {"type": "array", "items": text, "minItems": 1}, map]})
        } else {
            json_schema!({"anyOf": [text, map]})
        }
    }
}

impl JsonSchema for raw::Tlvs {
    fn schema_name() -> Cow<'static, str> {
        "Tlvs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<Text<super::values::TlvValue>>();
        json_schema!({
            "description": "values of TLVs by number, such as 0xe0",
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^(0x[0-9A-Fa-f]{1,2}|[0-9]{1,3})$": value},
            "additionalProperties": false,
        })
    }
}

impl<T: Shorthand + JsonSchema> JsonSchema for OneOrMany<Short<T>> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrMany", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (text, map) = (generator.subschema_for::<Text<T::Scalar>>(), generator.subschema_for::<T>());
        json_schema!({"anyOf": [text, map, {"type": "array", "items": {"anyOf": [text, map]}, "minItems": 1}]})
    }
}

impl JsonSchema for raw::Listen {
    fn schema_name() -> Cow<'static, str> {
        "Listen".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Text<std::net::SocketAddr>>();
        let many = generator.subschema_for::<Short<raw::Listener>>();
        json_schema!({"anyOf": [one, {"type": "array", "items": many, "minItems": 1}]})
    }
}
