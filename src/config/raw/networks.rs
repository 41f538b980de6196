use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::super::text::{Shorthand, Text};
use super::super::values::{FilePath, Network};

/// A network, or a file with networks.
#[derive(Deserialize)]
#[serde(from = "NetworkFile")]
pub(crate) enum NetworkEntry {
    Network(Network),
    File(FilePath),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NetworkFile {
    /// Text file with one network or address per line; `#` starts a comment.
    file: Text<FilePath>,
}

impl From<NetworkFile> for NetworkEntry {
    fn from(NetworkFile { file: Text(path) }: NetworkFile) -> Self {
        Self::File(path)
    }
}

impl JsonSchema for NetworkEntry {
    fn schema_name() -> Cow<'static, str> {
        NetworkFile::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        NetworkFile::json_schema(generator)
    }
}

impl Shorthand for NetworkEntry {
    const EXPECTED: &'static str =
        "a network such as 192.0.2.0/24 or \"2001:db8::/32\", or a single address, or a map with `file`";
    type Scalar = Network;

    fn from_text(network: Network) -> Self {
        Self::Network(network)
    }
}
