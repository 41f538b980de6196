//! Files with objects, as `kubectl apply` takes them.

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::Kind;
use crate::config::yaml_text;

/// The objects of a file: YAML documents or JSON, and lists of objects in them.
pub(crate) fn objects(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let text = yaml_text(bytes)?;
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|error| error.to_string())?;
        add(&mut objects, value)?;
    }
    Ok(objects)
}

/// Whether the first document of a file is an object, so that it is not a configuration.
pub(crate) fn is_manifest(bytes: &[u8]) -> bool {
    let Ok(text) = yaml_text(bytes) else { return false };
    let mut documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let first = documents.find(|document| !matches!(document, Ok(Value::Null)));
    matches!(first, Some(Ok(document)) if document["apiVersion"].is_string() && document["kind"].is_string())
}

fn add(objects: &mut Vec<Value>, mut value: Value) -> Result<(), String> {
    match &value {
        // An empty document.
        Value::Null => return Ok(()),
        Value::Object(fields) if value["apiVersion"].is_string() && value["kind"].is_string() => {
            let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
            if let (true, Some(Value::Array(items))) = (is_list, fields.get("items")) {
                return items.iter().cloned().try_for_each(|item| add(objects, item));
            }
        }
        _ => return Err("a document that is no object; expected a map with `apiVersion` and `kind`".into()),
    }
    if Kind::of(&value).is_some_and(Kind::is_namespaced)
        && value["metadata"].is_object()
        && value["metadata"]["namespace"].is_null()
    {
        value["metadata"]["namespace"] = json!("default");
    }
    objects.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_read() {
        let text = "# first\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\n\
            items:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n- apiVersion: apps/v1\n  kind: Deployment\n";
        let objects = objects(text.as_bytes()).unwrap();
        let kinds: Vec<Option<Kind>> = objects.iter().map(Kind::of).collect();
        assert_eq!(kinds, [Some(Kind::Service), Some(Kind::Namespace), None]);
        assert_eq!(objects[0]["metadata"]["namespace"], "default");
        assert_eq!(objects[1]["metadata"]["namespace"], Value::Null);
        assert!(is_manifest(text.as_bytes()));
        assert!(is_manifest(br#"{"apiVersion": "v1", "kind": "List", "items": []}"#));
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["listen: 127.0.0.1:0\n", "- apiVersion: v1\n", "apiVersion: 1\nkind: x\n", "kind: Service\n"] {
            assert!(!is_manifest(text.as_bytes()), "{text}");
            assert!(objects(text.as_bytes()).unwrap_err().contains("`apiVersion` and `kind`"), "{text}");
        }
        assert!(objects(b"a: [").is_err());
    }
}
